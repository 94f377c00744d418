//! Submissions: from a plan to rows, and many of them into one transaction.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use kiln_core::{
    Millis,
    build::{Counts, Plan, PlannedJob, plan},
    event::{Change, Record},
    id::{BuildId, ClassId, JobId, ProjectId},
    job::{Job, State},
    schedule::Class,
    spec::{JobSpec, Source, is_name},
    trace::ANNOTATION,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    App, BuildView, Error, Result, Submit, commit::Command, secrets::asked, trace, work::Work,
};
use crate::{
    clock::Clock,
    store::{
        self, AuditAct, BuildRow, GroupRow, JobRow, NewJob, ProjectRow, SecretRow, Tx,
        jobs::{Effects, Opening, rebalance},
    },
};

/// The project of those who name none; made on demand.
const DEFAULT_PROJECT: &str = "default";
pub(super) const DEFAULT_WEIGHT: u32 = 100;
/// Bytes of an idempotency key.
const MAX_KEY: usize = 200;

/// A build ready to be inserted; the ids stay the same when its transaction is done again.
#[derive(Debug)]
pub(super) struct NewBuild {
    pub(super) build: BuildRow,
    pub(super) jobs: Vec<NewJob>,
    pub(super) classes: Vec<(ClassId, Class)>,
    pub(super) groups: Vec<GroupRow>,
    pub(super) secrets: Vec<SecretRow>,
}

/// What became of a submission.
#[derive(Debug, Clone)]
pub(super) enum Submitted {
    Created(BuildRow),
    /// The key names a build of the same content.
    Known(BuildRow),
    /// The key names another build.
    Taken(BuildRow),
}

impl App {
    /// Checks a submission without storing it.
    pub async fn check(&self, submit: Submit) -> Result<()> {
        check_key(submit.key.as_deref())?;
        let project = self.named_project(&submit.project).await?;
        let Submit { project: name, spec, secrets, .. } = submit;
        let asked = asked(&spec);
        plan(spec).map_err(Error::Invalid)?;
        self.check_secrets(&asked, &secrets, project, &name).await
    }

    /// Stores a build; `created` is false where the key named one with the same content.
    pub async fn submit(&self, submit: Submit) -> Result<(BuildView, bool)> {
        let (from, caller) = (self.0.clock.now(), trace::caller(&submit));
        let submitted = self.try_submit(submit).await;
        if let Ok((view, true)) = &submitted {
            trace::submitted(caller, &view.build, from, self.0.clock.now());
        }
        self.0.metrics.submitted(match &submitted {
            Ok((_, true)) => "created",
            Ok((_, false)) => "known",
            Err(_) => "refused",
        });
        submitted
    }

    async fn try_submit(&self, submit: Submit) -> Result<(BuildView, bool)> {
        let (new, project) = self.prepare(submit).await?;
        let key = new.build.key.clone().unwrap_or_default();
        let command = Command::Submit(Box::new(new));
        let (build, created) = match self.0.committer.submit(command).await? {
            Submitted::Created(build) => (build, true),
            Submitted::Known(build) => (build, false),
            Submitted::Taken(build) => {
                let message = format!(
                    "key {key:?} was used for another submission ({}); use a new key",
                    build.id
                );
                return Err(Error::Exists { field: "key", message });
            }
        };
        Ok((BuildView { build, project }, created))
    }

    /// A submission as rows, and the name of its project.
    pub(super) async fn prepare(&self, submit: Submit) -> Result<(NewBuild, String)> {
        check_key(submit.key.as_deref())?;
        let digest = digest(&submit)?;
        let (asked, caller) = (asked(&submit.spec), trace::caller(&submit));
        let plan = plan(submit.spec).map_err(Error::Invalid)?;
        let project = self.named_project(&submit.project).await?;
        self.check_secrets(&asked, &submit.secrets, project, &submit.project).await?;
        let project = match project {
            Some(project) => project,
            None => self.make_default_project().await?.id,
        };
        let header = Header { key: submit.key, submitter: submit.submitter, digest };
        let mut new = expand(plan, header, project, &*self.0.clock);
        if let Some(place) = trace::place(caller, &new.build) {
            new.build.annotations.insert(ANNOTATION.to_owned(), place.to_string());
        }
        let BuildRow { id, submitter, .. } = &new.build;
        new.secrets = self.sealed_with_build(project, *id, &submit.secrets, submitter)?;
        Ok((new, submit.project))
    }

