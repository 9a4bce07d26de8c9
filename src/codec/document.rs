//! A JSON document as Connect's data: the schema that it implies and its value under that schema.
//!
//! The rules are those of Debezium's JSON expansion (tests/golden/18-outbox-expand-*): objects are structs named after their
//! path, a list has the type of its members, null and an empty list have none, so that a field with one is left out.
//! Whole numbers are of 32 or 64 bits, all others doubles; in a list the widest that is needed. What has no such form at all
//! (a list of different things, a document that is no object or list, one of more than [`DEPTH_MAX`]) is not a [`Document`].
//!
//! Numbers keep their digits, fields their order.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::avro::event::{self, Scalar};
use super::json_encode::push_str;
use super::schema::{Field, Schema, Type};

/// Objects and lists inside each other. They are walked by recursion, and the schema nests twice as deep as the document: this is
/// what parsers with a limit still read. Jackson, which Debezium reads documents with, takes 1000.
const DEPTH_MAX: usize = 60;

/// A document and its schema.
pub(super) struct Document<'a> {
    node: Node<'a>,
    pub schema: Schema,
}

impl<'a> Document<'a> {
    /// `None` if the text is no JSON, or JSON that Connect has no form for. `name` is that of the outermost struct.
    pub fn parse(text: &'a str, name: &str) -> Option<Document<'a>> {
        let node = Node::parse(text)?;
        let schema = match (&node, shape(&node)?) {
            (Node::List(_) | Node::Object(_), Some(shape)) => shape.schema(Some(name)),
            _ => return None,
        };
        Some(Document { node, schema })
    }

    pub fn push(&self, out: &mut Vec<u8>) {
        push(&self.node, &self.schema, out);
    }

    /// In Avro. Numbers are what their type holds of them.
    pub fn push_avro(&self, out: &mut Vec<u8>) {
        push_avro(&self.node, &self.schema, out);
    }
}

/// Whether the text is an object or a list that holds something, so that it can stand in a record as it is.
pub(super) fn is_expandable(text: &str) -> bool {
    let empty = || text.trim_start()[1..].trim_start().starts_with(']');
    let kind = text.trim_start().as_bytes().first();
    let structured = kind == Some(&b'{') || (kind == Some(&b'[') && !empty());
    structured && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

enum Node<'a> {
    Null,
    Boolean(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    fn parse(text: &'a str) -> Option<Node<'a>> {
        Node::of(serde_json::from_str(text).ok()?, 0)
    }

    /// `around`: how many objects and lists it is in.
    fn of(raw: &'a RawValue, around: usize) -> Option<Node<'a>> {
        if around > DEPTH_MAX {
            return None;
        }
        let text = raw.get();
        Some(match text.as_bytes().first()? {
            b'n' => Node::Null,
            b't' => Node::Boolean(true),
            b'f' => Node::Boolean(false),
            b'"' => Node::Text(serde_json::from_str::<Text<'_>>(text).ok()?.0),
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str::<Items<'_>>(text).ok()?.0;
                Node::List(items.into_iter().map(|item| Node::of(item, around + 1)).collect::<Option<_>>()?)
            }
            b'{' => {
                let mut fields: Vec<(Cow<'_, str>, Node<'_>)> = Vec::new();
                for (name, raw) in serde_json::from_str::<Fields<'_>>(text).ok()?.0 {
                    let node = Node::of(raw, around + 1)?;
                    // Of two with one name the last one counts.
                    match fields.iter_mut().find(|(found, _)| *found == name) {
                        Some((_, found)) => *found = node,
                        None => fields.push((name, node)),
                    }
                }
                Node::Object(fields)
            }
            _ => Node::Number(text),
        })
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Items<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Items<'a>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items<'de>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        d.deserialize_seq(InOrder)
    }
}

struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Fields<'a>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((Text(name), raw)) = map.next_entry()? {
                    fields.push((name, raw));
                }
                Ok(Fields(fields))
            }
        }
        d.deserialize_map(InOrder)
    }
}

/// A type that members of a list may share.
enum Shape<'a> {
    Boolean,
    Int32,
    Int64,
    Double,
    Text,
    List(Box<Shape<'a>>),
    Object(Vec<(&'a str, Shape<'a>)>),
}

