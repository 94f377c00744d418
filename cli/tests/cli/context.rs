//! A folder of its own for each test, a server where one is wanted, and filters for what differs each time.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use kiln_server::{Config, serve};
use tokio_util::sync::CancellationToken;

/// One test's world.
pub(crate) struct Context {
    folder: tempfile::TempDir,
    server: Option<Server>,
}

struct Server {
    url: String,
    stop: CancellationToken,
    runtime: tokio::runtime::Runtime,
}

impl Context {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: None }
    }

    /// With a server that has no agent: what is submitted waits.
    pub(crate) fn with_server() -> Self {
        let mut context = Self::new();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: context.path().join("data"),
            ..Config::default()
        };
        let stop = CancellationToken::new();
        let running = runtime.block_on(serve(config, stop.clone())).unwrap();
        let url = format!("http://{}", running.addr);
        context.server = Some(Server { url, stop, runtime });
        context
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs the binary; the picture is what a person sees.
    pub(crate) fn kiln(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let code = output.status.code().unwrap();
        let mut picture = format!("exit {code}\n");
        for (name, text) in [("out", out), ("err", err)] {
            for line in text.lines() {
                picture += format!("{name}: {line}").trim_end();
                picture.push('\n');
            }
        }
        self.filtered(picture)
    }

    /// Standard output alone, unfiltered.
    pub(crate) fn out(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).current_dir(self.path()).env_clear();
        command.env("HOME", self.path()).env("KILN_DATA", self.path().join("data"));
        command.env("KILN_SERVER", self.server.as_ref().map_or("http://127.0.0.1:1", |s| &s.url));
        command
    }

    fn filtered(&self, mut text: String) -> String {
        text = text.replace(&self.path().display().to_string(), "[DIR]");
        if let Some(server) = &self.server {
            text = text.replace(&server.url, "[SERVER]");
        }
        for prefix in ["bld_", "job_", "tok_", "agt_"] {
            text = hide(&text, prefix, 32);
        }
        let words: Vec<String> = text.split('\n').map(times).collect();
        words.join("\n")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(Server { stop, runtime, .. }) = self.server.take() {
            stop.cancel();
            runtime.shutdown_background();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// "bld_0192…" becomes "bld_[ID]".
fn hide(text: &str, prefix: &str, digits: usize) -> String {
    let mut parts = text.split(prefix);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let hex = part.bytes().take(digits).take_while(u8::is_ascii_hexdigit).count();
        shown += prefix;
        shown += if hex == digits { "[ID]" } else { &part[..hex] };
        shown += &part[hex..];
    }
    shown
}

/// Spans, moments and milliseconds become words; runs of spaces become two, as widths depend on them.
fn times(line: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_start_matches('+').trim_end_matches(',');
        let number = bare.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &bare[number.len()..];
        let numeric = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let clock = bare.len() == 8 && bare.bytes().filter(|b| *b == b':').count() == 2;
        let date = bare.len() == 10 && bare.bytes().filter(|b| *b == b'-').count() == 2;
        let epoch = numeric && unit.is_empty() && number.len() == 13;
        if (numeric && ["ms", "s"].contains(&unit)) || clock || date || epoch {
            word.replace(bare, "[TIME]")
        } else {
            word.to_owned()
        }
    };
    let mut gap = 0;
    let mut shown = String::new();
    for part in line.split(' ') {
        if part.is_empty() {
            gap += 1;
            continue;
        }
        if !shown.is_empty() || gap > 0 {
            shown += if gap > 0 { "  " } else { " " };
        }
        shown += &word(part);
        gap = 0;
    }
    shown
}
