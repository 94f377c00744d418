use kiln_core::{
    id::{BuildId, JobId},
    outcome::Outcome,
    session::{Assignment, Report},
    spec::JobSpec,
};
use uuid::Uuid;

use super::*;
use crate::lease::EntryState;

fn lease(n: u128) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(n))
}

fn entry(n: u128, state: EntryState) -> Entry {
    let uuid = Uuid::from_u128(n);
    let assignment = Assignment {
        lease: lease(n),
        job: JobId::from_uuid(uuid),
        build: BuildId::from_uuid(uuid),
        project: "default".into(),
        attempt: 1,
        spec: JobSpec::default(),
        inputs: vec![],
        exclusive: false,
        trace: None,
    };
    Entry { state, ..Entry::taken(assignment, 5) }
}

fn taken(n: u128) -> Entry {
    entry(n, EntryState::Taken)
}

fn finished(n: u128) -> Entry {
    let log_lengths = [("main".to_owned(), 7)].into();
    let report = Report { outcome: Outcome::Succeeded, artifacts: vec![], log_lengths };
    entry(n, EntryState::Finished(report))
}

fn restored(data: &Path) -> Vec<Entry> {
    Journal::open(data).unwrap().restore().unwrap()
}

#[test]
fn entries_survive_and_leave() {
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open(dir.path()).unwrap();
        journal.save(&[taken(1), taken(2), taken(3)], &[]).unwrap();
        journal.folder(lease(1)).make_workspace().unwrap();
        journal.folder(lease(2)).make_workspace().unwrap();
        journal.save(&[entry(1, EntryState::Running)], &[lease(2)]).unwrap();
        journal.save(&[finished(3)], &[]).unwrap();
    }
    assert_eq!(restored(dir.path()), [entry(1, EntryState::Running), finished(3)]);
    assert_eq!(restored(dir.path()), [entry(1, EntryState::Running), finished(3)]);
    let left = fs::read_dir(dir.path().join("leases")).unwrap().count();
    assert_eq!(left, 1, "the folder of the forgotten lease is removed");
}

#[test]
fn a_lease_that_comes_again_is_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open(dir.path()).unwrap();
        journal.save(&[finished(1)], &[]).unwrap();
        journal.save(&[taken(1)], &[lease(1)]).unwrap();
    }
    assert_eq!(restored(dir.path()), [taken(1)]);
}

#[test]
fn a_crash_at_any_byte_loses_nothing_that_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(JOURNAL);
    let (said, bytes) = {
        let journal = Journal::open(dir.path()).unwrap();
        journal.save(&[taken(1), entry(2, EntryState::Running)], &[]).unwrap();
        let said = fs::metadata(&path).unwrap().len();
        // This is not on the disk yet.
        journal.save(&[finished(2)], &[]).unwrap();
        (usize::try_from(said).unwrap(), fs::read(&path).unwrap())
    };
    assert!(bytes.len() > said);
    for cut in said..bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(restored(dir.path()), [taken(1), entry(2, EntryState::Running)], "{cut}");
        // The length may be on the disk before the bytes are.
        let mut zeros = bytes[..cut].to_vec();
        zeros.resize(bytes.len() + 20, 0);
        fs::write(&path, zeros).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.save(&[taken(3)], &[]).unwrap();
        drop(journal);
        let expected = [taken(1), entry(2, EntryState::Running), taken(3)];
        assert_eq!(restored(dir.path()), expected, "what is appended after {cut} is read again");
    }
    fs::write(&path, &bytes).unwrap();
    assert_eq!(restored(dir.path()), [taken(1), finished(2)]);
}

#[test]
fn what_another_boot_left_is_interrupted_for_good() {
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open(dir.path()).unwrap();
        journal.save(&[taken(1), finished(2)], &[]).unwrap();
        let mut bytes = vec![];
        Record::Boot("another".into()).write(&mut bytes).unwrap();
        journal.log().append(&bytes, false).unwrap();
    }
    let interrupted = |entry| Entry { interrupted: true, ..entry };
    for _ in 0..2 {
        assert_eq!(restored(dir.path()), [interrupted(taken(1)), interrupted(finished(2))]);
    }
    Journal::open(dir.path()).unwrap().save(&[taken(1)], &[lease(1)]).unwrap();
    assert_eq!(restored(dir.path()), [taken(1), interrupted(finished(2))]);
}

