//! Human values: "10m", "512MiB", "1.5". One reader for flags and build files.

const DURATIONS: &[(&str, i64)] =
    &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: &[(&str, i64)] = &[
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Milliseconds of "90s", "10m", "1h30m".
pub(crate) fn duration(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is not a duration; write it like \"90s\", \"10m\" or \"1h30m\"");
    let (mut rest, mut total) = (text, 0_i64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: i64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (_, unit) = DURATIONS.iter().find(|(name, _)| *name == &rest[..end]).ok_or_else(bad)?;
        let part = number.checked_mul(*unit).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = &rest[end..];
    }
    if text.is_empty() { Err(bad()) } else { some(total, text) }
}

/// Bytes of "512MiB", "1.5GiB", "4096".
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is not a size; write it like \"512MiB\" or \"2GiB\"");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (_, unit) = SIZES.iter().find(|(name, _)| *name == text[end..].trim()).ok_or_else(bad)?;
    scaled(&text[..end], *unit).ok_or_else(bad).and_then(|bytes| some(bytes, text))
}

/// Thousandths of a processor of "2", "1.5".
pub(crate) fn cpus(text: &str) -> Result<i32, String> {
    let bad = || format!("{text:?} is not a number of processors; write it like \"2\" or \"1.5\"");
    let millis = scaled(text, 1_000).and_then(|millis| i32::try_from(millis).ok());
    millis.ok_or_else(bad).and_then(|millis| some(millis, text))
}

/// Nothing at all would be taken for the default by the server: who writes zero means something else.
fn some<T: Default + PartialEq>(value: T, text: &str) -> Result<T, String> {
    let nothing = || format!("{text:?} is nothing; leave it out for the default");
    if value == T::default() { Err(nothing()) } else { Ok(value) }
}

/// A decimal number times a unit, exact, cut off below one.
fn scaled(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return None;
    }
    let power = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let value: i128 = format!("{whole}{fraction}").parse().ok()?;
    i64::try_from(value.checked_mul(i128::from(unit))? / power).ok()
}

/// "512 B", "1.5 KiB", "3.2 GiB".
pub(crate) fn show_size(bytes: i64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) >> 10, 0);
    while tenths >= 10_240 && unit + 1 < units.len() {
        (tenths, unit) = (tenths >> 10, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(5_400_000));
        assert_eq!(duration("250ms"), Ok(250));
        for bad in ["", "10", "m", "1x", "99999999999999d", "-1s", "0s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_processors() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(size("4096"), Ok(4_096));
        assert_eq!(cpus("1.5"), Ok(1_500));
        assert!(cpus("0").is_err() && cpus("0.0001").is_err());
        for bad in ["", "MiB", "1.2.3GiB", "12 parsecs", "99999999999TiB", "0", "0GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!([1_023, 1_536, 3 << 30].map(show_size), ["1023 B", "1.5 KiB", "3.0 GiB"]);
    }
}
