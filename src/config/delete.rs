//! `delete` and `deleted_column` of a connector's sink: whether a row that is gone at the source goes at the sink, or stays there
//! with a mark.

use super::process::check_identifier;
use super::reader::{Section, Text};
use super::{Delete, Truncate};

/// The name that most tables have it under.
const COLUMN: &str = "deleted_at";

/// `columns` are what the sink takes of the source's.
pub(super) fn delete(section: &mut Section<'_>, truncate: Truncate, columns: Option<&[Text]>) -> Delete {
    let is_soft = section.choice("delete", &[("row", false), ("soft", true)]).unwrap_or_default();
    let column = section.text("deleted_column");
    if !is_soft {
        if let Some(column) = column {
            let message = "deleted_column has no effect: delete is not \"soft\"";
            section.report().add(&column.at, message, "delete the line, or write delete = \"soft\"");
        }
        return Delete::Row;
    }
    if let Some(at) = section.place("truncate").filter(|_| truncate == Truncate::Delete) {
        let message = "truncate = \"delete\" deletes rows, and delete = \"soft\" keeps them";
        section.report().add(&at, message, "delete the line: each row is marked");
    }
    if let Some(column) = &column {
        check_identifier(section, "column", column);
    }
    let named = column.as_ref().map_or(COLUMN, |column| &column.value);
    if let Some(taken) = columns.into_iter().flatten().find(|taken| taken.value == named) {
        let message = format!("{named} is a column of the source, and is to be the mark of deleted rows");
        let hint = "write deleted_column = \"…\", a column that only the sink has";
        section.report().add(&taken.at, message, hint);
    }
    Delete::Soft { column: named.to_owned() }
}