/// `None` outside: no form. `None` inside: no type, which null and an empty list have not.
fn shape<'a>(node: &'a Node<'_>) -> Option<Option<Shape<'a>>> {
    Some(Some(match node {
        Node::Null => return Some(None),
        Node::Boolean(_) => Shape::Boolean,
        Node::Text(_) => Shape::Text,
        Node::Number(digits) if digits.parse::<i32>().is_ok() => Shape::Int32,
        Node::Number(digits) if digits.parse::<i64>().is_ok() => Shape::Int64,
        Node::Number(_) => Shape::Double,
        Node::List(items) if items.is_empty() => return Some(None),
        Node::List(items) => {
            let mut shared: Option<Shape<'a>> = None;
            for item in items {
                let Some(found) = shape(item)? else {
                    // Null is a member of any list; an empty list is one of lists, and then of no type alone.
                    if matches!(item, Node::Null) { continue } else { return None }
                };
                shared = Some(match shared {
                    Some(before) => before.merged(found)?,
                    None => found,
                });
            }
            Shape::List(Box::new(shared?))
        }
        Node::Object(fields) => {
            let mut shapes = Vec::new();
            for (name, node) in fields {
                if let Some(shape) = shape(node)? {
                    shapes.push((name.as_ref(), shape));
                }
            }
            Shape::Object(shapes)
        }
    }))
}

impl<'a> Shape<'a> {
    /// The type that holds both; `None` if there is none.
    fn merged(self, other: Shape<'a>) -> Option<Shape<'a>> {
        use Shape::{Boolean, Double, Int32, Int64, List, Object, Text};
        Some(match (self, other) {
            (Boolean, Boolean) => Boolean,
            (Text, Text) => Text,
            (Int32, Int32) => Int32,
            (Int32 | Int64, Int32 | Int64) => Int64,
            (Int32 | Int64 | Double, Int32 | Int64 | Double) => Double,
            (List(a), List(b)) => List(Box::new(a.merged(*b)?)),
            (Object(mut fields), Object(others)) => {
                for (name, other) in others {
                    match fields.iter().position(|(found, _)| *found == name) {
                        None => fields.push((name, other)),
                        Some(i) => {
                            let (_, before) = fields.remove(i);
                            fields.insert(i, (name, before.merged(other)?));
                        }
                    }
                }
                Object(fields)
            }
            _ => return None,
        })
    }

    /// `name` is the path of an object, or of the list that it is a member of.
    fn schema(&self, name: Option<&str>) -> Schema {
        let of = match self {
            Shape::Boolean => Type::Boolean,
            Shape::Int32 => Type::Int32,
            Shape::Int64 => Type::Int64,
            Shape::Double => Type::Float64,
            Shape::Text => Type::String,
            Shape::List(items) => Type::Array(Box::new(items.schema(name))),
            Shape::Object(fields) => {
                let path = |field: &str| name.map_or_else(|| field.to_owned(), |name| format!("{name}.{field}"));
                let field = |(name, shape): &(&str, Shape<'_>)| Field {
                    name: (*name).to_owned(),
                    schema: shape.schema(Some(&path(name))),
                };
                let of = Type::Struct(fields.iter().map(field).collect());
                return Schema { name: name.map(str::to_owned), ..Schema::new(of).optional() };
            }
        };
        Schema::new(of).optional()
    }
}

fn push(node: &Node<'_>, schema: &Schema, out: &mut Vec<u8>) {
    match (node, &schema.of) {
        (Node::Null, _) => out.extend_from_slice(b"null"),
        (Node::Boolean(value), _) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        (Node::Number(digits), _) => out.extend_from_slice(digits.as_bytes()),
        (Node::Text(text), _) => push_str(out, text),
        (Node::List(items), Type::Array(of)) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                push(item, of, out);
            }
            out.push(b']');
        }
        (Node::Object(members), Type::Struct(fields)) => {
            out.push(b'{');
            for (i, field) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                push_str(out, &field.name);
                out.push(b':');
                // Another member of the list has it.
                let member = members.iter().find(|(name, _)| *name == field.name);
                push(member.map_or(&Node::Null, |(_, node)| node), &field.schema, out);
            }
            out.push(b'}');
        }
        // A member without a type in a struct that has the field from another member.
        (Node::List(_) | Node::Object(_), _) => out.extend_from_slice(b"null"),
    }
}

