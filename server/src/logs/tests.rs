//! One suite for both stores, on rows in memory, in SQLite and in Postgres.

use std::{
    collections::BTreeSet,
    future::Future,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::FutureExt;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{fs::FsStore, memory::MemoryIndex, object::ObjectLogs, *};
use crate::{
    store::{memory::Memory, sql},
    uploads::fixture::{World, databases},
};

/// Logs of one world, which can be opened again as after a crash.
struct Rig {
    world: World,
    index: Arc<dyn LogIndex>,
    objects: Option<Arc<InMemory>>,
    folder: TempDir,
    tasks: TaskTracker,
    logs: Logs,
}

impl Rig {
    async fn new(on_objects: bool) -> Self {
        let world = World::new(Arc::new(Memory::default())).await;
        let folder = tempfile::tempdir().unwrap();
        Self::on(world, Arc::new(MemoryIndex::default()), on_objects, folder).await
    }

    async fn on_database((database, folder): (sql::Sql, TempDir), on_objects: bool) -> Self {
        let world = World::new(Arc::new(database.clone())).await;
        Self::on(world, Arc::new(database), on_objects, folder).await
    }

    async fn on(world: World, index: Arc<dyn LogIndex>, on_objects: bool, folder: TempDir) -> Self {
        let objects = on_objects.then(|| Arc::new(InMemory::new()));
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
    objects: Option<&Arc<InMemory>>,
    folder: &Path,
) -> Result<Arc<dyn LogStore>> {
    let index = Arc::clone(index);
    Ok(match objects {
        Some(objects) => {
            let objects = Arc::clone(objects) as Arc<dyn ObjectStore>;
            Arc::new(ObjectLogs::open(objects, "logs".into(), index, "one").await?)
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
    };
    Logs::start(parts, tasks, CancellationToken::new())
}

async fn on_both<F: Future<Output = ()>>(test: impl Fn(Rig) -> F) {
    for on_objects in [false, true] {
        test(Rig::new(on_objects).await).await;
        for database in databases().await {
            test(Rig::on_database(database, on_objects).await).await;
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
    on_both(async |rig: Rig| {
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
    on_both(async |rig: Rig| {
        let stranger = AgentId::from_uuid(uuid::Uuid::nil());
        let error = rig.logs.writer(stranger, rig.world.lease, MAIN).await.unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{error}");
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
    let mut rig = Rig::new(false).await;
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
    let mut rig = Rig::new(false).await;
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
    for on_objects in [false, true] {
        let rig = Rig::new(on_objects).await;
        let other: Arc<dyn LogIndex> = Arc::new(MemoryIndex::default());
        other.identity("logs", Some("two")).await.unwrap();
        let error = open(&other, rig.objects.as_ref(), rig.folder.path()).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        let empty = tempfile::tempdir().unwrap();
        let objects = on_objects.then(|| Arc::new(InMemory::new()));
        let error = open(&rig.index, objects.as_ref(), empty.path()).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        open(&rig.index, rig.objects.as_ref(), rig.folder.path()).await.unwrap();
    }
}

#[tokio::test]
async fn a_finished_log_is_sealed_and_reads_the_same() {
    on_both(async |rig: Rig| {
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
    on_both(async |rig: Rig| {
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
    on_both(async |rig: Rig| {
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
    on_both(async |rig: Rig| {
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
    let rig = Rig::new(true).await;
    let bytes = noise(2_500_000);
    let mut writer = rig.writer().await.unwrap();
    for (at, chunk) in bytes.chunks(300_000).enumerate() {
        writer.append(at as u64 * 300_000, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
    }
    let in_rows = |rows: &[index::Segment]| -> usize {
        rows.iter().filter_map(|row| row.data.as_ref()).map(Bytes::len).sum()
    };
    assert!(in_rows(&rig.segments().await) < 1 << 20);
    let objects = rig.objects.clone().unwrap();
    let lease = rig.world.lease.uuid().simple();
    let orphan = object_store::path::Path::from(format!("logs/{lease}/main/{:016}-7-0", 9));
    objects.put(&orphan, "crashed".into()).await.unwrap();
    writer.finish(bytes.len() as u64).await.unwrap();
    rig.logs.sweep().await.unwrap();
    assert_eq!(in_rows(&rig.segments().await), 0);
    assert!(objects.head(&orphan).await.is_err());
    assert_eq!(rig.whole().await, bytes);
}

#[tokio::test]
async fn a_line_of_ten_megabytes_and_any_bytes_are_kept() {
    on_both(async |rig: Rig| {
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
    on_both(async |rig: Rig| {
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
    let rig = Rig::new(true).await;
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
    on_both(async |rig: Rig| {
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
        if let Some(objects) = &rig.objects {
            let prefix = format!("logs/{}", rig.world.lease.uuid().simple());
            let left: Vec<_> =
                futures::StreamExt::collect(objects.list(Some(&prefix.as_str().into()))).await;
            assert!(left.is_empty());
        }
        assert!(rig.segments().await.is_empty());
    })
    .await;
}

async fn follow(rig: &Rig, lease: Option<LeaseId>, offset: u64) -> Follower {
    Follower::new(&rig.logs, rig.world.job, lease, "", offset).await.unwrap()
}

#[tokio::test]
async fn followers_beside_a_writer_all_get_the_same_bytes() {
    on_both(async |rig: Rig| {
        let bytes = noise(1_300_000);
        let write = async {
            let mut writer = rig.writer().await.unwrap();
            for (at, chunk) in bytes.chunks(33_333).enumerate() {
                writer.append(at as u64 * 33_333, &[Bytes::copy_from_slice(chunk)]).await.unwrap();
            }
            rig.world.end(rig.world.lease, LeasePhase::Finished, bytes.len() as u64).await;
            rig.world.finish_job().await;
            writer.finish(bytes.len() as u64).await.unwrap();
            rig.logs.sweep().await.unwrap();
        };
        let read = async |offset: u64| {
            let mut follower = follow(&rig, None, offset).await;
            let (mut got, mut last) = (Vec::new(), Piece::default());
            while let Some(piece) = follower.next().await.unwrap() {
                assert!(piece.data.len() <= frames::FRAME);
                assert_eq!(piece.offset, offset + got.len() as u64);
                got.extend_from_slice(&piece.data);
                last = piece;
            }
            assert!(last.complete && !last.truncated);
            assert!(got == bytes[usize::try_from(offset).unwrap()..]);
        };
        tokio::join!(write, read(0), read(0), read(1_000_001), read(1_299_999));
        tokio::join!(read(0), read(500_000));
    })
    .await;
}

#[tokio::test]
async fn stages_come_at_their_offsets() {
    on_both(async |rig: Rig| {
        let stage = |name: &str, offset| Stage { name: name.to_owned(), time: 5, offset };
        let mut writer = rig.writer().await.unwrap();
        writer.stage(&stage("checkout", 0)).await.unwrap();
        writer.append(0, &[Bytes::from_static(b"fetching\nmaking\n")]).await.unwrap();
        writer.stage(&stage("script", 9)).await.unwrap();
        writer.stage(&stage("artifacts", 16)).await.unwrap();
        writer.finish(16).await.unwrap();
        drop(writer);
        assert_eq!(rig.writer().await.unwrap().stages(), 3);
        let pieces = async |offset| {
            let mut follower = follow(&rig, Some(rig.world.lease), offset).await;
            let mut seen = Vec::new();
            while let Some(piece) = follower.next().await.unwrap() {
                let data = String::from_utf8(piece.data.to_vec()).unwrap();
                seen.push((data, piece.stage.map(|stage| stage.name), piece.complete));
            }
            seen
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            pieces(0).await,
            [
                (String::new(), some("checkout"), false),
                ("fetching\n".to_owned(), some("script"), false),
                ("making\n".to_owned(), some("artifacts"), false),
                (String::new(), None, true),
            ]
        );
        assert_eq!(
            pieces(12).await,
            [("ing\n".to_owned(), some("artifacts"), false), (String::new(), None, true)]
        );
    })
    .await;
}

#[tokio::test]
async fn a_follower_without_a_lease_goes_on_to_the_next_attempt() {
    on_both(async |rig: Rig| {
        rig.append(0, b"first").await.unwrap();
        let mut follower = follow(&rig, None, 2).await;
        assert_eq!(follower.next().await.unwrap().unwrap().data, "rst");
        let mut pinned = follow(&rig, Some(rig.world.lease), 0).await;
        assert_eq!(pinned.next().await.unwrap().unwrap().data, "first");
        assert!(follower.next().now_or_never().is_none(), "the first attempt still runs");
        rig.world.end(rig.world.lease, LeasePhase::Void, 0).await;
        let second = LeaseId::from_uuid(crate::clock::Clock::id(rig.world.clock.as_ref()));
        rig.world.give(second, 2).await;
        let mut writer = rig.logs.writer(rig.world.agent, second, MAIN).await.unwrap();
        writer.append(0, &[Bytes::from_static(b"second")]).await.unwrap();
        let piece = follower.next().await.unwrap().unwrap();
        assert_eq!((piece.lease, piece.data.as_ref()), (Some(second), &b"second"[..]));
        writer.finish(6).await.unwrap();
        rig.world.end(second, LeasePhase::Finished, 6).await;
        assert!(follower.next().now_or_never().is_none(), "the job may be tried again");
        rig.world.finish_job().await;
        let end = follower.next().await.unwrap().unwrap();
        assert!(end.complete && !end.truncated);
        assert_eq!(follower.next().await.unwrap(), None);
        rig.world.wait(Duration::from_secs(31));
        rig.world.wake.publish(&[Topic::Log(rig.world.lease)]);
        let end = pinned.next().await.unwrap().unwrap();
        assert!(end.complete && end.truncated, "its agent is lost");
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
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
    let mut rig = Rig::new(on_objects).await;
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
