//! `kiln agents`: the machines of the farm.

use clap::Subcommand;
use kiln_sdk::v1::{
    Agent, AgentState, BackendOffer, DrainAgentRequest, EvictAgentRequest, ListAgentsRequest,
    PauseAgentRequest, ResumeAgentRequest,
};
use serde_json::{Value, json};

use crate::{
    cmd::{Cx, Result},
    exit::ExitStatus,
    failure::Failure,
    json,
    printer::Style,
    table::{Cell, Table},
    time, units, words,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all agents
    List,
    /// Show one agent: its labels, and what each backend offers or why it does not
    Show {
        /// Name of the agent
        agent: String,
    },
    /// Give an agent no new jobs
    Pause {
        /// Name of the agent
        agent: String,
        /// Why; shown in lists and by explain
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        note: String,
        /// Resume by itself after this time, as 1h
        #[arg(long = "for", value_name = "TIME", value_parser = units::duration)]
        duration: Option<i64>,
    },
    /// End a pause or a drain
    Resume {
        /// Name of the agent
        agent: String,
    },
    /// Let an agent finish what it has, then stop
    Drain {
        /// Name of the agent
        agent: String,
    },
    /// Remove an agent: its credential is void, its jobs are lost
    Evict {
        /// Name of the agent
        agent: String,
    },
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let changed = match self.command {
            Command::List => {
                let all = client.list_agents(ListAgentsRequest {}).await?.agents;
                list(cx, &all)?;
                return Ok(ExitStatus::Succeeded);
            }
            Command::Show { agent } => {
                let all = client.list_agents(ListAgentsRequest {}).await?.agents;
                let found = all.into_iter().find(|one| one.name == agent || one.id == agent);
                let found = found.ok_or_else(|| {
                    Failure::usage(format!("agent {agent:?} does not exist"))
                        .hint("`kiln agents list` shows them")
                })?;
                show(cx, &found)?;
                return Ok(ExitStatus::Succeeded);
            }
            Command::Evict { agent } => {
                let leases =
                    client.evict_agent(EvictAgentRequest { agent: agent.clone() }).await?.leases;
                if cx.printer.is_json() {
                    cx.printer.json(&json!({ "agent": agent, "leases": leases }))?;
                } else {
                    let jobs = if leases == 1 { "job" } else { "jobs" };
                    cx.printer.line(format!("agent {agent} removed, {leases} {jobs} lost"))?;
                }
                return Ok(ExitStatus::Succeeded);
            }
            Command::Pause { agent, note, duration } => {
                let duration_ms = duration.unwrap_or(0);
                client.pause_agent(PauseAgentRequest { agent, note, duration_ms }).await?.agent
            }
            Command::Resume { agent } => {
                client.resume_agent(ResumeAgentRequest { agent }).await?.agent
            }
            Command::Drain { agent } => {
                client.drain_agent(DrainAgentRequest { agent }).await?.agent
            }
        };
        let agent = changed.unwrap_or_default();
        cx.printer.object(&json::agent(&agent), &table(&[agent]))?;
        Ok(ExitStatus::Succeeded)
    }
}

fn list(cx: &Cx<'_>, all: &[Agent]) -> Result<()> {
    if cx.printer.is_json() {
        let agents: Value = all.iter().map(json::agent).collect();
        return Ok(cx.printer.json(&json!({ "agents": agents }))?);
    }
    if all.is_empty() {
        cx.printer.note("no agents");
        return Ok(());
    }
    Ok(cx.printer.table(&table(all))?)
}

fn show(cx: &Cx<'_>, agent: &Agent) -> Result<()> {
    if cx.printer.is_json() {
        return Ok(cx.printer.json(&json::agent(agent))?);
    }
    let profile = agent.profile.clone().unwrap_or_default();
    let labels: Vec<String> = profile.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for (name, value) in [
        ("agent", agent.name.clone()),
        ("id", agent.id.clone()),
        ("state", words::agent_state(agent.state())),
        ("note", note(agent)),
        ("host", profile.host.clone()),
        ("machine", machine(agent)),
        ("labels", sorted(labels).join(", ")),
        ("version", profile.version.clone()),
        ("seen", time::ago(agent.seen_ms)),
    ] {
        if !value.is_empty() {
            cx.printer.line(format!("{name:<9}{value}"))?;
        }
    }
    for offer in &profile.backends {
        let told = match offer.unavailable.as_str() {
            "" => format!("×{}  {}", offer.slots, sorted(offer.features.clone()).join(", ")),
            why => format!("unavailable: {why}"),
        };
        cx.printer.line(format!("{:<9}{told}", offer.backend).trim_end())?;
    }
    for lease in &agent.leases {
        cx.printer.line(format!("{:<9}{lease}", "lease"))?;
    }
    Ok(())
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

fn machine(agent: &Agent) -> String {
    let profile = agent.profile.clone().unwrap_or_default();
    let processors = profile.cpu_millis / 1_000;
    format!("{} {processors} cpus {}", profile.arch, units::show_size(profile.memory_bytes))
}

fn table(agents: &[Agent]) -> Table {
    let mut table = Table::new(&["AGENT", "STATE", "JOBS", "BACKENDS", "MACHINE", "SEEN", "NOTE"]);
    for agent in agents {
        let style = match agent.state() {
            AgentState::Online => Style::Green,
            AgentState::Paused | AgentState::Draining => Style::Yellow,
            AgentState::Offline | AgentState::Unspecified => Style::Red,
        };
        let profile = agent.profile.clone().unwrap_or_default();
        let backends: Vec<String> = profile.backends.iter().map(offer).collect();
        table.row([
            agent.name.as_str().into(),
            Cell::styled(words::agent_state(agent.state()), style),
            agent.leases.len().to_string().into(),
            backends.join(", ").into(),
            machine(agent).into(),
            time::ago(agent.seen_ms).into(),
            note(agent).into(),
        ]);
    }
    table
}

fn offer(offer: &BackendOffer) -> String {
    if offer.unavailable.is_empty() {
        format!("{} ×{}", offer.backend, offer.slots)
    } else {
        format!("{} unavailable", offer.backend)
    }
}

fn note(agent: &Agent) -> String {
    match (agent.note.as_str(), agent.resume_ms) {
        (note, 0) => note.to_owned(),
        ("", resume) => format!("resumes {}", time::moment(resume)),
        (note, resume) => format!("{note}; resumes {}", time::moment(resume)),
    }
}
