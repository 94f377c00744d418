//! Cancel and retry of builds and jobs.

use std::fmt::Write;

use async_trait::async_trait;
use kiln_core::{
    id::{BuildId, JobId},
    job::{Event, Rejected},
};

use super::{App, BuildView, Error, Result, work::Work};
use crate::store::{
    AuditAct, BuildRow, Tx,
    jobs::{Effects, Refused, Retry, Transition, apply, plan_retry},
};

/// Bytes of a reason.
const MAX_REASON: usize = 1_000;

impl App {
    /// Cancels a build or one of its jobs; repeated, it changes nothing.
    pub async fn cancel(
        &self,
        build: BuildId,
        job: Option<JobId>,
        reason: &str,
    ) -> Result<BuildView> {
        if reason.len() > MAX_REASON {
            return Err(Error::invalid("reason", "must have at most 1,000 bytes"));
        }
        let (row, _) = self.write(&Cancel { build, job, reason }).await?;
        Ok(self.view(row).await?)
    }

    /// Opens a new round of the targets (job and the round seen; none: all unsuccessful) and their unsuccessful dependents.
    pub async fn retry(
        &self,
        build: BuildId,
        targets: Vec<(JobId, Option<u32>)>,
    ) -> Result<(BuildView, Vec<JobId>)> {
        let (row, opened) = self.write(&RetryJobs { build, targets }).await?;
        Ok((self.view(row).await?, opened))
    }
}

struct Cancel<'a> {
    build: BuildId,
    job: Option<JobId>,
    reason: &'a str,
}

#[async_trait]
impl Work for Cancel<'_> {
    /// The build, and how many jobs were told to end.
    type Output = (BuildRow, usize);

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<((BuildRow, usize), Effects)> {
        locked(tx, self.build).await?;
        let jobs = match self.job {
            Some(id) => tx.jobs(&[id]).await?,
            None => tx.jobs_of(self.build).await?,
        };
        if let Some(id) = self.job
            && !jobs.iter().any(|row| row.job.build == self.build)
        {
            return Err(Error::not_found("job", id));
        }
        let transitions: Vec<_> = jobs
            .iter()
            .filter(|row| !row.job.status().is_done() && !row.job.cancelling())
            .map(|row| Transition::new(self.build, row.job.id, Event::Cancel).because(self.reason))
            .collect();
        let effects = apply(tx, &transitions, app.0.clock.now()).await?.effects;
        Ok(((locked(tx, self.build).await?, transitions.len()), effects))
    }

    fn act(&self, (_, jobs): &(BuildRow, usize)) -> Option<AuditAct> {
        // Writing to a string can't fail.
        let mut detail = format!("{jobs} jobs");
        if let Some(job) = self.job {
            let _ = write!(detail, ", {job} only");
        }
        if !self.reason.is_empty() {
            let _ = write!(detail, ": {}", self.reason);
        }
        let act = AuditAct::new("build.cancel", self.build, "");
        Some(act.changed(*jobs > 0).with(detail))
    }
}

struct RetryJobs {
    build: BuildId,
    targets: Vec<(JobId, Option<u32>)>,
}

#[async_trait]
impl Work for RetryJobs {
    type Output = (BuildRow, Vec<JobId>);

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<((BuildRow, Vec<JobId>), Effects)> {
        let build = locked(tx, self.build).await?;
        let open = match plan_retry(tx, self.build, &self.targets).await? {
            Retry::Open(open) => open,
            Retry::Missing(job) => return Err(Error::not_found("job", job)),
            Retry::NeedUnsuccessful { target, need } => {
                let message = format!(
                    "job {target:?} needs {need:?}, which did not succeed; retry {need:?} with it"
                );
                return Err(Error::Precondition { code: "NEED_UNSUCCESSFUL", message });
            }
            Retry::Refused { target, why } => return Err(refusal(&target, why)),
        };
        let jobs: Vec<JobId> = open.iter().map(|job| job.job).collect();
        app.check_retry(tx, (self.build, build.project), &jobs).await?;
        let transitions: Vec<_> = open.iter().map(|job| job.transition(self.build)).collect();
        let applied = apply(tx, &transitions, app.0.clock.now()).await?;
        let opened = open
            .iter()
            .zip(&applied.results)
            .filter(|(_, result)| !matches!(result, Err(Refused::Job(_) | Refused::Missing)))
            .map(|(job, _)| job.job)
            .collect();
        Ok(((locked(tx, self.build).await?, opened), applied.effects))
    }

    fn act(&self, (_, opened): &(BuildRow, Vec<JobId>)) -> Option<AuditAct> {
        let act = AuditAct::new("build.retry", self.build, "");
        Some(act.changed(!opened.is_empty()).with(format!("{} jobs", opened.len())))
    }
}

fn refusal(target: &str, why: Rejected) -> Error {
    let (code, hint) = match why {
        Rejected::HasSucceeded => ("HAS_SUCCEEDED", "only unsuccessful jobs are retried"),
        Rejected::OtherRound => ("OTHER_ROUND", "look at the job again"),
        _ => ("NOT_DONE", "wait until it is done, or cancel it first"),
    };
    Error::Precondition { code, message: format!("job {target:?} can't be retried: {why}; {hint}") }
}

async fn locked(tx: &mut dyn Tx, build: BuildId) -> Result<BuildRow> {
    tx.lock_builds(&[build]).await?.pop().ok_or_else(|| Error::not_found("build", build))
}
