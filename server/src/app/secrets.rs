//! The secrets of projects and builds: set, listed, deleted, checked at Submit. A value is decrypted for leases only.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kiln_core::{
    Millis,
    id::{BuildId, JobId, ProjectId, SecretId},
    secret::{self, Secret},
    spec::{BuildSpec, Violation},
};

use super::{App, Error, Result, work::Work};
use crate::{
    secrets::{CipherError, Keys, Owner},
    store::{AuditAct, ProjectRow, SecretRow, Tx, jobs::Effects},
};

/// Values that one transaction encrypts anew.
const REENCRYPTED_AT_ONCE: u32 = 100;

impl SecretRow {
    pub(super) fn owner(&self) -> Owner<'_> {
        Owner { id: self.id, project: self.project, build: self.build, name: &self.name }
    }
}

/// Names that jobs ask for, with their index in the submission.
pub(super) type Asked = Vec<(usize, Vec<String>)>;

pub(super) fn asked(spec: &BuildSpec) -> Asked {
    let jobs = spec.jobs.iter().enumerate();
    jobs.filter(|(_, job)| !job.secrets.is_empty())
        .map(|(index, job)| (index, job.secrets.clone()))
        .collect()
}

impl App {
    /// Takes the keys that encrypt secrets, once, before the first call. Says which keys of stored values are not among
    /// them; nothing is taken then.
    pub async fn use_keys(&self, keys: Option<Keys>) -> Result<Vec<String>> {
        let mut unknown = self.0.store.secret_keys().await?;
        unknown.retain(|id| !keys.as_ref().is_some_and(|keys| keys.knows(id)));
        if let (Some(keys), true) = (keys, unknown.is_empty()) {
            let _taken_before = self.0.keys.set(keys);
        }
        Ok(unknown)
    }

    pub(super) fn keys(&self) -> Result<&Keys> {
        self.0.keys.get().ok_or_else(|| Error::Precondition {
            code: "NO_SECRETS_KEY",
            message: "this server has no key for secrets; name a file of keys as key_file in [secrets], or set KILN_SECRETS_KEY, on each server, and start it again".to_owned(),
        })
    }

    /// Sets a secret of a project; says whether there was none of that name.
    pub async fn set_secret(
        &self,
        project: &ProjectRow,
        name: &str,
        value: &[u8],
        by: &str,
    ) -> Result<(SecretRow, bool)> {
        let mut wrong = vec![];
        check_one(&mut wrong, ["name", "value"], name, value);
        if !wrong.is_empty() {
            return Err(Error::Invalid(wrong));
        }
        let row = self.sealed(project.id, None, name, value, by)?;
        let created = self.write(&Set(&row)).await?;
        Ok((row, created))
    }

    /// The secrets of a project by name, without their values.
    pub async fn secrets(&self, project: ProjectId) -> Result<Vec<SecretRow>> {
        Ok(self.0.store.secrets(project).await?)
    }

    pub async fn delete_secret(&self, project: &ProjectRow, name: &str) -> Result<()> {
        self.write(&Delete { project: project.id, name }).await
    }

    /// Encrypts with the first key what another one encrypted; says how many values, and the first key's id.
    pub async fn reencrypt_secrets(&self) -> Result<(u64, String)> {
        let keys = self.keys()?;
        let mut count = self.reencrypt_authorities().await?;
        loop {
            let found =
                self.0.store.secrets_of_other_keys(keys.first(), REENCRYPTED_AT_ONCE).await?;
            if found.is_empty() {
                return Ok((count, keys.first().to_owned()));
            }
            count += self.write(&Reencrypt { keys, found: &found }).await?;
        }
    }

    /// A row of a new value.
    fn sealed(
        &self,
        project: ProjectId,
        build: Option<BuildId>,
        name: &str,
        value: &[u8],
        by: &str,
    ) -> Result<SecretRow> {
        let keys = self.keys()?;
        let mut row = SecretRow {
            id: SecretId::from_uuid(self.0.clock.id()),
            project,
            build,
            name: name.to_owned(),
            size: u32::try_from(value.len()).unwrap_or(u32::MAX),
            key: keys.first().to_owned(),
            sealed: vec![],
            set_at: self.0.clock.now(),
            set_by: by.to_owned(),
            ended_at: None,
        };
        row.sealed = keys.seal(row.owner(), value).map_err(|error| cipher("encrypt", error))?;
        Ok(row)
    }