    /// The project of this name; the default one is made on demand.
    pub async fn project_or_default(&self, name: &str) -> Result<ProjectRow> {
        match self.named_project(name).await? {
            Some(_) => self.project(name).await,
            None => self.make_default_project().await,
        }
    }

    /// Nothing where the default project is yet to be made.
    async fn named_project(&self, name: &str) -> Result<Option<ProjectId>> {
        match self.project_id(name).await? {
            None if name == DEFAULT_PROJECT => Ok(None),
            None if is_name(name) => Err(Error::not_found("project", name)),
            None => Err(Error::invalid(
                "project",
                "must be the name of a project: 1 to 100 characters of [A-Za-z0-9._-]",
            )),
            found => Ok(found),
        }
    }

    async fn make_default_project(&self) -> Result<ProjectRow> {
        let project = ProjectRow {
            id: ProjectId::from_uuid(self.0.clock.id()),
            name: DEFAULT_PROJECT.to_owned(),
            weight: DEFAULT_WEIGHT,
            max_running: 0,
            paused: false,
            running: 0,
            created_at: self.0.clock.now(),
        };
        match self.write(&MakeProject(&project)).await {
            Ok(()) => Ok(project),
            Err(Error::Store(store::Error::Exists { .. })) => {
                let found = self.0.store.project(DEFAULT_PROJECT).await?;
                found.ok_or(Error::Busy("the default project is being made; try again"))
            }
            Err(error) => Err(error),
        }
    }
}

/// Inserts a project.
pub(super) struct MakeProject<'a>(pub(super) &'a ProjectRow);

#[async_trait]
impl Work for MakeProject<'_> {
    type Output = ();

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<((), Effects)> {
        tx.insert_project(self.0).await?;
        Ok(((), Effects::default()))
    }

    fn act(&self, (): &()) -> Option<AuditAct> {
        let ProjectRow { id, name, weight, max_running, .. } = self.0;
        let detail = format!("weight {weight}, max_running {max_running}");
        Some(AuditAct::new("project.create", id, name).with(detail))
    }
}

fn check_key(key: Option<&str>) -> Result<()> {
    match key {
        Some(key) if key.is_empty() || key.len() > MAX_KEY => {
            Err(Error::invalid("key", "must have 1 to 200 bytes"))
        }
        _ => Ok(()),
    }
}

