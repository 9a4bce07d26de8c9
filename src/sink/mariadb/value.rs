//! Values on their way into a MariaDB: Postgres' text of a value in, an SQL literal out, or nothing where the column can't hold it.
//!
//! Whatever MariaDB would change without an error is found here: it rounds decimals, cuts spaces at the end of a text that is
//! too long, and knows no infinite, no BC and no NaN. What it refuses by itself in a strict session (numbers out of range, a
//! TIMESTAMP beyond its years) is left to it.
//!
//! Texts of numbers stand in a statement without quotes, so they are checked for being nothing else. A text enters with its quotes
//! doubled, which is all there is to do in a session with NO_BACKSLASH_ESCAPES and utf8mb4.

use crate::key::KeyOrder;

/// How values of one kind of column at the source become literals for one kind of column here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Integer,
    /// `t` and `f` as 1 and 0.
    Bool,
    /// Digits before and behind the point that the column keeps.
    Decimal {
        whole: usize,
        scale: usize,
    },
    Float,
    Date,
    /// Without a time zone here: the UTC time of a timestamptz.
    Moment,
    Time,
    /// What the type prints. Room in characters, if that is what the column counts, and in bytes.
    Text {
        chars: Option<usize>,
        bytes: usize,
    },
    /// bytea.
    Bytes {
        bytes: usize,
    },
    /// A uuid in 16 bytes.
    Uuid,
}

/// The value does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unfit;

impl Kind {
    /// Appends the literal of a text.
    pub fn write(self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
        match self {
            Kind::Integer if is_integer(text) => out.extend_from_slice(text),
            Kind::Bool if matches!(text, b"t" | b"f") => out.push(if text == b"t" { b'1' } else { b'0' }),
            Kind::Decimal { whole, scale } => decimal(text, whole, scale, out)?,
            Kind::Float => float(text, out)?,
            Kind::Date if is_date(text) => quoted(text, out),
            Kind::Moment => quoted(moment(text).ok_or(Unfit)?, out),
            Kind::Time if is_time(text) => quoted(text, out),
            Kind::Text { chars, bytes } => {
                let fits = text.len() <= bytes && chars.is_none_or(|most| has_room(text, most));
                if !fits {
                    return Err(Unfit);
                }
                quoted(text, out);
            }
            Kind::Bytes { bytes } => {
                let digits = text.strip_prefix(b"\\x").filter(|digits| is_hex(digits)).ok_or(Unfit)?;
                if digits.len() / 2 > bytes {
                    return Err(Unfit);
                }
                hex(digits.iter().copied(), out);
            }
            Kind::Uuid => {
                let digits = text.strip_prefix(b"\\x").unwrap_or(text);
                let digits = digits.iter().copied().filter(|&b| b != b'-');
                if digits.clone().count() != 32 || !digits.clone().all(|b| b.is_ascii_hexdigit()) {
                    return Err(Unfit);
                }
                hex(digits, out);
            }
            Kind::Integer | Kind::Bool | Kind::Date | Kind::Time => return Err(Unfit),
        }
        Ok(())
    }

    /// The expression that prints a column as Postgres prints it at the source, as far as orders of keys go.
    pub fn printed(self, column: &str) -> String {
        match self {
            Kind::Bytes { .. } | Kind::Uuid => format!("CONCAT('\\x', LOWER(HEX({column})))"),
            Kind::Bool => format!("IF({column}, 't', 'f')"),
            _ => column.to_owned(),
        }
    }

    /// Where a text stands that the column can't hold: below or above all that it can, by the order of the key.
    pub fn beyond(self, order: KeyOrder, text: &str) -> Option<Beyond> {
        let mut literal = Vec::new();
        match (self, order) {
            // Of a decimal only what has no digits; one with too many is compared as it is.
            (Kind::Decimal { .. } | Kind::Integer, KeyOrder::Numeric | KeyOrder::Integer) => match text {
                "-Infinity" => Some(Beyond::Below),
                "Infinity" | "NaN" => Some(Beyond::Above),
                _ => None,
            },
            (_, KeyOrder::Micros) if self.write(text.as_bytes(), &mut literal).is_err() => {
                let below = text == "-infinity" || text.ends_with(" BC");
                Some(if below { Beyond::Below } else { Beyond::Above })
            }
            _ => None,
        }
    }
}

/// See [`Kind::beyond`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beyond {
    Below,
    Above,
}

/// A text as a literal.
pub(super) fn quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\'', rest) {
        out.extend_from_slice(&rest[..=at]);
        out.push(b'\'');
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'\'');
}

/// The same for texts of our own statements.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn has_room(text: &[u8], chars: usize) -> bool {
    // Bytes that begin a character; most texts are short enough without counting.
    text.len() <= chars || text.iter().filter(|&&b| b & 0xC0 != 0x80).count() <= chars
}

fn hex(digits: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"X'");
    out.extend(digits);
    out.push(b'\'');
}

fn is_hex(digits: &[u8]) -> bool {
    digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit)
}

fn is_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

fn decimal(text: &[u8], whole: usize, scale: usize, out: &mut Vec<u8>) -> Result<(), Unfit> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let point = digits.iter().position(|&b| b == b'.').unwrap_or(digits.len());
    let (before, behind) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    let plain = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
    if before.is_empty() || !plain(before) || !plain(behind) {
        return Err(Unfit);
    }
    let zeros = before.iter().take_while(|&&b| b == b'0').count();
    // Zeros at the end are no digits that get lost.
    let kept = behind.len() - behind.iter().rev().take_while(|&&b| b == b'0').count();
    if before.len() - zeros > whole || kept > scale {
        return Err(Unfit);
    }
    let behind = &behind[..kept];
    if text.starts_with(b"-") {
        out.push(b'-');
    }
    out.extend_from_slice(before);
    if !behind.is_empty() {
        out.push(b'.');
        out.extend_from_slice(behind);
    }
    Ok(())
}

