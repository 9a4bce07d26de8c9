//! Recorded records and ours, made comparable: JSON that keeps order and digits, masks for what differs every time, differences
//! with the paths where they are.
//!
//! What is masked is what tests/golden/README.md names as volatile. Numbers are equal as exact decimals, or as the float that
//! both print: Java spells floats its own way, before Java 19 not with the shortest digits.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::avro::Schemas;

/// JSON with fields in order and numbers as they are written.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn parse(text: &str) -> Result<Json> {
        let raw: &RawValue = serde_json::from_str(text).with_context(|| text.chars().take(200).collect::<String>())?;
        Json::of(raw)
    }

    fn of(raw: &RawValue) -> Result<Json> {
        let text = raw.get();
        Ok(match text.as_bytes()[0] {
            b'n' => Json::Null,
            b't' => Json::Bool(true),
            b'f' => Json::Bool(false),
            b'"' => Json::Text(serde_json::from_str(text)?),
            b'[' => {
                Json::List(serde_json::from_str::<Items<'_>>(text)?.0.into_iter().map(Json::of).collect::<Result<_>>()?)
            }
            b'{' => {
                let fields = serde_json::from_str::<Fields<'_>>(text)?.0.into_iter();
                Json::Object(fields.map(|(name, raw)| Ok((name, Json::of(raw)?))).collect::<Result<_>>()?)
            }
            _ => Json::Number(text.to_owned()),
        })
    }

    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => fields.iter().find(|(found, _)| found == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Json> {
        match self {
            Json::Object(fields) => fields.iter_mut().find(|(found, _)| found == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(digits) => f.write_str(digits),
            Json::Text(text) => write!(f, "{text:?}"),
            Json::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Json::Object(fields) => {
                f.write_str("{")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name:?}:{value}", if i > 0 { "," } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

struct Items<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Items<'a>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Fields<'a>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }
        d.deserialize_map(InOrder)
    }
}

/// One record, of a recording or of ours.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    pub headers: Vec<(String, Json)>,
    pub key: Json,
    pub value: Json,
}

/// Records by topic.
pub type Topics = BTreeMap<String, Vec<Record>>;

/// Reads events.jsonl; records in Avro by the schemas of schemas.json.
pub fn recorded(events: &str, mut schemas: Option<Schemas>) -> Result<Topics> {
    let mut topics = Topics::new();
    for line in events.lines().filter(|line| !line.is_empty()) {
        let line = Json::parse(line)?;
        let topic = line.get("topic").and_then(Json::text).context("a topic")?.to_owned();
        let mut part = |name: &str| {
            let hex = line.get(&format!("{name}_hex"));
            match (hex.and_then(Json::text), &mut schemas) {
                (Some(hex), Some(schemas)) => schemas.read(&hex::decode(hex)?),
                _ => Ok(line.get(name).or(hex).cloned().unwrap_or(Json::Null)),
            }
        };
        let Some(Json::List(pairs)) = line.get("headers") else { bail!("a record without headers") };
        let header = |pair: &Json| match pair {
            Json::List(pair) => Some((pair[0].text()?.to_owned(), pair[1].clone())),
            _ => None,
        };
        let headers = pairs.iter().filter_map(header).collect();
        topics.entry(topic).or_default().push(Record { headers, key: part("key")?, value: part("value")? });
    }
    Ok(topics)
}

/// Rows of a snapshot come in any order; which part of it they are is told by their places. So the marks are taken off,
/// beside the records, and the rows are put in the order of their keys.
fn settle_snapshot(records: &mut [Record], marks: &mut Vec<Json>) {
    let op = |record: &Record| payload(&record.value).get("op").and_then(Json::text).map(str::to_owned);
    let len = records.iter().take_while(|record| op(record).as_deref() == Some("r")).count();
    let rows = &mut records[..len];
    for row in rows.iter_mut() {
        let value = payload_mut(&mut row.value);
        if let Some(mark) = value.get_mut("source").and_then(|source| source.get_mut("snapshot")) {
            marks.push(std::mem::replace(mark, Json::Null));
        }
    }
    rows.sort_by_cached_key(|row| (row.key.to_string(), payload(&row.value).get("after").map(Json::to_string)));
}

fn payload(value: &Json) -> &Json {
    value.get("payload").unwrap_or(value)
}

fn payload_mut(value: &mut Json) -> &mut Json {
    if value.get("payload").is_some() { value.get_mut("payload").expect("just looked") } else { value }
}

/// Blanks what differs in every run.
fn mask(topic: &str, record: &mut Record) {
    for (name, value) in &mut record.headers {
        if name == "__debezium.context.runId" {
            *value = Json::Text("*".into());
        }
    }
    let hide = |value: Option<&mut Json>, shape: fn(&Json) -> Json| {
        if let Some(value) = value {
            *value = shape(value);
        }
    };
    // A number stays a number, null stays null.
    let kept = |value: &Json| match value {
        Json::Null => Json::Null,
        Json::Number(_) => Json::Number("0".into()),
        _ => Json::Text("*".into()),
    };
    let any = |_: &Json| Json::Text("*".into());
    let value = payload_mut(&mut record.value);
    for name in ["ts_ms", "ts_us", "ts_ns"] {
        hide(value.get_mut(name), kept);
    }
    if let Some(source) = value.get_mut("source") {
        for name in ["version", "ts_ms", "ts_us", "ts_ns", "db", "lsn", "xmin"] {
            hide(source.get_mut(name), kept);
        }
        hide(source.get_mut("txId"), any);
        hide(source.get_mut("sequence"), |value| {
            let elements = value.text().and_then(|text| serde_json::from_str::<Vec<Option<String>>>(text).ok());
            let digits =
                |text: &Option<String>| text.as_ref().is_none_or(|text| text.bytes().all(|b| b.is_ascii_digit()));
            match elements {
                Some(elements) if elements.len() == 2 && elements.iter().all(digits) => Json::Text("*".into()),
                _ => value.clone(),
            }
        });
    }
    hide(value.get_mut("transaction").and_then(|block| block.get_mut("id")), any);
    if topic.ends_with(".transaction") {
        hide(value.get_mut("id"), any);
        hide(payload_mut(&mut record.key).get_mut("id"), any);
        if let Some(Json::List(collections)) = payload_mut(&mut record.value).get_mut("data_collections") {
            for collection in collections.iter_mut() {
                hide(collection.get_mut("data_collection"), |name| match name.text() {
                    Some(text) if text.contains("LogicalDecodingMessageId") => Json::Text("message".into()),
                    _ => name.clone(),
                });
            }
            // The order of a Java hash map.
            collections.sort_by_key(Json::to_string);
        }
    }
    for name in ["__lsn", "__ts_ms", "__src_ms", "__transaction_id", "__db"] {
        hide(payload_mut(&mut record.value).get_mut(name), kept);
    }
}

/// Where two values differ: segments of the path, what is recorded, what is ours.
#[derive(Clone, Debug)]
pub struct Difference {
    pub topic: String,
    pub path: Vec<String>,
    pub recorded: String,
    pub ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().take(160).collect::<String>();
        let (recorded, ours) = (short(&self.recorded), short(&self.ours));
        write!(f, "{} {}: recorded {recorded}, ours {ours}", self.topic, self.path.join("/"))
    }
}

