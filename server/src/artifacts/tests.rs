use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kiln_core::session::LeasePhase;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{memory::MemoryBlobs, *};
use crate::{
    storage::{self, Objects},
    store::{memory::Memory, sql},
    uploads::fixture::{World, bucket, databases},
};

struct Rig {
    world: World,
    index: Arc<MemoryBlobs>,
    objects: Objects,
    folder: TempDir,
    artifacts: Artifacts,
}

async fn open(
    world: &World,
    index: Arc<dyn BlobIndex>,
    objects: &Objects,
    folder: &TempDir,
) -> Result<Artifacts> {
    let parts = Parts {
        index,
        objects: Arc::clone(&objects.store),
        root: objects.root.clone().join("blobs"),
        folder: folder.path().join("parts"),
        rows: Arc::clone(&world.rows),
        clock: world.clock.clone(),
        max_blob: 64 << 20,
    };
    Artifacts::open(parts).await
}

impl Rig {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = storage::folder(folder.path().join("objects")).unwrap();
        Self::on(objects, folder).await
    }

    /// In a folder, and in a bucket where there is one.
    async fn each() -> Vec<Self> {
        let mut rigs = vec![Self::new().await];
        if let Some(objects) = bucket().await {
            rigs.push(Self::on(objects, tempfile::tempdir().unwrap()).await);
        }
        rigs
    }

    async fn on(objects: Objects, folder: TempDir) -> Self {
        let world = World::new(Arc::new(Memory::default())).await;
        let index = Arc::new(MemoryBlobs::default());
        let artifacts = open(&world, index.clone(), &objects, &folder).await.unwrap();
        Self { world, index, objects, folder, artifacts }
    }

    /// As another replica has it: other parts of uploads, the same rows and objects.
    async fn replica(&self) -> (Artifacts, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let index = Arc::clone(&self.index) as Arc<dyn BlobIndex>;
        (open(&self.world, index, &self.objects, &folder).await.unwrap(), folder)
    }

    /// Objects of blobs, with those that are no blob's.
    async fn stored(&self) -> usize {
        let root = self.objects.root.clone().join("blobs");
        let all = self.objects.store.list(Some(&root)).map(|meta| meta.unwrap().location);
        let all: Vec<_> = all.collect().await;
        all.iter().filter(|path| path.filename() != Some("identity")).count()
    }

    fn agent(&self) -> Uploader {
        Uploader::Agent { agent: self.world.agent, lease: self.world.lease }
    }

    async fn begin(&self, content: &[u8]) -> Result<Upload> {
        self.artifacts.upload(self.agent(), &digest(content), content.len() as u64).await
    }

    async fn put(&self, content: &[u8]) {
        let mut upload = self.begin(content).await.unwrap();
        if !upload.is_stored() {
            upload.append(Bytes::copy_from_slice(content)).await.unwrap();
        }
        assert!(upload.is_stored());
    }

    async fn get(&self, content: &[u8]) -> Result<Vec<u8>> {
        let blob = self.artifacts.blob(&digest(content)).await?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.size {
            let offset = bytes.len() as u64;
            bytes.extend_from_slice(&self.artifacts.read(&blob, offset, 1 << 20).await?);
        }
        Ok(bytes)
    }

    fn parts(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("parts")).unwrap().count()
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn artifact(name: &str, content: &[u8]) -> Artifact {
    let (size, sha256) = (content.len() as u64, digest(content));
    Artifact { name: name.to_owned(), size, sha256, mode: 0o644 }
}

#[tokio::test]
async fn an_upload_goes_on_where_the_last_one_stopped() {
    for rig in Rig::each().await {
        goes_on(rig).await;
    }
}

async fn goes_on(mut rig: Rig) {
    let content = b"the content of a file".as_slice();
    let mut first = rig.begin(content).await.unwrap();
    assert_eq!((first.held(), first.is_stored()), (0, false));
    first.append(Bytes::from_static(b"the content ")).await.unwrap();
    drop(first);
    assert!(rig.artifacts.blob(&digest(content)).await.is_err());
    rig.artifacts = open(&rig.world, rig.index.clone(), &rig.objects, &rig.folder).await.unwrap();
    let mut second = rig.begin(content).await.unwrap();
    assert_eq!(second.held(), 12);
    second.append(Bytes::copy_from_slice(&content[12..])).await.unwrap();
    assert!(second.is_stored());
    assert_eq!((rig.get(content).await.unwrap().as_slice(), rig.parts()), (content, 0));
    let third = rig.begin(content).await.unwrap();
    assert_eq!((third.held(), third.is_stored()), (21, true));
    let error = { third }.append(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "data", .. }), "{error}");
}

