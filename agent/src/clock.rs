//! The only place of this crate that reads clocks.

use std::{fs, time::SystemTime};

use kiln_core::Millis;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the Unix epoch: for people, never for durations.
pub fn wall_ms() -> Millis {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// Milliseconds since the machine started, time asleep included; comparable between processes of one boot.
pub fn boot_ms() -> Millis {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000)
}

/// What names this boot of the machine; empty where the kernel does not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_since_boot_goes_forward() {
        let before = boot_ms();
        assert!(before > 0);
        assert!(boot_ms() >= before);
        assert!(wall_ms() > 1_600_000_000_000);
        assert_eq!(boot_id(), boot_id());
    }
}
