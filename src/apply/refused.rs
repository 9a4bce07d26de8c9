//! Which row it was that a sink refused, and what is typed about it. Pure.
//!
//! A batch of thousands is refused as a whole, by a message that knows the table, and the column or the constraint. Where it goes
//! again in smaller pieces ([`super::writer::Writer::narrow`]), one row is left in the end, and the halt gets what tells it from all
//! others: the columns of its key in the message, and in the hint, because somebody has to type it, the key itself. That is the
//! only value of a row in any halt, and never the one that was refused: where that may be of the key, the key is not shown.
//!
//! Not here: finding the row.

use crate::apply::net::NetEffect;
use crate::error::{Code, Error, Halt};
use crate::relation::{Relation, TableName, quote_identifier};
use crate::sink::Failure;
use crate::transform::Transform;
use crate::value::RowBuf;

/// A longer condition is nothing to type.
const CONDITION_BYTES_MAX: usize = 200;

/// The key of a table's rows, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The table at the source.
    table: TableName,
    /// Places in the relation of the columns that tell the table's own rows apart, with what they are called here and at the
    /// source, where a name differs.
    key: Vec<(usize, String, String)>,
    /// Places of the whole key, constants among them, in key order.
    whole: Vec<usize>,
}

/// The one row that was written when the sink refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key's texts.
    key: Vec<String>,
    way: Way,
}

/// How the row came, and so what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its key is read again, and the change is left out meanwhile.
    Change,
    /// It is gone at the source: nothing can be read.
    Delete,
    /// It stands in a chunk, which is replaced as a whole: only another load of the table takes its place.
    Chunk,
}

impl Named {
    pub fn of(relation: &Relation) -> Named {
        let name = |i: &usize| relation.columns[*i].name.clone();
        let own = relation.own_key();
        let here: Vec<String> = own.iter().map(name).collect();
        let there = at_source(relation, &here);
        let key = own.into_iter().zip(here).zip(there).map(|((i, here), there)| (i, here, there)).collect();
        Named { table: relation.name.clone(), key, whole: relation.key_columns() }
    }

    /// The row that this is all about, if it is one.
    pub fn only_row(&self, net: &NetEffect) -> Option<Row> {
        let moved = net.moves.iter().flat_map(|moves| &moves.rows).map(|(_, row)| row);
        let updated = net.updates.iter().flat_map(|updates| &updates.rows);
        let mut rows = moved.chain(updated).chain(&net.inserts);
        match (rows.next(), rows.next(), &net.deletes[..]) {
            (Some(row), None, []) if !net.truncate => self.row(row, Way::Change),
            (None, None, [key]) if !net.truncate => {
                let cells: Vec<_> = key.cells().collect();
                let place = |(i, _, _): &(usize, String, String)| self.whole.iter().position(|whole| whole == i);
                let text = |column| Some(text(cells.get(place(column)?)?.text()?));
                let key: Option<Vec<String>> = self.key.iter().map(text).collect();
                key.filter(|key| !key.is_empty()).map(|key| Row { key, way: Way::Delete })
            }
            _ => None,
        }
    }

    /// A row that was to be there.
    pub fn row(&self, row: &RowBuf, way: Way) -> Option<Row> {
        let key: Option<Vec<String>> = self.key.iter().map(|(i, _, _)| row.row().get(*i).text().map(text)).collect();
        key.filter(|key| !key.is_empty()).map(|key| Row { key, way })
    }

    /// The halt, of this row.
    pub fn halt(&self, halt: Halt, row: &Row) -> Halt {
        let Halt { code, message, mut facts, hint } = halt;
        let columns: Vec<&str> = self.key.iter().map(|(_, here, _)| here.as_str()).collect();
        let named = format!("{message}; it is one row, known by its key ({})", columns.join(", "));
        // A key that does not fit, and what can't be written as one line, is not shown.
        let is_of_key = columns.iter().any(|column| message.contains(&format!("column {column} ")));
        let condition = self.condition(row).filter(|_| !(code == Code::ValueRefused && is_of_key));
        let Some(condition) = condition else { return Halt { code, message: named, facts, hint } };
        let right = "once the row is right at the source, type this; or let the sink take it, and start again";
        let resync = format!("lockstep resync {}", self.table);
        // An enum refuses nothing but labels that it lacks, and that is no fault of this row.
        let mends_sink = hint.starts_with("ALTER TYPE ");
        let hint = match row.way {
            _ if mends_sink => hint,
            Way::Delete => format!("{hint} -- the row is gone at the source: {condition}"),
            Way::Change => {
                facts.push(format!("{right}: {hint}"));
                format!("{resync} --where {}", for_shell(&condition))
            }
            Way::Chunk => {
                facts.push(format!("the row is an existing one that is being read: {condition}"));
                facts.push(format!("{right}: {hint}"));
                resync
            }
        };
        Halt { code, message: named, facts, hint }
    }

    fn condition(&self, row: &Row) -> Option<String> {
        let equal = |((_, _, there), value): (&(usize, String, String), &String)| {
            format!("{} = {}", name(there), literal(value))
        };
        let condition = self.key.iter().zip(&row.key).map(equal).collect::<Vec<_>>().join(" and ");
        let is_line = condition.len() <= CONDITION_BYTES_MAX && !condition.chars().any(char::is_control);
        is_line.then_some(condition)
    }
}

