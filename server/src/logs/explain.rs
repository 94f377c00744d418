//! The lines of a failed job's log that matter: around the last error, else the last ones.

use kiln_core::id::LeaseId;

use super::{Logs, MAIN, Result};

/// How much of the end of a log is looked at.
const TAIL: u64 = 256 << 10;
const LINES: usize = 10;
/// Lines before an error that are shown with it.
const BEFORE: usize = 3;
const MAX_LINE: usize = 500;

/// What compilers, tests, package managers and interpreters write when they give up.
const SIGNS: &[&str] = &[
    "error:",
    "error[",
    " error ",
    "failed",
    "failure",
    "fatal:",
    "panicked",
    "traceback",
    "no such file",
    "not found",
    "undefined reference",
    "permission denied",
    "exception",
    "***",
    "cannot ",
    "killed",
    "segmentation fault",
];

/// Lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    /// Of the first of them in the main stream.
    pub offset: u64,
    pub lines: Vec<String>,
}

impl Logs {
    /// The lines that matter of a lease's main stream. Reads a bounded part of its end.
    pub async fn explain_lines(&self, lease: LeaseId) -> Result<Lines> {
        let lease = self.lease(lease).await?;
        let info = self.info(&lease, MAIN).await?;
        let start = info.size.saturating_sub(TAIL);
        let bytes = self.read(&info, start, usize::try_from(TAIL).unwrap_or(usize::MAX)).await?;
        Ok(pick(&bytes, start))
    }
}

/// Chooses among the lines of these bytes, which begin at `start`.
fn pick(bytes: &[u8], start: u64) -> Lines {
    let mut at = start;
    let mut lines: Vec<(u64, String)> = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let is_cut = index == 0 && start > 0;
        let text = plain(line);
        if !is_cut && !text.is_empty() {
            lines.push((at, text));
        }
        at += line.len() as u64;
    }
    let last_error = lines.iter().rposition(|(_, line)| is_sign(line));
    let from = match last_error {
        Some(last) => first_of_run(&lines, last).saturating_sub(BEFORE),
        None => lines.len().saturating_sub(LINES),
    };
    let shown = lines.get(from..(from + LINES).min(lines.len())).unwrap_or_default();
    Lines {
        offset: shown.first().map_or(start, |(at, _)| *at),
        lines: shown.iter().map(|(_, line)| line.clone()).collect(),
    }
}

/// An error is often followed by others that it caused: the first of those within reach of the last.
fn first_of_run(lines: &[(u64, String)], last: usize) -> usize {
    let reach = last.saturating_sub(LINES - BEFORE - 1);
    (reach..=last).find(|at| is_sign(&lines[*at].1)).unwrap_or(last)
}

fn is_sign(line: &str) -> bool {
    let line = line.to_lowercase();
    // A summary of what went well.
    let fine = line.contains("0 failed") || line.contains("0 errors");
    !fine && SIGNS.iter().any(|sign| line.contains(sign))
}

/// The line without control sequences, and not too long.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    // What was overwritten by a carriage return was progress.
    let text = text.rsplit('\r').next().unwrap_or_default();
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut chars),
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.truncate(out.floor_char_boundary(MAX_LINE));
    out.trim_end().to_owned()
}

/// Skips what follows ESC: a CSI sequence up to its final byte, an OSC string up to its end, else one character.
fn skip_sequence(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.next() {
        Some('[') => {
            chars.find(|c| ('\u{40}'..='\u{7e}').contains(c));
        }
        Some(']') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' || c == '\u{1b}' && chars.next_if_eq(&'\\').is_some() {
                    break;
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(word: &str) -> String {
        let lines: Vec<_> = (0..50).map(|i| format!("{word}{i}")).collect();
        lines.join("\n") + "\n"
    }

    fn picked(text: &str) -> Vec<String> {
        pick(text.as_bytes(), 0).lines
    }

    #[test]
    fn an_error_far_from_the_end_is_found_with_what_led_to_it() {
        let mut text: String = numbered("cc file");
        let at = text.find("cc file47").unwrap();
        text +=
            "\x1b[1mmain.c:3:5: \x1b[31merror:\x1b[0m 'x' undeclared\nmake: *** [all] Error 1\n";
        text += &"cleaning up\n".repeat(30);
        let lines = pick(text.as_bytes(), 0);
        assert_eq!(lines.lines[0], "cc file47");
        assert_eq!(lines.lines[3], "main.c:3:5: error: 'x' undeclared");
        assert_eq!(lines.lines[4], "make: *** [all] Error 1");
        assert_eq!(lines.lines.len(), LINES);
        assert_eq!(lines.offset, at as u64);
    }

    #[test]
    fn without_an_error_the_last_lines_are_shown() {
        let text = numbered("step ");
        assert_eq!(picked(&text), (40..50).map(|i| format!("step {i}")).collect::<Vec<_>>());
        assert_eq!(picked("test result: ok. 5 passed; 0 failed\n").len(), 1);
        assert!(picked("").is_empty());
    }

    #[test]
    fn sequences_progress_and_bad_bytes_are_made_readable() {
        assert_eq!(picked("10%\r50%\r100%\r\n"), ["100%"]);
        assert_eq!(picked("\x1b]0;title\x07a\x1b[0K\x00b\tc\n"), ["ab c"]);
        assert_eq!(pick(b"\xff\xfe ok\n", 0).lines, ["\u{fffd}\u{fffd} ok"]);
        assert_eq!(picked(&"ä".repeat(10_000))[0].len(), MAX_LINE);
        let cut = pick(b"half a line\nwhole\n", 7);
        assert_eq!((cut.offset, cut.lines), (19, vec!["whole".to_owned()]));
    }
}
