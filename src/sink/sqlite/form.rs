//! What SQLite stores of a value: which of its storage classes, and whether the column leaves it as it is. Pure.
//!
//! A column's declared type is no type but an affinity, and that is the trap: text that looks like a number is rewritten as one
//! in a column of NUMERIC, INTEGER or REAL affinity, so that '1.10' comes back as 1.1, and most types that people write (DECIMAL,
//! DATE, JSON, UUID, BOOLEAN) are of NUMERIC affinity. So a value goes only where it stays what it is:
//!
//! | at the source | stored as | in columns of |
//! |---|---|---|
//! | int2, int4, int8, oid | INTEGER | INTEGER or NUMERIC affinity, none |
//! | bool | INTEGER 0 or 1 | the same |
//! | float4, float8 | REAL | REAL affinity |
//! | float4, float8 | their Postgres text | TEXT affinity |
//! | bytea | BLOB | BLOB, NUMERIC or no affinity |
//! | date, time, timestamp with or without zone, uuid | their Postgres text | TEXT or NUMERIC affinity (no such text looks like a number), none |
//! | everything else, numeric and json among it | its Postgres text | TEXT affinity, none |
//!
//! What a REAL can't hold is refused by name when it comes: NaN, which SQLite stores as NULL, and the negative zero, which it
//! stores as 0. A column for these is declared TEXT.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};

use crate::relation::Column;
use crate::sink::stored::Stored;

/// What a column's declared type does to values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Affinity {
    Integer,
    Text,
    /// BLOB, and none: the same.
    None,
    Real,
    Numeric,
}

impl Affinity {
    /// By SQLite's rules, in their order: POINT is of INTEGER affinity.
    pub fn of(declared: &str, strict: bool) -> Affinity {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        match () {
            // ANY leaves values alone in a STRICT table, and is like any other word elsewhere.
            () if strict && declared == "ANY" => Affinity::None,
            () if has("INT") => Affinity::Integer,
            () if has("CHAR") || has("CLOB") || has("TEXT") => Affinity::Text,
            () if has("BLOB") || declared.is_empty() => Affinity::None,
            () if has("REAL") || has("FLOA") || has("DOUB") => Affinity::Real,
            () => Affinity::Numeric,
        }
    }
}

/// How a column's values are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Integer,
    Bool,
    /// float4: the number that the text stands for there, not the nearest one of twice the size.
    Single,
    Double,
    Text,
    Blob,
}

/// Texts of these never look like a number: each holds a second `-`, or a `:`.
const NO_NUMBERS: &[&str] = &["date", "time", "timetz", "timestamp", "timestamptz", "uuid"];

impl Form {
    /// How the source's column is stored in one of the declared type; `None`: it would not stay what it is.
    pub fn of(source: &Column, declared: &str, strict: bool) -> Option<Form> {
        let affinity = Affinity::of(declared, strict);
        // A STRICT table takes no BLOB but as such, and nothing else there.
        let takes_blobs = !strict || affinity == Affinity::None;
        let takes_only_blobs = strict && declared.eq_ignore_ascii_case("BLOB");
        let stored = Stored::of(source);
        let name = if stored.arrays > 0 || stored.kind != 'b' { "" } else { stored.name.as_str() };
        use Affinity as A;
        match (name, affinity) {
            (name, _) if takes_only_blobs && name != "bytea" => None,
            ("int2" | "int4" | "int8" | "oid", A::Integer | A::Numeric | A::None) => Some(Form::Integer),
            ("bool", A::Integer | A::Numeric | A::None) => Some(Form::Bool),
            ("int2" | "int4" | "int8" | "oid" | "bool", _) => None,
            ("float4", A::Real) => Some(Form::Single),
            ("float8", A::Real) => Some(Form::Double),
            ("bytea", A::None | A::Numeric) if takes_blobs => Some(Form::Blob),
            ("bytea", _) => None,
            (name, A::Numeric) if NO_NUMBERS.contains(&name) => Some(Form::Text),
            ("float4" | "float8", A::None) => None,
            (_, A::Text | A::None) => Some(Form::Text),
            _ => None,
        }
    }

