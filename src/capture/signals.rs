//! What people write into the signal table, in Debezium's words, and what it asks for.
//!
//! A row is an id, a type and data, which is JSON. What is not understood in full is refused: of a request with a word that
//! means nothing here nobody knows what was meant. What a name means at this source is asked elsewhere (`asks`), and so is when
//! a row counts (`driver::signals`).
//!
//! Pure.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::capture::asks::refused;
use crate::error::Result;

/// Longer data is not looked at: names of tables and conditions, of which each has limits of its own.
const DATA_BYTES_MAX: usize = 64 * 1024;

const TYPES: &str = "execute-snapshot, pause-snapshot, resume-snapshot, stop-snapshot or log";

/// Where the three columns stand in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub id: usize,
    pub kind: usize,
    pub data: usize,
}

impl Layout {
    /// By name, or of three columns by their order, as Debezium reads them.
    pub fn of(columns: &[&str]) -> Option<Layout> {
        let place = |name: &str| columns.iter().position(|column| *column == name);
        match (place("id"), place("type"), place("data")) {
            (Some(id), Some(kind), Some(data)) => Some(Layout { id, kind, data }),
            _ if columns.len() == 3 => Some(Layout { id: 0, kind: 1, data: 2 }),
            _ => None,
        }
    }
}

/// What a row asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    Execute(Execute),
    Pause,
    Resume,
    /// Names of tables; none: all that are being read.
    Stop(Vec<String>),
    /// A line in our log.
    Log(String),
}

/// Tables whose rows are to be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// Names of tables, or regular expressions over them.
    pub tables: Vec<String>,
    pub conditions: Vec<Condition>,
}

/// Of these tables only rows with such keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Condition {
    #[serde(rename = "data-collection")]
    pub table: String,
    pub filter: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ExecuteData {
    data_collections: Vec<String>,
    r#type: Option<String>,
    #[serde(default)]
    additional_conditions: Vec<Condition>,
    /// By which column Debezium cuts chunks: the same rows come whatever it says.
    #[serde(default, rename = "surrogate-key")]
    _surrogate_key: Option<String>,
}

/// Of the others, which Debezium has of all tables or of none.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct SteerData {
    r#type: Option<String>,
    data_collections: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct LogData {
    message: String,
}