/// Everything in which ours differs from what was recorded.
pub fn differences(recorded: &Topics, ours: &Topics) -> Vec<Difference> {
    let mut found = Vec::new();
    let none = Vec::new();
    let names: std::collections::BTreeSet<&String> = recorded.keys().chain(ours.keys()).collect();
    for topic in names {
        let settled = |records: &Vec<Record>| {
            let (mut records, mut marks) = (records.clone(), Vec::new());
            records.iter_mut().for_each(|record| mask(topic, record));
            settle_snapshot(&mut records, &mut marks);
            if topic.starts_with("__debezium-heartbeat.") {
                records.truncate(1);
            }
            (records, Json::List(marks))
        };
        let (theirs, their_marks) = settled(recorded.get(topic).unwrap_or(&none));
        let (mine, my_marks) = settled(ours.get(topic).unwrap_or(&none));
        let mut compare = Compare { topic, path: Vec::new(), found: &mut found };
        compare.at("marks", &their_marks, &my_marks);
        if theirs.len() != mine.len() {
            let list = |records: &[Record]| {
                let line = |record: &Record| {
                    let op = payload(&record.value).get("op").map_or_else(|| "-".to_owned(), Json::to_string);
                    format!("{op} {}", payload(&record.key))
                };
                format!("{}: {}", records.len(), records.iter().map(line).collect::<Vec<_>>().join("; "))
            };
            compare.path = vec!["records".into()];
            compare.add(list(&theirs), list(&mine));
        }
        // Where one side stopped early, what it has before must still be the same.
        for (i, (theirs, mine)) in theirs.iter().zip(&mine).enumerate() {
            compare.path = vec![i.to_string()];
            compare.at("key", &theirs.key, &mine.key);
            compare.at("value", &theirs.value, &mine.value);
            let headers = |record: &Record| Json::Object(record.headers.clone());
            compare.at("headers", &headers(theirs), &headers(mine));
        }
    }
    found
}

/// The rows that records leave behind, by key.
pub fn rows_left(records: &[Record]) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for record in records {
        let (key, value) = (payload(&record.key).to_string(), payload(&record.value));
        match value.get("op").and_then(Json::text) {
            Some("d") => drop(rows.remove(&key)),
            Some("t") => rows.clear(),
            Some(_) => drop(rows.insert(key, value.get("after").map_or_else(String::new, Json::to_string))),
            None => {}
        }
    }
    rows
}

