//! Postgres' text of dates, times, timestamps, bytea and numbers: parsed and printed, nothing else.
//!
//! Pure functions over bytes. Printing is what Postgres prints under the settings that every session of ours pins (ISO
//! dates, time zone UTC, hex bytea): fractions without trailing zeros, ` BC` at the end, years of four digits or more, `+00`.
//! Parsing takes that and a little more (other offsets, fractions with trailing zeros): whoever needs the exact text
//! compares it with the printed one. What can't be read is `None`, never a guess.
//!
//! Days and seconds count from 1970-01-01 in the proleptic Gregorian calendar, as Postgres and java.time do. Not here: any
//! wish of a format (see codec), numeric values (they stay text).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const DAY_SECONDS: i64 = 86_400;

/// A date or timestamp, which in Postgres may be infinite.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Temporal<T> {
    MinusInfinity,
    Finite(T),
    Infinity,
}

/// A moment: seconds since 1970-01-01 00:00, rounded down, and microseconds in that second.
///
/// Not one i64 of microseconds: Postgres' last years do not fit into one that counts from 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    pub seconds: i64,
    pub micros: u32,
}

impl Stamp {
    /// `4714-11-24 00:00:00 BC`: the first timestamp that Postgres takes.
    pub const MIN: Stamp = Stamp { seconds: -210_866_803_200, micros: 0 };
    /// `294276-12-31 23:59:59.999999`: the last one.
    pub const MAX: Stamp = Stamp { seconds: 9_224_318_015_999, micros: 999_999 };

    pub fn from_micros(micros: i64) -> Stamp {
        let rest = u32::try_from(micros.rem_euclid(1_000_000)).expect("below a million");
        Stamp { seconds: micros.div_euclid(1_000_000), micros: rest }
    }

    pub fn from_millis(millis: i64) -> Stamp {
        let rest = u32::try_from(millis.rem_euclid(1_000)).expect("below a thousand");
        Stamp { seconds: millis.div_euclid(1_000), micros: rest * 1_000 }
    }

    /// Whether Postgres can hold it.
    pub fn is_valid(self) -> bool {
        (Stamp::MIN..=Stamp::MAX).contains(&self)
    }
}

/// `4714-11-24 BC` and `5874897-12-31`: the dates that Postgres takes.
pub const DATE_RANGE: std::ops::RangeInclusive<i32> = -2_440_588..=2_145_042_905;

/// Days since 1970-01-01.
pub fn parse_date(text: &[u8]) -> Option<Temporal<i32>> {
    if let Some(infinite) = parse_infinite(text) {
        return Some(infinite);
    }
    let (text, bc) = split_era(text);
    let mut cursor = Cursor(text);
    let days = cursor.date(bc)?;
    cursor.end()?;
    i32::try_from(days).ok().map(Temporal::Finite)
}

pub fn parse_timestamp(text: &[u8]) -> Option<Temporal<Stamp>> {
    if let Some(infinite) = parse_infinite(text) {
        return Some(infinite);
    }
    let (text, bc) = split_era(text);
    let mut cursor = Cursor(text);
    let stamp = cursor.stamp(bc, b' ')?;
    cursor.end()?;
    Some(Temporal::Finite(stamp))
}

/// Any offset is taken and turned to UTC.
pub fn parse_timestamptz(text: &[u8]) -> Option<Temporal<Stamp>> {
    if let Some(infinite) = parse_infinite(text) {
        return Some(infinite);
    }
    let (text, bc) = split_era(text);
    let mut cursor = Cursor(text);
    let stamp = cursor.stamp(bc, b' ')?;
    let offset = cursor.offset()?;
    cursor.end()?;
    Some(Temporal::Finite(Stamp { seconds: stamp.seconds - offset, ..stamp }))
}

/// Microseconds since midnight; `24:00:00` is a time.
pub fn parse_time(text: &[u8]) -> Option<i64> {
    let mut cursor = Cursor(text);
    let (seconds, micros) = cursor.clock()?;
    cursor.end()?;
    Some(seconds * 1_000_000 + i64::from(micros))
}

/// A time with its zone: microseconds since midnight, and seconds east of UTC.
pub fn parse_timetz(text: &[u8]) -> Option<(i64, i64)> {
    let mut cursor = Cursor(text);
    let (seconds, micros) = cursor.clock()?;
    let offset = cursor.offset()?;
    cursor.end()?;
    Some((seconds * 1_000_000 + i64::from(micros), offset))
}

