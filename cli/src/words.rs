//! One word for each state: the same in the database, in JSON and in tables.

use kiln_sdk::v1::{
    AgentState, BuildState, FailureKind, Job, JobState, Outcome, OutcomeState, Role,
};

use crate::{printer::Style, table::Cell};

/// Prost knows the proto's names: `BUILD_STATE_SUCCEEDED` is "succeeded".
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

pub(crate) fn build_state(state: BuildState) -> String {
    word(state.as_str_name(), "BUILD_STATE_")
}

pub(crate) fn job_state(state: JobState) -> String {
    word(state.as_str_name(), "JOB_STATE_")
}

pub(crate) fn outcome_state(state: OutcomeState) -> String {
    word(state.as_str_name(), "OUTCOME_STATE_")
}

pub(crate) fn failure(kind: FailureKind) -> String {
    word(kind.as_str_name(), "FAILURE_KIND_")
}

pub(crate) fn agent_state(state: AgentState) -> String {
    word(state.as_str_name(), "AGENT_STATE_")
}

pub(crate) fn role(role: Role) -> String {
    word(role.as_str_name(), "ROLE_")
}

pub(crate) fn parse_build_state(text: &str) -> Result<BuildState, String> {
    use BuildState::{Cancelled, Failed, Queued, Running, Succeeded};
    let states = [Queued, Running, Succeeded, Failed, Cancelled];
    let found = states.into_iter().find(|state| build_state(*state) == text);
    found.ok_or_else(|| "one of queued, running, succeeded, failed, cancelled".to_owned())
}

pub(crate) const fn is_done(state: BuildState) -> bool {
    matches!(state, BuildState::Succeeded | BuildState::Failed | BuildState::Cancelled)
}

pub(crate) const fn build_style(state: BuildState) -> Style {
    match state {
        BuildState::Succeeded => Style::Green,
        BuildState::Failed => Style::Red,
        BuildState::Cancelled => Style::Yellow,
        BuildState::Running => Style::Cyan,
        BuildState::Queued | BuildState::Unspecified => Style::Plain,
    }
}

pub(crate) const fn job_style(state: JobState) -> Style {
    match state {
        JobState::Succeeded => Style::Green,
        JobState::Failed => Style::Red,
        JobState::Cancelled => Style::Yellow,
        JobState::Running | JobState::Leased => Style::Cyan,
        JobState::Queued | JobState::Blocked | JobState::Unspecified => Style::Plain,
    }
}

pub(crate) fn build_cell(state: BuildState) -> Cell {
    Cell::styled(build_state(state), build_style(state))
}

/// "running, cancelling", "failed (oom)".
pub(crate) fn job_cell(job: &Job) -> Cell {
    let kind = job.outcome.as_ref().map_or(FailureKind::Unspecified, Outcome::failure);
    let word = job_state(job.state());
    let text = match (job.state(), kind) {
        _ if job.cancelling => format!("{word}, cancelling"),
        (JobState::Failed, kind) if kind != FailureKind::Unspecified => {
            format!("{word} ({})", failure(kind))
        }
        _ => word,
    };
    Cell::styled(text, job_style(job.state()))
}

/// "exit code 2", "killed after 10 minutes", or both.
pub(crate) fn outcome(outcome: Option<&Outcome>) -> String {
    let Some(outcome) = outcome else { return String::new() };
    match (outcome.exit_code, outcome.message.as_str()) {
        (Some(0) | None, message) => message.to_owned(),
        (Some(code), "") => format!("exit code {code}"),
        (Some(code), message) if message.contains(&code.to_string()) => message.to_owned(),
        (Some(code), message) => format!("exit code {code}: {message}"),
    }
}
