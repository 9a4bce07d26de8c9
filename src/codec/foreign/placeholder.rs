//! What Debezium writes for a column that it was not sent: a big value stored out of line that an UPDATE left alone.
//!
//! A string is the placeholder, bytes are its bytes, an array of strings holds it once, one of integers (dates and times too) its
//! bytes as numbers, a map maps it to itself, an array of uuids holds the uuid of its MD5. For other types Debezium has
//! none and writes null, or an empty array: there a null of an UPDATE can mean either, and is [`Unread::Ambiguous`].
//! Recorded in tests/golden/09-toast*.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde_json::value::RawValue;

use super::envelope::fields;
use super::value::Unread;
use crate::codec::mapping::Encoding;
use crate::relation::Placeholder;

/// `UUID.nameUUIDFromBytes` of the default placeholder.
const DEFAULT_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

const NULLS: &str = "ALTER TABLE … REPLICA IDENTITY FULL at the source: Debezium has no placeholder for this type and writes null for a big value that it was not sent";
const UUIDS: &str =
    "ALTER TABLE … REPLICA IDENTITY FULL at the source: one uuid of version 3 may be Debezium's placeholder";

/// The forms of one placeholder.
#[derive(Debug)]
pub struct Placeholders {
    text: String,
    bytes: Vec<u8>,
    is_default: bool,
}

impl Placeholders {
    /// The configuration has checked that it is one.
    pub fn new(placeholder: &Placeholder) -> Placeholders {
        let bytes = placeholder.bytes().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Placeholders { text, bytes, is_default: *placeholder == Placeholder::default() }
    }

    /// Whether a value says that the column was not sent.
    pub fn is(&self, encoding: &Encoding, raw: &str) -> Result<bool, Unread> {
        match encoding {
            Encoding::Array { element, .. } => self.is_in_array(element, raw),
            Encoding::HstoreMap if raw.starts_with('{') => Ok(self.is_in_map(raw)),
            _ => Ok(self.is_string(encoding, raw)),
        }
    }

    fn is_string(&self, encoding: &Encoding, raw: &str) -> bool {
        if !raw.starts_with('"') {
            return false;
        }
        let Ok(text) = serde_json::from_str::<String>(raw) else { return false };
        match encoding {
            Encoding::Bytes(_) | Encoding::Opaque(_) => {
                [BASE64_STANDARD.encode(&self.bytes), BASE64_URL_SAFE.encode(&self.bytes), hex::encode(&self.bytes)]
                    .contains(&text)
                    || text == self.text
            }
            _ => text == self.text,
        }
    }

    fn is_in_array(&self, element: &Encoding, raw: &str) -> Result<bool, Unread> {
        let elements: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| Unread::Unfit)?;
        if let [only] = elements[..] {
            if self.is_string(element, only.get()) {
                return Ok(true);
            }
            let text: Option<String> = serde_json::from_str(only.get()).ok();
            if let Some(uuid) = text.filter(|text| is_named_uuid(text)) {
                return match self.is_default {
                    true => Ok(uuid == DEFAULT_UUID),
                    false => Err(Unread::Ambiguous(UUIDS)),
                };
            }
        }
        let numbers: Option<Vec<i8>> = elements.iter().map(|raw| raw.get().parse().ok()).collect();
        let same = |numbers: Vec<i8>| numbers.iter().map(|n| n.cast_unsigned()).eq(self.bytes.iter().copied());
        Ok(numbers.is_some_and(|numbers| !numbers.is_empty() && same(numbers)))
    }

    fn is_in_map(&self, raw: &str) -> bool {
        let string = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).is_ok_and(|text| text == self.text);
        matches!(fields(raw).as_deref(), Some([(key, value)]) if *key == self.text && string(value))
    }

    /// Whether a null, or an empty array, of a change of a row that was there can mean a value that was not sent. `others`: some other column was
    /// not, so that the row has such values.
    pub fn may_hide(&self, encoding: &Encoding, raw: &str, others: bool) -> Result<(), Unread> {
        let hides = match encoding {
            Encoding::Array { element, .. } if raw == "[]" || raw == "null" => !has_placeholder(element),
            Encoding::DoubleVector | Encoding::FloatVector => matches!(raw, "null" | "[]"),
            Encoding::SparseVector | Encoding::Geometry(_) => raw == "null",
            // As strings they have one that not every placeholder can be turned into.
            Encoding::Bytes(mode) if *mode != crate::relation::BinaryMode::Bytes => raw == "null",
            // Out of line only where the row has nothing longer: then that shows.
            Encoding::Decimal { .. } | Encoding::VariableDecimal | Encoding::DecimalDouble => others && raw == "null",
            _ => false,
        };
        if hides { Err(Unread::Ambiguous(NULLS)) } else { Ok(()) }
    }
}

/// Elements of whose arrays Debezium has a placeholder, and so does not write null.
fn has_placeholder(element: &Encoding) -> bool {
    matches!(element, Encoding::Text(_) | Encoding::Enum { .. } | Encoding::Int32 | Encoding::Int64)
}

/// `xxxxxxxx-xxxx-3xxx-xxxx-xxxxxxxxxxxx`
fn is_named_uuid(text: &str) -> bool {
    let shape = |(i, byte): (usize, u8)| match i {
        8 | 13 | 18 | 23 => byte == b'-',
        14 => byte == b'3',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(shape)
}
