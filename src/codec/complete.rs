//! A relation version before its first record: what its modes ask of its columns is there, and its format's schemas are made.
//!
//! What is refused here is refused by name before anything is written: at a start, at a RELATION message, by `lockstep check`.

use super::{avro, mapping};
use crate::error::{Code, Error, Result};
use crate::relation::{Outbox, Relation};

/// The relation with what its format needs besides, sealed again. `prefix` is the topic prefix.
pub fn complete(relation: Relation, prefix: &str) -> Result<Relation> {
    distinct_fields(&relation)?;
    added_fields(&relation)?;
    outbox_columns(&relation)?;
    avro::complete(relation, prefix)
}

/// Two columns whose fields have one name would be one field.
fn distinct_fields(relation: &Relation) -> Result<()> {
    let mode = relation.modes.field_names;
    if mode.is_none() {
        return Ok(());
    }
    for (i, column) in relation.columns.iter().enumerate() {
        let name = mode.field(&column.name);
        if let Some(other) = relation.columns[..i].iter().find(|other| mode.field(&other.name) == name) {
            let message = format!(
                "table {}: columns {:?} and {:?} are both {name:?} as field_name_adjustment adjusts names",
                relation.name, other.name, column.name
            );
            let hint = format!(
                "write field_name_adjustment = \"avro_unicode\" into [wire] of the connector of {}, or rename a column",
                relation.name
            );
            return Err(Error::halt(Code::SchemaRefused, message, hint));
        }
    }
    Ok(())
}

/// What flat records have beside the columns has names of its own.
fn added_fields(relation: &Relation) -> Result<()> {
    let Some(flat) = &relation.modes.flat else { return Ok(()) };
    let mode = relation.modes.field_names;
    let taken = |name: &&str| relation.columns.iter().any(|column| mode.field(&column.name) == *name);
    let Some(name) = flat.added().find(taken) else { return Ok(()) };
    let message =
        format!("table {}: {name:?} is a column and a field that is added to its flat records", relation.name);
    let hint = format!(
        "write add_fields_prefix = \"…\" into [wire] of the connector of {}, or delete_tombstone_handling without rewrite",
        relation.name
    );
    Err(Error::halt(Code::SchemaRefused, message, hint))
}

/// An outbox has the columns that it is read by, of types that the modes have a form for.
fn outbox_columns(relation: &Relation) -> Result<()> {
    let Some(outbox) = &relation.modes.outbox else { return Ok(()) };
    let has = |name: &str| {
        let column = relation.columns.iter().find(|column| column.name == name);
        column.is_some_and(|column| mapping::schema(column, &relation.modes).is_some())
    };
    let Some(missing) = outbox.read().find(|name| !has(name)) else { return outbox_types(relation, outbox) };
    let columns: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
    let message =
        format!("table {} is no outbox by [outbox] of its connector: column {missing:?} is not there", relation.name);
    let hint = "write id_field, key_field, payload_field, route_by_field or additional_placement with other columns into [outbox]";
    Err(Error::halt(Code::TableUnsupported, message, hint).fact(format!("its columns: {}", columns.join(", "))))
}

/// What says a time or a number is of a type that does.
fn outbox_types(relation: &Relation, outbox: &Outbox) -> Result<()> {
    use mapping::oid::{INT2, INT4, INT8, TIMESTAMP, TIMESTAMPTZ};
    let times = outbox.columns.timestamp.as_deref().map(|name| (name, "a timestamp", &[TIMESTAMP, TIMESTAMPTZ][..]));
    let numbers = outbox.numbers().map(|name| (name, "an integer", &[INT2, INT4, INT8][..]));
    let wrong = times.into_iter().chain(numbers).find_map(|(name, wanted, oids)| {
        let column = relation.columns.iter().find(|column| column.name == name)?;
        (!oids.contains(&column.type_oid)).then_some((name, wanted))
    });
    let Some((name, wanted)) = wrong else { return Ok(()) };
    let message =
        format!("table {} is no outbox by [outbox] of its connector: column {name:?} is not {wanted}", relation.name);
    let hint = "write timestamp_field, schema_version_field or COLUMN:partition in additional_placement with another column into \
                [outbox]";
    Err(Error::halt(Code::TableUnsupported, message, hint))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::mapping::oid;
    use super::super::tests::{EVENT, column, relation_of};
    use super::super::{Decoder, Encoder, RecordBuf};
    use super::*;
    use crate::record::Side;
    use crate::relation::{Modes, NameMode};
    use crate::value::{Cell, RowBuf};

    fn named(columns: [&str; 2], mode: NameMode) -> Relation {
        let columns = columns.iter().map(|name| column(name, oid::INT4, -1, false, None)).collect();
        let modes = Modes { field_names: mode, ..Modes::default() };
        Relation { modes, ..(*relation_of(columns)).clone() }
    }

    #[test]
    fn columns_that_become_one_field_are_refused() {
        let colliding = |mode| complete(named(["a b", "a_b"], mode), "p");
        let error = colliding(NameMode::Avro).unwrap_err();
        assert_eq!(error.code(), Some(Code::SchemaRefused));
        assert!(error.to_string().contains(r#"columns "a b" and "a_b" are both "a_b""#), "{error}");
        assert!(colliding(NameMode::AvroUnicode).is_ok() && colliding(NameMode::None).is_ok());
    }

    #[test]
    fn adjusted_fields_are_read_back() {
        for mode in [NameMode::None, NameMode::Avro, NameMode::AvroUnicode] {
            let relation = Arc::new(complete(named(["1st", "列"], mode), "p").unwrap());
            let row: RowBuf = [Cell::Text(b"1"), Cell::Text(b"2")].into_iter().collect();
            let (mut buf, mut back) = (RecordBuf::default(), RowBuf::new());
            Encoder::new(relation.clone(), "p", "db").create(&EVENT, row.row(), &mut buf).unwrap();
            let text = String::from_utf8(buf.value.clone()).unwrap();
            assert!(text.contains(&format!(r#""after":{{"{}":1"#, mode.field("1st"))), "{text}");
            Decoder::new(relation).row(&buf.value, Side::After, None, buf.text(), &mut back).unwrap();
            assert_eq!(back, row);
        }
    }
}