/// An interval as Postgres keeps it: each part has a sign of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interval {
    pub months: i32,
    pub days: i32,
    pub micros: i64,
}

/// IntervalStyle postgres: `1 year -2 mons +3 days 04:05:06.789`, each part only where it is not zero.
pub fn parse_interval(text: &[u8]) -> Option<Temporal<Interval>> {
    if let Some(infinite) = parse_infinite(text) {
        return Some(infinite);
    }
    let text = std::str::from_utf8(text).ok()?;
    let (mut months, mut days, mut micros) = (0i32, 0i32, 0i64);
    let mut words = text.split(' ').peekable();
    words.peek().filter(|word| !word.is_empty())?;
    while let Some(word) = words.next() {
        if word.contains(':') {
            micros = interval_clock(word)?;
            return words.next().is_none().then_some(Temporal::Finite(Interval { months, days, micros }));
        }
        let number: i32 = word.parse().ok()?;
        match words.next()? {
            "year" | "years" => months = months.checked_add(number.checked_mul(12)?)?,
            "mon" | "mons" => months = months.checked_add(number)?,
            "day" | "days" => days = number,
            _ => return None,
        }
    }
    Some(Temporal::Finite(Interval { months, days, micros }))
}

/// `-100:04:05.5`: hours are as many as there are.
fn interval_clock(word: &str) -> Option<i64> {
    let (negative, plain) = match word.strip_prefix('-') {
        Some(plain) => (true, plain),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    let (hours, rest) = plain.split_once(':')?;
    let mut cursor = Cursor(rest.as_bytes());
    let minutes = cursor.two()?;
    cursor.take(b':').then_some(())?;
    let seconds = cursor.two()?;
    let fraction = if cursor.take(b'.') { cursor.fraction()? } else { 0 };
    cursor.end()?;
    let hours: i128 = hours.bytes().all(|b| b.is_ascii_digit()).then(|| hours.parse().ok()).flatten()?;
    let micros = ((hours * 60 + i128::from(minutes)) * 60 + i128::from(seconds)) * 1_000_000 + i128::from(fraction);
    i64::try_from(if negative { -micros } else { micros }).ok()
}

/// ISO 8601 in UTC with astronomical years, as java.time prints it: `-0043-03-15T12:00:00.5Z`, `+10000-01-01T00:00:00Z`.
pub fn parse_iso_utc(text: &[u8]) -> Option<Stamp> {
    let mut cursor = Cursor(text.strip_suffix(b"Z")?);
    let negative = cursor.take(b'-');
    if !negative {
        cursor.take(b'+');
    }
    let year = cursor.number(4, 7)?;
    let days = cursor.month_and_day(if negative { -year } else { year })?;
    cursor.take(b'T').then_some(())?;
    let stamp = cursor.clock_on(days)?;
    cursor.end()?;
    Some(stamp)
}

fn parse_infinite<T>(text: &[u8]) -> Option<Temporal<T>> {
    match text {
        b"infinity" => Some(Temporal::Infinity),
        b"-infinity" => Some(Temporal::MinusInfinity),
        _ => None,
    }
}

fn split_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// All digits that follow, if they are `min` to `max`.
    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        let len = self.0.iter().position(|b| !b.is_ascii_digit()).unwrap_or(self.0.len());
        if len < min || len > max {
            return None;
        }
        let (digits, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    }

    fn two(&mut self) -> Option<i64> {
        let [a, b, rest @ ..] = self.0 else { return None };
        if !(a.is_ascii_digit() && b.is_ascii_digit()) {
            return None;
        }
        self.0 = rest;
        Some(i64::from(a - b'0') * 10 + i64::from(b - b'0'))
    }

    /// A date as days, the year as Postgres prints it.
    fn date(&mut self, bc: bool) -> Option<i64> {
        let year = self.number(4, 7)?;
        if year == 0 {
            return None;
        }
        self.month_and_day(if bc { 1 - year } else { year })
    }

    /// The rest of a date behind its astronomical year.
    fn month_and_day(&mut self, year: i64) -> Option<i64> {
        self.take(b'-').then_some(())?;
        let month = self.two()?;
        self.take(b'-').then_some(())?;
        let day = self.two()?;
        let valid = (1..=12).contains(&month) && day >= 1 && day <= month_days(year, month);
        valid.then(|| days_of(year, month, day))
    }

    fn stamp(&mut self, bc: bool, between: u8) -> Option<Stamp> {
        let days = self.date(bc)?;
        self.take(between).then_some(())?;
        self.clock_on(days)
    }

    fn clock_on(&mut self, days: i64) -> Option<Stamp> {
        let (seconds, micros) = self.clock()?;
        (seconds < DAY_SECONDS).then_some(Stamp { seconds: days * DAY_SECONDS + seconds, micros })
    }

    /// `HH:MM:SS` and a fraction of up to six digits: seconds since midnight, microseconds. 24:00:00 at most.
    fn clock(&mut self) -> Option<(i64, u32)> {
        let hours = self.two()?;
        self.take(b':').then_some(())?;
        let minutes = self.two()?;
        self.take(b':').then_some(())?;
        let seconds = self.two()?;
        let micros = if self.take(b'.') { self.fraction()? } else { 0 };
        let whole = hours * 3600 + minutes * 60 + seconds;
        let valid = minutes < 60 && seconds < 60 && (whole < DAY_SECONDS || (whole == DAY_SECONDS && micros == 0));
        valid.then_some((whole, micros))
    }

    fn fraction(&mut self) -> Option<u32> {
        let before = self.0.len();
        let number = u32::try_from(self.number(1, 6)?).ok()?;
        let digits = u32::try_from(before - self.0.len()).ok()?;
        Some(number * 10u32.pow(6 - digits))
    }

    /// `+HH`, `+HH:MM` or `+HH:MM:SS`: seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        let west = match self.0.first()? {
            b'+' => false,
            b'-' => true,
            _ => return None,
        };
        self.0 = &self.0[1..];
        let mut seconds = self.two()? * 3600;
        if self.take(b':') {
            seconds += self.two()? * 60;
            if self.take(b':') {
                seconds += self.two()?;
            }
        }
        Some(if west { -seconds } else { seconds })
    }
}

