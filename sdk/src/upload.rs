//! Uploads by digest: what the server holds is not sent, and a cut upload goes on where it was.

use std::{io::SeekFrom, path::Path};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::oneshot,
};
use tonic::{Code, Status};

use crate::{
    Client, Error,
    retry::{Backoff, is_resumable},
    v1::{PutArtifactOpen, PutArtifactRequest, put_artifact_request::Frame},
};

/// Below the limit of a message, large enough that the framing costs nothing.
const PIECE: usize = 256 * 1024;

/// What was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Lower-case hexadecimal SHA-256 of the content.
    pub sha256: String,
    pub size: u64,
    /// Bytes that had to be sent; less than the size where the server held some.
    pub sent: u64,
}

impl Client {
    /// Uploads a file as a source for a submission.
    pub async fn upload(&self, path: &Path) -> Result<Uploaded, Error> {
        self.upload_for(path, "").await
    }

    /// Uploads a file as an artifact of a lease, or with an empty lease as a source.
    pub async fn upload_for(&self, path: &Path, lease: &str) -> Result<Uploaded, Error> {
        let (sha256, size) = digest(path).await?;
        let open = PutArtifactOpen {
            sha256: sha256.clone(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            lease: lease.to_owned(),
        };
        let mut backoff = Backoff::new(self.options().resume);
        let mut held = 0;
        let mut first = None;
        loop {
            let before = held;
            let status = match self.put(path, &open, &mut held, &mut first).await {
                Ok(()) => break,
                Err(Attempt::Local(error)) => return Err(error),
                Err(Attempt::Status(status)) if is_resumable(&status) => status,
                Err(Attempt::Status(status)) => return Err(status.into()),
            };
            if held > before {
                backoff.progress();
            }
            if !backoff.wait(Some(&status)).await {
                return Err(status.into());
            }
        }
        let sent = size.saturating_sub(first.unwrap_or(size));
        Ok(Uploaded { sha256, size, sent })
    }

    /// One attempt. `held` is what the server had last said, `first` what it said first.
    async fn put(
        &self,
        path: &Path,
        open: &PutArtifactOpen,
        held: &mut u64,
        first: &mut Option<u64>,
    ) -> Result<(), Attempt> {
        let file = File::open(path).await.map_err(|error| Error::io("read", path, &error))?;
        let (begin, offset) = oneshot::channel();
        let mut service = self.artifact_service();
        let mut answers =
            self.once(service.put_artifact(frames(open.clone(), file, offset))).await?;
        let mut begin = Some(begin);
        while let Some(answer) = answers.message().await? {
            *held = u64::try_from(answer.held).unwrap_or(0);
            first.get_or_insert(*held);
            if answer.stored {
                return Ok(());
            }
            if let Some(begin) = begin.take() {
                // A receiver that is gone shows as the end of the answers.
                let _ = begin.send(*held);
            }
        }
        Err(Status::unavailable("the server ended the upload before it was stored").into())
    }
}

enum Attempt {
    Local(Error),
    Status(Status),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

impl From<Status> for Attempt {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The opening, then the bytes from the offset on that the server's first answer names.
fn frames(
    open: PutArtifactOpen,
    file: File,
    offset: oneshot::Receiver<u64>,
) -> impl Stream<Item = PutArtifactRequest> + Send + 'static {
    let first = stream::once(async { PutArtifactRequest { frame: Some(Frame::Open(open)) } });
    let pieces = stream::once(async move {
        let seeked = match offset.await {
            Ok(offset) => seek(file, offset).await,
            Err(_) => None,
        };
        stream::unfold(seeked, |file| async move {
            let mut file = file?;
            let piece = read_piece(&mut file).await?;
            Some((PutArtifactRequest { frame: Some(Frame::Data(piece)) }, Some(file)))
        })
    });
    first.chain(pieces.flatten())
}

async fn seek(mut file: File, offset: u64) -> Option<File> {
    file.seek(SeekFrom::Start(offset)).await.ok().map(|_| file)
}

/// A file that can't be read on ends the upload: the server then misses bytes and says so.
async fn read_piece(file: &mut File) -> Option<Bytes> {
    let mut piece = BytesMut::with_capacity(PIECE);
    while piece.len() < PIECE {
        match file.read_buf(&mut piece).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a file being uploaded can't be read");
                return None;
            }
        }
    }
    (!piece.is_empty()).then(|| piece.freeze())
}

/// SHA-256 in hexadecimal, and size.
pub(crate) async fn digest(path: &Path) -> Result<(String, u64), Error> {
    let path = path.to_owned();
    let hashing = tokio::task::spawn_blocking(move || {
        let hash = || {
            let mut file = std::fs::File::open(&path)?;
            let mut hasher = Sha256::new();
            let size = std::io::copy(&mut file, &mut hasher)?;
            Ok((hex(&hasher.finalize()), size))
        };
        hash().map_err(|error: std::io::Error| Error::io("read", &path, &error))
    });
    hashing
        .await
        .map_err(|error| Error::local(Code::Internal, format!("hashing stopped: {error}")))?
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let pair = |byte: &u8| {
        [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char]
    };
    bytes.iter().flat_map(pair).collect()
}
