//! An Avro schema as far as it decides about bytes.
//!
//! Only schemas of our own come here: those that [`super::schema`] prints, from this build or an earlier one. What else Avro has
//! (enums, fixed, other unions) is not read, and a relation with such a schema is refused by name.

use std::collections::HashMap;

use serde_json::Value;

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
    Record(Vec<Field>),
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
        Parser::default().shape(&json, "")
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

/// Records by full name.
#[derive(Default)]
struct Parser {
    known: HashMap<String, Shape>,
}

impl Parser {
    fn shape(&mut self, json: &Value, namespace: &str) -> Option<Shape> {
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
                    let mut fields = Vec::new();
                    for field in schema.get("fields")?.as_array()? {
                        let shape = self.shape(field.get("type")?, namespace)?;
                        fields.push(Field { name: field.get("name")?.as_str()?.to_owned(), shape });
                    }
                    let record = Shape::Record(fields);
                    self.known.insert(format!("{namespace}.{name}"), record.clone());
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

    fn named(&self, name: &str, namespace: &str) -> Option<Shape> {
        Some(match name {
            "boolean" => Shape::Boolean,
            "int" | "long" => Shape::Integer,
            "float" => Shape::Float,
            "double" => Shape::Double,
            "bytes" => Shape::Bytes,
            "string" => Shape::String,
            full if full.contains('.') => self.known.get(full)?.clone(),
            name => self.known.get(&format!("{namespace}.{name}"))?.clone(),
        })
    }
}
