//! `kiln watch`: follow a build until it is done.

use crate::{
    cmd::{Cx, Result},
    follow, names,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id of the build, its beginning, or "last"
    #[arg(value_name = "BUILD", default_value = "last")]
    build: String,
}

impl Args {
    pub(crate) async fn run(self, cx: &Cx<'_>) -> Result {
        let client = cx.client().await?;
        let build = names::build_id(&client, &self.build).await?;
        follow::build(cx, &client, &build).await
    }
}