/// In which rows two topics differ.
pub fn row_differences(
    topic: &str,
    theirs: &BTreeMap<String, String>,
    mine: &BTreeMap<String, String>,
) -> Vec<Difference> {
    let keys: std::collections::BTreeSet<&String> = theirs.keys().chain(mine.keys()).collect();
    let shown =
        |rows: &BTreeMap<String, String>, key: &String| rows.get(key).map_or("absent", String::as_str).to_owned();
    let differing = keys.into_iter().filter(|key| theirs.get(*key) != mine.get(*key));
    let difference = |key: &String| Difference {
        topic: topic.to_owned(),
        path: vec!["rows".to_owned(), key.clone()],
        recorded: shown(theirs, key),
        ours: shown(mine, key),
    };
    differing.map(difference).collect()
}

/// Takes out of ours what was read beyond the rows that a recorded topic begins with; gives how many records those were.
pub fn take_out_rereads(recorded: &Topics, ours: &mut Topics) -> usize {
    let is_read = |record: &Record| payload(&record.value).get("op").and_then(Json::text) == Some("r");
    let mut taken = 0;
    for (topic, records) in ours {
        let kept = recorded.get(topic).map_or(0, |records| records.iter().take_while(|r| is_read(r)).count());
        let (mut reads, before) = (0, records.len());
        records.retain(|record| {
            reads += usize::from(is_read(record));
            !is_read(record) || reads <= kept
        });
        taken += before - records.len();
    }
    taken
}

struct Compare<'a> {
    topic: &'a str,
    path: Vec<String>,
    found: &'a mut Vec<Difference>,
}

impl Compare<'_> {
    fn add(&mut self, recorded: String, ours: String) {
        self.found.push(Difference { topic: self.topic.to_owned(), path: self.path.clone(), recorded, ours });
    }

    fn at(&mut self, segment: &str, theirs: &Json, mine: &Json) {
        self.path.push(segment.to_owned());
        self.values(theirs, mine);
        self.path.pop();
    }

    fn values(&mut self, theirs: &Json, mine: &Json) {
        match (theirs, mine) {
            (Json::Number(a), Json::Number(b)) if same_number(a, b) => {}
            (Json::List(a), Json::List(b)) if is_fields(a) && is_fields(b) => self.objects(&by_field(a), &by_field(b)),
            (Json::List(a), Json::List(b)) if a.len() == b.len() => {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    self.at(&i.to_string(), a, b);
                }
            }
            (Json::Object(a), Json::Object(b)) => self.objects(a, b),
            (a, b) if a == b => {}
            (a, b) => self.add(a.to_string(), b.to_string()),
        }
    }

    fn objects(&mut self, theirs: &[(String, Json)], mine: &[(String, Json)]) {
        let absent = || "absent".to_owned();
        let has = |fields: &[(String, Json)], name: &str| fields.iter().any(|(found, _)| found == name);
        for (name, value) in theirs {
            self.path.push(name.clone());
            match mine.iter().find(|(found, _)| found == name) {
                Some((_, other)) => self.values(value, other),
                None => self.add(value.to_string(), absent()),
            }
            self.path.pop();
        }
        for (name, value) in mine.iter().filter(|(name, _)| !has(theirs, name)) {
            self.path.push(name.clone());
            self.add(absent(), value.to_string());
            self.path.pop();
        }
        let order = |fields: &[(String, Json)], others: &[(String, Json)]| {
            fields
                .iter()
                .filter(|(name, _)| has(others, name))
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
                .join(",")
        };
        let (a, b) = (order(theirs, mine), order(mine, theirs));
        if a != b {
            self.path.push("order".into());
            self.add(a, b);
            self.path.pop();
        }
    }
}

/// Fields of a struct's schema: compared by name, so that one that is missing does not move the others.
fn is_fields(list: &[Json]) -> bool {
    !list.is_empty() && list.iter().all(|item| item.get("field").is_some())
}

fn by_field(list: &[Json]) -> Vec<(String, Json)> {
    let named = |item: &Json| (item.get("field").and_then(Json::text).unwrap_or_default().to_owned(), item.clone());
    list.iter().map(named).collect()
}

fn same_number(a: &str, b: &str) -> bool {
    if decimal(a) == decimal(b) {
        return true;
    }
    let is_float = |text: &str| text.contains(['.', 'e', 'E']);
    if !is_float(a) && !is_float(b) {
        return false;
    }
    // A float of 32 bits has nine digits at most.
    let short = |text: &str| decimal(text).1.len() <= 9;
    let same64 = a.parse::<f64>().ok() == b.parse::<f64>().ok();
    same64 || (short(a) && short(b) && a.parse::<f32>().ok() == b.parse::<f32>().ok())
}

/// Sign, digits without zeros at the ends, power of ten.
fn decimal(text: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let mut power: i64 = exponent.parse().unwrap_or_default();
    let plain = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, fraction) = plain.split_once('.').unwrap_or((plain, ""));
    let digits = format!("{whole}{fraction}");
    power -= i64::try_from(fraction.len()).expect("short");
    let cut = digits.trim_end_matches('0');
    power += i64::try_from(digits.len() - cut.len()).expect("short");
    let cut = cut.trim_start_matches('0');
    if cut.is_empty() { (false, String::new(), 0) } else { (plain.len() < mantissa.len(), cut.to_owned(), power) }
}