    /// The type to declare a column of, so that it holds the source's.
    pub fn declaration(source: &Column) -> &'static str {
        let stored = Stored::of(source);
        match stored.name.as_str() {
            _ if stored.arrays > 0 || stored.kind != 'b' => "TEXT",
            "int2" | "int4" | "int8" | "oid" | "bool" => "INTEGER",
            "float4" | "float8" => "REAL",
            "bytea" => "BLOB",
            _ => "TEXT",
        }
    }

    /// Whether a column of the form can be a key: equal values are equal texts there, and sorted alike or compared by us.
    pub fn can_be_key(self) -> bool {
        !matches!(self, Form::Single | Form::Double)
    }

    /// The value of a Postgres text.
    pub fn value(self, text: &[u8]) -> Result<Held<'_>, Unfit> {
        let utf8 = std::str::from_utf8(text).map_err(|_| Unfit::Encoding)?;
        match self {
            Form::Integer => utf8.parse().map(Held::Integer).map_err(|_| Unfit::Text),
            Form::Bool => match utf8 {
                "t" => Ok(Held::Integer(1)),
                "f" => Ok(Held::Integer(0)),
                _ => Err(Unfit::Text),
            },
            Form::Single => real(utf8.parse::<f32>().map(f64::from)),
            Form::Double => real(utf8.parse()),
            Form::Text => Ok(Held::Text(utf8)),
            Form::Blob => {
                let digits = utf8.strip_prefix("\\x").ok_or(Unfit::Text)?;
                hex::decode(digits).map(Held::Blob).map_err(|_| Unfit::Text)
            }
        }
    }

    /// The Postgres text of a key's value; `None` for what is not of the form.
    pub fn text(self, value: ValueRef<'_>) -> Option<Vec<u8>> {
        match (self, value) {
            (Form::Integer, ValueRef::Integer(number)) => Some(number.to_string().into_bytes()),
            (Form::Bool, ValueRef::Integer(0)) => Some(b"f".to_vec()),
            (Form::Bool, ValueRef::Integer(1)) => Some(b"t".to_vec()),
            (Form::Text, ValueRef::Text(text)) => Some(text.to_vec()),
            (Form::Blob, ValueRef::Blob(bytes)) => Some(format!("\\x{}", hex::encode(bytes)).into_bytes()),
            _ => None,
        }
    }
}

fn real<E>(parsed: Result<f64, E>) -> Result<Held<'static>, Unfit> {
    match parsed {
        Ok(number) if number.is_nan() => Err(Unfit::NaN),
        Ok(number) if number == 0.0 && number.is_sign_negative() => Err(Unfit::NegativeZero),
        Ok(number) => Ok(Held::Real(number)),
        Err(_) => Err(Unfit::Text),
    }
}

/// A value as SQLite holds it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Held<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a str),
    Blob(Vec<u8>),
}

/// Why a value can't be stored as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unfit {
    NaN,
    NegativeZero,
    /// Not a text of the type: never Postgres' doing.
    Text,
    Encoding,
}

impl rusqlite::ToSql for Held<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.as_ref()))
    }
}

impl Held<'_> {
    pub fn to_value(&self) -> Value {
        match self {
            Held::Null => Value::Null,
            Held::Integer(number) => Value::Integer(*number),
            Held::Real(number) => Value::Real(*number),
            Held::Text(text) => Value::Text((*text).to_owned()),
            Held::Blob(bytes) => Value::Blob(bytes.clone()),
        }
    }

    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Held::Null => ValueRef::Null,
            Held::Integer(number) => ValueRef::Integer(*number),
            Held::Real(number) => ValueRef::Real(*number),
            Held::Text(text) => ValueRef::Text(text.as_bytes()),
            Held::Blob(bytes) => ValueRef::Blob(bytes),
        }
    }
}