    /// The rows of the secrets that are given with a build.
    pub(super) fn sealed_with_build(
        &self,
        project: ProjectId,
        build: BuildId,
        given: &[Secret],
        by: &str,
    ) -> Result<Vec<SecretRow>> {
        let rows = given.iter();
        rows.map(|one| self.sealed(project, Some(build), &one.name, &one.value, by)).collect()
    }

    /// What jobs ask for must be there, and what is given must be asked for.
    pub(super) async fn check_secrets(
        &self,
        asked: &Asked,
        given: &[Secret],
        project: Option<ProjectId>,
        project_name: &str,
    ) -> Result<()> {
        if asked.is_empty() && given.is_empty() {
            return Ok(());
        }
        let mut wrong = check_given(asked, given);
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        if let Some(project) = project {
            let rows = self.0.store.secrets(project).await?.into_iter();
            sizes.extend(rows.map(|row| (row.name, row.size as usize)));
        }
        sizes.extend(given.iter().map(|one| (one.name.clone(), one.value.len())));
        for (index, names) in asked {
            let field = format!("spec.jobs[{index}].secrets");
            for (at, name) in
                names.iter().enumerate().filter(|(_, name)| !sizes.contains_key(*name))
            {
                let message = format!(
                    "project {project_name:?} has no secret {name:?}; set it with `kiln secret set {name} --project {project_name}`, or give it with --secret"
                );
                wrong.push(Violation::new(format!("{field}[{at}]"), message));
            }
            let bytes: usize = names.iter().filter_map(|name| sizes.get(name)).sum();
            wrong.extend(too_large(bytes).map(|message| Violation::new(field, message)));
        }
        if !wrong.is_empty() {
            return Err(Error::Invalid(wrong));
        }
        if given.is_empty() { Ok(()) } else { self.keys().map(drop) }
    }

    /// A manual retry needs what the first round had: the secrets that were given with a build go when it is done.
    pub(super) async fn check_retry(
        &self,
        tx: &mut dyn Tx,
        build: (BuildId, ProjectId),
        jobs: &[JobId],
    ) -> Result<()> {
        let specs = self.0.store.specs(jobs).await?;
        let names: BTreeSet<String> =
            specs.into_iter().flat_map(|(_, spec)| spec.secrets).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = names.into_iter().collect();
        let there = tx.lock_secrets(build.1, Some(build.0), &names).await?;
        match names.iter().find(|name| !there.iter().any(|row| row.name == **name)) {
            None => Ok(()),
            Some(name) => Err(Error::Precondition {
                code: "SECRET_GONE",
                message: format!(
                    "secret {name:?} is gone: one that was given with a build is deleted when the build is done; submit the build again, or set the secret in the project"
                ),
            }),
        }
    }
}

/// What is wrong with the values of one job together.
pub(super) fn too_large(bytes: usize) -> Option<String> {
    (bytes > secret::MAX_BYTES_OF_JOB).then(|| {
        format!("the values have {bytes} bytes together, at most {}", secret::MAX_BYTES_OF_JOB)
    })
}

pub(super) fn cipher(action: &'static str, error: CipherError) -> Error {
    let action = if action == "encrypt" { "encrypt a secret" } else { "decrypt a secret" };
    Error::Io { action, source: std::io::Error::other(error) }
}

fn check_one(wrong: &mut Vec<Violation>, fields: [&str; 2], name: &str, value: &[u8]) {
    if !secret::is_secret_name(name) {
        let message = "must be like TOKEN: [A-Z_][A-Z0-9_]*, at most 128 characters";
        wrong.push(Violation::new(fields[0], message));
    }
    wrong.extend(secret::value_fault(value).map(|fault| Violation::new(fields[1], fault)));
}

