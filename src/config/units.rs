//! Sizes and durations as people write them: a whole number and one unit, `"8MiB"`, `"2ms"`.
//!
//! The list of units is closed and has one spelling each, so that a value means the same to everyone: no `MB` (a million or
//! 1 048 576?), no fractions, no sums. What comes near gets the right spelling as its hint.

use std::time::Duration;

pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;
pub(super) const GIB: usize = 1 << 30;

/// Largest first, for [`show`].
const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// In microseconds, largest first.
const DURATIONS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// A size in bytes; the error is a spelling that may be meant.
pub(super) fn size(text: &str) -> Result<usize, Option<String>> {
    let bytes = parse(text, &SIZES, |unit| match unit.to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => Some("B"),
        "k" | "kb" | "ki" | "kib" => Some("KiB"),
        "m" | "mb" | "mi" | "mib" => Some("MiB"),
        "g" | "gb" | "gi" | "gib" => Some("GiB"),
        _ => None,
    })?;
    usize::try_from(bytes).map_err(|_| None)
}

/// A duration; the error is a spelling that may be meant.
pub(super) fn duration(text: &str) -> Result<Duration, Option<String>> {
    let micros = parse(text, &DURATIONS, |unit| match unit.to_ascii_lowercase().as_str() {
        "µs" | "μs" | "usec" | "usecs" | "us" => Some("us"),
        "msec" | "msecs" | "millis" | "milliseconds" | "ms" => Some("ms"),
        "sec" | "secs" | "second" | "seconds" | "s" => Some("s"),
        "min" | "mins" | "minute" | "minutes" => Some("m"),
        "hour" | "hours" | "hr" | "hrs" | "h" => Some("h"),
        "day" | "days" | "d" => Some("d"),
        _ => None,
    })?;
    Ok(Duration::from_micros(micros))
}

fn parse(text: &str, units: &[(&str, u64)], meant: fn(&str) -> Option<&'static str>) -> Result<u64, Option<String>> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let amount: u64 = number.parse().map_err(|_| None)?;
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => amount.checked_mul(*factor).ok_or(None),
        // Zero is the same in every unit.
        None if unit.is_empty() && amount == 0 => Ok(0),
        None => Err(meant(unit).map(|unit| format!("{amount}{unit}"))),
    }
}

pub(super) fn show_size(bytes: usize) -> String {
    show(u64::try_from(bytes).expect("usize has at most 64 bits"), &SIZES)
}

pub(super) fn show_duration(duration: Duration) -> String {
    let micros = u64::try_from(duration.as_micros()).expect("a parsed duration has 64 bits of microseconds");
    if micros == 0 { "0ms".into() } else { show(micros, &DURATIONS) }
}

/// In the largest unit that leaves a whole number.
fn show(amount: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{amount}B"), |(name, factor)| format!("{}{name}", amount / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit() {
        assert_eq!(size("8MiB"), Ok(8 << 20));
        assert_eq!(size(" 32 KiB "), Ok(32 << 10));
        assert_eq!(size("0"), Ok(0));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        assert_eq!(duration("2ms"), Ok(Duration::from_millis(2)));
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
    }

    #[test]
    fn other_spellings_are_refused_with_the_right_one() {
        assert_eq!(size("8MB"), Err(Some("8MiB".into())));
        assert_eq!(size("8"), Err(None));
        assert_eq!(size("1.5MiB"), Err(None));
        assert_eq!(size("-1MiB"), Err(None));
        assert_eq!(size("99999999999GiB"), Err(None));
        assert_eq!(duration("10 seconds"), Err(Some("10s".into())));
        assert_eq!(duration("1h30m"), Err(None));
        assert_eq!(duration(""), Err(None));
    }

    #[test]
    fn shown_as_it_would_be_written() {
        for text in ["32KiB", "8MiB", "1GiB", "1000B", "0B"] {
            assert_eq!(show_size(size(text).unwrap()), text);
        }
        for text in ["7d", "90s", "2ms", "250us", "36h", "0ms"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,12}|[0-9]{0,22}[a-zA-Zµ ]{0,4}") {
            let _ = (size(&text), duration(&text));
        }
    }
}
