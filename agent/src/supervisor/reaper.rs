//! Processes that nobody else waits for: orphans of the job come to the supervisor as their subreaper.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open,
        pidfd_send_signal, wait,
    },
};

use super::identity::{parent, processes};

const ROUND: Duration = Duration::from_millis(5);
/// Beyond it a process hangs in the kernel; the machine needs a person then.
const LIMIT: Duration = Duration::from_secs(5);

/// What a look at the dead children found.
#[derive(Debug, Default)]
pub(super) struct Reaped {
    /// The process that was looked for.
    pub(super) status: Option<WaitStatus>,
    /// No child is left, dead or alive.
    pub(super) none_left: bool,
}

/// Takes leave of all children that are dead now.
pub(super) fn reap(wanted: Pid) -> Reaped {
    let mut reaped = Reaped::default();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == wanted => reaped.status = Some(status),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return reaped,
            Err(_) => {
                reaped.none_left = true;
                return reaped;
            }
        }
    }
}

/// Kills all children of this process until none is left: each death makes the dead one's children ours.
pub(super) fn kill_children(wanted: Pid) -> Option<WaitStatus> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let begin = Instant::now();
    let mut status = None;
    loop {
        let reaped = reap(wanted);
        status = status.or(reaped.status);
        if reaped.none_left || begin.elapsed() > LIMIT {
            return status;
        }
        for pid in processes().into_iter().filter(|&pid| parent(pid) == Some(own)) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _dead_by_now = kill_process(pid, Signal::KILL);
            }
        }
        sleep(ROUND);
    }
}

/// Kills all processes that carry a variable in their environment, for when the supervisor itself is dead. A process that
/// hides it escapes where there is no other containment.
pub(super) fn kill_marked(marker: &str) {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT && processes().into_iter().any(|pid| kill_if_marked(pid, marker))
    {
        sleep(ROUND);
    }
}

fn kill_if_marked(pid: i32, marker: &str) -> bool {
    // The file descriptor comes first: the number may be another process' after the look.
    let Some(Ok(process)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()))
    else {
        return false;
    };
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_ours = environ.split(|&byte| byte == 0).any(|entry| entry == marker.as_bytes());
    is_ours && pidfd_send_signal(&process, Signal::KILL).is_ok()
}
