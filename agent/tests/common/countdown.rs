//! A backend of somebody else's: this file is all of it. It counts down in its log, without a process.

use async_trait::async_trait;
use kiln_agent::{
    backend::{Backend, Failure, Unavailable},
    run::Run,
};
use kiln_core::{agent::Offer, id::LeaseId, session::Assignment};

#[derive(Debug)]
pub struct Countdown;

#[async_trait]
impl Backend for Countdown {
    fn kind(&self) -> &'static str {
        "countdown"
    }

    async fn probe(&self) -> Result<Offer, Unavailable> {
        Ok(Offer { slots: 1, operations: ["script".to_owned()].into(), ..Offer::default() })
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<(), Failure> {
        run.remember("counting").await.map_err(|error| Failure::infra(error.to_string()))?;
        self.adopt(job, run, "counting").await
    }

    async fn adopt(&self, job: &Assignment, run: &Run, _handle: &str) -> Result<(), Failure> {
        let from: u32 = job.spec.script.parse().map_err(|_| Failure::user("not a number"))?;
        for number in (0..from).rev() {
            run.say(&number.to_string())
                .await
                .map_err(|error| Failure::infra(error.to_string()))?;
        }
        Ok(())
    }

    async fn remove(&self, _lease: LeaseId) {}

    async fn sweep(&self, _keep: &[LeaseId]) {}
}