/// Whether a text that [`parse_date`] took is the one that [`push_date`] prints, told by its shape: a year of four digits. Most
/// are; the others may still be printed alike.
pub fn is_plain_date(text: &[u8]) -> bool {
    text.len() == 10 && text[4] == b'-'
}

/// The same for [`parse_timestamp`] and [`push_timestamp`]: besides, a fraction that does not end in zero.
pub fn is_plain_timestamp(text: &[u8]) -> bool {
    text.len() >= 19 && is_plain_date(&text[..10]) && is_plain_time(&text[11..])
}

/// The same for [`parse_timestamptz`] and [`push_timestamptz`].
pub fn is_plain_timestamptz(text: &[u8]) -> bool {
    text.strip_suffix(b"+00").is_some_and(is_plain_timestamp)
}

/// The same for [`parse_time`] and [`push_time`].
pub fn is_plain_time(text: &[u8]) -> bool {
    match text.get(8..) {
        Some([]) => true,
        Some([b'.', .., last]) => matches!(last, b'1'..=b'9'),
        _ => false,
    }
}

pub fn push_date(out: &mut Vec<u8>, days: i32) {
    let bc = push_year_month_day(out, i64::from(days));
    push_era(out, bc);
}

pub fn push_timestamp(out: &mut Vec<u8>, stamp: Stamp) {
    let bc = push_year_month_day(out, stamp.seconds.div_euclid(DAY_SECONDS));
    out.push(b' ');
    push_clock(out, stamp.seconds.rem_euclid(DAY_SECONDS), stamp.micros, 0);
    push_era(out, bc);
}

/// In UTC.
pub fn push_timestamptz(out: &mut Vec<u8>, stamp: Stamp) {
    let bc = push_year_month_day(out, stamp.seconds.div_euclid(DAY_SECONDS));
    out.push(b' ');
    push_clock(out, stamp.seconds.rem_euclid(DAY_SECONDS), stamp.micros, 0);
    out.extend_from_slice(b"+00");
    push_era(out, bc);
}

/// `micros` since midnight, 24:00:00 at most.
pub fn push_time(out: &mut Vec<u8>, micros: i64) {
    let rest = u32::try_from(micros.rem_euclid(1_000_000)).expect("below a million");
    push_clock(out, micros.div_euclid(1_000_000), rest, 0);
}

