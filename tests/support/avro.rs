//! Records in Avro as a plain consumer reads them: by the schema that the registry, or a recording, has for the id in front.
//!
//! What comes out is as JSON with schemas is: an object of `schema` and `payload`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;

use super::recording::Json;

/// A request to a registry over HTTP/1.0; status and body.
pub fn ask(registry: &str, method: &str, path: &str, body: &str) -> Result<(u16, serde_json::Value)> {
    let (authority, base) =
        registry.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("an address")?;
    let mut stream = TcpStream::connect(authority)?;
    let length = body.len();
    let request = format!(
        "{method} /{base}{path} HTTP/1.0\r\nHost: {authority}\r\nContent-Type: application/vnd.schemaregistry.v1+json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("HTTP")?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, serde_json::from_str(body).unwrap_or(serde_json::Value::Null)))
}

/// Schemas by id.
#[derive(Default)]
pub struct Schemas {
    /// Where unknown ids are asked for; empty: nowhere.
    registry: String,
    known: HashMap<u32, (Schema, Json)>,
}

impl Schemas {
    pub fn of_registry(registry: &str) -> Schemas {
        Schemas { registry: registry.to_owned(), known: HashMap::new() }
    }

    /// Of a recording's schemas.json.
    pub fn recorded(json: &str) -> Result<Schemas> {
        let mut schemas = Schemas::default();
        let all: Vec<serde_json::Value> = serde_json::from_str(json)?;
        for entry in all {
            let id = u32::try_from(entry["id"].as_u64().context("an id")?)?;
            schemas.learn(id, entry["schema"].as_str().context("a schema")?)?;
        }
        Ok(schemas)
    }

    fn learn(&mut self, id: u32, text: &str) -> Result<()> {
        let schema = Schema::parse_str(text).with_context(|| text.to_owned())?;
        self.known.insert(id, (schema, Json::parse(text)?));
        Ok(())
    }

    /// A record in Confluent's framing.
    pub fn read(&mut self, framed: &[u8]) -> Result<Json> {
        let (id, mut datum) = match framed.split_at_checked(5) {
            Some((frame, datum)) if frame[0] == 0 => (u32::from_be_bytes(frame[1..].try_into()?), datum),
            _ => bail!("not in Confluent's framing"),
        };
        if !self.known.contains_key(&id) {
            ensure!(!self.registry.is_empty(), "no schema {id}");
            let (status, answer) = ask(&self.registry, "GET", &format!("/schemas/ids/{id}"), "")?;
            ensure!(status == 200, "schema {id}: {answer}");
            self.learn(id, answer["schema"].as_str().context("a schema")?)?;
        }
        let (schema, json) = &self.known[&id];
        let value = GenericDatumReader::builder(schema).build()?.read_value(&mut datum)?;
        ensure!(datum.is_empty(), "bytes behind the datum");
        Ok(Json::Object(vec![("schema".to_owned(), json.clone()), ("payload".to_owned(), plain(value)?)]))
    }
}

fn plain(value: Value) -> Result<Json> {
    Ok(match value {
        Value::Null => Json::Null,
        Value::Boolean(value) => Json::Bool(value),
        Value::Int(number) | Value::Date(number) | Value::TimeMillis(number) => Json::Number(number.to_string()),
        Value::Long(number) | Value::TimestampMillis(number) => Json::Number(number.to_string()),
        // Bits, so that every NaN and zero is itself.
        Value::Float(number) => Json::Text(format!("float {:08x} {number:e}", number.to_bits())),
        Value::Double(number) => Json::Text(format!("double {:016x} {number:e}", number.to_bits())),
        Value::Bytes(bytes) => Json::Text(hex::encode(bytes)),
        Value::Decimal(decimal) => Json::Text(hex::encode(Vec::<u8>::try_from(decimal)?)),
        Value::String(text) => Json::Text(text),
        Value::Array(items) => Json::List(items.into_iter().map(plain).collect::<Result<_>>()?),
        Value::Map(entries) => {
            // Maps have no order.
            let mut entries: Vec<_> = entries.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(entries.into_iter().map(|(key, value)| Ok((key, plain(value)?))).collect::<Result<_>>()?)
        }
        Value::Record(fields) => {
            Json::Object(fields.into_iter().map(|(name, value)| Ok((name, plain(value)?))).collect::<Result<_>>()?)
        }
        Value::Union(_, value) => plain(*value)?,
        other => bail!("a value that nobody writes: {other:?}"),
    })
}
