//! What an agent said of a lease, on its way into the rows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kiln_core::{
    id::{LeaseId, SessionId},
    outcome::{FailureKind, Outcome},
    session::{Record, Recorded, Report},
};

use crate::{
    app::{self, App, StoreError},
    files::Files,
};

/// Between two tries while the database can't be used.
const RETRY: Duration = Duration::from_secs(1);

/// Records, and tries again for as long as the database can't be used: the agent waits, its job does not.
pub(super) async fn record(
    app: App,
    files: Arc<dyn Files>,
    session: SessionId,
    record: Record,
) -> app::Result<Recorded> {
    let mut record = record;
    loop {
        match attempt(&app, &*files, session, record.clone()).await {
            Err(error) if is_passing(&error) => {
                tracing::warn!(%session, %error, "what an agent said is not recorded yet");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => match refused(&record, &error) {
                Some(instead) => record = instead,
                None => return Err(error),
            },
            done => return done,
        }
    }
}

async fn attempt(
    app: &App,
    files: &dyn Files,
    session: SessionId,
    record: Record,
) -> app::Result<Recorded> {
    if let Record::Finish(lease, report) = &record {
        let violations = files.check(*lease, report).await?;
        if !violations.is_empty() {
            return Err(app::Error::Invalid(violations));
        }
    }
    app.record(session, record).await
}

/// The same call may work later.
fn is_passing(error: &app::Error) -> bool {
    use app::Error::{Busy, Store};
    matches!(error, Busy(_) | Store(StoreError::Database { .. } | StoreError::Conflict))
}

/// A report that can't be taken is a failure of the machinery; else its agent would repeat it for ever.
fn refused(record: &Record, error: &app::Error) -> Option<Record> {
    use app::Error::{Exists, Invalid, NotFound, Precondition};
    let Record::Finish(lease, report) = record else { return None };
    let wrong = matches!(error, Invalid(_) | NotFound { .. } | Precondition { .. } | Exists { .. });
    let logs = report.log_lengths.clone();
    (wrong && !report.artifacts.is_empty())
        .then(|| Record::Finish(*lease, unusable(&error.to_string(), logs)))
}

/// The report that stands in for one that can't be taken.
pub(crate) fn unusable(why: &str, log_lengths: BTreeMap<String, u64>) -> Report {
    let message = format!("the report of the agent could not be taken: {why}");
    Report { outcome: Outcome::failed(FailureKind::Infra, message), artifacts: vec![], log_lengths }
}

pub(super) fn lease_of(record: &Record) -> LeaseId {
    match record {
        Record::Start(lease) | Record::Return(lease, _) | Record::Finish(lease, _) => *lease,
    }
}