/// Every schema of a document is optional and has no default.
fn push_avro(node: &Node<'_>, schema: &Schema, out: &mut Vec<u8>) {
    let scalar = match node {
        Node::Boolean(value) => Scalar::Boolean(*value),
        Node::Number(digits) => Scalar::Number(digits),
        Node::Text(text) => Scalar::Text(text),
        Node::List(items) => {
            let Type::Array(of) = &schema.of else { return out.push(event::NULL) };
            out.push(event::SOME);
            return event::push_list(out, items, |item, out| push_avro(item, of, out));
        }
        Node::Object(members) => {
            let Type::Struct(fields) = &schema.of else { return out.push(event::NULL) };
            out.push(event::SOME);
            for field in fields {
                let member = members.iter().find(|(name, _)| *name == field.name);
                push_avro(member.map_or(&Node::Null, |(_, node)| node), &field.schema, out);
            }
            return;
        }
        Node::Null => return out.push(event::NULL),
    };
    out.push(event::SOME);
    event::push_scalar(out, &schema.of, scalar);
}

#[cfg(test)]
mod tests {
    use super::super::schema::push_json;
    use super::*;

    /// The schema's JSON and the value's.
    fn expanded(text: &str) -> Option<(String, String)> {
        let document = Document::parse(text, "payload")?;
        let (mut schema, mut value) = (Vec::new(), Vec::new());
        push_json(&document.schema, None, &mut schema);
        document.push(&mut value);
        Some((String::from_utf8(schema).unwrap(), String::from_utf8(value).unwrap()))
    }

    fn value(text: &str) -> Option<String> {
        expanded(text).map(|(_, value)| value)
    }

    #[test]
    fn documents_have_the_schema_that_they_imply() {
        let (schema, value) = expanded(r#"{"id": 10, "lines": [{"qty": 1.50, "sku": "ä\n"}], "note": null}"#).unwrap();
        assert_eq!(
            schema,
            concat!(
                r#"{"type":"struct","fields":[{"type":"int32","optional":true,"field":"id"},{"type":"array","items":"#,
                r#"{"type":"struct","fields":[{"type":"double","optional":true,"field":"qty"},"#,
                r#"{"type":"string","optional":true,"field":"sku"}],"optional":true,"name":"payload.lines"},"#,
                r#""optional":true,"field":"lines"}],"optional":true,"name":"payload"}"#
            )
        );
        assert_eq!(value, r#"{"id":10,"lines":[{"qty":1.50,"sku":"ä\n"}]}"#);
    }

    #[test]
    fn members_of_a_list_share_a_type_or_there_is_none() {
        assert_eq!(value(r#"[{"a":1},{"b":[2]},null]"#).unwrap(), r#"[{"a":1,"b":null},{"a":null,"b":[2]},null]"#);
        let (schema, _) = expanded("[1, 3000000000, 0.5]").unwrap();
        assert!(schema.contains(r#""items":{"type":"double""#), "{schema}");
        for without in
            [r#"[1,"a"]"#, r#"{"x":[null]}"#, "[[]]", r#"[{"a":1},{"a":"b"}]"#, "[]", "null", "5", "\"x\"", "{", ""]
        {
            assert_eq!(value(without), None, "{without}");
        }
        assert_eq!(value(r#"{"y":{"z":null},"e":[]}"#).unwrap(), r#"{"y":{}}"#);
        assert_eq!(value(r#"{"a":1,"b":2,"a":3}"#).unwrap(), r#"{"a":3,"b":2}"#);
    }

    #[test]
    fn documents_without_a_bottom_have_no_form() {
        let lists = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(value(&lists(DEPTH_MAX)).unwrap(), lists(DEPTH_MAX));
        assert_eq!(value(&lists(DEPTH_MAX + 1)), None);
        assert_eq!(value(&lists(20_000)), None);
        assert!(is_expandable(&lists(20_000)));
    }

    #[test]
    fn what_stands_as_it_is_holds_something() {
        for text in [r#" {"a": [1, "b"]}"#, "{}", "[ 1]"] {
            assert!(is_expandable(text), "{text}");
        }
        for text in ["[]", " [ ] ", "5", "\"{}\"", "{", "", "[1] x"] {
            assert!(!is_expandable(text), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_document_or_is_not(text in "[\\[\\]{}\",:a1 .n]{0,24}|\\PC{0,12}") {
            let _ = value(&text);
            let _ = is_expandable(&text);
        }
    }
}
