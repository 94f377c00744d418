//! What is older than the policy allows is removed: builds that ended, and records of the audit log. A build goes in one
//! transaction, so that nobody sees a part of it and no retry finds one; its logs go first, so that a crash between
//! leaves nothing that no row names.

use async_trait::async_trait;
use kiln_core::{Millis, id::BuildId};

use super::{App, Result, work::Work};
use crate::{
    config::Retention,
    files::Files,
    store::{Tx, jobs::Effects},
};

/// Builds that are looked up at once.
const PAGE: u32 = 100;
/// Builds that are removed in one round at most; the next one goes on.
const MOST_BUILDS: usize = 2_000;
/// Records of one transaction.
const RECORDS: u32 = 500;

/// How much was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    pub builds: usize,
    pub records: u64,
}

impl App {
    /// Removes what is older than this policy allows.
    pub async fn expire(&self, files: &dyn Files, keep: &Retention) -> Result<Expired> {
        let before = |age: std::time::Duration| {
            let age = Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX);
            self.0.clock.now().saturating_sub(age)
        };
        let mut expired = Expired::default();
        if let Some(age) = keep.builds() {
            expired.builds = self.expire_builds(files, before(age)).await?;
        }
        if let Some(age) = keep.audit() {
            loop {
                let more = self.write(&DeleteAudit(before(age))).await?;
                expired.records += more;
                if more < u64::from(RECORDS) {
                    break;
                }
            }
        }
        if expired != Expired::default() {
            let Expired { builds, records } = expired;
            tracing::info!(builds, records, "what is older than the policy allows was removed");
        }
        Ok(expired)
    }

    async fn expire_builds(&self, files: &dyn Files, before: Millis) -> Result<usize> {
        let mut removed = 0;
        while removed < MOST_BUILDS {
            let builds = self.0.store.ended_builds(before, PAGE).await?;
            let found = builds.len();
            let mut gone = 0;
            for build in builds {
                files.forget_logs(&self.0.store.leases_of_build(build).await?).await?;
                gone += usize::from(self.write(&DeleteBuild { build, before }).await?);
            }
            removed += gone;
            // One that was retried meanwhile stays.
            if found < PAGE as usize || gone == 0 {
                break;
            }
        }
        Ok(removed)
    }
}

struct DeleteBuild {
    build: BuildId,
    before: Millis,
}

#[async_trait]
impl Work for DeleteBuild {
    type Output = bool;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(bool, Effects)> {
        Ok((tx.delete_build(self.build, self.before).await?, Effects::default()))
    }
}

struct DeleteAudit(Millis);

#[async_trait]
impl Work for DeleteAudit {
    type Output = u64;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(u64, Effects)> {
        Ok((tx.delete_audit(self.0, RECORDS).await?, Effects::default()))
    }
}
