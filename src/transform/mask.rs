//! Masks: what is written in the place of a column's text.
//!
//! They are Debezium's, byte for byte, so that values which are joined by a hash stay the same when a topic changes hands. One
//! thing differs: a truncation never cuts a character beyond the BMP in two, where Java leaves half of it and Kafka gets a `?`.
//!
//! Not secret but close to it: a salt never shows; where a mask must be told from another, a digest stands for it.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::value::Cell;

/// How the values of one column are hidden.
#[derive(Clone, Debug)]
pub enum Mask {
    /// So many asterisks, also in the place of NULL.
    Fixed { chars: u32 },
    /// The first so many characters, counted as Java does: one beyond the BMP is two.
    Truncate { chars: u32 },
    /// The hexadecimal digits of a digest over salt and value, cut to the column's length.
    Hash { algorithm: Algorithm, version: HashVersion, salt: SecretString },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Algorithm {
    #[serde(rename = "SHA-224")]
    Sha224,
    #[serde(rename = "SHA-256")]
    Sha256,
    #[serde(rename = "SHA-384")]
    Sha384,
    #[serde(rename = "SHA-512")]
    Sha512,
}

/// What is hashed behind the salt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashVersion {
    /// The value as Java serializes a string: `column.mask.hash.…`, kept by Debezium for topics that have it.
    V1,
    /// The value's UTF-8: `column.mask.hash.v2.…`.
    V2,
}

/// A mask as relation versions have it: without its salt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskMark {
    Fixed {
        chars: u32,
    },
    Truncate {
        chars: u32,
    },
    /// `salt`: a digest of it.
    Hash {
        algorithm: Algorithm,
        version: HashVersion,
        salt: String,
    },
}

impl MaskMark {
    /// The parameter of a masked column's schema, as Debezium has it.
    pub fn parameter(&self) -> (&'static str, String) {
        match self {
            MaskMark::Fixed { .. } | MaskMark::Hash { .. } => ("masked", "true".to_owned()),
            MaskMark::Truncate { chars } => ("truncateLength", chars.to_string()),
        }
    }
}

impl Mask {
    pub fn mark(&self) -> MaskMark {
        match self {
            Mask::Fixed { chars } => MaskMark::Fixed { chars: *chars },
            Mask::Truncate { chars } => MaskMark::Truncate { chars: *chars },
            Mask::Hash { algorithm, version, salt } => {
                let digest = Sha256::new()
                    .chain_update("the salt of a mask of lockstep ")
                    .chain_update(salt.expose_secret())
                    .finalize();
                let salt = hex::encode(&digest[..8]);
                MaskMark::Hash { algorithm: *algorithm, version: *version, salt }
            }
        }
    }

    /// What stands for a cell: the cell itself, or the text that was put into `out`. `length` is the column's, in characters.
    pub fn apply<'a>(&self, cell: Cell<'a>, length: Option<usize>, out: &'a mut Vec<u8>) -> Cell<'a> {
        out.clear();
        match (self, cell) {
            // The same whatever the column holds, so it is known also where the column was not sent.
            (Mask::Fixed { chars }, _) => {
                out.resize(*chars as usize, b'*');
                Cell::Text(out)
            }
            (_, Cell::Null | Cell::Absent) => cell,
            (Mask::Truncate { chars }, Cell::Text(text)) => Cell::Text(truncated(text, *chars)),
            (Mask::Hash { algorithm, version, salt }, Cell::Text(text)) => {
                let mut digits = match version {
                    HashVersion::V1 => algorithm.hash(salt, &java_string(text)),
                    HashVersion::V2 => algorithm.hash(salt, text),
                };
                digits.truncate(length.unwrap_or(usize::MAX));
                out.extend_from_slice(digits.as_bytes());
                Cell::Text(out)
            }
        }
    }
}

impl Algorithm {
    fn hash(self, salt: &SecretString, value: &[u8]) -> String {
        fn of<D: Digest>(salt: &SecretString, value: &[u8]) -> String {
            hex::encode(D::new().chain_update(salt.expose_secret()).chain_update(value).finalize().as_slice())
        }
        match self {
            Algorithm::Sha224 => of::<Sha224>(salt, value),
            Algorithm::Sha256 => of::<Sha256>(salt, value),
            Algorithm::Sha384 => of::<Sha384>(salt, value),
            Algorithm::Sha512 => of::<Sha512>(salt, value),
        }
    }
}

/// The longest beginning of at most `chars` UTF-16 units that ends with a whole character. Bytes that are no UTF-8 begin no
/// character; the encoder refuses them by name.
fn truncated(text: &[u8], chars: u32) -> &[u8] {
    let mut units = 0;
    for (at, byte) in text.iter().enumerate() {
        units += match byte {
            0x80..=0xbf => continue,
            0xf0.. => 2,
            _ => 1,
        };
        if units > chars {
            return &text[..at];
        }
    }
    text
}

