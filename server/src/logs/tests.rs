//! One suite for both stores, on rows in memory, in SQLite and in Postgres; objects are in memory or in an S3.

mod following;

use std::{
    collections::BTreeSet,
    future::Future,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::FutureExt;
use object_store::{ObjectStoreExt, memory::InMemory};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{fs::FsStore, memory::MemoryIndex, object::ObjectLogs, *};
use crate::{
    storage::Objects,
    store::{memory::Memory, sql},
    uploads::fixture::{World, bucket, databases},
};

/// Logs of one world, which can be opened again as after a crash.
struct Rig {
    world: World,
    index: Arc<dyn LogIndex>,
    objects: Option<Objects>,
    folder: TempDir,
    tasks: TaskTracker,
    logs: Logs,
}

impl Rig {
    async fn new(objects: Option<Objects>) -> Self {
        let world = World::new(Arc::new(Memory::default())).await;
        let folder = tempfile::tempdir().unwrap();
        Self::on(world, Arc::new(MemoryIndex::default()), objects, folder).await
    }

    async fn on_database(
        (database, folder): (sql::Sql, TempDir),
        objects: Option<Objects>,
    ) -> Self {
        let world = World::new(Arc::new(database.clone())).await;
        Self::on(world, Arc::new(database), objects, folder).await
    }

    async fn on(
        world: World,
        index: Arc<dyn LogIndex>,
        objects: Option<Objects>,
        folder: TempDir,
    ) -> Self {
        let tasks = TaskTracker::new();
        let store = open(&index, objects.as_ref(), folder.path()).await.unwrap();
        let logs = start(&world, &index, store, &tasks);
        Self { world, index, objects, folder, tasks, logs }
    }

    /// As another process would see it.
    async fn reopen(&mut self) {
        let store = open(&self.index, self.objects.as_ref(), self.folder.path()).await.unwrap();
        self.logs = start(&self.world, &self.index, store, &self.tasks);
    }

    async fn writer(&self) -> Result<Writer> {
        self.logs.writer(self.world.agent, self.world.lease, MAIN).await
    }

    async fn append(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writer().await?.append(offset, &[Bytes::copy_from_slice(bytes)]).await
    }

    async fn info(&self) -> Info {
        let lease = self.logs.lease_of(self.world.job, Some(self.world.lease)).await.unwrap();
        self.logs.info(&lease.unwrap(), MAIN).await.unwrap()
    }

    async fn read(&self, offset: u64, limit: usize) -> Vec<u8> {
        self.logs.read(&self.info().await, offset, limit).await.unwrap().to_vec()
    }

    async fn whole(&self) -> Vec<u8> {
        let info = self.info().await;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < info.size {
            let more = self.logs.read(&info, bytes.len() as u64, MAX_READ).await.unwrap();
            assert!(!more.is_empty());
            bytes.extend_from_slice(&more);
        }
        bytes
    }

    async fn segments(&self) -> Vec<index::Segment> {
        self.index.segments(&self.info().await.key, 0, 1_000_000).await.unwrap()
    }

    fn raw(&self) -> PathBuf {
        let lease = self.world.lease.uuid().simple().to_string();
        self.folder.path().join(&lease[30..]).join(&lease).join("main.log")
    }
}

async fn open(
    index: &Arc<dyn LogIndex>,
    objects: Option<&Objects>,
    folder: &Path,
) -> Result<Arc<dyn LogStore>> {
    let index = Arc::clone(index);
    Ok(match objects {
        Some(Objects { store, root }) => {
            let root = root.clone().join("logs");
            Arc::new(ObjectLogs::open(Arc::clone(store), root, index, "one").await?)
        }
        None => Arc::new(FsStore::open(folder.to_owned(), index, "one").await?),
    })
}

fn start(
    world: &World,
    index: &Arc<dyn LogIndex>,
    store: Arc<dyn LogStore>,
    tasks: &TaskTracker,
) -> Logs {
    let parts = Parts {
        index: Arc::clone(index),
        store,
        rows: Arc::clone(&world.rows),
        wake: world.wake.clone(),
        clock: world.clock.clone(),
        look: Duration::from_secs(3),
    };
    Logs::start(parts, tasks, CancellationToken::new())
}

fn in_memory() -> Objects {
    Objects { store: Arc::new(InMemory::new()), root: object_store::path::Path::default() }
}

/// Files, objects in memory, and a bucket where there is one.
async fn stores() -> Vec<Option<Objects>> {
    let bucket = bucket().await;
    [None, Some(in_memory())].into_iter().chain(bucket.map(Some)).collect()
}

async fn on_each<F: Future<Output = ()>>(test: impl Fn(Rig) -> F) {
    for objects in stores().await {
        test(Rig::new(objects).await).await;
    }
    for objects in [false, true] {
        for database in databases().await {
            test(Rig::on_database(database, objects.then(in_memory)).await).await;
        }
    }
}

/// Text that does not compress to nothing.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (state >> 24) as u8 % 26
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn what_is_held_is_skipped_and_a_gap_is_refused() {
    on_each(async |rig: Rig| {
        rig.append(0, b"hello ").await.unwrap();
        rig.append(3, b"lo world").await.unwrap();
        rig.append(0, b"hello").await.unwrap();
        let gap = rig.append(12, b"!").await.unwrap_err();
        assert!(matches!(gap, Error::Gap { wanted: 11, offset: 12 }), "{gap}");
        assert_eq!(rig.whole().await, b"hello world");
        assert_eq!(rig.read(6, 3).await, b"wor");
        let writer = rig.writer().await.unwrap();
        assert_eq!((writer.durable(), writer.crc()), (11, crc32fast::hash(b"hello world")));
    })
    .await;
}

#[tokio::test]
async fn only_the_agent_of_the_lease_writes_and_names_are_checked() {
    on_each(async |rig: Rig| {
        let stranger = AgentId::from_uuid(uuid::Uuid::nil());
        let error = rig.logs.writer(stranger, rig.world.lease, MAIN).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { what: "lease", .. }), "{error}");
        for stream in ["../main", "", "a/b", ".hidden", &"a".repeat(101)] {
            let error =
                rig.logs.writer(rig.world.agent, rig.world.lease, stream).await.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "open.stream", .. }), "{error}");
        }
        for n in 0..MAX_STREAMS {
            rig.logs.writer(rig.world.agent, rig.world.lease, &format!("s{n}")).await.unwrap();
        }
        rig.logs.writer(rig.world.agent, rig.world.lease, "one-more").await.unwrap_err();
        rig.logs.writer(rig.world.agent, rig.world.lease, "s3").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn bytes_without_a_row_do_not_exist_after_a_crash() {
    let mut rig = Rig::new(None).await;
    rig.append(0, b"one\n").await.unwrap();
    let file = std::fs::File::options().write(true).open(rig.raw()).unwrap();
    file.write_all_at(b"lost in the crash\n", 4).unwrap();
    rig.reopen().await;
    assert_eq!(rig.whole().await, b"one\n");
    assert_eq!(rig.writer().await.unwrap().crc(), crc32fast::hash(b"one\n"));
    rig.append(4, b"two\n").await.unwrap();
    assert_eq!(rig.whole().await, b"one\ntwo\n");
}

