//! Positions: the only order there is.
//!
//! A [`Position`] is the commit LSN of a transaction (BEGIN's final LSN) and the ordinal of a record in it. LSNs of single
//! messages are never compared: COPY rows share one, a transaction's BEGIN can repeat the previous COMMIT's, and they run
//! backwards between transactions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A place in the source's write-ahead log, printed as Postgres does: `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`: before everything; Postgres never uses it for a record.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes of log from `other` to here; 0 when `other` is further.
    pub fn bytes_since(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `X/Y` with two hexadecimal numbers of 32 bits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an LSN (two hexadecimal numbers as in 16/B374D848): {0:?}")]
pub struct NotAnLsn(pub String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Lsn, NotAnLsn> {
        let half = |s: &str| {
            let plain = !s.is_empty() && s.len() <= 8 && s.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(s, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(hi, lo)| Some(Lsn(u64::from(half(hi)?) << 32 | u64::from(half(lo)?))))
            .ok_or_else(|| NotAnLsn(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Lsn, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Ordinals of chunk rows start here, above any ordinal that a transaction can reach.
pub const CHUNK_ORDINAL_BASE: u64 = 1 << 40;

/// (commit LSN, ordinal of the record in its transaction). Ordered by commit, then ordinal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    pub lsn: Lsn,
    #[serde(with = "decimal")]
    pub ordinal: u64,
}

impl Position {
    /// The beginning of everything: nothing is in yet.
    pub const ORIGIN: Position = Position { lsn: Lsn::ZERO, ordinal: 0 };

    pub fn new(lsn: Lsn, ordinal: u64) -> Position {
        Position { lsn, ordinal }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.lsn, self.ordinal)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// u64 as a decimal string in JSON: many readers of JSON lose bits above 2^53.
pub mod decimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Several of them.
pub mod decimals {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(values: &[u64], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(values.iter().map(u64::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u64>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_prints_and_parses_as_postgres_does() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for text in ["", "/", "16", "16/", "16/B374D8480", "+1/1", "x/1", "1/2/3"] {
            assert_eq!(text.parse::<Lsn>(), Err(NotAnLsn(text.to_owned())));
        }
    }

    #[test]
    fn positions_order_by_commit_then_ordinal() {
        let p = |l, o| Position::new(Lsn(l), o);
        assert!(p(1, 9) < p(2, 0) && p(2, 0) < p(2, 1) && Position::ORIGIN < p(0, 1));
        assert_eq!(serde_json::to_string(&p(1 << 32, 7)).unwrap(), r#"{"lsn":"1/0","ordinal":"7"}"#);
    }
}
