//! The job that prints numbered lines, and what it leaves as evidence: who ran, what was printed, who ran at once.

use std::{
    collections::HashSet,
    fs,
    ops::AddAssign,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use kiln_sdk::v1::{BuildSpec, ConcurrencyGroup, FailureKind, JobSpec, RetryPolicy};

/// A job that nobody tells to end does so after some minutes.
const LINES: usize = 40_000;

/// What a round cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Toll {
    /// Lines that are missing.
    pub lost: usize,
    /// Lines that came twice.
    pub duplicated: usize,
    /// Times that the job was run again without need.
    pub rerun: usize,
    /// Rounds in which anything else did not hold.
    pub failed: usize,
}

impl Toll {
    pub fn is_clean(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Toll {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.rerun += other.rerun;
        self.failed += other.failed;
    }
}

/// A counting job and its files, outside of any workspace.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    folder: PathBuf,
    name: String,
    padding: String,
    exclusive: bool,
}

impl Counting {
    pub(super) fn new(folder: &Path, name: &str, padding: u64, exclusive: bool) -> Self {
        let padding = "x".repeat(usize::try_from(padding).unwrap_or(0));
        Self { folder: folder.to_owned(), name: name.to_owned(), padding, exclusive }
    }

    fn file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", self.name))
    }

    pub(super) fn spec(&self) -> BuildSpec {
        let prefix = self.file("");
        let prefix = prefix.display();
        let padding = &self.padding;
        let alone = if self.exclusive {
            let lock = self.folder.join("lock");
            let lock = lock.display();
            // The kernel frees it when the last process of the job is dead.
            format!("exec 8>>{lock}\nflock -n 8 || echo overlap >>{lock}")
        } else {
            String::new()
        };
        // `read` waits without a process of its own.
        let script = format!(
            r#"#!/bin/bash
echo "$KILN_ATTEMPT $$" >>{prefix}runs
{alone}
exec 9<> <(:)
i=0
while [ ! -e {prefix}stop.$KILN_ATTEMPT ] && [ $i -lt {LINES} ]; do
  echo "line $i {padding}"
  i=$((i+1))
  read -r -t 0.005 -u 9
done
echo $i >{prefix}total.$KILN_ATTEMPT.new
mv {prefix}total.$KILN_ATTEMPT.new {prefix}total.$KILN_ATTEMPT
"#
        );
        let group = ConcurrencyGroup { name: "one-at-a-time".into(), limit: 1 };
        let retry = RetryPolicy {
            max_attempts: 5,
            on: vec![FailureKind::Infra.into(), FailureKind::Lost.into()],
            backoff_ms: 500,
        };
        let job = JobSpec {
            name: self.name.clone(),
            backend: "shell".into(),
            script,
            retry: Some(retry),
            concurrency: self.exclusive.then_some(group),
            ..JobSpec::default()
        };
        BuildSpec { title: self.name.clone(), jobs: vec![job], ..BuildSpec::default() }
    }

    /// Tells an attempt to end.
    pub(super) fn stop(&self, attempt: i32) -> Result<()> {
        Ok(fs::write(self.file(&format!("stop.{attempt}")), "")?)
    }

    /// Attempts that ran, each with the number of its process.
    pub(super) fn runs(&self) -> Result<Vec<(i32, i32)>> {
        let Ok(text) = fs::read_to_string(self.file("runs")) else { return Ok(vec![]) };
        let run = |line: &str| {
            let (attempt, pid) = line.split_once(' ')?;
            attempt.parse().ok().zip(pid.parse().ok())
        };
        text.lines().map(|line| run(line).with_context(|| format!("runs: {line:?}"))).collect()
    }

    /// How many lines an attempt printed, once it has.
    pub(super) fn total(&self, attempt: i32) -> Option<usize> {
        let text = fs::read_to_string(self.file(&format!("total.{attempt}"))).ok()?;
        text.trim().parse().ok()
    }

    /// Jobs of the group that found another one running.
    pub(super) fn overlaps(&self) -> usize {
        let text = fs::read_to_string(self.folder.join("lock")).unwrap_or_default();
        text.lines().count()
    }

    pub(super) fn log(&self, lines: usize) -> Vec<u8> {
        let padding = &self.padding;
        (0..lines).fold(String::new(), |log, i| log + &format!("line {i} {padding}\n")).into_bytes()
    }

    /// Lines that are missing and lines that came twice; whatever else differs counts as a loss.
    pub(super) fn compare(&self, seen: &[u8], lines: usize) -> Toll {
        let wanted = self.log(lines);
        if seen == wanted {
            return Toll::default();
        }
        let seen: Vec<&[u8]> =
            seen.split(|&byte| byte == b'\n').filter(|l| !l.is_empty()).collect();
        let different: HashSet<&[u8]> = seen.iter().copied().collect();
        let wanted = wanted.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let lost = wanted.filter(|line| !different.contains(line)).count();
        let duplicated = seen.len() - different.len();
        let disordered = usize::from(lost == 0 && duplicated == 0);
        Toll { lost: lost + disordered, duplicated, ..Toll::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_double_is_counted() {
        let job = Counting::new(Path::new("/nowhere"), "a", 3, false);
        let log = job.log(20);
        assert_eq!(job.compare(&log, 20), Toll::default());
        assert_eq!(job.compare(&log, 23).lost, 3);
        assert_eq!(job.compare(&[log.clone(), job.log(2)].concat(), 20).duplicated, 2);
        assert_eq!(job.compare(&log[1..], 20).lost, 1);
        let mut swapped = log[log.len() / 2..].to_vec();
        swapped.extend(&log[..log.len() / 2]);
        assert!(!job.compare(&swapped, 20).is_clean());
    }
}