#[tokio::test]
async fn a_file_that_is_less_than_its_index_is_an_error() {
    let mut rig = Rig::new(None).await;
    rig.append(0, b"one\ntwo\n").await.unwrap();
    let file = std::fs::File::options().write(true).open(rig.raw()).unwrap();
    file.write_all_at(b"x", 5).unwrap();
    rig.reopen().await;
    let error = rig.writer().await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    file.set_len(5).unwrap();
    assert!(matches!(rig.writer().await.unwrap_err(), Error::Corrupt { .. }));
    std::fs::remove_file(rig.raw()).unwrap();
    assert!(rig.writer().await.is_err(), "a lost file must not be made anew");
}

#[tokio::test]
async fn a_store_of_another_database_is_refused() {
    for objects in stores().await {
        let rig = Rig::new(objects).await;
        let other: Arc<dyn LogIndex> = Arc::new(MemoryIndex::default());
        other.identity("logs", Some("two")).await.unwrap();
        let error = open(&other, rig.objects.as_ref(), rig.folder.path()).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        let empty = tempfile::tempdir().unwrap();
        let objects = rig.objects.as_ref().map(|_| in_memory());
        let error = open(&rig.index, objects.as_ref(), empty.path()).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        open(&rig.index, rig.objects.as_ref(), rig.folder.path()).await.unwrap();
    }
}