#[tokio::test]
async fn an_empty_blob_and_a_large_one_are_stored() {
    for rig in Rig::each().await {
        stores_any_size(rig).await;
    }
}

async fn stores_any_size(rig: Rig) {
    let empty = rig.begin(b"").await.unwrap();
    assert!(empty.is_stored());
    assert_eq!(rig.get(b"").await.unwrap(), b"");
    let large: Vec<u8> = (0..=250).cycle().take((20 << 20) + 7).collect();
    let submitter = Uploader::Submitter("someone".to_owned());
    let mut upload =
        rig.artifacts.upload(submitter, &digest(&large), large.len() as u64).await.unwrap();
    for chunk in large.chunks(1 << 20) {
        upload.append(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert!(rig.get(&large).await.unwrap() == large);
}

#[tokio::test]
async fn wrong_content_is_refused_and_dropped() {
    let rig = Rig::new().await;
    let mut upload = rig.begin(b"right").await.unwrap();
    let error = upload.append(Bytes::from_static(b"wrong")).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "open.sha256", .. }), "{error}");
    assert_eq!(rig.parts(), 0);
    drop(upload);
    let mut upload = rig.begin(b"right").await.unwrap();
    assert_eq!(upload.held(), 0);
    upload.append(Bytes::from_static(b"rig")).await.unwrap();
    let error = upload.append(Bytes::from_static(b"htx")).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "data", .. }), "{error}");
    assert_eq!(rig.parts(), 0);
    drop(upload);
    rig.put(b"right").await;
    let wrong_size = rig.artifacts.upload(rig.agent(), &digest(b"right"), 6).await.unwrap_err();
    assert!(matches!(wrong_size, Error::Invalid { field: "open.size", .. }), "{wrong_size}");
}

#[tokio::test]
async fn limits_and_leases_are_checked_before_anything_is_taken() {
    let rig = Rig::new().await;
    let field = |error: Error| match error {
        Error::Invalid { field, .. } => field,
        other => panic!("{other}"),
    };
    let upload = async |who, sha256: &str, size| {
        rig.artifacts.upload(who, sha256, size).await.map(drop).unwrap_err()
    };
    let (some, large) = (digest(b"some"), Uploader::Submitter("someone".to_owned()));
    assert_eq!(field(upload(rig.agent(), "../../etc/passwd", 4).await), "open.sha256");
    assert_eq!(field(upload(large, &some, (64 << 20) + 1).await), "open.size");
    rig.put(&vec![7; 600_000]).await;
    assert_eq!(field(upload(rig.agent(), &some, 600_000).await), "open.size");
    rig.put(&vec![7; 600_000]).await;
    let stranger = AgentId::from_uuid(uuid::Uuid::nil());
    let stranger = Uploader::Agent { agent: stranger, lease: rig.world.lease };
    assert!(matches!(upload(stranger, &some, 4).await, Error::NotFound { what: "lease", .. }));
    rig.world.end(rig.world.lease, LeasePhase::Void, 0).await;
    assert!(matches!(upload(rig.agent(), &some, 4).await, Error::Stale { .. }));
    assert_eq!(rig.parts(), 0);
}