/// Values as one byte string, equal iff they are the same to SQLite, storage class and all: a row's key, or all it holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Image(Vec<u8>);

impl Image {
    pub fn push(&mut self, value: ValueRef<'_>) {
        let (class, bytes): (u8, &[u8]) = match &value {
            ValueRef::Null => (0, &[]),
            ValueRef::Integer(number) => (1, &number.to_be_bytes()),
            ValueRef::Real(number) => (2, &number.to_bits().to_be_bytes()),
            ValueRef::Text(text) => (3, text),
            ValueRef::Blob(bytes) => (4, bytes),
        };
        self.0.push(class);
        self.0.extend_from_slice(&bytes.len().to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub fn of<'v>(values: impl IntoIterator<Item = ValueRef<'v>>) -> Image {
        let mut image = Image::default();
        values.into_iter().for_each(|value| image.push(value));
        image
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params};

    use super::*;
    use crate::relation::TypeKind;

    fn column(type_name: &str) -> Column {
        let kind = TypeKind::Base;
        let name = type_name.to_owned();
        Column {
            name: "c".into(),
            type_oid: 1,
            type_name: name,
            typmod: -1,
            kind,
            nullable: true,
            default: None,
            key: None,
            exact: true,
        }
    }

    /// What a column of the declared type gives back, as SQLite names its class.
    fn stored(declared: &str, strict: bool, form: Form, text: &str) -> (String, Value) {
        let connection = Connection::open_in_memory().unwrap();
        let strict = if strict { " STRICT" } else { "" };
        connection.execute_batch(&format!("CREATE TABLE t (c {declared}){strict}")).unwrap();
        let value = form.value(text.as_bytes()).unwrap();
        connection.execute("INSERT INTO t VALUES (?1)", params![value]).unwrap();
        connection.query_row("SELECT typeof(c), c FROM t", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    const DECLARED: &[&str] = &[
        "",
        "INTEGER",
        "INT",
        "BIGINT",
        "POINT",
        "TEXT",
        "VARCHAR(5)",
        "CLOB",
        "BLOB",
        "REAL",
        "FLOAT",
        "DOUBLE PRECISION",
        "NUMERIC",
        "DECIMAL(10,2)",
        "DATE",
        "DATETIME",
        "BOOLEAN",
        "JSON",
        "UUID",
        "BYTEA",
        "ANY",
    ];

    const VALUES: &[(&str, &[&str])] = &[
        ("int2", &["-32768", "0"]),
        ("int8", &["-9223372036854775808", "9223372036854775807", "9007199254740993"]),
        ("oid", &["4294967295"]),
        ("bool", &["t", "f"]),
        ("float4", &["0.1", "Infinity", "16777216", "1e-45"]),
        ("float8", &["0.1", "-Infinity", "5", "1e300", "9007199254740993", "5e-324"]),
        ("numeric", &["1.10", "5", "1e5", "NaN", "99999999999999999999.0", "-0.00", "007"]),
        ("text", &["", "1.10", "1e5", " 7", "0x10", "a"]),
        ("json", &["1.10", "{\"a\": 1.0}", "\"x\""]),
        ("bit", &["101", "0"]),
        ("bytea", &["\\x", "\\x00ff", "\\x312e3130"]),
        ("date", &["2024-01-01", "infinity", "-infinity", "0001-01-01 BC", "5874897-12-31"]),
        ("time", &["00:00:00", "24:00:00", "12:00:00.5"]),
        ("timestamptz", &["2024-01-01 00:00:00+00", "infinity", "294276-12-31 23:59:59.999999+00"]),
        ("uuid", &["00000000-0000-0000-0000-000000000000", "1e500000-0000-0000-0000-000000000000"]),
        ("_numeric", &["{1.10,NULL}"]),
    ];

    /// The rules of this file against what SQLite does: whatever is accepted comes back as it was.
    #[test]
    fn what_is_accepted_comes_back_as_it_was() {
        let mut accepted = 0;
        for (type_name, values) in VALUES {
            for (declared, strict) in DECLARED
                .iter()
                .map(|d| (*d, false))
                .chain(["INT", "INTEGER", "REAL", "TEXT", "BLOB", "ANY"].map(|declared| (declared, true)))
            {
                let Some(form) = Form::of(&column(type_name), declared, strict) else { continue };
                for text in *values {
                    accepted += 1;
                    let (class, value) = stored(declared, strict, form, text);
                    let sent = Image::of([form.value(text.as_bytes()).unwrap().as_ref()]);
                    assert_eq!(
                        Image::of([ValueRef::from(&value)]),
                        sent,
                        "{type_name} {text} in {declared}: {class} {value:?}"
                    );
                    if form.can_be_key() {
                        assert_eq!(form.text(ValueRef::from(&value)).unwrap(), text.as_bytes(), "{type_name} {text}");
                    }
                }
            }
        }
        assert!(accepted > 200, "{accepted}");
    }

    #[test]
    fn what_would_be_rewritten_is_refused() {
        for (type_name, declared) in [
            ("numeric", "NUMERIC"),
            ("numeric", "DECIMAL(10,2)"),
            ("numeric", "INTEGER"),
            ("numeric", "REAL"),
            ("text", "UUID"),
            ("json", "JSON"),
            ("bit", "BIT"),
            ("int8", "REAL"),
            ("int8", "TEXT"),
            ("bool", "TEXT"),
            ("float8", "NUMERIC"),
            ("float8", "INTEGER"),
            ("bytea", "TEXT"),
            ("date", "INTEGER"),
            ("_int4", "INT"),
        ] {
            assert_eq!(Form::of(&column(type_name), declared, false), None, "{type_name} in {declared}");
        }
        assert_eq!(Form::of(&column("numeric"), "ANY", false), None, "ANY is NUMERIC outside STRICT tables");
        assert_eq!(Form::of(&column("numeric"), "ANY", true), Some(Form::Text));
        assert_eq!(Affinity::of("POINT", false), Affinity::Integer);
        // And that these are no fears: SQLite rewrites them.
        assert_eq!(stored("NUMERIC", false, Form::Text, "1.10").1, Value::Real(1.1));
        assert_eq!(stored("JSON", false, Form::Text, "1e5").1, Value::Integer(100_000));
        assert_eq!(stored("TEXT", false, Form::Double, "5").1, Value::Text("5.0".into()));
    }

    #[test]
    fn what_a_real_can_not_hold_is_refused_by_name() {
        assert_eq!(Form::Double.value(b"NaN"), Err(Unfit::NaN));
        assert_eq!(Form::Single.value(b"-0"), Err(Unfit::NegativeZero));
        assert_eq!(Form::Integer.value(b"9223372036854775808"), Err(Unfit::Text));
        assert_eq!(Form::Text.value(b"\xff"), Err(Unfit::Encoding));
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (c REAL)").unwrap();
        connection.execute("INSERT INTO t VALUES (?1), (?2)", params![f64::NAN, -0.0]).unwrap();
        let zero: f64 = connection.query_row("SELECT c FROM t WHERE c IS NOT NULL", [], |row| row.get(0)).unwrap();
        assert!(zero.is_sign_positive(), "SQLite loses the sign");
        assert_eq!(
            connection.query_row("SELECT count(c) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(),
            1,
            "and NaN"
        );
    }

    #[test]
    fn a_single_is_the_number_that_it_is_at_the_source() {
        assert_eq!(Form::Single.value(b"0.1"), Ok(Held::Real(f64::from(0.1_f32))));
    }
}
