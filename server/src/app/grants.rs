//! Which values leases are given. A grant names the value by its id when the lease's Assign is first made, so that the
//! agent gets the same one again after any restart, whatever became of the secret since: what is masked in the log must
//! be what the job has. Values themselves are decrypted when a frame is made, and stored nowhere.

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_core::{
    id::{BuildId, LeaseId},
    outcome::{FailureKind, Outcome},
    secret::Secret,
    session::{Assignment, Record, Report},
    spec::JobSpec,
};

use super::{
    App, Error, Result,
    secrets::{cipher, too_large},
    work::Work,
};
use crate::{
    files::Files,
    store::{GrantRow, LeaseRow, SecretRow, Tx, jobs::Effects},
};

/// Rows of one step of a sweep.
const PAGE: u32 = 500;

/// A lease with the values that its job needs.
#[derive(Debug, Clone)]
pub struct Given {
    pub assignment: Assignment,
    pub secrets: Vec<Secret>,
}

impl App {
    /// A lease as it is given to its agent. Where its secrets can't be had the lease has ended, and is not found.
    pub async fn given(&self, lease: LeaseId) -> Result<Given> {
        let row = self.0.store.lease(lease).await?;
        let row = row.ok_or_else(|| Error::not_found("lease", lease))?;
        let assignment = self.assignment(&row).await?;
        let secrets = match self.grant(&row, &assignment.spec).await? {
            Ok(secrets) => secrets,
            Err(outcome) => {
                let report = Report { outcome, artifacts: vec![], log_lengths: BTreeMap::new() };
                self.record(row.session, Record::Finish(lease, report)).await?;
                return Err(Error::not_found("lease", lease));
            }
        };
        self.0.metrics.secrets_delivered(secrets.len());
        Ok(Given { assignment, secrets })
    }

    /// The values of a lease, or how it ends without them.
    async fn grant(
        &self,
        lease: &LeaseRow,
        spec: &JobSpec,
    ) -> Result<Result<Vec<Secret>, Outcome>> {
        if spec.secrets.is_empty() {
            return Ok(Ok(vec![]));
        }
        let rows = self.write(&Grant { lease, names: &spec.secrets }).await?;
        if let Some(name) =
            spec.secrets.iter().find(|name| rows.iter().all(|row| row.name != **name))
        {
            let message =
                format!("secret {name:?} was deleted before the job ran; set it and retry");
            return Ok(Err(Outcome::failed(FailureKind::User, message)));
        }
        if let Some(why) = too_large(rows.iter().map(|row| row.size as usize).sum()) {
            return Ok(Err(Outcome::failed(FailureKind::User, format!("its secrets: {why}"))));
        }
        let opened = rows.iter().map(|row| self.open(row)).collect::<Result<Vec<Secret>>>();
        Ok(opened.map_err(|error| {
            tracing::error!(lease = %lease.id, %error, "a lease can't get its secrets");
            let message = "a secret of the job can't be decrypted; the server's log says more";
            Outcome::failed(FailureKind::Infra, message)
        }))
    }

    fn open(&self, row: &SecretRow) -> Result<Secret> {
        let value = self.keys()?.open(row.owner(), &row.key, &row.sealed);
        let value = value.map_err(|error| cipher("decrypt", error))?;
        Ok(Secret { name: row.name.clone(), value })
    }

    /// The values that leases were given, again. One that can't be decrypted is left out; its agent then keeps the log
    /// back, as it knows the names.
    pub async fn granted(&self, leases: &[LeaseId]) -> Result<BTreeMap<LeaseId, Vec<Secret>>> {
        let mut granted: BTreeMap<LeaseId, Vec<Secret>> = BTreeMap::new();
        for (lease, row) in self.0.store.granted(leases).await? {
            match self.open(&row) {
                Ok(secret) => granted.entry(lease).or_default().push(secret),
                Err(error) => {
                    tracing::error!(%lease, name = row.name, %error, "a lease can't get a secret again");
                }
            }
        }
        self.0.metrics.secrets_delivered(granted.values().map(Vec::len).sum());
        Ok(granted)
    }

    /// Ends the secrets of builds that are done, and forgets what leases were given once nothing of them will come.
    pub async fn sweep_secrets(&self, files: &dyn Files) -> Result<()> {
        let builds = self.0.store.done_builds_with_secrets(PAGE).await?;
        let mut gone = vec![];
        let mut after = None;
        loop {
            let leases = self.0.store.ended_leases_with_secrets(after, PAGE).await?;
            for &lease in &leases {
                if files.log_has_ended(lease).await? {
                    gone.push(lease);
                }
            }
            after = leases.last().copied();
            if leases.len() < PAGE as usize {
                break;
            }
        }
        if builds.is_empty() && gone.is_empty() {
            return Ok(());
        }
        self.write(&Forget { builds: &builds, leases: &gone }).await
    }
}

struct Grant<'a> {
    lease: &'a LeaseRow,
    names: &'a [String],
}

#[async_trait]
impl Work for Grant<'_> {
    type Output = Vec<SecretRow>;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(Vec<SecretRow>, Effects)> {
        let LeaseRow { id, project, build, .. } = *self.lease;
        let before = tx.granted(&[id]).await?;
        if !before.is_empty() {
            return Ok((before.into_iter().map(|(_, row)| row).collect(), Effects::default()));
        }
        let mut found: BTreeMap<String, SecretRow> = BTreeMap::new();
        for row in tx.lock_secrets(project, Some(build), self.names).await? {
            // What was given with the build takes precedence.
            if row.build.is_some() || !found.contains_key(&row.name) {
                found.insert(row.name.clone(), row);
            }
        }
        let rows: Vec<SecretRow> = found.into_values().collect();
        if rows.len() == self.names.len() {
            let grant =
                |row: &SecretRow| GrantRow { lease: id, name: row.name.clone(), secret: row.id };
            tx.insert_grants(&rows.iter().map(grant).collect::<Vec<_>>()).await?;
        }
        Ok((rows, Effects::default()))
    }
}

struct Forget<'a> {
    builds: &'a [BuildId],
    leases: &'a [LeaseId],
}

#[async_trait]
impl Work for Forget<'_> {
    type Output = ();

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        // A retry may have opened one of them again.
        let mut done = tx.lock_builds(self.builds).await?;
        done.retain(|build| build.finished_at.is_some());
        let done: Vec<BuildId> = done.iter().map(|build| build.id).collect();
        tx.end_secrets_of_builds(&done, app.0.clock.now()).await?;
        tx.delete_grants(self.leases).await?;
        tx.delete_ended_secrets().await?;
        Ok(((), Effects::default()))
    }
}
