//! Kafka Connect's schemas: the one place that JSON with schemas and Avro both come from.
//!
//! [`Schema`] is Connect's own model (org.apache.kafka.connect.data): a [`Type`], whether null is allowed, and what gives it a
//! meaning (name, version, doc, parameters, default). [`Value`] is a Connect value as a tree; only defaults and tests hold
//! one, rows are written straight through a [`super::write::Writer`].
//!
//! The schemas of a relation version are [`RelationSchemas`]: key, row and envelope as Debezium 3.6 names and orders them
//! (tests/golden, the `*-schemas` cases). The schemas of the other topics (transactions, heartbeats, messages) stand beside them.
//! Column types become schemas in [`super::mapping::schema`]; nothing else decides on them.
//!
//! [`push_json`] prints a schema as JsonConverter does (`asJsonSchema`): type, what it holds, optional, name, version, doc,
//! parameters, default, field.

use super::json_encode::{JsonWriter, push_string};
use super::write::Writer;
use super::{mapping, source_type};
use crate::relation::{Column, Relation, names};
use crate::transform::Transform;

/// A Connect schema.
#[derive(Clone, PartialEq, Debug)]
pub struct Schema {
    pub of: Type,
    pub optional: bool,
    /// The semantic type, like `io.debezium.time.Date`.
    pub name: Option<String>,
    pub version: Option<u32>,
    pub doc: Option<&'static str>,
    /// In order.
    pub parameters: Vec<(String, String)>,
    pub default: Option<Value>,
}

