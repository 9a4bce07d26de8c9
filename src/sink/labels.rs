//! Labels that the source's enums have and the sink's lack, where the connector lets the sink's table follow.
//!
//! A label may be used only once what made it is committed, so they are added over a connection of their own before the open
//! transaction needs them. One that stays after that transaction came to nothing does no harm. A label that was renamed at the source
//! is added like a new one, and its rows are read again with it; the old one stays, since whether anything of the service's
//! own still has it is not known.

use super::catalog::TableFacts;
use super::composites;
use super::fit::same_type;
use super::postgres::PostgresSink;
use super::stored::Stored;
use super::{Outcome, WantedTable};
use crate::key::type_sql;
use crate::relation::{Column, quote_literal};

/// What to run, in order: each label at the place that it has at the source. Pure.
pub fn statements(wanted: &WantedTable, facts: &TableFacts) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (column, sink) in composites::columns_and_attributes(wanted, facts) {
        let of_column = of_column(&column, &sink.stored);
        all.extend(of_column.into_iter().filter(|add| !all.contains(add)).collect::<Vec<_>>());
    }
    all
}

/// The same for one column.
pub fn of_column(column: &Column, to: &Stored) -> Vec<String> {
    let from = Stored::of(column);
    let same = same_type(&from.name, &to.name) || to.labels.iter().all(|label| from.labels.contains(label));
    if (from.kind, to.kind) != ('e', 'e') || from.arrays != to.arrays || !same {
        return Vec::new();
    }
    let lacks = |(_, label): &(usize, &String)| !to.labels.contains(label);
    let add = |(i, label): (usize, &String)| {
        // The one before is there by then, and the first stands before whatever the sink has.
        let place = match (i.checked_sub(1), to.labels.first()) {
            (Some(before), _) => format!(" AFTER {}", quote_literal(&from.labels[before])),
            (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
            (None, None) => String::new(),
        };
        format!("ALTER TYPE {} ADD VALUE IF NOT EXISTS {}{place}", type_sql(&to.name), quote_literal(label))
    };
    from.labels.iter().enumerate().filter(lacks).map(add).collect()
}

impl PostgresSink {
    /// Adds the labels; whether there were any.
    pub(super) async fn add_labels(&self, wanted: &WantedTable, facts: &TableFacts) -> Outcome<bool> {
        let statements = statements(wanted, facts);
        if statements.is_empty() {
            return Ok(false);
        }
        let beside = self.beside().await?;
        for sql in &statements {
            tracing::warn!(table = %wanted.table, sql, "an enum of the sink follows the source's");
            if let Err(error) = beside.batch_execute(sql).await {
                return Err(self.not_followed(wanted, sql, error));
            }
        }
        beside.close().await;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::TypeKind;
    use crate::sink::evolve::tests::{facts, wanted};

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn added(source: (&str, &[&str]), sink: (&str, &[&str])) -> Vec<String> {
        let mut wanted = wanted(&[("id", "int4"), ("m", source.0), ("again", source.0)]);
        let mut facts = facts(&[("id", "int4"), ("m", sink.0), ("again", sink.0)]);
        for (of_source, of_sink) in wanted.columns.iter_mut().zip(&mut facts.columns).skip(1) {
            of_source.column.kind = TypeKind::Enum { labels: labels(source.1) };
            of_sink.stored = Stored { kind: 'e', labels: labels(sink.1), ..of_sink.stored.clone() };
        }
        statements(&wanted, &facts)
    }

    #[test]
    fn labels_are_added_once_and_in_their_places() {
        let added_to =
            added(("public.mood", &["new", "sad", "so-so", "it's", "glad"]), ("shop.mood", &["sad", "glad"]));
        let add = |what: &str| format!("ALTER TYPE \"shop\".\"mood\" ADD VALUE IF NOT EXISTS {what}");
        assert_eq!(added_to, [add("'new' BEFORE 'sad'"), add("'so-so' AFTER 'sad'"), add("'it''s' AFTER 'so-so'")]);
        assert_eq!(added(("public.mood", &["sad"]), ("public.mood", &["sad", "own"])), labels(&[]));
        let renamed = added(("public.humour", &["sad", "new"]), ("public.mood", &["sad"]));
        assert_eq!(renamed, ["ALTER TYPE \"public\".\"mood\" ADD VALUE IF NOT EXISTS 'new' AFTER 'sad'"]);
        assert_eq!(added(("public.size", &["big"]), ("public.mood", &["sad"])), labels(&[]), "another type");
    }
}
