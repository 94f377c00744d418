//! What logs and artifacts have in common: bytes that come in over a stream, and a store that belongs to a database.

mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod seats;

use std::io;

use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};

pub use error::{Error, Result};
pub use seats::{Seat, Seats};

/// Runs what blocks on a thread for it. It is not interrupted when its caller goes.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::io("finish", "a task", io::Error::other(e))))
}

/// What the object `identity` under this path says; `fresh` is written where it is absent.
pub(crate) async fn object_identity(
    objects: &dyn ObjectStore,
    root: &Path,
    fresh: Option<&str>,
) -> Result<String> {
    let path = root.clone().join("identity");
    let fail = |e| Error::object("read", &path, e);
    if let Some(fresh) = fresh {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match objects.put_opts(&path, fresh.to_owned().into(), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(e) => return Err(fail(e)),
        }
    }
    match objects.get(&path).await {
        Ok(found) => {
            let bytes = found.bytes().await.map_err(fail)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        }
        Err(object_store::Error::NotFound { .. }) => Ok(String::new()),
        Err(e) => Err(fail(e)),
    }
}
