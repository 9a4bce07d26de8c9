//! Connect's schemas as the Avro schemas that Confluent's AvroConverter registers for them (its AvroData, 7.0).
//!
//! The rules, each to be seen in tests/golden/21-avro-*: a struct is a record whose name is the part of its Connect name behind
//! the last point; what Connect says besides goes into `connect.*` properties; optional is a union with null, and which of the
//! two comes first is decided by the default. A record that was written out once is named after that.

use super::super::flat;
use super::super::schema::{RelationSchemas, Schema, Type, Value};
use crate::error::{Code, Error, Result};
use crate::relation::{AvroSchemas, Format, Relation};

/// Records without a name of their own, and entries of maps whose keys are no strings.
const NAMESPACE: &str = "io.confluent.connect.avro";

/// A relation with what its format needs besides: in Avro, the schemas that its records are written with. Sealed again.
pub fn complete(relation: Relation, prefix: &str) -> Result<Relation> {
    match relation.format {
        Format::Json => Ok(relation),
        Format::Avro => {
            let avro = Some(schemas(&relation, prefix)?);
            Ok(Relation { avro, ..relation }.sealed())
        }
    }
}

/// The schemas of a relation's records; `prefix` is the topic prefix.
pub fn schemas(relation: &Relation, prefix: &str) -> Result<AvroSchemas> {
    let schemas = RelationSchemas::new(relation, prefix);
    let flat = relation.modes.flat.as_ref().map(|flat| flat::schema(relation, flat, prefix));
    let fields = flat.as_ref().unwrap_or(&schemas.row).fields();
    for (i, field) in fields.iter().enumerate() {
        let name = adjusted_field(&field.name);
        if let Some(other) = fields[..i].iter().find(|other| adjusted_field(&other.name) == name) {
            let message = format!(
                "table {}: columns {:?} and {:?} are both {name:?} in Avro, whose names are of letters, digits and '_'",
                relation.name, other.name, field.name
            );
            let hint = format!("write format = \"json\" into the connector of {}, or rename a column", relation.name);
            return Err(Error::halt(Code::SchemaRefused, message, hint));
        }
    }
    Ok(AvroSchemas { key: schemas.key.as_ref().map(json), value: json(flat.as_ref().unwrap_or(&schemas.envelope)) })
}

/// The Avro schema as JSON.
pub fn json(schema: &Schema) -> String {
    let mut printer = Printer { out: String::new(), known: Vec::new() };
    printer.schema(schema, "");
    printer.out
}

struct Printer {
    out: String,
    /// Full names of the records that were written out.
    known: Vec<String>,
}

impl Printer {
    /// A schema inside a record of that namespace, as a union if it is optional.
    fn schema(&mut self, schema: &Schema, namespace: &str) {
        match (schema.optional, &schema.default) {
            (false, _) => self.value(schema, namespace),
            (true, None) => {
                self.out.push_str("[\"null\",");
                self.value(schema, namespace);
                self.out.push(']');
            }
            (true, Some(_)) => {
                self.out.push('[');
                self.value(schema, namespace);
                self.out.push_str(",\"null\"]");
            }
        }
    }

