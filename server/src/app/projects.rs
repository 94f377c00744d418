//! Projects: weight, limit and pause.

use async_trait::async_trait;
use kiln_core::{id::ProjectId, spec::is_name};

use super::{
    App, Error, Result,
    submit::{DEFAULT_WEIGHT, MakeProject},
    work::Work,
};
use crate::store::{self, AuditAct, ProjectRow, Tx, jobs::Effects};

const MAX_WEIGHT: u32 = 10_000;

impl App {
    pub async fn create_project(
        &self,
        name: &str,
        weight: Option<u32>,
        max_running: u32,
    ) -> Result<ProjectRow> {
        if !is_name(name) {
            return Err(Error::invalid(
                "name",
                "must be 1 to 100 characters of [A-Za-z0-9._-], not beginning with a dot or a dash",
            ));
        }
        let project = ProjectRow {
            id: ProjectId::from_uuid(self.0.clock.id()),
            name: name.to_owned(),
            weight: check_weight(weight.unwrap_or(DEFAULT_WEIGHT))?,
            max_running,
            paused: false,
            running: 0,
            created_at: self.0.clock.now(),
        };
        match self.write(&MakeProject(&project)).await {
            Err(Error::Store(store::Error::Exists { .. })) => {
                let message = format!("there is a project {name:?} already; choose another name");
                Err(Error::Exists { field: "name", message })
            }
            other => other.map(|()| project),
        }
    }

    pub async fn project(&self, name: &str) -> Result<ProjectRow> {
        self.0.store.project(name).await?.ok_or_else(|| Error::not_found("project", name))
    }

    pub async fn projects(&self) -> Result<Vec<ProjectRow>> {
        Ok(self.0.store.projects().await?)
    }

    pub async fn update_project(
        &self,
        name: &str,
        weight: Option<u32>,
        max_running: Option<u32>,
        paused: Option<bool>,
    ) -> Result<ProjectRow> {
        let weight = weight.map(check_weight).transpose()?;
        let id = self.project(name).await?.id;
        let row = self.write(&Update { id, name, weight, max_running, paused }).await?;
        // A higher limit or the end of a pause lets jobs go that no event announces.
        self.look_again();
        Ok(row)
    }
}

fn check_weight(weight: u32) -> Result<u32> {
    if (1..=MAX_WEIGHT).contains(&weight) {
        Ok(weight)
    } else {
        Err(Error::invalid("weight", "must be between 1 and 10,000"))
    }
}

struct Update<'a> {
    id: ProjectId,
    name: &'a str,
    weight: Option<u32>,
    max_running: Option<u32>,
    paused: Option<bool>,
}

#[async_trait]
impl Work for Update<'_> {
    type Output = ProjectRow;

    async fn run(&self, _: &App, tx: &mut dyn Tx) -> Result<(ProjectRow, Effects)> {
        let row = tx.lock_projects(&[self.id]).await?.pop();
        let old = row.ok_or_else(|| Error::not_found("project", self.name))?;
        let row = ProjectRow {
            weight: self.weight.unwrap_or(old.weight),
            max_running: self.max_running.unwrap_or(old.max_running),
            paused: self.paused.unwrap_or(old.paused),
            ..old
        };
        tx.save_projects(std::slice::from_ref(&row)).await?;
        Ok((row, Effects::default()))
    }

    fn act(&self, row: &ProjectRow) -> Option<AuditAct> {
        let ProjectRow { weight, max_running, paused, .. } = row;
        let detail = format!("weight {weight}, max_running {max_running}, paused {paused}");
        Some(AuditAct::new("project.update", self.id, self.name).with(detail))
    }
}
