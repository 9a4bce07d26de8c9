//! An Avro schema as far as it decides about bytes.
//!
//! Only schemas of our own come here: those that [`super::schema`] prints, from this build or an earlier one. What else Avro has
//! (enums, fixed, other unions) is not read, and a relation with such a schema is refused by name. So is one that means more than
//! [`NODES_MAX`]: names that stand for records of names mean more with each, and deeper, than any text says.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

/// What a schema may mean with every name written out. The largest of ours, 1600 columns of geometry in two rows, means 20 000.
const NODES_MAX: usize = 1 << 16;

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Shape {
    Boolean,
    /// Int and long have the same bytes.
    Integer,
    Float,
    Double,
    Bytes,
    String,
    Array(Box<Shape>),
    /// Keys are strings.
    Map(Box<Shape>),
    /// Shared by all that name it.
    Record(Arc<[Field]>),
    /// A union of null and another type.
    Nullable {
        /// What stands before null, and before a value: the zig-zag of 0 and 1 or of 1 and 0.
        null: u8,
        some: u8,
        of: Box<Shape>,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Field {
    pub name: String,
    pub shape: Shape,
}

impl Shape {
    /// `None` if it is not a schema that we write.
    pub fn parse(schema: &str) -> Option<Shape> {
        let json = serde_json::from_str(schema).ok()?;
        Parser { known: HashMap::new(), left: NODES_MAX }.shape(&json, "")
    }

    /// Fields of a record; none of anything else.
    pub fn fields(&self) -> &[Field] {
        match self {
            Shape::Record(fields) => fields,
            _ => &[],
        }
    }

    /// Without the null.
    pub fn inner(&self) -> &Shape {
        match self {
            Shape::Nullable { of, .. } => of,
            other => other,
        }
    }
}

struct Parser {
    /// Records by full name, each with how much it means.
    known: HashMap<String, (Shape, usize)>,
    /// How much more the schema may mean.
    left: usize,
}

impl Parser {
    fn shape(&mut self, json: &Value, namespace: &str) -> Option<Shape> {
        self.left = self.left.checked_sub(1)?;
        match json {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => match branches.as_slice() {
                [first, other] if first == "null" => self.nullable(other, namespace, 0, 2),
                [other, last] if last == "null" => self.nullable(other, namespace, 2, 0),
                _ => None,
            },
            Value::Object(schema) => match schema.get("type")?.as_str()? {
                "array" => Some(Shape::Array(Box::new(self.shape(schema.get("items")?, namespace)?))),
                "map" => Some(Shape::Map(Box::new(self.shape(schema.get("values")?, namespace)?))),
                "record" => {
                    let name = schema.get("name")?.as_str()?;
                    let namespace = schema.get("namespace").map_or(Some(namespace), Value::as_str)?;
                    let (mut fields, before) = (Vec::new(), self.left);
                    for field in schema.get("fields")?.as_array()? {
                        let shape = self.shape(field.get("type")?, namespace)?;
                        fields.push(Field { name: field.get("name")?.as_str()?.to_owned(), shape });
                    }
                    let record = Shape::Record(fields.into());
                    self.known.insert(format!("{namespace}.{name}"), (record.clone(), before - self.left));
                    Some(record)
                }
                name => self.named(name, namespace),
            },
            _ => None,
        }
    }

    fn nullable(&mut self, of: &Value, namespace: &str, null: u8, some: u8) -> Option<Shape> {
        Some(Shape::Nullable { null, some, of: Box::new(self.shape(of, namespace)?) })
    }

    fn named(&mut self, name: &str, namespace: &str) -> Option<Shape> {
        Some(match name {
            "boolean" => Shape::Boolean,
            "int" | "long" => Shape::Integer,
            "float" => Shape::Float,
            "double" => Shape::Double,
            "bytes" => Shape::Bytes,
            "string" => Shape::String,
            name => {
                let full = if name.contains('.') { name } else { &format!("{namespace}.{name}") };
                let (shape, meaning) = self.known.get(full)?;
                self.left = self.left.checked_sub(*meaning)?;
                shape.clone()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of records, each of which names the one before it so often.
    fn chain(records: usize, names: usize) -> String {
        let field = |of: usize, i: usize| format!(r#"{{"name":"f{i}","type":"r.r{of}"}}"#);
        let record = |of: usize| {
            let fields: Vec<String> = (0..if of == 0 { 0 } else { names }).map(|i| field(of - 1, i)).collect();
            let record =
                format!(r#"{{"type":"record","name":"r{of}","namespace":"r","fields":[{}]}}"#, fields.join(","));
            format!(r#"{{"name":"a{of}","type":{record}}}"#)
        };
        let fields: Vec<String> = (0..records).map(record).collect();
        format!(r#"{{"type":"record","name":"all","namespace":"n","fields":[{}]}}"#, fields.join(","))
    }

    #[test]
    fn names_that_mean_too_much_are_refused_before_anything_is_made_of_them() {
        let known = Shape::parse(&chain(8, 2)).unwrap();
        assert_eq!(known.fields()[7].shape.fields()[1].shape, known.fields()[6].shape);
        // Twice as much with each record: 2^60 in all. And ten thousand records, each inside the next one.
        assert_eq!(Shape::parse(&chain(60, 2)), None);
        assert_eq!(Shape::parse(&chain(10_000, 1)), None);
    }
}
