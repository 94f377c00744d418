//! The schema, one file a migration. One text serves both engines; a file that has been released is never changed.
//!
//! Column types mean the same on both: words as text, ids as UUID, structures as JSON in text, moments as epoch
//! milliseconds in BIGINT. No triggers.

mod m20261121_000001_projects;
mod m20261121_000002_builds;
mod m20261121_000003_jobs;
mod m20261121_000004_leases;
mod m20261121_000005_agents;
mod m20261121_000006_tokens;
mod m20261121_000007_logs;
mod m20261121_000008_blobs;
mod m20261121_000010_blob_objects;
mod m20261121_000020_evicted_agents;
mod m20261121_000040_secrets;
mod m20261121_000050_audit;
mod m20261121_000051_token_use;
mod m20261121_000055_token_names;
mod m20261121_000060_certificates;
mod schema;

use sea_orm_migration::{MigrationTrait, MigratorTrait, async_trait::async_trait};

/// All migrations in order.
#[derive(Debug)]
pub struct Migrator;

#[async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_projects::Migration),
            Box::new(m20261121_000002_builds::Migration),
            Box::new(m20261121_000003_jobs::Migration),
            Box::new(m20261121_000004_leases::Migration),
            Box::new(m20261121_000005_agents::Migration),
            Box::new(m20261121_000006_tokens::Migration),
            Box::new(m20261121_000007_logs::Migration),
            Box::new(m20261121_000008_blobs::Migration),
            Box::new(m20261121_000010_blob_objects::Migration),
            Box::new(m20261121_000020_evicted_agents::Migration),
            Box::new(m20261121_000040_secrets::Migration),
            Box::new(m20261121_000050_audit::Migration),
            Box::new(m20261121_000051_token_use::Migration),
            Box::new(m20261121_000055_token_names::Migration),
            Box::new(m20261121_000060_certificates::Migration),
        ]
    }
}