#[test]
fn a_record_of_another_kind_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let text = br#"{"unknown":1}"#;
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(crc32fast::hash(text).to_le_bytes());
    bytes.extend(text);
    fs::write(dir.path().join(JOURNAL), bytes).unwrap();
    assert!(matches!(Journal::open(dir.path()).unwrap_err(), Error::Record { .. }));
}

#[test]
fn a_large_journal_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let size = || fs::metadata(dir.path().join(JOURNAL)).unwrap().len();
    let mut large = taken(1);
    large.assignment.spec.script = "x".repeat(1 << 20);
    {
        let journal = Journal::open(dir.path()).unwrap();
        journal.save(&[taken(2)], &[]).unwrap();
        for _ in 0..4 {
            journal.save(&[large.clone()], &[lease(1)]).unwrap();
        }
        assert!(size() < 2 << 20, "{} bytes for one MiB that counts", size());
        journal.save(&[entry(2, EntryState::Running)], &[lease(1)]).unwrap();
    }
    assert_eq!(restored(dir.path()), [entry(2, EntryState::Running)]);
    assert!(size() < 4096, "{} bytes", size());
}

#[test]
fn the_epoch_grows_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Journal::open(dir.path()).unwrap().next_epoch().unwrap(), 1);
    assert_eq!(Journal::open(dir.path()).unwrap().next_epoch().unwrap(), 2);
    fs::write(dir.path().join(EPOCH), "x").unwrap();
    assert!(matches!(
        Journal::open(dir.path()).unwrap().next_epoch().unwrap_err(),
        Error::Epoch(_)
    ));
}

#[test]
fn a_data_folder_has_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Journal::open(dir.path()).unwrap();
    assert!(matches!(Journal::open(dir.path()).unwrap_err(), Error::Locked(_)));
}

#[test]
fn a_full_disk_is_waited_for_and_tears_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.save(&[taken(1)], &[]).unwrap();
    let disk = {
        let mut log = journal.log();
        std::mem::replace(&mut log.file, File::create("/dev/full").unwrap())
    };
    let full = journal.save(&[taken(2)], &[]).unwrap_err();
    assert!(full.is_no_room(), "{full}");
    journal.log().file = disk;
    journal.save(&[taken(2)], &[]).unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.restore().unwrap(), [taken(1), taken(2)]);
}

#[test]
fn the_journal_has_room_that_nobody_else_can_take() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.save(&[taken(1)], &[]).unwrap();
    let meta = fs::metadata(dir.path().join(JOURNAL)).unwrap();
    assert!(meta.len() < RESERVED_BYTES);
    // A file system that can't promise room is none where this can be seen.
    if journal.log().reserved > 0 {
        let taken = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
        assert!(taken >= RESERVED_BYTES, "{taken} bytes");
    }
}

#[test]
fn a_copy_is_not_at_home_and_a_restart_is() {
    let dir = tempfile::tempdir().unwrap();
    let (here, copy) = (dir.path().join("here"), dir.path().join("copy"));
    let journal = Journal::open(&here).unwrap();
    let instance = journal.instance().to_owned();
    assert!(journal.is_home().unwrap(), "nothing was taken elsewhere");
    assert!(journal.settle().unwrap());
    assert!(!journal.settle().unwrap(), "it is known");
    drop(journal);

    let journal = Journal::open(&here).unwrap();
    assert_eq!((journal.instance(), journal.is_home().unwrap()), (instance.as_str(), true));
    fs::create_dir(&copy).unwrap();
    fs::copy(here.join(HOME), copy.join(HOME)).unwrap();
    let journal = Journal::open(&copy).unwrap();
    assert_ne!(journal.instance(), instance);
    assert!(!journal.is_home().unwrap());
    assert!(journal.settle().unwrap() && journal.is_home().unwrap());
}
