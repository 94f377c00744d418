//! One upload of one blob.

use std::fmt;

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStoreExt, path::Path};

use super::{
    Artifacts, Digest,
    index::{BlobRow, Holder, Pin},
    part::Part,
};
use crate::uploads::{Error, Result, Seat, blocking};

/// Bytes that are given to the object store at once.
const BLOCK: u64 = 8 << 20;

/// A part file: the same digest from two uploaders is two files, as each must prove that it has the content.
pub(super) type PartKey = (Digest, String);

/// An upload. Dropped before it is stored, its part stays for the next attempt.
pub struct Upload {
    artifacts: Artifacts,
    pin: Pin,
    part: Option<Part>,
    seat: Option<Seat<PartKey>>,
}

impl Artifacts {
    /// Pins the blob where it is stored already.
    async fn pin_stored(&self, pin: &Pin) -> Result<bool> {
        match self.parts.index.blob(&pin.digest).await? {
            None => Ok(false),
            Some(blob) if blob.size != pin.size => {
                let message = format!("the blob with this digest has {} bytes", blob.size);
                Err(Error::invalid("open.size", message))
            }
            Some(_) => Ok(self.parts.index.pin(pin).await?),
        }
    }

    pub(super) async fn begin(&self, pin: Pin, uploader: String) -> Result<Upload> {
        let mut upload = Upload { artifacts: self.clone(), pin, part: None, seat: None };
        if self.pin_stored(&upload.pin).await? {
            return Ok(upload);
        }
        let key = (upload.pin.digest.clone(), uploader);
        upload.seat = Some(self.seats.take(&key).await.ok_or(Error::Replaced)?);
        let path = self.parts.folder.join(format!("{}.{}", key.0, key.1));
        let size = upload.pin.size;
        let part = blocking(move || Part::open(path, size)).await?;
        upload.part = Some(part);
        upload.store_whole().await?;
        Ok(upload)
    }
}

impl Upload {
    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.part.as_ref().map_or(self.pin.size, |part| part.length)
    }

    /// It is stored and pinned.
    pub fn is_stored(&self) -> bool {
        self.part.is_none()
    }

    /// A newer upload of the same blob wants to go on: this one has to go.
    pub fn is_replaced(&self) -> bool {
        self.seat.as_ref().is_some_and(Seat::is_replaced)
    }

    /// Returns when that happens.
    pub async fn replaced(&self) {
        match &self.seat {
            Some(seat) => seat.replaced().await,
            None => std::future::pending().await,
        }
    }

    /// Adds bytes. With the last of them the blob is verified and stored; a wrong one is dropped.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let Some(mut part) = self.part.take() else {
            return Err(Error::invalid("data", "the blob is stored already; send no more"));
        };
        if part.length + bytes.len() as u64 > self.pin.size {
            let message = format!("more than the {} bytes that were announced", self.pin.size);
            blocking(move || part.remove()).await?;
            return Err(Error::invalid("data", message));
        }
        let part = blocking(move || part.append(&bytes).map(|()| part)).await?;
        self.part = Some(part);
        self.store_whole().await
    }

    /// Stores the blob where all its bytes are there.
    async fn store_whole(&mut self) -> Result<()> {
        let Some(part) = self.part.take_if(|part| part.length == self.pin.size) else {
            return Ok(());
        };
        if part.digest() != self.pin.digest.as_str() {
            let message = format!("the content has the digest {}; upload it again", part.digest());
            blocking(move || part.remove()).await?;
            return Err(Error::invalid("open.sha256", message));
        }
        let part = self.store(part).await?;
        blocking(move || part.remove()).await?;
        self.seat = None;
        Ok(())
    }

    async fn store(&self, mut part: Part) -> Result<Part> {
        let super::Parts { index, clock, .. } = &self.artifacts.parts;
        // Another upload of the same content may have been quicker.
        while !self.artifacts.pin_stored(&self.pin).await? {
            let object = self.fresh_object();
            index.announce(&object, clock.now()).await?;
            part = self.put(&self.artifacts.object(&object), part).await?;
            let (digest, size) = (self.pin.digest.clone(), self.pin.size);
            let blob = BlobRow { digest, size, object, stored_at: clock.now() };
            if index.store(&blob, &self.pin).await? {
                break;
            }
        }
        Ok(part)
    }

    /// The first two digits spread the blobs over 256 folders; the last part is of this upload alone.
    fn fresh_object(&self) -> String {
        let digest = self.pin.digest.as_str();
        format!("{}/{digest}-{}", &digest[..2], self.artifacts.parts.clock.id().simple())
    }

    async fn put(&self, path: &Path, part: Part) -> Result<Part> {
        let objects = &self.artifacts.parts.objects;
        let fail = |e| Error::object("write", path, e);
        if self.pin.size <= BLOCK {
            let (part, bytes) = block(part, 0).await?;
            objects.put(path, bytes.into()).await.map_err(fail)?;
            return Ok(part);
        }
        let mut upload = objects.put_multipart(path).await.map_err(fail)?;
        match self.put_blocks(part, upload.as_mut()).await {
            Ok(part) => {
                upload.complete().await.map_err(fail)?;
                Ok(part)
            }
            Err(error) => {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%path, %error, "an upload to the object store was not aborted");
                }
                Err(error)
            }
        }
    }

    async fn put_blocks(&self, mut part: Part, upload: &mut dyn MultipartUpload) -> Result<Part> {
        let mut offset = 0;
        while offset < self.pin.size {
            let (next, bytes) = block(part, offset).await?;
            part = next;
            offset += bytes.len() as u64;
            let put = upload.put_part(bytes.into()).await;
            put.map_err(|e| Error::object("write", self.pin.digest.as_str(), e))?;
        }
        Ok(part)
    }
}

async fn block(mut part: Part, offset: u64) -> Result<(Part, Bytes)> {
    blocking(move || part.read(offset, BLOCK).map(|bytes| (part, bytes))).await
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// The pin that an upload leaves.
pub(super) fn pin(digest: Digest, size: u64, holder: Holder, expires_at: Option<i64>) -> Pin {
    Pin { digest, holder, size, expires_at }
}