/// A string as `ObjectOutputStream.writeObject` writes it: a header, a tag and the length for short or long strings, modified
/// UTF-8 (Java Object Serialization Specification, section 6).
fn java_string(text: &[u8]) -> Vec<u8> {
    const HEADER: [u8; 4] = [0xac, 0xed, 0x00, 0x05];
    const SHORT: u8 = 0x74;
    const LONG: u8 = 0x7c;
    let mut body = Vec::with_capacity(text.len());
    for char in String::from_utf8_lossy(text).chars() {
        for unit in char.encode_utf16(&mut [0; 2]) {
            push_modified(&mut body, *unit);
        }
    }
    let mut out = HEADER.to_vec();
    match u16::try_from(body.len()) {
        Ok(length) => {
            out.push(SHORT);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(LONG);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&body);
    out
}

/// Each UTF-16 unit by itself, in one to three bytes.
fn push_modified(out: &mut Vec<u8>, unit: u16) {
    let [high, low] = unit.to_be_bytes();
    match unit {
        1..=0x7f => out.push(low),
        0 | 0x80..=0x7ff => out.extend_from_slice(&[0xc0 | high << 2 | low >> 6, 0x80 | low & 0x3f]),
        0x800.. => {
            out.extend_from_slice(&[0xe0 | high >> 4, 0x80 | (high & 0x0f) << 2 | low >> 6, 0x80 | low & 0x3f]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(mask: &Mask, cell: Cell<'_>, length: Option<usize>) -> Option<String> {
        let mut out = Vec::new();
        mask.apply(cell, length, &mut out).text().map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    fn hash(algorithm: Algorithm, version: HashVersion, salt: &str) -> Mask {
        Mask::Hash { algorithm, version, salt: salt.into() }
    }

    #[test]
    fn hashes_are_debezium_s() {
        // tests/golden/17-mask and 17-mask-v2-schemas; the column is varchar(11).
        let v1 = hash(Algorithm::Sha256, HashVersion::V1, "CzQMA0cB5K");
        let v2 = hash(Algorithm::Sha512, HashVersion::V2, "salty");
        let of = |mask: &Mask, text: &str| applied(mask, Cell::Text(text.as_bytes()), Some(11)).unwrap();
        assert_eq!(of(&v1, "123-45-6789"), "377189d9d7c");
        assert_eq!(of(&v1, ""), "7b061bc77ca");
        assert_eq!(of(&v1, "é😀"), "473009e8e91", "modified UTF-8 writes each half of a pair by itself");
        assert_eq!(of(&v2, "123-45-6789"), "898e4e9677f");
        assert_eq!(of(&v2, "é😀"), "02864c7fed7");
        let whole = applied(&v2, Cell::Text(b"Ann"), None).unwrap();
        assert!(whole.starts_with("62d5d0868f4ecd17cb616ad3ac38046f") && whole.len() == 128, "{whole}");
        assert_eq!(applied(&v1, Cell::Null, Some(11)), None);
    }

    #[test]
    fn a_long_string_has_a_long_length() {
        let text = vec![b'x'; 65_536];
        let java = java_string(&text);
        assert_eq!(java[..13], [0xac, 0xed, 0, 5, 0x7c, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(java.len(), 13 + text.len());
        assert_eq!(java_string(b"\0a")[4..], [0x74, 0, 3, 0xc0, 0x80, b'a']);
    }

    #[test]
    fn a_fixed_mask_hides_null_and_what_was_not_sent() {
        let mask = Mask::Fixed { chars: 6 };
        for cell in [Cell::Text(b"Ann"), Cell::Text(b""), Cell::Null, Cell::Absent] {
            assert_eq!(applied(&mask, cell, None).as_deref(), Some("******"));
        }
        assert_eq!(applied(&Mask::Fixed { chars: 0 }, Cell::Null, None).as_deref(), Some(""));
    }

    #[test]
    fn truncation_counts_as_java_and_cuts_no_character() {
        let cut = |chars, text: &str| applied(&Mask::Truncate { chars }, Cell::Text(text.as_bytes()), None).unwrap();
        assert_eq!(cut(4, "é😀é😀é😀é😀"), "é😀é");
        assert_eq!(cut(2, "é😀"), "é", "half a character is none");
        assert_eq!(cut(3, "é😀"), "é😀");
        assert_eq!(cut(8, "short"), "short");
        assert_eq!(cut(0, "x"), "");
        let mut out = Vec::new();
        assert_eq!(Mask::Truncate { chars: 3 }.apply(Cell::Absent, None, &mut out), Cell::Absent);
    }

    #[test]
    fn salts_do_not_show_and_are_told_apart() {
        let (one, other) = (
            hash(Algorithm::Sha256, HashVersion::V2, "pepper-canary"),
            hash(Algorithm::Sha256, HashVersion::V2, "other"),
        );
        assert_ne!(one.mark(), other.mark());
        assert!(!format!("{one:?} {:?}", one.mark()).contains("canary"));
    }
}
