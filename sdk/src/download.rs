//! Downloads: verified by digest, resumed after a cut and after a restart of the program, and never half a file under the
//! wanted name.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::{fs::File, io::AsyncWriteExt};
use tonic::{Code, Status, Streaming};

use crate::{
    Client, Error,
    retry::{Backoff, is_resumable},
    upload::hex,
    v1::{ArtifactRef, GetArtifactRequest, GetArtifactResponse, get_artifact_request::What},
};

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    pub sha256: String,
    pub size: u64,
}

impl Client {
    /// Downloads an artifact of a job to a file.
    pub async fn download(&self, job: &str, name: &str, dest: &Path) -> Result<Downloaded, Error> {
        let artifact = ArtifactRef { job: job.to_owned(), name: name.to_owned() };
        self.fetch(What::Artifact(artifact), dest).await
    }

    /// Downloads a blob by digest to a file. For agents and administrators.
    pub async fn download_blob(&self, sha256: &str, dest: &Path) -> Result<Downloaded, Error> {
        self.fetch(What::Sha256(sha256.to_owned()), dest).await
    }

    async fn fetch(&self, what: What, dest: &Path) -> Result<Downloaded, Error> {
        let mut backoff = Backoff::new(self.options().resume);
        let mut part: Option<Part> = None;
        loop {
            let before = part.as_ref().map_or(0, |part| part.len);
            let status = match self.attempt(&what, dest, &mut part).await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => Status::unavailable("the server ended the download early"),
                Err(Attempt::Local(error)) => return Err(error),
                Err(Attempt::Status(status)) if is_resumable(&status) => status,
                Err(Attempt::Status(status)) => return Err(status.into()),
            };
            if part.as_ref().map_or(0, |part| part.len) > before {
                backoff.progress();
            }
            if !backoff.wait(Some(&status)).await {
                return Err(status.into());
            }
        }
    }

    /// One attempt; nothing where the stream ended before the blob did.
    async fn attempt(
        &self,
        what: &What,
        dest: &Path,
        part: &mut Option<Part>,
    ) -> Result<Option<Downloaded>, Attempt> {
        let offset = part.as_ref().map_or(0, |part| part.len);
        let (mut stream, mut piece) = self.open(what, offset).await?;
        let known = part.as_ref().is_some_and(|part| part.sha256 == piece.sha256);
        if !known {
            let opened = Part::open(dest, &piece).await?;
            let resume = opened.len;
            *part = Some(opened);
            if resume != offset {
                (stream, piece) = self.open(what, resume).await?;
            }
        }
        let Some(part) = part else { return Ok(None) };
        part.write(&piece.data).await?;
        while let Some(piece) = stream.message().await? {
            part.write(&piece.data).await?;
        }
        part.finish(dest).await.map_err(Attempt::Local)
    }

    async fn open(
        &self,
        what: &What,
        offset: u64,
    ) -> Result<(Streaming<GetArtifactResponse>, GetArtifactResponse), Status> {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let request = GetArtifactRequest { what: Some(what.clone()), offset };
        let mut service = self.artifact_service();
        let mut stream = self.once(service.get_artifact(request)).await?;
        match stream.message().await? {
            Some(piece) => Ok((stream, piece)),
            None => Err(Status::unavailable("the server sent nothing")),
        }
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

/// The file as far as it came, next to where it will be.
struct Part {
    path: PathBuf,
    file: File,
    sha256: String,
    size: u64,
    len: u64,
    hasher: Sha256,
}

impl Part {
    /// Opens the part of this very digest, with what an earlier program left of it.
    async fn open(dest: &Path, first: &GetArtifactResponse) -> Result<Self, Error> {
        let valid = first.sha256.len() == 64 && first.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if !valid {
            return Err(Error::local(Code::Internal, "the server named no digest"));
        }
        let name = dest.file_name().unwrap_or_default().to_string_lossy();
        let path = dest.with_file_name(format!(".{name}.{}.part", &first.sha256[..16]));
        let mut options = tokio::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).await;
        let file = file.map_err(|error| Error::io("write", &path, &error))?;
        let size = u64::try_from(first.size).unwrap_or(0);
        let hasher = Sha256::new();
        let mut part = Self { path, file, sha256: first.sha256.clone(), size, len: 0, hasher };
        part.read_back().await?;
        Ok(part)
    }

    async fn read_back(&mut self) -> Result<(), Error> {
        use tokio::io::AsyncReadExt;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = self.file.read(&mut buffer).await;
            let read = read.map_err(|error| Error::io("read", &self.path, &error))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            self.len += read as u64;
        }
        if self.len > self.size {
            self.restart().await?;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), Error> {
        use tokio::io::AsyncSeekExt;
        let emptied = self.file.set_len(0).await;
        emptied.map_err(|error| Error::io("write", &self.path, &error))?;
        let sought = self.file.rewind().await;
        sought.map_err(|error| Error::io("write", &self.path, &error))?;
        (self.len, self.hasher) = (0, Sha256::new());
        Ok(())
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        if self.len + data.len() as u64 > self.size {
            return Err(self.discard("the server sent more than it announced").await);
        }
        let written = self.file.write_all(data).await;
        written.map_err(|error| Error::io("write", &self.path, &error))?;
        self.hasher.update(data);
        self.len += data.len() as u64;
        Ok(())
    }

    /// Moves the whole file to its place; nothing where it is not whole.
    async fn finish(&mut self, dest: &Path) -> Result<Option<Downloaded>, Error> {
        if self.len < self.size {
            return Ok(None);
        }
        let sha256 = hex(&std::mem::take(&mut self.hasher).finalize());
        if sha256 != self.sha256 {
            let text = format!("SHA-256 is {sha256}, the server announced {}", self.sha256);
            return Err(self.discard(&text).await);
        }
        let synced = self.file.sync_all().await;
        synced.map_err(|error| Error::io("write", &self.path, &error))?;
        let moved = tokio::fs::rename(&self.path, dest).await;
        moved.map_err(|error| Error::io("write", dest, &error))?;
        Ok(Some(Downloaded { sha256, size: self.size }))
    }

    async fn discard(&self, why: &str) -> Error {
        // What is left behind is found and checked by the next download.
        let _ = tokio::fs::remove_file(&self.path).await;
        Error::local(Code::DataLoss, format!("the download is damaged: {why}"))
            .with_hint("try again; if it stays damaged, the server's store is")
    }
}
