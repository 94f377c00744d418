//! Opens the object store that logs and artifacts share.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use object_store::{
    BackoffConfig, ObjectStore, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut},
    local::LocalFileSystem,
    path::Path,
};

/// How long one request may be tried again. Whoever waits for it, an agent with its log, tries again by himself.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for the question at the start whether the store is there.
const START: Duration = Duration::from_secs(5);

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("storage.url: the folder {} can't be used", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "storage.url: the bucket {bucket:?} at {host} can't be used ({cause}); check its name, AWS_ENDPOINT_URL, AWS_REGION and the credentials in AWS_…"
    )]
    Bucket { bucket: String, host: String, cause: String },
}

/// A store, and where in it everything of ours is.
#[derive(Debug, Clone)]
pub struct Objects {
    pub store: Arc<dyn ObjectStore>,
    pub root: Path,
}

/// A folder, which is made where it is missing. What is said to be stored is on disk.
pub fn folder(folder: PathBuf) -> Result<Objects, Error> {
    let made = std::fs::create_dir_all(&folder)
        .and_then(|()| LocalFileSystem::new_with_prefix(&folder).map_err(io::Error::other));
    match made {
        Ok(store) => Ok(Objects { store: Arc::new(store.with_fsync(true)), root: Path::default() }),
        Err(source) => Err(Error::Folder { folder, source }),
    }
}

/// A bucket, which must be there. `builder` brings endpoint, region and credentials, `AmazonS3Builder::from_env()` for
/// one.
pub async fn bucket(
    builder: AmazonS3Builder,
    bucket: &str,
    prefix: &str,
) -> Result<Objects, Error> {
    crate::crypto::install();
    // The builder's debug text shows the credentials: it goes nowhere.
    let host = host(&builder);
    let fail = |error: object_store::Error| Error::Bucket {
        bucket: bucket.to_owned(),
        host: host.clone(),
        cause: root(&error).to_string().lines().collect::<Vec<_>>().join(" "),
    };
    let open = |patience| client(builder.clone(), bucket, patience);
    let root = Path::from(prefix);
    // A bucket that is not there answers like one without the object; only a list tells.
    let probe = open(START).map_err(fail)?;
    if let Some(Err(error)) = probe.list(Some(&root)).next().await {
        return Err(fail(error));
    }
    Ok(Objects { store: Arc::new(open(PATIENCE).map_err(fail)?), root })
}

fn client(
    builder: AmazonS3Builder,
    bucket: &str,
    patience: Duration,
) -> object_store::Result<AmazonS3> {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    };
    builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig { backoff, max_retries: 10, retry_timeout: patience })
        .build()
}

fn host(builder: &AmazonS3Builder) -> String {
    let value = |key| builder.get_config_value(&key);
    let endpoint =
        value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
    endpoint.unwrap_or_else(|| {
        let region = value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        format!("https://s3.{region}.amazonaws.com")
    })
}

/// The cause at the end of the chain: each error before it repeats all that follow.
fn root(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, root)
}
