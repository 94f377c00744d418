//! `kiln logs`: the log of a job, or of all jobs of a build one after the other.

use futures::TryStreamExt;
use kiln_sdk::{
    Client, LogRequest,
    v1::{Job, LogInfo, ReadLogRequest},
};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
    names,
    printer::Style,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of a job, BUILD/NAME, or a build for all its jobs
    #[arg(value_name = "JOB|BUILD", default_value = "last")]
    job: String,
    /// Go on until the log is complete
    #[arg(short, long)]
    follow: bool,
    /// Stream of the log
    #[arg(long, value_name = "NAME", default_value = "main")]
    stream: String,
    /// First byte
    #[arg(long, value_name = "BYTE", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    offset: i64,
    /// Lease of the attempt [default: the last one]
    #[arg(long, value_name = "LEASE")]
    lease: Option<String>,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let jobs = names::jobs(&client, &self.job).await?;
        if jobs.len() > 1 && (self.offset > 0 || self.lease.is_some()) {
            return Err(Failure::usage(format!("{} has {} jobs", self.job, jobs.len())).hint(
                format!("--offset and --lease go with one job: name it as {}/JOB", self.job),
            ));
        }
        for job in &jobs {
            if jobs.len() > 1 {
                cx.printer
                    .line(cx.printer.out_paint(Style::Bold, &format!("==> {} <==", job.name)))?;
            }
            if self.follow {
                self.follow(cx, &client, job).await?;
            } else {
                self.read(cx, &client, job).await?;
            }
        }
        Ok(ExitStatus::Succeeded)
    }

    async fn follow(&self, cx: &Cx<'_>, client: &Client, job: &Job) -> Result<()> {
        let mut pieces = client.logs(LogRequest {
            job: job.id.clone(),
            lease: self.lease.clone().unwrap_or_default(),
            stream: self.stream.clone(),
            offset: self.offset,
        });
        let mut begun = false;
        while let Some(piece) = pieces.try_next().await? {
            begun |= !piece.data.is_empty();
            cx.printer.bytes(&piece.data)?;
            if piece.truncated {
                cx.printer.warning("the end of the log is missing");
            }
        }
        if begun {
            Ok(())
        } else {
            self.known(client.read_log(self.request(job)).await?.log.as_ref())
        }
    }

    fn request(&self, job: &Job) -> ReadLogRequest {
        ReadLogRequest {
            job: job.id.clone(),
            lease: self.lease.clone().unwrap_or_default(),
            stream: self.stream.clone(),
            offset: self.offset,
            limit: 0,
        }
    }

    /// A job always has its main stream; any other one is there when something was written to it.
    fn known(&self, log: Option<&LogInfo>) -> Result<()> {
        let streams = log.map_or(&[][..], |log| &log.streams);
        if matches!(self.stream.as_str(), "" | "main") || streams.contains(&self.stream) {
            return Ok(());
        }
        let mut known: Vec<_> = streams.iter().map(String::as_str).collect();
        if !known.contains(&"main") {
            known.insert(0, "main");
        }
        Err(Failure::usage(format!("the log has no stream {:?}", self.stream))
            .hint(format!("its streams: {}", known.join(", "))))
    }

    /// What the server holds now. The attempt is named after the first answer: a retry must not mix two logs.
    async fn read(&self, cx: &Cx<'_>, client: &Client, job: &Job) -> Result<()> {
        if job.lease.is_empty() && self.lease.is_none() {
            cx.printer.note(format!(
                "job {} has not begun: `kiln explain {}` says why",
                job.name, job.id
            ));
            return Ok(());
        }
        let mut request = self.request(job);
        loop {
            let answer = client.read_log(request.clone()).await?;
            self.known(answer.log.as_ref())?;
            cx.printer.bytes(&answer.data)?;
            let LogInfo { lease, size, truncated, complete, .. } = answer.log.unwrap_or_default();
            request.offset = answer.offset + i64::try_from(answer.data.len()).unwrap_or(0);
            request.lease = lease;
            if answer.data.is_empty() || request.offset >= size {
                if truncated {
                    cx.printer.warning("the end of the log is missing");
                } else if !complete {
                    cx.printer.note("the log goes on: -f follows it");
                }
                return Ok(());
            }
        }
    }
}