fn check_given(asked: &Asked, given: &[Secret]) -> Vec<Violation> {
    if given.len() > secret::MAX_OF_BUILD {
        return vec![Violation::new("secrets", "at most 32")];
    }
    let mut wrong = vec![];
    for (index, one) in given.iter().enumerate() {
        let [name, value] = ["name", "value"].map(|field| format!("secrets[{index}].{field}"));
        check_one(&mut wrong, [&name, &value], &one.name, &one.value);
        if given[..index].iter().any(|other| other.name == one.name) {
            wrong.push(Violation::new(&name, "is given twice"));
        }
        if !asked.iter().any(|(_, names)| names.contains(&one.name)) {
            wrong
                .push(Violation::new(&name, "no job asks for it; name it in the secrets of a job"));
        }
    }
    wrong
}

struct Set<'a>(&'a SecretRow);

#[async_trait]
impl Work for Set<'_> {
    type Output = bool;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(bool, Effects)> {
        // Who sets a secret of the project at the same time waits here.
        tx.lock_projects(&[self.0.project]).await?;
        let names = [self.0.name.clone()];
        let old = tx.lock_secrets(self.0.project, None, &names).await?;
        if old.is_empty()
            && tx.count_secrets(self.0.project).await? >= secret::MAX_OF_PROJECT as u64
        {
            let message = format!(
                "the project has {} secrets, which is the most; delete one that is not needed",
                secret::MAX_OF_PROJECT
            );
            return Err(Error::Precondition { code: "TOO_MANY_SECRETS", message });
        }
        end(tx, &old, self.0.set_at).await?;
        tx.insert_secrets(std::slice::from_ref(self.0)).await?;
        Ok((old.is_empty(), Effects::default()))
    }

    fn act(&self, _: &bool) -> Option<AuditAct> {
        Some(AuditAct::new("secret.set", self.0.project, &self.0.name))
    }
}

/// Values that no lease was given are gone at once.
async fn end(tx: &mut dyn Tx, rows: &[SecretRow], at: Millis) -> Result<()> {
    if !rows.is_empty() {
        let ids: Vec<SecretId> = rows.iter().map(|row| row.id).collect();
        tx.end_secrets(&ids, at).await?;
        tx.delete_ended_secrets().await?;
    }
    Ok(())
}

struct Delete<'a> {
    project: ProjectId,
    name: &'a str,
}

#[async_trait]
impl Work for Delete<'_> {
    type Output = ();

    async fn run(&self, app: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        let rows = tx.lock_secrets(self.project, None, &[self.name.to_owned()]).await?;
        if rows.is_empty() {
            return Err(Error::not_found("secret", self.name));
        }
        end(tx, &rows, app.0.clock.now()).await?;
        Ok(((), Effects::default()))
    }

    fn act(&self, (): &()) -> Option<AuditAct> {
        Some(AuditAct::new("secret.delete", self.project, self.name))
    }
}

struct Reencrypt<'a> {
    keys: &'a Keys,
    found: &'a [SecretRow],
}

#[async_trait]
impl Work for Reencrypt<'_> {
    type Output = u64;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(u64, Effects)> {
        let mut rows = vec![];
        for row in self.found {
            let value = self.keys.open(row.owner(), &row.key, &row.sealed);
            let value = Secret {
                name: row.name.clone(),
                value: value.map_err(|error| cipher("decrypt", error))?,
            };
            let sealed = self.keys.seal(row.owner(), &value.value);
            let sealed = sealed.map_err(|error| cipher("encrypt", error))?;
            let key = self.keys.first().to_owned();
            rows.push(SecretRow { key, sealed, ..row.clone() });
        }
        tx.save_sealed(&rows).await?;
        Ok((rows.len() as u64, Effects::default()))
    }

    fn act(&self, count: &u64) -> Option<AuditAct> {
        let act = AuditAct::new("secret.reencrypt", self.keys.first(), "");
        Some(act.with(format!("{count} values")))
    }
}
