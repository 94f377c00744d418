//! A process that can't be confused with a later one of the same number.

use std::{fmt, fs, io, str::FromStr};

use rustix::process::Pid;

/// Number, start time and boot of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    boot: String,
    pid: i32,
    /// In clock ticks since the boot.
    start: u64,
}

impl Identity {
    /// The calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// The process of this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { boot: boot()?, pid, start: start(pid)? })
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }

    /// It still is this very process, perhaps dead but not reaped.
    pub fn exists(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot)
            && start(self.pid).is_ok_and(|start| start == self.start)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.boot, self.pid, self.start)
    }
}

impl FromStr for Identity {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let bad = || io::Error::other(format!("not a process: {text:?}"));
        let mut words = text.split_whitespace();
        let boot = words.next().ok_or_else(bad)?.to_owned();
        let pid = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
        let start = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
        Ok(Self { boot, pid, start })
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn start(pid: i32) -> io::Result<u64> {
    stat(pid)?.get(19).and_then(|word| word.parse().ok()).ok_or_else(|| io::Error::other("stat"))
}

/// Parent of a process.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    stat(pid).ok()?.get(1)?.parse().ok()
}

/// The fields behind the program's name, which may hold blanks and parentheses.
fn stat(pid: i32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// Numbers of all processes.
pub(crate) fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_start_or_boot_is_another_process() {
        let own = Identity::own().unwrap();
        assert!(own.exists());
        assert_eq!(own.to_string().parse::<Identity>().unwrap(), own);
        assert!(!Identity { start: own.start + 1, ..own.clone() }.exists());
        assert!(!Identity { boot: "another".to_owned(), ..own }.exists());
        assert!("".parse::<Identity>().is_err());
        assert!("boot x 1".parse::<Identity>().is_err());
    }
}
