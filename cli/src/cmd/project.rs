//! `kiln project`: who shares the farm, and how.

use clap::Subcommand;
use kiln_sdk::v1::{
    CreateProjectRequest, GetProjectRequest, ListProjectsRequest, Project, UpdateProjectRequest,
};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    json,
    table::Table,
    time,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a project
    Create {
        name: String,
        /// Share of the farm relative to other projects [default: 100]
        #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1000))]
        weight: Option<i32>,
        /// Jobs that may run at once [default: no limit]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        max_running: Option<i32>,
    },
    /// List all projects
    List,
    /// Show one project
    Show { name: String },
    /// Change a project
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Update {
        name: String,
        /// Share of the farm relative to other projects
        #[arg(long, group = "change", value_parser = clap::value_parser!(i32).range(1..=1000))]
        weight: Option<i32>,
        /// Jobs that may run at once; 0 lifts the limit
        #[arg(long, group = "change", value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
        max_running: Option<i32>,
    },
    /// Lease nothing of a project until it is resumed
    Pause { name: String },
    /// End a pause
    Resume { name: String },
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let update = |name, weight, max_running, paused| {
            client.update_project(UpdateProjectRequest { name, weight, max_running, paused })
        };
        let project = match self.command {
            Command::List => {
                let all = client.list_projects(ListProjectsRequest {}).await?.projects;
                list(cx, &all)?;
                return Ok(ExitStatus::Succeeded);
            }
            Command::Create { name, weight, max_running } => {
                let (weight, max_running) = (weight.unwrap_or(0), max_running.unwrap_or(0));
                let request = CreateProjectRequest { name, weight, max_running };
                client.create_project(request).await?.project
            }
            Command::Show { name } => client.get_project(GetProjectRequest { name }).await?.project,
            Command::Update { name, weight, max_running } => {
                update(name, weight, max_running, None).await?.project
            }
            Command::Pause { name } => update(name, None, None, Some(true)).await?.project,
            Command::Resume { name } => update(name, None, None, Some(false)).await?.project,
        };
        let project = project.unwrap_or_default();
        cx.printer.object(&json::project(&project), &table(&[project]))?;
        Ok(ExitStatus::Succeeded)
    }
}

fn list(cx: &Cx<'_>, all: &[Project]) -> Result<()> {
    if cx.printer.is_json() {
        let projects: Value = all.iter().map(json::project).collect();
        return Ok(cx.printer.json(&json!({ "projects": projects }))?);
    }
    Ok(cx.printer.table(&table(all))?)
}

fn table(projects: &[Project]) -> Table {
    let mut table = Table::new(&["PROJECT", "WEIGHT", "RUNNING", "LIMIT", "PAUSED", "CREATED"]);
    for project in projects {
        let limit = match project.max_running {
            0 => "none".to_owned(),
            limit => limit.to_string(),
        };
        table.row([
            project.name.as_str().into(),
            project.weight.to_string().into(),
            project.running.to_string().into(),
            limit.into(),
            if project.paused { "yes" } else { "no" }.into(),
            time::moment(project.created_ms).into(),
        ]);
    }
    table
}