#[tokio::test]
async fn a_finished_log_is_sealed_and_reads_the_same() {
    on_each(async |rig: Rig| {
        let bytes = noise(3 * frames::FRAME + 12_345);
        let mut writer = rig.writer().await.unwrap();
        for (at, chunk) in bytes.chunks(100_000).enumerate() {
            writer.append(at as u64 * 100_000, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
        }
        let size = bytes.len() as u64;
        assert!(matches!(writer.finish(size + 1).await.unwrap_err(), Error::Gap { .. }));
        assert!(matches!(writer.finish(size - 1).await.unwrap_err(), Error::Invalid { .. }));
        writer.finish(size).await.unwrap();
        writer.finish(size).await.unwrap();
        let again = writer.append(size, &[Bytes::from_static(b"x")]).await.unwrap_err();
        assert!(matches!(again, Error::Sealed { .. }), "{again}");
        writer
            .append(size - 1, &[Bytes::copy_from_slice(&bytes[bytes.len() - 1..])])
            .await
            .unwrap();
        drop(writer);
        let old = rig.info().await;
        let swept = rig.logs.sweep().await.unwrap();
        assert_eq!(swept, Swept { closed: 0, packed: 1, failed: 0 });
        assert_eq!(rig.logs.sweep().await.unwrap(), Swept::default());
        assert!(!rig.raw().exists());
        assert!(rig.writer().await.unwrap().is_sealed());
        let info = rig.info().await;
        assert!(info.complete && !info.truncated);
        assert_eq!(rig.whole().await, bytes);
        // Who read the row before the sealing still finds the bytes.
        for (offset, limit) in [(0, 5), (frames::FRAME - 2, 4), (bytes.len() - 3, 100)] {
            let want = &bytes[offset..(offset + limit).min(bytes.len())];
            assert_eq!(rig.logs.read(&old, offset as u64, limit).await.unwrap(), want);
            assert_eq!(rig.read(offset as u64, limit).await, want);
        }
    })
    .await;
}

#[tokio::test]
async fn the_length_of_the_report_completes_a_log() {
    on_each(async |rig: Rig| {
        rig.append(0, b"abc").await.unwrap();
        rig.world.end(rig.world.lease, LeasePhase::Finished, 5).await;
        assert!(!rig.info().await.complete);
        assert_eq!(rig.logs.sweep().await.unwrap(), Swept::default());
        let mut writer = rig.writer().await.unwrap();
        let error = writer.finish(3).await.unwrap_err();
        assert!(error.to_string().contains("said 5 bytes"), "{error}");
        writer.append(3, &[Bytes::from_static(b"de")]).await.unwrap();
        let info = rig.info().await;
        assert!(info.complete && !info.truncated);
        assert_eq!(rig.logs.sweep().await.unwrap(), Swept { closed: 1, packed: 1, failed: 0 });
        assert_eq!(rig.whole().await, b"abcde");
    })
    .await;
}

#[tokio::test]
async fn the_log_of_a_lost_lease_stays_writable_for_an_hour() {
    on_each(async |rig: Rig| {
        rig.append(0, b"abc").await.unwrap();
        rig.world.end(rig.world.lease, LeasePhase::Void, 0).await;
        rig.world.wait(LATE);
        assert_eq!(rig.logs.sweep().await.unwrap(), Swept::default());
        rig.append(3, b"late").await.unwrap();
        rig.world.wait(Duration::from_millis(1));
        assert!(rig.info().await.truncated);
        assert_eq!(rig.logs.sweep().await.unwrap(), Swept { closed: 1, packed: 1, failed: 0 });
        assert!(matches!(rig.append(7, b"x").await.unwrap_err(), Error::Sealed { size: 7 }));
        let info = rig.info().await;
        assert!(info.complete && info.truncated);
        assert_eq!(rig.whole().await, b"abclate");
        // A stream that never began can't begin now.
        let error = rig.logs.writer(rig.world.agent, rig.world.lease, "other").await.unwrap_err();
        assert!(matches!(error, Error::Sealed { size: 0 }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_chatty_log_leaves_few_rows() {
    on_each(async |rig: Rig| {
        let mut writer = rig.writer().await.unwrap();
        for line in 0..300 {
            writer.append(line * 8, &[Bytes::from_static(b"7 bytes\n")]).await.unwrap();
        }
        let rows = rig.segments().await;
        assert!(rows.len() <= 40, "{} rows", rows.len());
        assert_eq!(rows.iter().map(|row| row.length).sum::<u64>(), 2400);
        assert_eq!(rig.whole().await, b"7 bytes\n".repeat(300));
    })
    .await;
}

#[tokio::test]
async fn full_segments_are_objects_and_orphans_are_collected() {
    for objects in stores().await.into_iter().flatten() {
        leaves_full_segments(Rig::new(Some(objects)).await).await;
    }
}

async fn leaves_full_segments(rig: Rig) {
    let bytes = noise(2_500_000);
    let mut writer = rig.writer().await.unwrap();
    for (at, chunk) in bytes.chunks(300_000).enumerate() {
        writer.append(at as u64 * 300_000, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
    }
    let in_rows = |rows: &[index::Segment]| -> usize {
        rows.iter().filter_map(|row| row.data.as_ref()).map(Bytes::len).sum()
    };
    assert!(in_rows(&rig.segments().await) < 1 << 20);
    let Objects { store, root } = rig.objects.clone().unwrap();
    let lease = rig.world.lease.uuid().simple();
    let orphan = root.join("logs").join(lease.to_string()).join("main");
    let orphan = orphan.join(format!("{:016}-7-0", 9));
    store.put(&orphan, "crashed".into()).await.unwrap();
    writer.finish(bytes.len() as u64).await.unwrap();
    rig.logs.sweep().await.unwrap();
    assert_eq!(in_rows(&rig.segments().await), 0);
    assert!(store.head(&orphan).await.is_err());
    assert_eq!(rig.whole().await, bytes);
}

#[tokio::test]
async fn a_line_of_ten_megabytes_and_any_bytes_are_kept() {
    on_each(async |rig: Rig| {
        let mut bytes = vec![b'x'; 10 << 20];
        bytes.extend_from_slice(b"\x1b[31mred\x1b[0m \0 \xff\xfe\x80 end");
        let mut writer = rig.writer().await.unwrap();
        for (at, chunk) in bytes.chunks(1 << 20).enumerate() {
            writer.append((at << 20) as u64, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
        }
        assert_eq!(writer.crc(), crc32fast::hash(&bytes));
        assert!(rig.whole().await == bytes);
        let lines = rig.logs.explain_lines(rig.world.lease).await.unwrap();
        assert!(lines.lines.is_empty(), "the end of a long line is no line");
    })
    .await;
}

#[tokio::test]
async fn a_newer_writer_takes_the_place_of_an_older_one() {
    on_each(async |rig: Rig| {
        let older = rig.writer().await.unwrap();
        let mut newer = Box::pin(rig.writer());
        while !older.is_replaced() {
            assert!((&mut newer).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        drop(older);
        newer.await.unwrap().append(0, &[Bytes::from_static(b"x")]).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn two_replicas_append_the_same_log_once() {
    for objects in stores().await.into_iter().flatten() {
        is_appended_by_two(Rig::new(Some(objects)).await).await;
    }
}

async fn is_appended_by_two(rig: Rig) {
    let store = open(&rig.index, rig.objects.as_ref(), rig.folder.path()).await.unwrap();
    let other = start(&rig.world, &rig.index, store, &rig.tasks);
    let bytes = noise(1_500_000);
    let push = async |logs: &Logs, step: usize| {
        let mut writer = logs.writer(rig.world.agent, rig.world.lease, MAIN).await.unwrap();
        for (at, chunk) in bytes.chunks(step).enumerate() {
            writer.append((at * step) as u64, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
        }
    };
    tokio::join!(push(&rig.logs, 70_001), push(&other, 50_001));
    assert!(rig.whole().await == bytes);
    assert_eq!(rig.writer().await.unwrap().crc(), crc32fast::hash(&bytes));
}

#[tokio::test]
async fn old_logs_are_removed_with_their_bytes() {
    on_each(async |rig: Rig| {
        let mut writer = rig.writer().await.unwrap();
        writer.append(0, &[Bytes::from(noise(1 << 20))]).await.unwrap();
        let age = Duration::from_hours(24);
        rig.world.wait(age * 2);
        assert_eq!(rig.logs.expire(age).await.unwrap(), 0, "it is open");
        writer.finish(1 << 20).await.unwrap();
        rig.logs.sweep().await.unwrap();
        rig.world.wait(age);
        assert_eq!(rig.logs.expire(age).await.unwrap(), 0, "it is not old enough");
        rig.world.wait(Duration::from_millis(1));
        assert_eq!(rig.logs.expire(age).await.unwrap(), 1);
        assert!(!rig.raw().parent().unwrap().exists());
        if let Some(Objects { store, root }) = &rig.objects {
            let prefix =
                root.clone().join("logs").join(rig.world.lease.uuid().simple().to_string());
            let left: Vec<_> = futures::StreamExt::collect(store.list(Some(&prefix))).await;
            assert!(left.is_empty());
        }
        assert!(rig.segments().await.is_empty());
    })
    .await;
}

#[derive(Debug, Clone)]
struct Push {
    offset: usize,
    length: usize,
}

fn pushes() -> impl Strategy<Value = Vec<Push>> {
    let one = (0..4_000_usize, 1..2_000_usize).prop_map(|(offset, length)| Push { offset, length });
    prop::collection::vec(one, 1..40)
}

/// Each case writes to a disk: 40, where nobody asks for another number than the usual one.
fn cases() -> u32 {
    let usual = ProptestConfig::default().cases;
    if usual == 256 { 40 } else { usual }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn any_order_of_overlaps_and_repeats_yields_the_same_bytes(
        pushes in pushes(),
        on_objects in any::<bool>(),
        reopen in prop::collection::btree_set(0..40_usize, 0..4),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(overlap(pushes, on_objects, reopen));
    }
}

async fn overlap(pushes: Vec<Push>, on_objects: bool, reopen: BTreeSet<usize>) {
    let mut rig = Rig::new(on_objects.then(in_memory)).await;
    let bytes = noise(6_000);
    let mut held = 0;
    for (index, push) in pushes.iter().enumerate() {
        if reopen.contains(&index) {
            rig.reopen().await;
        }
        let end = push.offset + push.length;
        let result = rig.append(push.offset as u64, &bytes[push.offset..end]).await;
        assert_eq!(result.is_err(), push.offset > held, "{result:?}");
        if push.offset <= held {
            held = held.max(end);
        }
    }
    assert_eq!(rig.whole().await, &bytes[..held]);
    let mut writer = rig.writer().await.unwrap();
    assert_eq!((writer.durable(), writer.crc()), (held as u64, crc32fast::hash(&bytes[..held])));
    writer.finish(held as u64).await.unwrap();
    rig.logs.sweep().await.unwrap();
    assert_eq!(rig.whole().await, &bytes[..held]);
}
