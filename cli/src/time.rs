//! Moments and spans, as people read them.

use kiln_server::clock::{Clock, SystemClock};

/// Milliseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemClock::default().now()
}

/// "42ms", "3.2s", "4m05s", "2h07m", "3d04h".
pub(crate) fn span(ms: i64) -> String {
    let ms = ms.max(0);
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms % 1_000 / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// "3m05s ago"; nothing for zero.
pub(crate) fn ago(ms: i64) -> String {
    if ms == 0 { String::new() } else { format!("{} ago", span(now() - ms)) }
}

/// How long something ran, or runs since.
pub(crate) fn took(from: i64, until: i64) -> String {
    match (from, until) {
        (0, _) => String::new(),
        (from, 0) => span(now() - from),
        (from, until) => span(until - from),
    }
}

/// "2026-11-21 08:30:00 UTC"; nothing for zero.
pub(crate) fn moment(ms: i64) -> String {
    if ms == 0 {
        return String::new();
    }
    let seconds = ms.div_euclid(1_000);
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let (hour, minute) = (seconds.rem_euclid(86_400) / 3_600, seconds.rem_euclid(3_600) / 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", seconds.rem_euclid(60))
}

/// Year, month and day of a number of days since 1970: the era method, exact for the whole Gregorian calendar.
const fn date(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_spans() {
        assert_eq!(moment(951_827_696_000), "2000-02-29 12:34:56 UTC");
        assert_eq!(moment(1_795_250_400_000), "2026-11-21 08:40:00 UTC");
        let spans = [7, 3_250, 245_000, 7_620_000, 273_600_000].map(span);
        assert_eq!(spans, ["7ms", "3.2s", "4m05s", "2h07m", "3d04h"]);
    }
}
