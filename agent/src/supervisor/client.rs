//! The agent's side of a supervisor: start it, wait for it, ask it to end, clean up after one that died.

use crate::{
    backend::Failure,
    run::Run,
    supervisor::{Exit, Spec, Task},
};

pub(crate) async fn start(_run: &Run, _spec: &Spec) -> Result<(), Failure> {
    Err(Failure::infra("no supervisor yet"))
}

pub(crate) async fn task(_run: &Run) -> Result<Task, Failure> {
    Err(Failure::infra("no supervisor yet"))
}

pub(crate) async fn wait(_run: &Run, _task: &Task) -> Result<Exit, Failure> {
    Err(Failure::infra("no supervisor yet"))
}
