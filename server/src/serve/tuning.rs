//! What of the configuration a server takes over while it runs.

use crate::{
    app::App,
    config::{Config, Limits, Retention},
    grpc::auth::Limiter,
    live::Live,
};

/// Reaches whoever uses it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tuning {
    pub(super) app: App,
    pub(super) limiter: Limiter,
    pub(super) limits: Live<Limits>,
    pub(super) retention: Live<Retention>,
}

impl Tuning {
    pub(super) fn new(config: &Config, app: &App) -> Self {
        Self {
            app: app.clone(),
            limiter: Limiter::new(config.limits.clone(), app.clock().clone()),
            limits: config.limits.clone().into(),
            retention: config.retention.clone().into(),
        }
    }

    /// Takes over what of this configuration can change: see [`Config::reloaded`]. It was checked.
    pub fn set(&self, config: &Config) {
        self.app.set_timing(config.timing());
        self.limiter.set(config.limits.clone());
        self.limits.set(config.limits.clone());
        self.retention.set(config.retention.clone());
    }
}