    fn value(&mut self, schema: &Schema, namespace: &str) {
        if let Type::Struct(_) = schema.of {
            return self.record(schema, namespace);
        }
        let logical = logical(schema.name.as_deref());
        let is_int16 = schema.of == Type::Int16;
        let of = match &schema.of {
            Type::Boolean => "boolean",
            Type::Int16 | Type::Int32 => "int",
            Type::Int64 => "long",
            Type::Float32 => "float",
            Type::Float64 => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Array(_) | Type::Map(..) => "",
            Type::Struct(_) => unreachable!("records went another way"),
        };
        let bare = schema.name.is_none() && schema.default.is_none() && schema.parameters.is_empty();
        if !of.is_empty() && bare && !is_int16 {
            return self.string(of);
        }
        self.out.push('{');
        match &schema.of {
            Type::Array(items) => {
                self.out.push_str("\"type\":\"array\",\"items\":");
                self.schema(items, namespace);
            }
            Type::Map(keys, values) if keys.of == Type::String && !keys.optional => {
                self.out.push_str("\"type\":\"map\",\"values\":");
                self.schema(values, namespace);
            }
            Type::Map(keys, values) => {
                self.out.push_str("\"type\":\"array\",\"items\":{\"type\":\"record\",\"name\":\"MapEntry\"");
                self.out.push_str(&format!(",\"namespace\":\"{NAMESPACE}\",\"fields\":["));
                self.field("key", keys, NAMESPACE);
                self.out.push(',');
                self.field("value", values, NAMESPACE);
                self.out.push_str("]}");
            }
            _ => {
                self.out.push_str("\"type\":");
                self.string(of);
            }
        }
        if logical == Some("decimal") {
            let parameter = |name: &str| schema.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value);
            let scale = parameter("scale").expect("a Decimal has a scale");
            let precision = parameter("connect.decimal.precision").map_or("64", String::as_str);
            self.out.push_str(&format!(",\"scale\":{scale},\"precision\":{precision}"));
        }
        self.properties(schema);
        if is_int16 {
            self.out.push_str(",\"connect.type\":\"int16\"");
        }
        if let Some(logical) = logical {
            self.out.push_str(&format!(",\"logicalType\":\"{logical}\""));
        }
        self.out.push('}');
    }

    fn record(&mut self, schema: &Schema, around: &str) {
        let full = schema.name.as_deref().map(adjusted_full);
        let full = full.unwrap_or_else(|| format!("{NAMESPACE}.ConnectDefault"));
        let (namespace, name) = full.rsplit_once('.').unwrap_or(("", &full));
        if self.known.contains(&full) {
            return self.string(if namespace == around { name } else { &full });
        }
        self.known.push(full.clone());
        self.out.push_str("{\"type\":\"record\",\"name\":");
        self.string(name);
        if namespace != around {
            self.out.push_str(",\"namespace\":");
            self.string(namespace);
        }
        self.out.push_str(",\"fields\":[");
        for (i, field) in schema.fields().iter().enumerate() {
            if i > 0 {
                self.out.push(',');
            }
            self.field(&adjusted_field(&field.name), &field.schema, namespace);
        }
        self.out.push(']');
        self.properties(schema);
        self.out.push('}');
    }

    fn field(&mut self, name: &str, schema: &Schema, namespace: &str) {
        self.out.push_str("{\"name\":");
        self.string(name);
        self.out.push_str(",\"type\":");
        self.schema(schema, namespace);
        if let Some(default) = &schema.default {
            self.out.push_str(",\"default\":");
            self.default(default);
        } else if schema.optional {
            self.out.push_str(",\"default\":null");
        }
        self.out.push('}');
    }

    fn properties(&mut self, schema: &Schema) {
        if let Some(doc) = schema.doc {
            self.out.push_str(",\"connect.doc\":");
            self.string(doc);
        }
        if let Some(version) = schema.version {
            self.out.push_str(&format!(",\"connect.version\":{version}"));
        }
        for (i, (name, value)) in schema.parameters.iter().enumerate() {
            self.out.push_str(if i == 0 { ",\"connect.parameters\":{" } else { "," });
            self.string(name);
            self.out.push(':');
            self.string(value);
        }
        if !schema.parameters.is_empty() {
            self.out.push('}');
        }
        if let Some(default) = &schema.default {
            self.out.push_str(",\"connect.default\":");
            self.default(default);
        }
        if let Some(name) = &schema.name {
            self.out.push_str(",\"connect.name\":");
            let name = if matches!(schema.of, Type::Struct(_)) { adjusted_full(name) } else { name.clone() };
            self.string(&name);
        }
    }

    /// Bytes are a string of as many characters below 256.
    fn default(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Boolean(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Integer(value) => self.out.push_str(&value.to_string()),
            // JSON has no other way to say it; Avro's parsers read these names.
            Value::Float(text) if text.ends_with(|c: char| c.is_ascii_alphabetic()) => self.string(text),
            Value::Float(text) => self.out.push_str(text),
            // A jsonb column's, mostly. Apicurio (3.3.3) looks for it in the text, takes the quotes away and then finds no schema.
            Value::String(text) if text == "{}" => self.out.push_str(r#""\u007b}""#),
            Value::String(text) => self.string(text),
            Value::Bytes(bytes) => self.string(&bytes.iter().map(|byte| char::from(*byte)).collect::<String>()),
            Value::Array(elements) => {
                self.out.push('[');
                for (i, element) in elements.iter().enumerate() {
                    if i > 0 {
                        self.out.push(',');
                    }
                    self.default(element);
                }
                self.out.push(']');
            }
            Value::Map(entries) => {
                self.out.push('{');
                for (i, (key, value)) in entries.iter().enumerate() {
                    if i > 0 {
                        self.out.push(',');
                    }
                    self.default(key);
                    self.out.push(':');
                    self.default(value);
                }
                self.out.push('}');
            }
            Value::Struct(fields) => {
                self.out.push('{');
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        self.out.push(',');
                    }
                    self.string(name);
                    self.out.push(':');
                    self.default(value);
                }
                self.out.push('}');
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push_str(&serde_json::to_string(text).expect("a string is JSON"));
    }
}

/// What Connect's own semantic types are called in Avro.
fn logical(name: Option<&str>) -> Option<&'static str> {
    match name?.strip_prefix("org.apache.kafka.connect.data.")? {
        "Decimal" => Some("decimal"),
        "Date" => Some("date"),
        "Time" => Some("time-millis"),
        "Timestamp" => Some("timestamp-millis"),
        _ => None,
    }
}

/// A full name of which every part is one that Avro takes.
fn adjusted_full(name: &str) -> String {
    name.split('.').map(adjusted_field).collect::<Vec<_>>().join(".")
}

/// As Debezium's field name adjuster: UTF-16 units, because it is Java's, and `_` in front of a digit.
fn adjusted_field(name: &str) -> String {
    let legal = |unit: &u16| u8::try_from(*unit).is_ok_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let mut adjusted: String = name
        .encode_utf16()
        .map(|unit| if legal(&unit) { char::from(u8::try_from(unit).expect("an ASCII letter")) } else { '_' })
        .collect();
    if !adjusted.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        adjusted.insert(0, '_');
    }
    adjusted
}
