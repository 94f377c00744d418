//! What logs and blobs add to builds and sessions: a seam, so that neither knows the other.

use std::fmt::Debug;

use async_trait::async_trait;
use kiln_core::{id::LeaseId, session::Report, spec::Violation};

use crate::{app::Result, artifacts::Artifacts, logs::Logs};

/// Lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    /// Of the first of them in the main stream.
    pub offset: u64,
    pub lines: Vec<String>,
}

/// Logs and blobs, as builds and sessions need them.
#[async_trait]
pub trait Files: Debug + Send + Sync {
    /// The lines of a lease's log that matter.
    async fn lines(&self, lease: LeaseId) -> Result<Lines>;

    /// What is wrong with the artifacts of a report, before it is taken.
    async fn check(&self, lease: LeaseId, report: &Report) -> Result<Vec<Violation>>;

    /// Nothing will be added to the log of a lease that has ended.
    async fn log_has_ended(&self, lease: LeaseId) -> Result<bool>;

    /// Removes the logs of these leases.
    async fn forget_logs(&self, leases: &[LeaseId]) -> Result<()>;

    /// Keeps an uploaded source until the submission that names it is stored; `field` is its path there.
    async fn hold(&self, field: &str, sha256: &str, size: u64) -> Result<()>;
}

/// A server without logs and blobs, for tests of what is around them.
#[derive(Debug)]
pub struct NoFiles;

#[async_trait]
impl Files for NoFiles {
    async fn lines(&self, _: LeaseId) -> Result<Lines> {
        Ok(Lines::default())
    }

    async fn check(&self, _: LeaseId, _: &Report) -> Result<Vec<Violation>> {
        Ok(vec![])
    }

    async fn log_has_ended(&self, _: LeaseId) -> Result<bool> {
        Ok(true)
    }

    async fn forget_logs(&self, _: &[LeaseId]) -> Result<()> {
        Ok(())
    }

    async fn hold(&self, _: &str, _: &str, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Logs and blobs as they are stored.
#[derive(Debug, Clone)]
pub struct Stored {
    pub logs: Logs,
    pub artifacts: Artifacts,
}

#[async_trait]
impl Files for Stored {
    async fn lines(&self, lease: LeaseId) -> Result<Lines> {
        let crate::logs::Lines { offset, lines } = self.logs.explain_lines(lease).await?;
        Ok(Lines { offset, lines })
    }

    async fn check(&self, lease: LeaseId, report: &Report) -> Result<Vec<Violation>> {
        Ok(self.artifacts.check_report(lease, &report.artifacts).await?)
    }

    async fn log_has_ended(&self, lease: LeaseId) -> Result<bool> {
        Ok(self.logs.has_ended(lease).await?)
    }

    async fn forget_logs(&self, leases: &[LeaseId]) -> Result<()> {
        for lease in leases {
            self.logs.forget(*lease).await?;
        }
        Ok(())
    }

    async fn hold(&self, field: &str, sha256: &str, size: u64) -> Result<()> {
        use crate::uploads::Error::Invalid;
        match self.artifacts.hold_source(sha256, size).await {
            // It does not know where the source stands in the submission.
            Err(Invalid { message, .. }) => Err(crate::app::Error::invalid(field, message)),
            other => Ok(other?),
        }
    }
}
