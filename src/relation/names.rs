//! Names of fields, schemas and topics for consumers that do not take every name that Postgres does.
//!
//! As Debezium's `field.name.adjustment.mode`, `schema.name.adjustment.mode` and its names of topics have them
//! (tests/golden/19-names-*). Characters are Java's, units of UTF-16: one beyond the BMP is two.
//!
//! Not here: what two names that become one mean; whoever makes names of several things compares them.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::TableName;

/// What becomes of characters in the names of fields and schemas that Avro does not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameMode {
    /// They stay.
    #[default]
    None,
    /// Each becomes `_`; a digit at the start gets one in front.
    Avro,
    /// Each becomes `_uXXXX`, and so does `_` itself: different names stay different.
    AvroUnicode,
}

impl NameMode {
    pub fn is_none(&self) -> bool {
        *self == NameMode::None
    }

    /// A column's name as records have it.
    pub fn field(self, name: &str) -> Cow<'_, str> {
        self.adjusted(name, "")
    }

    /// A schema's full name, whose parts stand between points.
    pub fn schema(self, name: &str) -> Cow<'_, str> {
        self.adjusted(name, ".")
    }

    fn adjusted<'n>(self, name: &'n str, also: &str) -> Cow<'n, str> {
        if self.is_none() {
            return Cow::Borrowed(name);
        }
        let mut adjusted = String::with_capacity(name.len());
        for (i, unit) in name.encode_utf16().enumerate() {
            let ascii = u8::try_from(unit).ok().map(char::from);
            let digit = ascii.filter(|_| i == 0).filter(char::is_ascii_digit);
            let taken = |c: &char| match c {
                '_' => self == NameMode::Avro,
                c if i == 0 => c.is_ascii_alphabetic(),
                c => c.is_ascii_alphanumeric() || also.contains(*c),
            };
            match (ascii.filter(taken), self, digit) {
                (Some(c), _, _) => adjusted.push(c),
                (None, NameMode::AvroUnicode, _) => write!(adjusted, "_u{unit:04x}").expect("a string takes all"),
                (None, _, Some(digit)) => adjusted.extend(['_', digit]),
                (None, _, None) => adjusted.push('_'),
            }
        }
        Cow::Owned(adjusted)
    }
}

/// What stands between the parts of a topic's name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Delimiter(pub String);

impl Default for Delimiter {
    fn default() -> Delimiter {
        Delimiter(".".to_owned())
    }
}

impl Delimiter {
    pub fn is_default(&self) -> bool {
        *self == Delimiter::default()
    }
}

/// Prefix, schema and table as Debezium joins them: the topic's name, and the stem of the names of its schemas.
pub fn topic_name(prefix: &str, delimiter: &Delimiter, table: &TableName) -> String {
    let Delimiter(delimiter) = delimiter;
    legal_topic(&format!("{prefix}{delimiter}{}{delimiter}{}", table.schema, table.table))
}

/// The text with `_` for each character that Kafka does not take in a topic's name (Topic.java, LEGAL_CHARS).
pub fn legal_topic(text: &str) -> String {
    let legal = |unit: u16| u8::try_from(unit).ok().map(char::from).filter(|c| is_topic_char(*c));
    text.encode_utf16().map(|unit| legal(unit).unwrap_or('_')).collect()
}

/// What Kafka takes in a topic's name.
pub fn is_topic_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

/// Kafka refuses a topic that differs from another only by '.' and '_' (Topic.java, hasCollision): what is alike of both.
pub fn topic_collision(topic: &str) -> String {
    topic.replace('.', "_")
}

/// A pattern with its `{placeholders}` replaced by what `value` gives for them, made legal. The error is the placeholder that
/// there is none for. Braces are nothing that Kafka takes, so every one begins or ends a placeholder.
pub fn fill_topic<'v>(pattern: &str, value: impl Fn(&str) -> Option<&'v str>) -> Result<String, String> {
    let (mut filled, mut rest) = (String::new(), pattern);
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let (name, behind) = after.split_once('}').ok_or_else(|| format!("{{{after}"))?;
        filled.push_str(&legal_topic(value(name).ok_or_else(|| format!("{{{name}}}"))?));
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_adjusted_as_debezium_does() {
        let cases = [
            ("Id", "Id", "Id"),
            ("a-b", "a_b", "a_u002db"),
            ("1st", "_1st", "_u0031st"),
            ("456", "_456", "_u003456"),
            ("Ünï", "_n_", "_u00dcn_u00ef"),
            ("dot.ted", "dot_ted", "dot_u002eted"),
            ("q\"uote", "q_uote", "q_u0022uote"),
            ("_y", "_y", "_u005fy"),
            ("列", "_", "_u5217"),
            ("é😀", "___", "_u00e9_ud83d_ude00"),
        ];
        for (name, avro, unicode) in cases {
            assert_eq!(NameMode::None.field(name), name);
            assert_eq!(NameMode::Avro.field(name), avro);
            assert_eq!(NameMode::AvroUnicode.field(name), unicode);
        }
    }

    #[test]
    fn schemas_keep_their_points() {
        assert_eq!(NameMode::Avro.schema("g19.sch-dash.dot.123"), "g19.sch_dash.dot.123");
        assert_eq!(NameMode::Avro.schema("1G-19.a"), "_1G_19.a");
        assert_eq!(NameMode::AvroUnicode.schema("g19.public.a_b"), "g19.public.a_u005fb");
    }

    #[test]
    fn topics_are_joined_and_made_legal() {
        let table = TableName::new("My Schema", "Ünï😀.x");
        assert_eq!(topic_name("p", &Delimiter::default(), &table), "p.My_Schema._n___.x");
        assert_eq!(topic_name("p", &Delimiter("_".into()), &table), "p_My_Schema__n___.x");
    }

    #[test]
    fn placeholders_are_filled_or_named() {
        let value = |name: &str| (name == "table").then_some("a b");
        assert_eq!(fill_topic("x.{table}-{table}", value).unwrap(), "x.a_b-a_b");
        assert_eq!(fill_topic("{tabel}", value).unwrap_err(), "{tabel}");
        assert_eq!(fill_topic("{table", value).unwrap_err(), "{table");
        assert_eq!(fill_topic("plain", value).unwrap(), "plain");
    }
}