/// As a literal with an exponent: without one it would be a decimal, and have no more digits than that. A negative zero becomes zero
/// in the column, whatever the literal.
fn float(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let legal = |b: &u8| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e');
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    if !text.iter().all(legal) || !number.is_some_and(f64::is_finite) {
        return Err(Unfit);
    }
    out.extend_from_slice(text);
    if !text.contains(&b'e') {
        out.extend_from_slice(b"e0");
    }
    Ok(())
}

/// `digits` is a pattern: 0 stands for any digit.
fn matches_digits(text: &[u8], pattern: &[u8]) -> bool {
    let fits = |(b, p): (&u8, &u8)| if *p == b'0' { b.is_ascii_digit() } else { b == p };
    text.len() == pattern.len() && text.iter().zip(pattern).all(fits)
}

fn is_date(text: &[u8]) -> bool {
    matches_digits(text, b"0000-00-00")
}

fn is_time(text: &[u8]) -> bool {
    let Some((clock, fraction)) = text.split_at_checked(8) else { return false };
    let behind = |fraction: &[u8]| matches!(fraction.split_first(), Some((b'.', digits)) if (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit));
    matches_digits(clock, b"00:00:00") && (fraction.is_empty() || behind(fraction))
}

/// `2024-01-02 03:04:05.678`, with or without `+00`.
fn moment(text: &[u8]) -> Option<&[u8]> {
    let text = text.strip_suffix(b"+00").unwrap_or(text);
    let (date, time) = text.split_at_checked(10)?;
    (is_date(date) && is_time(time.strip_prefix(b" ")?)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(kind: Kind, text: &str) -> String {
        let mut out = Vec::new();
        match kind.write(text.as_bytes(), &mut out) {
            Ok(()) => String::from_utf8(out).unwrap(),
            Err(Unfit) => "unfit".to_owned(),
        }
    }

    #[test]
    fn literals_say_what_the_text_says_or_the_value_is_refused() {
        let decimal = Kind::Decimal { whole: 3, scale: 2 };
        let text = Kind::Text { chars: Some(3), bytes: 12 };
        for (kind, value, expected) in [
            (Kind::Integer, "-12", "-12"),
            (Kind::Integer, "1; DROP TABLE t", "unfit"),
            (Kind::Bool, "t", "1"),
            (Kind::Bool, "1", "unfit"),
            (decimal, "123.45", "123.45"),
            (decimal, "-0.5000", "-0.5"),
            (decimal, "0012.10", "0012.1"),
            (decimal, "1.005", "unfit"),
            (decimal, "1234", "unfit"),
            (decimal, "NaN", "unfit"),
            (decimal, "Infinity", "unfit"),
            (Kind::Float, "-0", "-0e0"),
            (Kind::Float, "1e-05", "1e-05"),
            (Kind::Float, "NaN", "unfit"),
            (Kind::Float, "Infinity", "unfit"),
            (Kind::Date, "2024-02-29", "'2024-02-29'"),
            (Kind::Date, "infinity", "unfit"),
            (Kind::Date, "10000-01-01", "unfit"),
            (Kind::Date, "0044-03-15 BC", "unfit"),
            (Kind::Moment, "2024-01-02 03:04:05.678+00", "'2024-01-02 03:04:05.678'"),
            (Kind::Moment, "2024-01-02 03:04:05", "'2024-01-02 03:04:05'"),
            (Kind::Moment, "-infinity", "unfit"),
            (Kind::Moment, "2024-01-02 03:04:05+01", "unfit"),
            (Kind::Time, "24:00:00", "'24:00:00'"),
            (Kind::Time, "01:02:03.5", "'01:02:03.5'"),
            (text, "it's", "unfit"),
            (text, "a'\\", "'a''\\'"),
            (text, "äöü", "'äöü'"),
            (text, "a   ", "unfit"),
            (Kind::Bytes { bytes: 2 }, "\\x00ff", "X'00ff'"),
            (Kind::Bytes { bytes: 2 }, "\\x00ff00", "unfit"),
            (Kind::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "X'a0eebc999c0b4ef8bb6d6bb9bd380a11'"),
            (Kind::Uuid, "x", "unfit"),
        ] {
            assert_eq!(shown(kind, value), expected, "{kind:?} {value}");
        }
    }

    #[test]
    fn borders_that_no_column_holds_are_above_or_below_all() {
        let decimal = Kind::Decimal { whole: 3, scale: 2 };
        assert_eq!(decimal.beyond(KeyOrder::Numeric, "NaN"), Some(Beyond::Above));
        assert_eq!(decimal.beyond(KeyOrder::Numeric, "12345.678"), None);
        assert_eq!(Kind::Moment.beyond(KeyOrder::Micros, "-infinity"), Some(Beyond::Below));
        assert_eq!(Kind::Date.beyond(KeyOrder::Micros, "10000-01-01"), Some(Beyond::Above));
        assert_eq!(Kind::Date.beyond(KeyOrder::Micros, "0044-03-15 BC"), Some(Beyond::Below));
        assert_eq!(Kind::Date.beyond(KeyOrder::Micros, "2024-01-01"), None);
    }
}
