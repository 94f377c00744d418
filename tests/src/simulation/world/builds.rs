//! What users do: they submit, cancel, retry and look.

use kiln_core::{
    outcome::RetryPolicy,
    spec::{BuildSpec, ConcurrencyGroup, JobSpec, Need, Timeouts},
};
use kiln_server::app::Submit;

use super::{World, tell};

impl World {
    pub(super) async fn submit(&mut self) {
        let mut jobs: Vec<JobSpec> = vec![];
        for number in 0..=self.chance.below(4) {
            let needs = jobs.iter().filter(|_| self.chance.percent(40));
            let needs = needs.map(|job| Need { job: job.name.clone(), artifacts: false }).collect();
            jobs.push(JobSpec {
                name: format!("j{number}"),
                backend: "shell".to_owned(),
                script: "true".to_owned(),
                needs,
                allow_failure: self.chance.percent(20),
                retry: RetryPolicy { max_attempts: 2, ..RetryPolicy::default() },
                timeouts: Timeouts { queue_ms: 30 * 24 * 3_600_000, ..Timeouts::default() },
                concurrency: self
                    .chance
                    .percent(20)
                    .then(|| ConcurrencyGroup { name: "deploy".to_owned(), limit: 1 }),
                ..JobSpec::default()
            });
        }
        let spec = BuildSpec {
            title: format!("build {}", self.builds.len()),
            jobs,
            ..BuildSpec::default()
        };
        let submit = Submit {
            project: "default".to_owned(),
            key: None,
            spec,
            submitter: "simulation".to_owned(),
            trace: None,
            secrets: vec![],
        };
        match self.app.submit(submit).await {
            Ok((view, _)) => {
                tell!(self, "submit {} with {} jobs", view.build.id, view.build.counts.total());
                self.builds.push(view.build.id);
            }
            Err(error) => tell!(self, "submit fails: {error}"),
        }
    }

    pub(super) async fn user_acts(&mut self) {
        let Some(build) = self.chance.pick(&self.builds) else { return };
        let line = if self.chance.percent(50) {
            format!(
                "cancel {build}: {:?}",
                self.app.cancel(build, None, "simulated").await.map(|_| ())
            )
        } else {
            format!(
                "retry {build}: {:?}",
                self.app.retry(build, vec![]).await.map(|(_, jobs)| jobs)
            )
        };
        tell!(self, "{line}");
    }

    /// What is not done, in words.
    pub(super) async fn unfinished(&self) -> Result<Vec<String>, String> {
        let mut found = vec![];
        let machines = self.machines.iter().enumerate().filter(|(_, machine)| !machine.retired);
        for (number, machine) in machines {
            found.extend(machine.journal().map(|lease| format!("machine {number} holds {lease}")));
            found.extend(
                machine.processes.keys().map(|lease| format!("machine {number} runs {lease}")),
            );
        }
        for &build in &self.builds {
            let (view, jobs) =
                self.app.build_with_jobs(build).await.map_err(|error| error.to_string())?;
            let open = jobs.iter().filter(|job| !job.job.job.status().is_done());
            found.extend(open.map(|job| format!("{build}: {:?}", job.job)));
            if !view.build.state().is_done() {
                found.push(format!("{build} is {}", view.build.state().as_str()));
            }
        }
        Ok(found)
    }
}
