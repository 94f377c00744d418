//! What never changes once it is stored, kept in memory: names by id, classes, and whose a lease is. Bounded; a miss asks the store.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use kiln_core::{
    id::{AgentId, BuildId, ClassId, JobId, LeaseId, ProjectId},
    schedule::Class,
};

use super::{App, Result};
use crate::store::{self, LeaseRow};

/// Entries of one map: far more than a farm has agents, projects or classes.
const CAPACITY: usize = 10_000;

#[derive(Debug)]
struct Cache<K, V>(Mutex<HashMap<K, V>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: K, value: V) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= CAPACITY {
            map.clear();
        }
        map.insert(key, value);
    }
}

#[derive(Debug, Default)]
pub(super) struct Names {
    projects: Cache<ProjectId, String>,
    project_ids: Cache<String, ProjectId>,
    agents: Cache<AgentId, String>,
    classes: Cache<ClassId, Arc<Class>>,
    class_ids: Cache<String, ClassId>,
    holders: Cache<LeaseId, Holder>,
}

/// Whose a lease is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder {
    pub(super) agent: AgentId,
    pub(super) build: BuildId,
    pub(super) job: JobId,
}

impl From<&LeaseRow> for Holder {
    fn from(row: &LeaseRow) -> Self {
        Self { agent: row.agent, build: row.build, job: row.job }
    }
}

impl Names {
    pub(super) fn known_class(&self, id: ClassId) -> Option<Arc<Class>> {
        self.classes.get(&id)
    }

    pub(super) fn class_id(&self, class: &Class) -> Option<ClassId> {
        self.class_ids.get(&text(class))
    }

    /// To be called with committed leases only.
    pub(super) fn learn_lease(&self, row: &LeaseRow) {
        self.holders.put(row.id, row.into());
    }

    /// To be called with committed classes only.
    pub(super) fn learn_class(&self, id: ClassId, class: &Class) {
        self.classes.put(id, Arc::new(class.clone()));
        self.class_ids.put(text(class), id);
    }
}

/// Equal classes have equal texts: its maps are ordered.
fn text(class: &Class) -> String {
    serde_json::to_string(class).unwrap_or_default()
}

impl App {
    pub(super) async fn project_name(&self, id: ProjectId) -> Result<String, store::Error> {
        if let Some(name) = self.0.names.projects.get(&id) {
            return Ok(name);
        }
        let mut found = String::new();
        for row in self.0.store.projects().await? {
            if row.id == id {
                found.clone_from(&row.name);
            }
            self.0.names.projects.put(row.id, row.name);
        }
        Ok(found)
    }

    /// Nothing where there is no project of this name yet.
    pub(super) async fn project_id(&self, name: &str) -> Result<Option<ProjectId>, store::Error> {
        if let Some(id) = self.0.names.project_ids.get(name) {
            return Ok(Some(id));
        }
        let row = self.0.store.project(name).await?;
        Ok(row.map(|row| {
            self.0.names.project_ids.put(row.name, row.id);
            row.id
        }))
    }

    /// Nothing for an agent that was removed.
    pub(super) async fn agent_name(&self, id: AgentId) -> Result<Option<String>, store::Error> {
        if let Some(name) = self.0.names.agents.get(&id) {
            return Ok(Some(name));
        }
        let row = self.0.store.agent(id).await?;
        Ok(row.map(|row| {
            self.0.names.agents.put(id, row.name.clone());
            row.name
        }))
    }

    pub(super) async fn holder(&self, id: LeaseId) -> Result<Option<Holder>, store::Error> {
        if let Some(holder) = self.0.names.holders.get(&id) {
            return Ok(Some(holder));
        }
        Ok(self.0.store.lease(id).await?.as_ref().map(Holder::from))
    }

    pub(super) async fn class(&self, id: ClassId) -> Result<Option<Arc<Class>>, store::Error> {
        if let Some(class) = self.0.names.classes.get(&id) {
            return Ok(Some(class));
        }
        let Some(class) = self.0.store.class(id).await? else { return Ok(None) };
        self.0.names.learn_class(id, &class);
        Ok(Some(Arc::new(class)))
    }
}