/// Connect's types, as far as Debezium uses them for Postgres.
#[derive(Clone, PartialEq, Debug)]
pub enum Type {
    Boolean,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    String,
    Bytes,
    Array(Box<Schema>),
    /// Keys and values.
    Map(Box<Schema>, Box<Schema>),
    Struct(Vec<Field>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Field {
    pub name: String,
    pub schema: Schema,
}

/// A Connect value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    /// As Postgres prints it.
    Float(String),
    String(String),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    /// In the order of the struct's fields.
    Struct(Vec<(&'static str, Value)>),
}

impl Schema {
    pub fn new(of: Type) -> Schema {
        Schema { of, optional: false, name: None, version: None, doc: None, parameters: Vec::new(), default: None }
    }

    /// A semantic type; all of Connect's and Debezium's have a version.
    pub fn named(of: Type, name: &str, version: u32) -> Schema {
        Schema { name: Some(name.to_owned()), version: Some(version), ..Schema::new(of) }
    }

    pub fn optional(self) -> Schema {
        Schema { optional: true, ..self }
    }

    pub fn with_doc(self, doc: &'static str) -> Schema {
        Schema { doc: Some(doc), ..self }
    }

    pub fn with_parameter(mut self, name: &str, value: impl ToString) -> Schema {
        self.parameters.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn with_default(self, default: Option<Value>) -> Schema {
        Schema { default, ..self }
    }

    /// The fields of a struct; none of anything else.
    pub fn fields(&self) -> &[Field] {
        match &self.of {
            Type::Struct(fields) => fields,
            _ => &[],
        }
    }
}

/// A struct's fields by name and schema.
pub fn fields<const N: usize>(fields: [(&str, Schema); N]) -> Type {
    Type::Struct(fields.into_iter().map(|(name, schema)| Field { name: name.to_owned(), schema }).collect())
}

pub fn string() -> Schema {
    Schema::new(Type::String)
}

pub fn int32() -> Schema {
    Schema::new(Type::Int32)
}

pub fn int64() -> Schema {
    Schema::new(Type::Int64)
}

/// Key, row and envelope of a relation version.
#[derive(Clone, PartialEq, Debug)]
pub struct RelationSchemas {
    /// `None`: the null key of a table without one.
    pub key: Option<Schema>,
    /// The rows in `before` and `after`. Columns of [`mapping::Encoding::Skipped`] have no field.
    pub row: Schema,
    pub envelope: Schema,
}

impl RelationSchemas {
    /// `prefix` is the topic prefix (Debezium's logical name).
    pub fn new(relation: &Relation, prefix: &str) -> RelationSchemas {
        let modes = &relation.modes;
        // Records of several tables in one topic have schemas of one name, as Debezium's ByLogicalTableRouter gives them: a
        // registry takes no other as the next version of a subject.
        let base = match relation.constants().is_empty() {
            true => names::topic_name(prefix, &modes.delimiter, &relation.name),
            false => relation.topic.clone(),
        };
        let base = modes.schema_names.schema(&base);
        let columns: Vec<Option<Field>> = relation
            .columns
            .iter()
            .map(|column| {
                let name = modes.field_names.field(&column.name).into_owned();
                Some(Field { name, schema: mapping::schema(column, modes)? })
            })
            .collect();
        let in_row = |i: usize| !relation.is_key_only(i);
        let key = relation.key_columns();
        let key = (!key.is_empty()).then(|| {
            let fields = key.into_iter().filter_map(|i| columns[i].clone()).collect();
            Schema { name: Some(format!("{base}.Key")), ..Schema::new(Type::Struct(fields)) }
        });
        let fields = columns.into_iter().zip(&relation.columns).enumerate().filter(|(i, _)| in_row(*i));
        let fields = fields.filter_map(|(_, (field, column))| Some(marked(field?, column, relation))).collect();
        let row = Schema { name: Some(format!("{base}.Value")), ..Schema::new(Type::Struct(fields)) }.optional();
        let envelope = envelope(&format!("{base}.Envelope"), &row);
        RelationSchemas { key, row, envelope }
    }
}

/// A row's field with what masks and the source say of it. A key's have nothing of it, as in Debezium.
fn marked(field: Field, column: &Column, relation: &Relation) -> Field {
    let mask = relation.transforms.iter().find_map(|transform| match transform {
        Transform::Mask { column, mask } if *column == field.name => Some(mask.parameter()),
        _ => None,
    });
    let source = relation.modes.source_types.then(|| source_type::parameters(column)).into_iter().flatten();
    let add = |schema: Schema, (name, value): (&str, String)| schema.with_parameter(name, value);
    Field { schema: mask.into_iter().chain(source).fold(field.schema, add), ..field }
}

fn envelope(name: &str, row: &Schema) -> Schema {
    let of = fields([
        ("before", row.clone()),
        ("after", row.clone()),
        ("source", source()),
        ("transaction", transaction_block()),
        ("op", string()),
        ("ts_ms", int64().optional()),
        ("ts_us", int64().optional()),
        ("ts_ns", int64().optional()),
    ]);
    Schema::named(of, name, 2)
}

/// The `source` block.
pub fn source() -> Schema {
    let marks = "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental";
    let snapshot = Schema::named(Type::String, "io.debezium.data.Enum", 1).with_parameter("allowed", marks);
    let of = fields([
        ("version", string()),
        ("connector", string()),
        ("name", string()),
        ("ts_ms", int64()),
        ("snapshot", snapshot.optional().with_default(Some(Value::String("false".to_owned())))),
        ("db", string()),
        ("sequence", string().optional()),
        ("ts_us", int64().optional()),
        ("ts_ns", int64().optional()),
        ("schema", string()),
        ("table", string()),
        ("txId", int64().optional()),
        ("lsn", int64().optional()),
        ("xmin", int64().optional()),
        ("origin", string().optional()),
        ("origin_lsn", int64().optional()),
    ]);
    Schema::named(of, "io.debezium.connector.postgresql.Source", 1)
}

/// The `transaction` block of an envelope.
pub fn transaction_block() -> Schema {
    let of = fields([("id", string()), ("total_order", int64()), ("data_collection_order", int64())]);
    Schema::named(of, "event.block", 1).optional()
}

/// Key of the transaction topic.
pub fn transaction_key() -> Schema {
    Schema::named(fields([("id", string())]), "io.debezium.connector.common.TransactionMetadataKey", 1)
}

/// Value of the transaction topic.
pub fn transaction_value() -> Schema {
    let collection = fields([("data_collection", string()), ("event_count", int64())]);
    let collection = Schema::named(collection, "event.collection", 1).optional();
    let of = fields([
        ("status", string()),
        ("id", string()),
        ("event_count", int64().optional()),
        ("data_collections", Schema::new(Type::Array(Box::new(collection))).optional()),
        ("ts_ms", int64()),
    ]);
    Schema::named(of, "io.debezium.connector.common.TransactionMetadataValue", 1)
}

/// Key of the heartbeat topic.
pub fn heartbeat_key() -> Schema {
    Schema::named(fields([("serverName", string())]), "io.debezium.connector.common.ServerNameKey", 1)
}

/// Value of the heartbeat topic.
pub fn heartbeat_value() -> Schema {
    Schema::named(fields([("ts_ms", int64())]), "io.debezium.connector.common.Heartbeat", 1)
}

/// Key of the topic of logical messages.
pub fn message_key() -> Schema {
    let of = fields([("prefix", string().optional())]);
    Schema::named(of, "io.debezium.connector.postgresql.MessageKey", 1)
}

/// Value of the topic of logical messages; `content` is the schema of the message's bytes.
pub fn message_value(content: Schema) -> Schema {
    let message = fields([("prefix", string().optional()), ("content", content.optional())]);
    let of = fields([
        ("op", string()),
        ("ts_ms", int64().optional()),
        ("source", source()),
        ("transaction", transaction_block()),
        ("message", Schema::named(message, "io.debezium.connector.postgresql.Message", 1)),
    ]);
    Schema::named(of, "io.debezium.connector.postgresql.MessageValue", 1)
}

impl Value {
    pub fn write(&self, out: &mut impl Writer) {
        match self {
            Value::Null => out.null(),
            Value::Boolean(value) => out.boolean(*value),
            Value::Integer(value) => out.integer(*value),
            Value::Float(text) => out.float(text.as_bytes()),
            Value::String(text) => out.string(text),
            Value::Bytes(bytes) => out.bytes(bytes),
            Value::Array(elements) => {
                out.begin_array();
                for element in elements {
                    out.element();
                    element.write(out);
                }
                out.end_array();
            }
            Value::Map(entries) => {
                let text = entries.iter().all(|(key, _)| matches!(key, Value::String(_)));
                out.begin_map(text);
                for (key, value) in entries {
                    out.map_key();
                    key.write(out);
                    out.map_value();
                    value.write(out);
                }
                out.end_map();
            }
            Value::Struct(fields) => {
                out.begin_struct();
                for (name, value) in fields {
                    out.field(name);
                    value.write(out);
                }
                out.end_struct();
            }
        }
    }
}

/// Appends the schema as JsonConverter prints it; `field` is its name inside a struct.
pub fn push_json(schema: &Schema, field: Option<&str>, out: &mut Vec<u8>) {
    let text = |out: &mut Vec<u8>, label: &str, text: &str| {
        out.extend_from_slice(label.as_bytes());
        push_string(out, text.as_bytes()).expect("a str is UTF-8");
    };
    text(out, r#"{"type":"#, type_name(&schema.of));
    match &schema.of {
        Type::Struct(fields) => {
            out.extend_from_slice(br#","fields":["#);
            for (i, field) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                push_json(&field.schema, Some(&field.name), out);
            }
            out.push(b']');
        }
        Type::Array(items) => {
            out.extend_from_slice(br#","items":"#);
            push_json(items, None, out);
        }
        Type::Map(keys, values) => {
            out.extend_from_slice(br#","keys":"#);
            push_json(keys, None, out);
            out.extend_from_slice(br#","values":"#);
            push_json(values, None, out);
        }
        _ => {}
    }
    out.extend_from_slice(if schema.optional { br#","optional":true"# } else { br#","optional":false"# });
    if let Some(name) = &schema.name {
        text(out, r#","name":"#, name);
    }
    if let Some(version) = schema.version {
        out.extend_from_slice(format!(r#","version":{version}"#).as_bytes());
    }
    if let Some(doc) = schema.doc {
        text(out, r#","doc":"#, doc);
    }
    for (i, (name, value)) in schema.parameters.iter().enumerate() {
        text(out, if i == 0 { r#","parameters":{"# } else { "," }, name);
        text(out, ":", value);
    }
    if !schema.parameters.is_empty() {
        out.push(b'}');
    }
    if let Some(default) = &schema.default {
        out.extend_from_slice(br#","default":"#);
        default.write(&mut JsonWriter::new(out));
    }
    if let Some(field) = field {
        text(out, r#","field":"#, field);
    }
    out.push(b'}');
}

fn type_name(of: &Type) -> &'static str {
    match of {
        Type::Boolean => "boolean",
        Type::Int16 => "int16",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Float32 => "float",
        Type::Float64 => "double",
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Array(_) => "array",
        Type::Map(..) => "map",
        Type::Struct(_) => "struct",
    }
}