/// What [`parse_iso_utc`] reads; the fraction has at least `digits` digits.
pub fn push_iso_utc(out: &mut Vec<u8>, stamp: Stamp, digits: u8) {
    push_iso_year_month_day(out, stamp.seconds.div_euclid(DAY_SECONDS));
    out.push(b'T');
    push_clock(out, stamp.seconds.rem_euclid(DAY_SECONDS), stamp.micros, digits);
    out.push(b'Z');
}

/// ISO 8601 with an astronomical year, and Debezium's `Z`: `-0043-03-15Z`.
pub fn push_iso_date(out: &mut Vec<u8>, days: i32) {
    push_iso_year_month_day(out, i64::from(days));
    out.push(b'Z');
}

fn push_iso_year_month_day(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_of(days);
    if year < 0 {
        out.push(b'-');
    } else if year > 9999 {
        out.push(b'+');
    }
    push_padded(out, year.unsigned_abs(), 4);
    push_month_day(out, month, day);
}

/// Whether the year is before Christ; the caller ends the text with [`push_era`].
fn push_year_month_day(out: &mut Vec<u8>, days: i64) -> bool {
    let (year, month, day) = civil_of(days);
    let bc = year <= 0;
    push_padded(out, (if bc { 1 - year } else { year }).unsigned_abs(), 4);
    push_month_day(out, month, day);
    bc
}

fn push_month_day(out: &mut Vec<u8>, month: i64, day: i64) {
    out.push(b'-');
    push_two(out, month);
    out.push(b'-');
    push_two(out, day);
}

fn push_era(out: &mut Vec<u8>, bc: bool) {
    if bc {
        out.extend_from_slice(b" BC");
    }
}

/// The fraction has as many digits as it needs, but at least `digits`.
fn push_clock(out: &mut Vec<u8>, seconds: i64, micros: u32, digits: u8) {
    push_two(out, seconds / 3600);
    out.push(b':');
    push_two(out, seconds / 60 % 60);
    out.push(b':');
    push_two(out, seconds % 60);
    if micros == 0 && digits == 0 {
        return;
    }
    out.push(b'.');
    let start = out.len();
    push_padded(out, u64::from(micros), 6);
    while out.len() > start + usize::from(digits) && out.last() == Some(&b'0') {
        out.pop();
    }
}

fn push_two(out: &mut Vec<u8>, number: i64) {
    let digit = |n: i64| b"0123456789"[usize::try_from(n % 10).expect("not negative")];
    out.extend_from_slice(&[digit(number / 10), digit(number)]);
}

fn push_padded(out: &mut Vec<u8>, number: u64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.extend(std::iter::repeat_n(b'0', width.saturating_sub(digits.len())));
    out.extend_from_slice(digits);
}

fn month_days(year: i64, month: i64) -> i64 {
    let leap = year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of an astronomical year's date. Years are counted from March, so that the leap day is the last.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let cycle = year.div_euclid(400);
    let year_of_cycle = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    // A cycle of 400 years has 146 097 days; 719 468 lie between 0000-03-01 and 1970-01-01.
    cycle * 146_097 + day_of_cycle - 719_468
}

/// The inverse of [`days_of`]: astronomical year, month, day.
fn civil_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let cycle = days.div_euclid(146_097);
    let day_of_cycle = days.rem_euclid(146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month, day)
}

/// Bytes turned at once between hex and base64: a multiple of 3, so that base64 pads only the last piece.
const PIECE: usize = 768;

/// Appends the base64 of a bytea text (`\x0aff`); `None` if it is not hex.
pub fn push_base64(out: &mut Vec<u8>, bytea: &[u8]) -> Option<()> {
    let digits = bytea.strip_prefix(b"\\x")?;
    let mut bytes = [0u8; PIECE];
    for piece in digits.chunks(PIECE * 2) {
        let bytes = &mut bytes[..piece.len() / 2];
        hex::decode_to_slice(piece, bytes).ok()?;
        let start = out.len();
        out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        STANDARD.encode_slice(bytes, &mut out[start..]).ok()?;
    }
    Some(())
}

