//! Checkouts over HTTP with a password, and what an archive may hold.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use kiln_core::id::LeaseId;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::run::Folder;

/// `me:s3cret-s3cret`, as a header says it.
const BASIC: &str = "authorization: basic bwu6cznjcmv0lxmzy3jlda==";
const PASSWORD: &str = "s3cret-s3cret";

/// A forge that asks for a password. Each time it is spoken to it notes the argument lists that hold the password.
struct Forge {
    _repo: tempfile::TempDir,
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Forge {
    fn start() -> Self {
        let repo = tempfile::tempdir().unwrap();
        fs::write(repo.path().join("hello.txt"), "hello\n").unwrap();
        let commit = ["-c", "user.name=Kiln", "-c", "user.email=kiln@localhost", "commit", "-qmA"];
        for args in [&["init", "-q", "-b", "main"][..], &["add", "."], &commit] {
            let done = Command::new("git").args(args).current_dir(repo.path()).status().unwrap();
            assert!(done.success());
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (path, seen) = (repo.path().to_owned(), Arc::<Mutex<Vec<String>>>::default());
        let notes = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                notes.lock().unwrap().extend(arguments_with(PASSWORD));
                answer(stream.unwrap(), &path);
            }
        });
        Self { _repo: repo, port, seen }
    }
}

fn arguments_with(text: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(text))
        .collect()
}

/// One request of git's smart protocol, one connection each.
fn answer(stream: TcpStream, repo: &Path) {
    let mut from = BufReader::new(stream.try_clone().unwrap());
    let mut head = vec![];
    loop {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_lowercase());
    }
    let mut to = stream;
    let (service, result) = ("git-upload-pack", "content-type: application/x-git-upload-pack-");
    if !head.iter().any(|line| line == BASIC) {
        let ask = "www-authenticate: Basic realm=\"forge\"\r\ncontent-length: 0";
        write!(to, "HTTP/1.1 401 Unauthorized\r\n{ask}\r\nconnection: close\r\n\r\n").unwrap();
        return;
    }
    let lists = head[0].starts_with("get");
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    from.read_exact(&mut body).unwrap();
    let mut upload = Command::new("git");
    upload.args(["upload-pack", "--stateless-rpc"]).args(lists.then_some("--advertise-refs"));
    let mut upload = upload.arg(repo).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    upload.stdin.take().unwrap().write_all(&body).unwrap();
    let said = upload.wait_with_output().unwrap().stdout;
    let kind = if lists { "advertisement" } else { "result" };
    write!(to, "HTTP/1.1 200 OK\r\n{result}{kind}\r\nconnection: close\r\n\r\n").unwrap();
    if lists {
        write!(to, "001e# service={service}\n0000").unwrap();
    }
    to.write_all(&said).unwrap();
}

#[tokio::test]
async fn the_password_of_a_url_is_in_no_argument_list_no_log_and_no_file() {
    let forge = Forge::start();
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::new(dir.path());
    folder.make_workspace().unwrap();
    let run = Run {
        lease: LeaseId::from_uuid(uuid::Uuid::from_u128(1)),
        folder,
        secrets: vec![],
        cancel: CancellationToken::new(),
        grace_ms: 500,
        lifeline_ms: 0,
        supervisor: "none".into(),
        now: || 0,
    };
    let checkout = |url| Checkout {
        from: Address::of(url),
        reference: "main",
        submodules: true,
        allow_local: false,
    };
    let url = format!("http://me:{PASSWORD}@127.0.0.1:{}/repo", forge.port);
    checkout(&url).run(&run).await.unwrap();
    assert_eq!(fs::read_to_string(run.workspace().join("hello.txt")).unwrap(), "hello\n");
    assert_eq!(*forge.seen.lock().unwrap(), Vec::<String>::new());
    let found = Command::new("grep").args(["-r", "s3cret"]).arg(dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

fn packed(build: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> tempfile::NamedTempFile {
    let mut plain = vec![];
    let mut builder = tar::Builder::new(&mut plain);
    build(&mut builder);
    builder.finish().unwrap();
    drop(builder);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    file
}

fn put(builder: &mut tar::Builder<&mut Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

#[test]
fn an_archive_unpacks_within_the_workspace_only() {
    let into = tempfile::tempdir().unwrap();
    let good = packed(|builder| put(builder, "bin/tool", b"#!/bin/sh\n"));
    unpack(good.path(), into.path(), 1 << 20).unwrap();
    assert_eq!(fs::read(into.path().join("bin/tool")).unwrap(), b"#!/bin/sh\n");

    let outside = tempfile::tempdir().unwrap();
    let up = packed(|builder| put(builder, "../escaped", b"x"));
    assert!(unpack(up.path(), into.path(), 1 << 20).is_err());
    symlink(outside.path(), into.path().join("link")).unwrap();
    let through = packed(|builder| put(builder, "link/escaped", b"x"));
    assert!(unpack(through.path(), into.path(), 1 << 20).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn an_archive_that_unpacks_to_too_much_is_refused() {
    let into = tempfile::tempdir().unwrap();
    let bomb = packed(|builder| put(builder, "zeros", &vec![0; 1 << 20]));
    let error = unpack(bomb.path(), into.path(), 100 << 10).unwrap_err();
    assert!(error.to_string().contains("more than the agent allows"), "{error}");
}