impl Signal {
    /// The signal of a row's type and data; none in a mark that Debezium writes for itself into a table that both read.
    pub fn parse(kind: &str, data: &str) -> Result<Option<Signal>> {
        if data.len() > DATA_BYTES_MAX {
            let what = format!("its data has {} bytes, {DATA_BYTES_MAX} are looked at", data.len());
            return Err(refused(what, "write several signals"));
        }
        let signal = match kind {
            "execute-snapshot" => Signal::Execute(execute(read(data, r#"{"data-collections": ["schema.table"]}"#)?)?),
            "pause-snapshot" => steer(data).and_then(of_all).map(|()| Signal::Pause)?,
            "resume-snapshot" => steer(data).and_then(of_all).map(|()| Signal::Resume)?,
            "stop-snapshot" => Signal::Stop(steer(data)?.unwrap_or_default()),
            "log" => Signal::Log(read::<LogData>(data, r#"{"message": "at {}"}"#)?.message),
            "snapshot-window-open" | "snapshot-window-close" => return Ok(None),
            other => return Err(refused(format!("{other:?} is no type of a signal"), format!("write {TYPES}"))),
        };
        Ok(Some(signal))
    }
}

fn read<T: DeserializeOwned>(data: &str, example: &str) -> Result<T> {
    serde_json::from_str(data).map_err(|e| refused(format!("its data can't be read: {e}"), format!("write {example}")))
}

/// Both of Debezium's types are the same here: rows are read while everything streams.
fn check_type(kind: Option<&str>) -> Result<()> {
    match kind.map(str::to_ascii_lowercase).as_deref() {
        None | Some("incremental" | "blocking") => Ok(()),
        Some(other) => Err(refused(format!("{other:?} is no type of a snapshot"), "write incremental or blocking")),
    }
}

/// Its data-collections, if it has some; no data at all will do.
fn steer(data: &str) -> Result<Option<Vec<String>>> {
    let data: SteerData = if data.trim().is_empty() { SteerData::default() } else { read(data, "{}")? };
    check_type(data.r#type.as_deref())?;
    Ok(data.data_collections)
}

/// One table can't wait while another one is read.
fn of_all(tables: Option<Vec<String>>) -> Result<()> {
    match tables {
        None => Ok(()),
        Some(_) => Err(refused("the reading of all existing rows pauses, or none", "leave data-collections out")),
    }
}

fn execute(data: ExecuteData) -> Result<Execute> {
    check_type(data.r#type.as_deref())?;
    if data.data_collections.is_empty() {
        return Err(refused("its data-collections name no table", r#"write "data-collections": ["schema.table"]"#));
    }
    Ok(Execute { tables: data.data_collections, conditions: data.additional_conditions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_or_else_by_their_order() {
        let layout = |id, kind, data| Some(Layout { id, kind, data });
        assert_eq!(Layout::of(&["made_at", "data", "type", "id"]), layout(3, 2, 1));
        assert_eq!(Layout::of(&["a", "b", "c"]), layout(0, 1, 2));
        assert_eq!(Layout::of(&["a", "b", "c", "d"]), None);
    }

    #[test]
    fn what_debezium_understands_is_understood() {
        let tables = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let data = r#"{"data-collections": ["public.a", "public\\.b.*"], "type": "INCREMENTAL", "surrogate-key": "n",
                       "additional-conditions": [{"data-collection": "public.a", "filter": "id > 5"}]}"#;
        let conditions = vec![Condition { table: "public.a".into(), filter: "id > 5".into() }];
        let execute = Execute { tables: tables(&["public.a", r"public\.b.*"]), conditions };
        assert_eq!(Signal::parse("execute-snapshot", data).unwrap(), Some(Signal::Execute(execute)));
        let plain = Execute { tables: tables(&["t"]), conditions: vec![] };
        let blocking = r#"{"data-collections": ["t"], "type": "blocking"}"#;
        assert_eq!(Signal::parse("execute-snapshot", blocking).unwrap(), Some(Signal::Execute(plain)));
        assert_eq!(Signal::parse("log", r#"{"message": "at {}"}"#).unwrap(), Some(Signal::Log("at {}".into())));
        assert_eq!(Signal::parse("snapshot-window-open", "").unwrap(), None);
    }

    #[test]
    fn what_is_being_read_is_steered() {
        assert_eq!(Signal::parse("pause-snapshot", "").unwrap(), Some(Signal::Pause));
        assert_eq!(Signal::parse("resume-snapshot", r#"{"type": "incremental"}"#).unwrap(), Some(Signal::Resume));
        assert_eq!(Signal::parse("stop-snapshot", "{}").unwrap(), Some(Signal::Stop(vec![])));
        let one = r#"{"data-collections": ["public.a"], "type": "incremental"}"#;
        assert_eq!(Signal::parse("stop-snapshot", one).unwrap(), Some(Signal::Stop(vec!["public.a".into()])));
        assert!(Signal::parse("pause-snapshot", one).unwrap_err().to_string().contains("leave data-collections out"));
    }

    #[test]
    fn what_is_not_understood_in_full_is_refused_by_name() {
        let why = |kind: &str, data: &str| Signal::parse(kind, data).unwrap_err().to_string();
        for (kind, data, what) in [
            ("no-such-type", "{}", "\"no-such-type\" is no type of a signal"),
            ("execute-snapshot", "{", "its data can't be read: EOF"),
            ("execute-snapshot", "", "its data can't be read: EOF"),
            ("execute-snapshot", "{}", "missing field `data-collections`"),
            ("execute-snapshot", r#"{"data-collections": []}"#, "name no table"),
            ("execute-snapshot", r#"{"data-collections": ["t"], "type": "full"}"#, "\"full\" is no type of a snapshot"),
            (
                "execute-snapshot",
                r#"{"data-collections": ["t"], "additional-condition": "id = 1"}"#,
                "unknown field `additional-condition`",
            ),
            ("log", "{}", "missing field `message`"),
            ("log", &" ".repeat(DATA_BYTES_MAX + 1), "its data has 65537 bytes"),
        ] {
            let why = why(kind, data);
            assert!(why.contains(what) && why.contains("REQUEST_REFUSED") && why.contains("help: "), "{why}");
        }
    }
}