/// Hexadecimal SHA-256 of the canonical JSON of project, spec and names of secrets: maps are ordered, absent fields have
/// their defaults. Values are left out: a digest of a short one would tell it.
fn digest(submit: &Submit) -> Result<String> {
    let names: Vec<&str> = submit.secrets.iter().map(|secret| secret.name.as_str()).collect();
    let content = (&submit.project, &submit.spec);
    let text = if names.is_empty() {
        serde_json::to_vec(&content)
    } else {
        serde_json::to_vec(&(content, names))
    };
    let text =
        text.map_err(|error| Error::Io { action: "digest the submission", source: error.into() })?;
    Ok(hex(&Sha256::digest(text)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

struct Header {
    key: Option<String>,
    submitter: String,
    digest: String,
}

fn expand(plan: Plan, header: Header, project: ProjectId, clock: &dyn Clock) -> NewBuild {
    let now = clock.now();
    let build = BuildId::from_uuid(clock.id());
    let ids: Vec<JobId> = plan.jobs.iter().map(|_| JobId::from_uuid(clock.id())).collect();
    let title = title(&plan);
    let mut classes: BTreeMap<Class, ClassId> = BTreeMap::new();
    let mut groups: BTreeMap<String, GroupRow> = BTreeMap::new();
    let mut counts = Counts::default();
    let mut jobs = Vec::with_capacity(plan.jobs.len());
    for (index, planned) in plan.jobs.into_iter().enumerate() {
        let class = *classes
            .entry(Class::of(&planned.spec))
            .or_insert_with(|| ClassId::from_uuid(clock.id()));
        let group = planned.spec.concurrency.as_ref().map(|group| {
            let id = group_id(project, &group.name);
            let row = groups.entry(group.name.clone()).or_insert_with(|| GroupRow {
                id,
                project,
                name: group.name.clone(),
                limit: group.limit,
            });
            row.limit = group.limit;
            id
        });
        let place = Place { build, project, index, class, group, now };
        let new = new_job(planned, &ids, place);
        counts.add(new.row.job.status(), new.row.allow_failure);
        jobs.push(new);
    }
    let build = BuildRow {
        id: build,
        project,
        title,
        key: header.key,
        digest: header.digest,
        priority: plan.priority,
        annotations: plan.annotations,
        submitter: header.submitter,
        counts,
        last_event: 1,
        created_at: now,
        finished_at: None,
    };
    NewBuild {
        build,
        jobs,
        classes: classes.into_iter().map(|(class, id)| (id, class)).collect(),
        groups: groups.into_values().collect(),
        secrets: vec![],
    }
}

#[derive(Clone, Copy)]
struct Place {
    build: BuildId,
    project: ProjectId,
    index: usize,
    class: ClassId,
    group: Option<Uuid>,
    now: Millis,
}

fn new_job(planned: PlannedJob, ids: &[JobId], place: Place) -> NewJob {
    let PlannedJob { name, needs, spec } = planned;
    let blocked = !needs.is_empty();
    // No clock that differs or jumps back keeps it waiting.
    let state = if blocked { State::Blocked } else { State::Queued { not_before: 0 } };
    let job = Job {
        id: ids[place.index],
        build: place.build,
        state,
        round: 1,
        attempt: 0,
        attempts: 0,
        returns: 0,
        lease: None,
        answered: None,
        queued_at: place.now,
        queue_timeout_ms: spec.timeouts.queue_ms,
        retry: spec.retry.clone(),
    };
    let row = JobRow {
        job,
        project: place.project,
        index: u32::try_from(place.index).unwrap_or(u32::MAX),
        name,
        backend: spec.backend.clone(),
        class: place.class,
        group: place.group,
        priority: spec.priority,
        allow_failure: spec.allow_failure,
        open_needs: u32::try_from(needs.len()).unwrap_or(u32::MAX),
        claimable: !blocked && place.group.is_none(),
        affinity: affinity(place.project, &spec),
        agent: None,
        returned: None,
        started_at: None,
        finished_at: None,
        version: 0,
    };
    let needs = needs.into_iter().map(|need| (ids[need.job], need.artifacts)).collect();
    NewJob { row, spec, needs }
}

/// The same for each use of the name, so that the group can be locked before it is read.
fn group_id(project: ProjectId, name: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(project.uuid().as_bytes());
    hash.update(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// Jobs of one project, backend, image and source share what an agent keeps warm.
fn affinity(project: ProjectId, spec: &JobSpec) -> String {
    let source = match &spec.source {
        Some(Source::Git { url, .. }) => url.as_str(),
        Some(Source::Archive { .. }) | None => "",
    };
    let image = spec.container.as_ref().map_or("", |container| container.image.as_str());
    let mut hash = Sha256::new();
    for part in [&project.to_string(), &spec.backend, image, source] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize()[..16])
}

fn title(plan: &Plan) -> String {
    if !plan.title.is_empty() {
        return plan.title.clone();
    }
    let text = match plan.jobs.iter().find_map(|job| job.spec.source.as_ref()) {
        Some(Source::Git { url, r#ref, .. }) => {
            let name = url.trim_end_matches('/').rsplit('/').next().unwrap_or(url);
            let name = name.strip_suffix(".git").unwrap_or(name);
            if r#ref.is_empty() { name.to_owned() } else { [name, r#ref].join("@") }
        }
        Some(Source::Archive { .. }) | None => {
            plan.jobs.first().map(|job| job.name.clone()).unwrap_or_default()
        }
    };
    text.chars().take(200).collect()
}

/// What an insert came to.
#[derive(Debug, Default)]
pub(super) struct Inserted {
    pub(super) answers: Vec<Submitted>,
    pub(super) effects: Effects,
    /// Ids that the classes have; to be learned after the commit.
    pub(super) classes: Vec<(ClassId, Class)>,
}

/// Inserts many builds; those whose key is taken are answered with the build that has it. `again`: an earlier commit
/// of the same rows failed, and may yet have been done.
pub(super) async fn insert(
    app: &App,
    tx: &mut dyn Tx,
    news: &[&NewBuild],
    again: bool,
) -> store::Result<Inserted> {
    let mut done: BTreeMap<BuildId, BuildRow> = BTreeMap::new();
    if again {
        let ids: Vec<BuildId> = news.iter().map(|new| new.build.id).collect();
        done.extend(tx.lock_builds(&ids).await?.into_iter().map(|row| (row.id, row)));
    }
    let builds: Vec<BuildRow> = news
        .iter()
        .filter(|new| !done.contains_key(&new.build.id))
        .map(|new| new.build.clone())
        .collect();
    let inserted: BTreeSet<BuildId> = tx.insert_builds(&builds).await?.into_iter().collect();
    let fresh: Vec<&NewBuild> =
        news.iter().copied().filter(|new| inserted.contains(&new.build.id)).collect();
    let known = known(tx, news, &inserted).await?;
    let mut result = Inserted::default();
    if !fresh.is_empty() {
        insert_fresh(app, tx, &fresh, &mut result).await?;
    }
    result.answers = news
        .iter()
        .map(|new| match done.get(&new.build.id) {
            Some(row) => Submitted::Created(row.clone()),
            None => answer(new, &inserted, &known),
        })
        .collect();
    Ok(result)
}

async fn insert_fresh(
    app: &App,
    tx: &mut dyn Tx,
    fresh: &[&NewBuild],
    result: &mut Inserted,
) -> store::Result<()> {
    let (ids, classes) = classes(app, tx, fresh).await?;
    let mut jobs: Vec<NewJob> = fresh.iter().flat_map(|new| new.jobs.iter().cloned()).collect();
    for job in &mut jobs {
        job.row.class = ids.get(&job.row.class).copied().unwrap_or(job.row.class);
    }
    tx.insert_jobs(&jobs).await?;
    let secrets: Vec<SecretRow> =
        fresh.iter().flat_map(|new| new.secrets.iter().cloned()).collect();
    if !secrets.is_empty() {
        tx.insert_secrets(&secrets).await?;
    }
    let records: Vec<Record> = fresh.iter().map(|new| submitted(new)).collect();
    tx.append_events(&records).await?;
    let ready = jobs.iter().filter(|job| job.row.claimable).map(|job| Opening {
        class: job.row.class,
        affinity: job.row.affinity.clone(),
        not_before: 0,
    });
    result.effects.openings.extend(ready);
    result.effects.openings.extend(join_groups(tx, fresh).await?);
    result.classes = classes;
    Ok(())
}

fn answer(
    new: &NewBuild,
    inserted: &BTreeSet<BuildId>,
    known: &BTreeMap<(ProjectId, String), BuildRow>,
) -> Submitted {
    if inserted.contains(&new.build.id) {
        return Submitted::Created(new.build.clone());
    }
    let key = (new.build.project, new.build.key.clone().unwrap_or_default());
    match known.get(&key) {
        // Its own row: an earlier commit was done although its answer was lost.
        Some(row) if row.id == new.build.id => Submitted::Created(row.clone()),
        Some(row) if row.digest == new.build.digest => Submitted::Known(row.clone()),
        Some(row) => Submitted::Taken(row.clone()),
        None => Submitted::Created(new.build.clone()),
    }
}

async fn known(
    tx: &mut dyn Tx,
    news: &[&NewBuild],
    inserted: &BTreeSet<BuildId>,
) -> store::Result<BTreeMap<(ProjectId, String), BuildRow>> {
    let keys: Vec<_> = news
        .iter()
        .filter(|new| !inserted.contains(&new.build.id))
        .filter_map(|new| Some((new.build.project, new.build.key.clone()?)))
        .collect();
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = tx.builds_by_key(&keys).await?.into_iter();
    Ok(rows.filter_map(|row| Some(((row.project, row.key.clone()?), row))).collect())
}

fn submitted(new: &NewBuild) -> Record {
    Record {
        build: new.build.id,
        number: 1,
        at: new.build.created_at,
        change: Change::Submitted { jobs: new.build.counts.total() },
    }
}

/// From the id that a submission chose for a class to the id that the class has, and what was new here.
async fn classes(
    app: &App,
    tx: &mut dyn Tx,
    news: &[&NewBuild],
) -> store::Result<(BTreeMap<ClassId, ClassId>, Vec<(ClassId, Class)>)> {
    let mut ids = BTreeMap::new();
    let mut learned = vec![];
    let mut wanted: BTreeMap<&Class, ClassId> = BTreeMap::new();
    let all = || news.iter().flat_map(|new| &new.classes);
    for (id, class) in all() {
        match app.0.names.class_id(class) {
            Some(known) => {
                ids.insert(*id, known);
            }
            None => {
                wanted.entry(class).or_insert(*id);
            }
        }
    }
    if !wanted.is_empty() {
        let rows: Vec<_> = wanted.iter().map(|(class, id)| (*id, (*class).clone())).collect();
        let stored = tx.ensure_classes(&rows).await?;
        let stored: BTreeMap<&Class, ClassId> =
            wanted.keys().copied().zip(stored.iter().copied()).collect();
        learned.extend(stored.iter().map(|(class, id)| (*id, (*class).clone())));
        for (id, class) in all() {
            if let Some(known) = stored.get(class) {
                ids.insert(*id, *known);
            }
        }
    }
    Ok((ids, learned))
}

/// Makes the groups, and the first of their queued members claimable.
async fn join_groups(tx: &mut dyn Tx, news: &[&NewBuild]) -> store::Result<Vec<Opening>> {
    let mut wanted: BTreeMap<Uuid, GroupRow> = BTreeMap::new();
    let mut joined: BTreeMap<Uuid, u32> = BTreeMap::new();
    for new in news {
        wanted.extend(new.groups.iter().map(|group| (group.id, group.clone())));
        for group in new.jobs.iter().filter_map(|job| job.row.group) {
            *joined.entry(group).or_default() += 1;
        }
    }
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let ids: Vec<Uuid> = wanted.keys().copied().collect();
    let before: BTreeMap<Uuid, u32> =
        tx.lock_groups(&ids).await?.into_iter().map(|group| (group.id, group.limit)).collect();
    let rows: Vec<GroupRow> = wanted.into_values().collect();
    let mut openings = vec![];
    for group in tx.ensure_groups(&rows).await? {
        // With a lower limit than before, more members may be claimable than the new limit has places.
        let more = before.get(&group.id).copied().unwrap_or_default();
        let joined = joined.get(&group.id).copied().unwrap_or_default();
        openings.extend(rebalance(tx, &group, joined.saturating_add(more)).await?);
    }
    Ok(openings)
}
