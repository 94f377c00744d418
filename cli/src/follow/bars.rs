//! The picture of a build that runs: one bar for the build, a line for each running job.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kiln_sdk::v1::{Event, GetBuildResponse, JobChanged, JobState, event::Change};

use crate::words;

/// More lines than this would push the bar out of a small terminal.
const LINES: usize = 8;
const TICK: Duration = Duration::from_millis(120);

pub(super) struct Bars {
    all: MultiProgress,
    build: ProgressBar,
    running: BTreeMap<String, ProgressBar>,
    states: BTreeMap<String, JobState>,
}

impl Bars {
    pub(super) fn new(answer: &GetBuildResponse) -> Self {
        let all = MultiProgress::new();
        let total = answer.jobs.len() as u64;
        let build = all.add(ProgressBar::new(total));
        build.set_style(style("{bar:32.green/dim} {pos}/{len} jobs  {elapsed}  {msg}"));
        build.enable_steady_tick(TICK);
        // Every event comes again from the first on: the states begin as they were at the submission.
        Self { all, build, running: BTreeMap::new(), states: BTreeMap::new() }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match &event.change {
            Some(Change::Job(change)) => self.job(change),
            Some(Change::BuildChanged(change)) => {
                self.build.set_message(words::build_state(change.state()));
            }
            Some(Change::Submitted(change)) => {
                self.build.set_length(u64::try_from(change.jobs).unwrap_or(0));
            }
            None => {}
        }
    }

    pub(super) fn finish(self) {
        for line in self.running.values() {
            line.finish_and_clear();
        }
        self.build.finish_and_clear();
    }

    fn job(&mut self, change: &JobChanged) {
        self.states.insert(change.job.clone(), change.state());
        let done = |state: &&JobState| {
            matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
        };
        self.build.set_position(self.states.values().filter(done).count() as u64);
        if matches!(change.state(), JobState::Leased | JobState::Running) {
            if self.running.len() < LINES || self.running.contains_key(&change.job) {
                let line = self.running.entry(change.job.clone()).or_insert_with(|| {
                    let line = self.all.add(ProgressBar::new_spinner());
                    line.set_style(style("  {spinner:.cyan} {msg}  {elapsed:.dim}"));
                    line.enable_steady_tick(TICK);
                    line
                });
                line.set_message(format!("{} on {}", change.name, change.agent));
            }
        } else if let Some(line) = self.running.remove(&change.job) {
            line.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that can't be read is a mistake of this file, and the default bar does as well.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