/// What `lockstep resync --where` calls these columns.
fn at_source(relation: &Relation, here: &[String]) -> Vec<String> {
    let by = relation.transforms.iter().find_map(|transform| match transform {
        Transform::RowsBy { columns } => Some(columns),
        _ => None,
    });
    let Some(by) = by else { return here.to_vec() };
    let is_known = |name: &String| by.iter().any(|(there, _)| there == name);
    match (here, &by[..]) {
        (_, [(there, _)]) if here.len() == 1 => vec![there.clone()],
        _ if here.len() == by.len() && here.iter().all(is_known) => here.to_vec(),
        // Several that are called otherwise: which is which is not said.
        _ => Vec::new(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As [`crate::key::condition`] reads it.
fn name(column: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let plain = column.chars().all(is_plain) && !column.starts_with(|c: char| c.is_ascii_digit());
    if plain && !["and", "not"].contains(&column) { column.to_owned() } else { quote_identifier(column) }
}

fn literal(value: &str) -> String {
    let digits = value.strip_prefix('-').unwrap_or(value);
    match !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', "''")),
    }
}

/// One word to a POSIX shell.
fn for_shell(text: &str) -> String {
    match text.contains(['"', '$', '`', '\\', '!']) {
        true => format!("'{}'", text.replace('\'', "'\\''")),
        false => format!("\"{text}\""),
    }
}

/// What a sink says of rows that it does not take.
pub fn refusal(failure: &Failure) -> Option<&Halt> {
    match failure {
        Failure::Constraint(halt) | Failure::Reference(halt) | Failure::Unique(halt) => Some(halt),
        Failure::Error(Error::Halt(halt)) => {
            let is_of_rows = matches!(halt.code, Code::ValueRefused | Code::ConstraintRefused | Code::UniqueHandover);
            is_of_rows.then_some(halt)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Key;
    use crate::key::condition::Bounds;
    use crate::value::Cell;

    fn named(key: &[(usize, &str)]) -> Named {
        let key: Vec<_> = key.iter().map(|(i, name)| (*i, (*name).to_owned(), (*name).to_owned())).collect();
        let whole = key.iter().map(|(i, _, _)| *i).collect();
        Named { table: TableName::new("public", "items"), key, whole }
    }

    fn row(cells: &[&str]) -> RowBuf {
        cells.iter().map(|text| Cell::Text(text.as_bytes())).collect()
    }

    fn refused(message: &str) -> Halt {
        Halt { code: Code::ValueRefused, message: message.to_owned(), facts: vec![], hint: "psql".to_owned() }
    }

    fn hint(named: &Named, cells: &[&str]) -> String {
        named
            .halt(
                refused("a value does not fit column v of public.items"),
                &named.row(&row(cells), Way::Change).unwrap(),
            )
            .hint
    }

    #[test]
    fn the_hint_is_a_command_and_the_message_holds_no_value() {
        let one = named(&[(0, "id")]);
        let halt = one.halt(
            refused("a value does not fit column v of public.items"),
            &one.row(&row(&["5", "x"]), Way::Change).unwrap(),
        );
        assert_eq!(
            halt.to_string(),
            "error[VALUE_REFUSED]: a value does not fit column v of public.items; it is one row, known by its key (id)\n  \
             once the row is right at the source, type this; or let the sink take it, and start again: psql\n  \
             help: lockstep resync public.items --where \"id = 5\""
        );
        let label = Halt {
            hint: "ALTER TYPE mood ADD VALUE 'new'".to_owned(),
            ..refused("a value does not fit column v of t")
        };
        assert_eq!(one.halt(label.clone(), &one.row(&row(&["5", "x"]), Way::Change).unwrap()).hint, label.hint);
        let two = named(&[(1, "Name"), (0, "at")]);
        assert_eq!(
            hint(&two, &["2024-01-01", "O'Neill"]),
            r#"lockstep resync public.items --where '"Name" = '\''O'\'''\''Neill'\'' and at = '\''2024-01-01'\'''"#
        );
    }

    #[test]
    fn conditions_are_read_as_they_were_meant() {
        for value in ["5", "-5", "1.5", "it's \"so\"", "a and b", "$HOME `x` \\", "true", ""] {
            let named = named(&[(0, "a"), (1, "And \"b\"")]);
            let row = named.row(&row(&[value, "x"]), Way::Change).unwrap();
            let bounds = Bounds::parse(&named.condition(&row).unwrap(), &["a", "And \"b\""]).unwrap();
            assert_eq!(bounds.lower.unwrap().values, [value, "x"]);
        }
    }

    #[test]
    fn a_key_that_may_be_what_does_not_fit_is_not_shown() {
        let named = named(&[(0, "v")]);
        assert_eq!(hint(&named, &["secret"]), "psql");
        assert_eq!(hint(&self::named(&[(0, "w")]), &["x".repeat(300).as_str()]), "psql", "too long");
        assert_eq!(hint(&self::named(&[(0, "w")]), &["x\ny"]), "psql", "no line");
    }

    #[test]
    fn the_only_row_is_found_and_nothing_else() {
        let named = named(&[(0, "id")]);
        let gone = Key::of(row(&["5"]).row(), &[0]).unwrap();
        let deleted = NetEffect { deletes: vec![gone.clone()], ..NetEffect::default() };
        let found = named.only_row(&deleted).unwrap();
        assert_eq!((found.way, &found.key[..]), (Way::Delete, &["5".to_owned()][..]));
        let hint = named.halt(refused("no"), &found).hint;
        assert_eq!(hint, "psql -- the row is gone at the source: id = 5", "it can't be read again");
        let new = NetEffect { inserts: vec![row(&["6", "x"])], ..NetEffect::default() };
        assert_eq!(named.only_row(&new).unwrap().key, ["6"]);
        assert_eq!(named.only_row(&NetEffect { deletes: vec![gone], ..new.clone() }), None);
        assert_eq!(named.only_row(&NetEffect { truncate: true, ..new }), None);
        assert_eq!(named.only_row(&NetEffect::default()), None);
        assert_eq!(self::named(&[]).row(&row(&["6"]), Way::Chunk), None, "a table without a key");
    }
}
