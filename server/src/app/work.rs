//! A write that happens seldom: a transaction of its own, done again when another was faster.

use async_trait::async_trait;

use super::{App, Error, Result};
use crate::store::{self, AuditAct, Tx, jobs::Effects};

/// How often a transaction is tried before its caller is told to come back.
const ATTEMPTS: u32 = 20;

/// What one transaction does. It runs again from the start after a conflict.
#[async_trait]
pub(super) trait Work: Sync {
    type Output: Send;

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<(Self::Output, Effects)>;

    /// What the audit log says of it, where it is an administrative act.
    fn act(&self, _: &Self::Output) -> Option<AuditAct> {
        None
    }
}

impl App {
    pub(super) async fn write<W: Work>(&self, work: &W) -> Result<W::Output> {
        for _ in 0..ATTEMPTS {
            let mut tx = self.0.store.begin().await?;
            let (output, effects) = match work.run(self, &mut *tx).await {
                Err(Error::Store(store::Error::Conflict)) => continue,
                other => other?,
            };
            if let Some(act) = work.act(&output) {
                tx.append_audit(&self.record_of(act)).await?;
            }
            match tx.commit().await {
                Err(store::Error::Conflict) => {}
                Err(other) => return Err(other.into()),
                Ok(()) => {
                    self.publish(effects);
                    return Ok(output);
                }
            }
        }
        Err(Error::Busy("others kept changing the same rows; try again"))
    }
}
