//! `kiln migrate`: bring a database to this version's schema, before the servers of that version start.

use kiln_server::store::sql;

use crate::{
    cmd::{
        Cx, Result,
        server::{Configured, Options},
    },
    exit::ExitStatus,
    failure::Failure,
    roles,
    settings::Flags,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let config = Configured::of(self.options.settings(Flags::default())?)?.server.config;
        let failed = |error| roles::failed("the database", &error);
        if !config.is_postgres() {
            let folder = &config.data_dir;
            std::fs::create_dir_all(folder).map_err(|e| Failure::file("make", folder, &e))?;
        }
        let options = sql::Options { connections: 1, ..sql::Options::default() };
        let database = sql::connect(&config.database_url(), &options).await.map_err(failed)?;
        let migrated = database.migrate().await.map_err(failed);
        database.close().await;
        migrated?;
        cx.printer.note("the database is up to date");
        Ok(ExitStatus::Succeeded)
    }
}
