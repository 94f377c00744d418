//! A backup that is damaged anywhere changes nothing.

use std::fs;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::serve;

fn config(folder: &Path) -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: folder.to_owned(),
        ..Config::default()
    }
}

/// A backup of a server that runs, as bytes.
async fn made(home: &Path) -> Vec<u8> {
    let config = config(&home.join("data"));
    let stop = CancellationToken::new();
    let running = serve(config.clone(), stop.clone()).await.unwrap();
    running.app().create_project("kept", None, 0).await.unwrap();
    let file = home.join("whole");
    let done = backup(&config, &file, 1_000).await.unwrap();
    assert_eq!((done.created_ms, done.elsewhere), (1_000, None));
    assert!(!home.join("whole.part").exists());
    stop.cancel();
    running.wait().await.unwrap();
    fs::read(file).unwrap()
}

#[tokio::test]
async fn what_was_restored_is_what_was_backed_up() {
    let home = tempfile::tempdir().unwrap();
    made(home.path()).await;
    let config = config(&home.path().join("again"));
    restore(&config, &home.path().join("whole")).await.unwrap();
    let stop = CancellationToken::new();
    let running = serve(config, stop.clone()).await.unwrap();
    running.app().project("kept").await.unwrap();
    stop.cancel();
    running.wait().await.unwrap();
}

/// Restores these bytes; where that is refused, nothing is left.
async fn restored(home: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let (file, data) = (home.join("damaged"), home.join("fresh"));
    fs::write(&file, bytes).unwrap();
    let done = restore(&config(&data), &file).await;
    assert_eq!(data.exists(), done.is_ok(), "something was left: {done:?}");
    done.map(|_| data)
}

#[tokio::test]
async fn one_wrong_byte_anywhere_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let whole = made(home.path()).await;
    let step = (whole.len() / 40).max(1);
    let mut cases: Vec<Vec<u8>> =
        (0..whole.len()).step_by(step).map(|at| whole[..at].to_vec()).collect();
    cases.push(whole[..whole.len() - 1].to_vec());
    cases.push([&whole[..], b"more"].concat());
    for (n, bytes) in cases.iter().enumerate() {
        let error = restored(home.path(), bytes).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{n}: {error:?}");
    }
    let right = restored(home.path(), &whole).await.unwrap();
    let database = fs::read(right.join(DATABASE)).unwrap();
    fs::remove_dir_all(right).unwrap();
    for at in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        match restored(home.path(), &bytes).await {
            Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{at}: {error:?}"),
            // A bit of the compression that means nothing.
            Ok(data) => {
                assert!(database == fs::read(data.join(DATABASE)).unwrap(), "{at}");
                fs::remove_dir_all(data).unwrap();
            }
        }
    }
    let data = home.path().join("fresh");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("mine"), "").unwrap();
    let error = restore(&config(&data), &home.path().join("whole")).await.unwrap_err();
    assert!(matches!(error, Error::NotEmpty(_)), "{error:?}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 2, "its own file, and the lock");
}

#[tokio::test]
async fn a_path_that_leads_out_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("evil");
    for name in ["logs/../../out", "/out", "secrets.key", "logs", "kiln.db/x"] {
        let out = fs::File::create(&file).unwrap();
        let mut tar = tar::Builder::new(zstd::Encoder::new(out, 1).unwrap());
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, &b""[..]).unwrap();
        tar.into_inner().unwrap().finish().unwrap();
        let error = restore(&config(&home.path().join("data")), &file).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains("does not belong into it"), "{name}: {said}");
    }
    assert!(!home.path().join("out").exists());
}

#[tokio::test]
async fn postgres_has_means_of_its_own() {
    let config = Config { database: "postgres://h/k".into(), ..Config::default() };
    let error = backup(&config, Path::new("/nowhere/b"), 0).await.unwrap_err();
    assert!(error.to_string().contains("pg_dump"), "{error}");
}
