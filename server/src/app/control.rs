//! Cancel and retry of builds and jobs.

use async_trait::async_trait;
use kiln_core::{
    id::{BuildId, JobId},
    job::{Event, Rejected},
};

use super::{App, BuildView, Error, Result, work::Work};
use crate::store::{
    BuildRow, Tx,
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
        let row = self.write(&Cancel { build, job, reason }).await?;
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
    type Output = BuildRow;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(BuildRow, Effects)> {
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
        Ok((locked(tx, self.build).await?, effects))
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
        locked(tx, self.build).await?;
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