/// Appends the bytea text of base64; `None` if it is not padded, canonical base64.
pub fn push_bytea(out: &mut Vec<u8>, base64: &[u8]) -> Option<()> {
    out.extend_from_slice(b"\\x");
    let mut bytes = [0u8; PIECE];
    let mut pieces = base64.chunks(PIECE / 3 * 4).peekable();
    while let Some(piece) = pieces.next() {
        let len = STANDARD.decode_slice(piece, &mut bytes).ok()?;
        // Padding ends the whole, not a piece of it.
        if pieces.peek().is_some() && len != PIECE {
            return None;
        }
        let start = out.len();
        out.resize(start + len * 2, 0);
        hex::encode_to_slice(&bytes[..len], &mut out[start..]).ok()?;
    }
    Some(())
}

/// `-?(0|[1-9][0-9]*)`: an integer as Postgres and JSON print it.
pub fn is_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [] => false,
        [b'0', _, ..] => false,
        _ => digits.iter().all(u8::is_ascii_digit),
    }
}

/// A number as JSON has it. Postgres' floats are, except NaN and the infinities.
pub fn is_json_number(text: &[u8]) -> bool {
    let (mantissa, exponent) = match text.iter().position(|b| matches!(b, b'e' | b'E')) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.iter().position(|b| *b == b'.') {
        Some(at) => (&mantissa[..at], Some(&mantissa[at + 1..])),
        None => (mantissa, None),
    };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let signed = |text: &[u8]| digits(text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text));
    is_integer(whole) && fraction.is_none_or(digits) && exponent.is_none_or(signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        print(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_limits_of_postgres_print_and_parse() {
        let (first, last) = (*DATE_RANGE.start(), *DATE_RANGE.end());
        for (text, days) in [("4714-11-24 BC", first), ("5874897-12-31", last), ("0001-12-31 BC", -719_163)] {
            assert_eq!(printed(|out| push_date(out, days)), text);
            assert_eq!(parse_date(text.as_bytes()), Some(Temporal::Finite(days)));
        }
        for (text, stamp) in [("4714-11-24 00:00:00 BC", Stamp::MIN), ("294276-12-31 23:59:59.999999", Stamp::MAX)] {
            assert_eq!(printed(|out| push_timestamp(out, stamp)), text);
            assert_eq!(parse_timestamp(text.as_bytes()), Some(Temporal::Finite(stamp)));
        }
    }

    #[test]
    fn every_day_of_some_centuries_follows_the_one_before() {
        let mut last = civil_of(-800_000);
        for days in -799_999..200_000 {
            let (year, month, day) = civil_of(days);
            let next = match last {
                (y, 12, 31) => (y + 1, 1, 1),
                (y, m, d) if d == month_days(y, m) => (y, m + 1, 1),
                (y, m, d) => (y, m, d + 1),
            };
            assert_eq!((year, month, day), next);
            assert_eq!(days_of(year, month, day), days);
            last = next;
        }
        assert_eq!(civil_of(0), (1970, 1, 1));
    }

    #[test]
    fn a_plain_shape_is_believed_only_where_printing_says_the_same() {
        let dates = ["2024-02-29", "0001-01-01", "9999-12-31", "10000-01-01", "00012-01-01", "0044-03-15 BC"];
        let clocks = ["00:00:00", "23:59:59.5", "12:00:00.50", "12:00:00.000001", "12:00:00.0", "24:00:00"];
        let mut plain = 0;
        for date in dates {
            let Some(Temporal::Finite(days)) = parse_date(date.as_bytes()) else { panic!("{date}") };
            if is_plain_date(date.as_bytes()) {
                assert_eq!(printed(|out| push_date(out, days)), date);
                plain += 1;
            }
            for clock in clocks {
                let micros = parse_time(clock.as_bytes()).unwrap();
                if is_plain_time(clock.as_bytes()) {
                    assert_eq!(printed(|out| push_time(out, micros)), clock);
                }
                let (day, era) = date.split_at(date.find(" BC").unwrap_or(date.len()));
                let text = format!("{day} {clock}{era}");
                if let Some(Temporal::Finite(stamp)) = parse_timestamp(text.as_bytes())
                    && is_plain_timestamp(text.as_bytes())
                {
                    assert_eq!(printed(|out| push_timestamp(out, stamp)), text);
                    plain += 1;
                }
                for offset in ["+00", "+01", "-00"] {
                    let text = format!("{day} {clock}{offset}{era}");
                    if let Some(Temporal::Finite(stamp)) = parse_timestamptz(text.as_bytes())
                        && is_plain_timestamptz(text.as_bytes())
                    {
                        assert_eq!(printed(|out| push_timestamptz(out, stamp)), text);
                        plain += 1;
                    }
                }
            }
        }
        assert_eq!(plain, 3 + 3 * 3 + 3 * 3, "four-digit years, clocks without a needless zero, UTC");
    }

    #[test]
    fn offsets_turn_to_utc() {
        for (text, utc) in [
            ("1883-11-18 12:03:58.000001-07:52:58", "1883-11-18 19:56:56.000001+00"),
            ("2024-01-01 00:00:00+05:30", "2023-12-31 18:30:00+00"),
            ("0001-01-01 00:00:00+01", "0001-12-31 23:00:00+00 BC"),
        ] {
            let Some(Temporal::Finite(stamp)) = parse_timestamptz(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(printed(|out| push_timestamptz(out, stamp)), utc);
        }
    }

    #[test]
    fn iso_has_astronomical_years_and_a_width() {
        let stamp = |text: &str| match parse_timestamp(text.as_bytes()) {
            Some(Temporal::Finite(stamp)) => stamp,
            other => panic!("{text}: {other:?}"),
        };
        for (text, digits, iso) in [
            ("0001-12-31 23:59:59.5 BC", 0, "0000-12-31T23:59:59.5Z"),
            ("0002-01-01 00:00:00 BC", 3, "-0001-01-01T00:00:00.000Z"),
            ("10000-01-01 00:00:00.12", 6, "+10000-01-01T00:00:00.120000Z"),
            ("9999-12-31 23:59:59.123456", 3, "9999-12-31T23:59:59.123456Z"),
        ] {
            assert_eq!(printed(|out| push_iso_utc(out, stamp(text), digits)), iso);
            assert_eq!(parse_iso_utc(iso.as_bytes()), Some(stamp(text)));
        }
    }

    #[test]
    fn what_is_no_date_or_time_is_nothing() {
        for text in
            ["", "2024-02-30", "2024-2-1", "0000-01-01", "2024-01-01 ", "2024-01-01 AD", "2024-13-01", "24-01-01"]
        {
            assert_eq!(parse_date(text.as_bytes()), None, "{text}");
        }
        for text in ["2024-01-01 24:00:00", "2024-01-01T00:00:00", "2024-01-01 00:00:60", "2024-01-01 00:00:00.", "now"]
        {
            assert_eq!(parse_timestamp(text.as_bytes()), None, "{text}");
        }
        for text in ["24:00:01", "12:00", "12:00:00.1234567", "12:00:00+00", "-1:00:00"] {
            assert_eq!(parse_time(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_iso_utc(b"2024-01-01T00:00:00"), None);
    }

    #[test]
    fn base64_has_one_form() {
        let hex = |base64: &str| {
            let mut out = Vec::new();
            push_bytea(&mut out, base64.as_bytes()).map(|()| String::from_utf8(out).unwrap())
        };
        assert_eq!(hex("AQI=").as_deref(), Some("\\x0102"));
        assert_eq!(hex(""), Some("\\x".to_owned()));
        for base64 in ["AQI", "AQJ=", "AQ==AQ==", "A", "=", "AQI=\n"] {
            assert_eq!(hex(base64), None, "{base64}");
        }
        // Padding at the end of a full piece, and behind it more.
        let piece = "AAAA".repeat(PIECE / 3);
        assert_eq!(hex(&format!("{}AA=={piece}", &piece[4..])), None);
        for hex in ["\\x0", "\\xzz", "ab", "\\000"] {
            assert_eq!(push_base64(&mut Vec::new(), hex.as_bytes()), None, "{hex}");
        }
    }

    #[test]
    fn numbers_are_json_numbers() {
        for text in ["0", "-0", "1.5", "1e+10", "1E-07", "-123.456e300"] {
            assert!(is_json_number(text.as_bytes()), "{text}");
        }
        for text in ["", "-", "+1", "01", "1.", ".5", "1e", "1e+", "1e+-1", "NaN", "1 ", "1.5.5", "--1", "1e1e1"] {
            assert!(!is_json_number(text.as_bytes()), "{text}");
        }
        assert!(is_integer(b"10") && !is_integer(b"010") && !is_integer(b"1.0") && !is_integer(b"-"));
    }
}