#[tokio::test]
async fn uploads_of_one_digest_at_once_store_it_once() {
    let rig = Rig::new().await;
    let content: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    let push = async |name: &str| {
        let who = Uploader::Submitter(name.to_owned());
        let mut upload = rig.artifacts.upload(who, &digest(&content), 300_000).await.unwrap();
        while !upload.is_stored() {
            let held = usize::try_from(upload.held()).unwrap();
            let end = (held + 50_000).min(content.len());
            upload.append(Bytes::copy_from_slice(&content[held..end])).await.unwrap();
        }
    };
    tokio::join!(push("a"), push("b"), push("c"));
    assert!(rig.get(&content).await.unwrap() == content);
    assert_eq!(rig.parts(), 0);
    // The same uploader again: the newer waits for the older to leave, then goes on with its part.
    let older = rig.begin(b"other").await.unwrap();
    let mut newer = Box::pin(rig.begin(b"other"));
    while !older.is_replaced() {
        assert!((&mut newer).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let mut older = older;
    older.append(Bytes::from_static(b"oth")).await.unwrap();
    drop(older);
    assert_eq!(newer.await.unwrap().held(), 3);
}

#[tokio::test]
async fn what_is_pinned_or_named_is_never_collected() {
    let rig = Rig::new().await;
    let nearly = Duration::from_secs(3_599);
    rig.put(b"artifact").await;
    rig.put(b"named").await;
    let who = Uploader::Submitter("someone".to_owned());
    let mut source = rig.artifacts.upload(who, &digest(b"source"), 6).await.unwrap();
    source.append(Bytes::from_static(b"source")).await.unwrap();
    rig.index.refer(Digest::parse(&digest(b"named")).unwrap(), true);
    rig.world.wait(nearly);
    assert_eq!(rig.artifacts.collect().await.unwrap(), Collected::default());
    rig.artifacts.hold_source(&digest(b"source"), 6).await.unwrap();
    rig.world.wait(nearly);
    assert_eq!(rig.artifacts.collect().await.unwrap(), Collected::default());
    rig.world.wait(Duration::from_secs(1));
    assert_eq!(rig.artifacts.collect().await.unwrap().bytes, 6, "the source");
    assert!(rig.artifacts.hold_source(&digest(b"source"), 6).await.is_err());
    rig.world.end(rig.world.lease, LeasePhase::Finished, 0).await;
    rig.world.wait(Duration::from_mins(10));
    assert_eq!(rig.artifacts.collect().await.unwrap(), Collected::default());
    rig.world.wait(Duration::from_secs(1));
    let collected = rig.artifacts.collect().await.unwrap();
    assert_eq!((collected.blobs, collected.bytes), (1, 8));
    assert!(matches!(rig.get(b"artifact").await.unwrap_err(), Error::NotFound { .. }));
    assert_eq!(rig.get(b"named").await.unwrap(), b"named");
    rig.index.refer(Digest::parse(&digest(b"named")).unwrap(), false);
    assert_eq!(rig.artifacts.collect().await.unwrap().blobs, 1);
}

#[tokio::test]
async fn one_who_removes_late_removes_nothing_that_was_stored_since() {
    for rig in Rig::each().await {
        let (other, _folder) = rig.replica().await;
        rig.put(b"content").await;
        rig.world.end(rig.world.lease, LeasePhase::Finished, 0).await;
        rig.index.unpin(rig.world.lease).await.unwrap();
        assert_eq!(rig.index.take_unreferenced(Millis::MAX, 0, 9).await.unwrap().len(), 1);
        assert!(rig.artifacts.blob(&digest(b"content")).await.is_err());
        // Both replicas read what is doomed; this one is quicker, and someone stores the same content again.
        let doomed = rig.index.doomed(0, 9).await.unwrap();
        assert_eq!(rig.artifacts.collect().await.unwrap().objects, 1);
        let who = Uploader::Submitter("someone".to_owned());
        let mut again = rig.artifacts.upload(who, &digest(b"content"), 7).await.unwrap();
        again.append(Bytes::from_static(b"content")).await.unwrap();
        other.remove(&doomed).await.unwrap();
        assert_eq!(rig.get(b"content").await.unwrap(), b"content");
        assert_eq!(rig.stored().await, 1);
    }
}

#[tokio::test]
async fn an_upload_that_reaches_another_replica_begins_anew() {
    for rig in Rig::each().await {
        let (other, folder) = rig.replica().await;
        let mut first = rig.begin(b"content").await.unwrap();
        first.append(Bytes::from_static(b"con")).await.unwrap();
        let mut second = other.upload(rig.agent(), &digest(b"content"), 7).await.unwrap();
        assert_eq!(second.held(), 0);
        second.append(Bytes::from_static(b"content")).await.unwrap();
        assert!(second.is_stored());
        // The connection that was thought dead goes on after all: one object is kept.
        first.append(Bytes::from_static(b"tent")).await.unwrap();
        assert!(first.is_stored());
        assert_eq!(rig.get(b"content").await.unwrap(), b"content");
        rig.artifacts.collect().await.unwrap();
        assert_eq!((rig.stored().await, rig.parts()), (1, 0));
        assert_eq!(std::fs::read_dir(folder.path().join("parts")).unwrap().count(), 0);
        // A third finds it stored.
        assert!(other.upload(rig.agent(), &digest(b"content"), 7).await.unwrap().is_stored());
    }
}

#[tokio::test]
async fn an_object_without_a_row_is_removed_a_day_after_the_crash() {
    for rig in Rig::each().await {
        let object = Rig::crash_before_the_row(&rig.artifacts, &*rig.index, &rig.objects).await;
        rig.world.wait(Duration::from_hours(24));
        assert_eq!(rig.artifacts.collect().await.unwrap(), Collected::default());
        assert_eq!(rig.stored().await, 1);
        rig.world.wait(Duration::from_millis(1));
        assert_eq!(rig.artifacts.collect().await.unwrap().objects, 1);
        assert_eq!(rig.stored().await, 0);
        assert_eq!(rig.artifacts.collect().await.unwrap(), Collected::default());
        // One who was so slow that his object is gone is told, and stores another.
        assert!(!rig.index.store(&object, &rig.pin(&object)).await.unwrap());
        assert!(rig.artifacts.blob(object.digest.as_str()).await.is_err());
    }
}

#[tokio::test]
async fn doomed_objects_are_no_blobs_in_a_database() {
    for (database, folder) in databases().await {
        let rig = Rig::new().await;
        let objects = storage::folder(folder.path().join("objects")).unwrap();
        let artifacts = open(&rig.world, Arc::new(database.clone()), &objects, &folder).await;
        let artifacts = artifacts.unwrap();
        let slow = Rig::crash_before_the_row(&artifacts, &database, &objects).await;
        let quick = BlobRow { object: "aa/quick".to_owned(), ..slow.clone() };
        database
            .announce(&quick.object, crate::clock::Clock::now(&*rig.world.clock))
            .await
            .unwrap();
        assert!(database.store(&quick, &rig.pin(&quick)).await.unwrap());
        // The slower one holds the quicker one's blob, and its object is garbage.
        assert!(database.store(&slow, &rig.pin(&slow)).await.unwrap());
        assert_eq!(database.blob(&slow.digest).await.unwrap().unwrap().object, quick.object);
        assert_eq!(database.doomed(0, 9).await.unwrap(), std::slice::from_ref(&slow.object));
        assert!(!database.store(&slow, &rig.pin(&slow)).await.unwrap(), "it is doomed");
        assert_eq!(artifacts.collect().await.unwrap().objects, 1);
        // An announced one is doomed by its age, and then is no blob's any more.
        database.announce("aa/old", 1).await.unwrap();
        assert_eq!(database.doomed(1, 9).await.unwrap(), Vec::<String>::new());
        assert_eq!(database.doomed(2, 9).await.unwrap(), ["aa/old"]);
        database.forget(&["aa/old".to_owned()]).await.unwrap();
        assert_eq!(database.doomed(2, 9).await.unwrap(), Vec::<String>::new());
    }
}

impl Rig {
    fn pin(&self, blob: &BlobRow) -> Pin {
        upload::pin(blob.digest.clone(), blob.size, Holder::Lease(self.world.lease), None)
    }

    /// Writes the object of a blob and goes no further.
    async fn crash_before_the_row(
        artifacts: &Artifacts,
        index: &dyn BlobIndex,
        objects: &Objects,
    ) -> BlobRow {
        let digest = Digest::parse(&digest(b"crash")).unwrap();
        let (object, stored_at) = (format!("aa/{digest}-1"), artifacts.parts.clock.now());
        index.announce(&object, stored_at).await.unwrap();
        objects.store.put(&artifacts.object(&object), "crash".into()).await.unwrap();
        BlobRow { digest, size: 5, object, stored_at }
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named_without_the_credentials() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = storage::bucket(crate::uploads::fixture::s3(&closed), "absent", "a").await;
    let error = error.unwrap_err();
    let said = format!("{error} {error:?}");
    for word in ["storage.url", "\"absent\"", &closed] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("never-shown"), "{said}");
    let Some(Objects { .. }) = bucket().await else { return };
    let endpoint = std::env::var("KILN_TEST_S3").unwrap();
    let (endpoint, _) = endpoint.rsplit_once('/').unwrap();
    let error = storage::bucket(crate::uploads::fixture::s3(endpoint), "absent", "a").await;
    let said = error.unwrap_err().to_string();
    assert!(said.contains("storage.url") && said.contains(endpoint), "{said}");
}

#[tokio::test]
async fn a_report_names_only_what_its_lease_uploaded() {
    let rig = Rig::new().await;
    rig.put(b"mine").await;
    let who = Uploader::Submitter("someone".to_owned());
    let mut other = rig.artifacts.upload(who, &digest(b"other"), 5).await.unwrap();
    other.append(Bytes::from_static(b"other")).await.unwrap();
    let check = async |artifacts: &[Artifact]| {
        let violations = rig.artifacts.check_report(rig.world.lease, artifacts).await.unwrap();
        violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    let wrong_size = Artifact { size: 5, ..artifact("c", b"mine") };
    assert!(check(&[artifact("a", b"mine"), artifact("b", b"mine")]).await.is_empty());
    assert_eq!(
        check(&[artifact("a", b"mine"), artifact("b", b"other"), wrong_size]).await,
        ["artifacts[1].sha256", "artifacts[2].sha256"]
    );
    assert_eq!(check(&[artifact("../a", b"mine")]).await, ["artifacts[0].name"]);
}

#[tokio::test]
async fn artifacts_are_listed_and_found_by_name() {
    let rig = Rig::new().await;
    rig.put(b"mine").await;
    rig.world.leave(artifact("out/a", b"mine")).await;
    let found = rig.artifacts.artifact(rig.world.job, "out/a").await.unwrap();
    assert_eq!(found.artifact.sha256, digest(b"mine"));
    assert!(rig.artifacts.artifact(rig.world.job, "out/b").await.is_err());
    let list = rig.artifacts.list(rig.world.build, None).await.unwrap();
    assert_eq!((list.len(), list[0].1.len()), (1, 1));
    let other = JobId::from_uuid(uuid::Uuid::nil());
    assert!(rig.artifacts.list(rig.world.build, Some(other)).await.is_err());
}

#[tokio::test]
async fn rows_of_artifacts_hold_their_blobs_in_a_database() {
    for (database, folder) in databases().await {
        holds(database, folder).await;
    }
}

async fn holds(database: sql::Sql, folder: TempDir) {
    let world = World::new(Arc::new(database.clone())).await;
    let objects = storage::folder(folder.path().join("objects")).unwrap();
    let artifacts = open(&world, Arc::new(database), &objects, &folder).await.unwrap();
    for content in [b"named".as_slice(), b"loose"] {
        let who = Uploader::Agent { agent: world.agent, lease: world.lease };
        let mut upload = artifacts.upload(who, &digest(content), 5).await.unwrap();
        upload.append(Bytes::copy_from_slice(content)).await.unwrap();
    }
    let report = [artifact("a", b"named"), artifact("b", b"loose")];
    assert_eq!(artifacts.check_report(world.lease, &report).await.unwrap(), []);
    world.wait(Duration::from_hours(2));
    assert_eq!(artifacts.collect().await.unwrap(), Collected::default());
    world.leave(artifact("a", b"named")).await;
    world.end(world.lease, LeasePhase::Finished, 0).await;
    world.wait(Duration::from_hours(1));
    assert_eq!(artifacts.collect().await.unwrap().blobs, 1);
    assert!(artifacts.blob(&digest(b"named")).await.is_ok());
    assert!(artifacts.blob(&digest(b"loose")).await.is_err());
    assert_eq!(artifacts.expire(Duration::ZERO).await.unwrap(), 0, "its build has not ended");
}

#[tokio::test]
async fn blobs_of_another_database_are_refused() {
    let rig = Rig::new().await;
    let other = Arc::new(MemoryBlobs::default());
    other.identity("blobs", Some("other")).await.unwrap();
    let error = open(&rig.world, other, &rig.objects, &rig.folder).await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
}
