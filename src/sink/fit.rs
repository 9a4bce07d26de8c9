//! Whether a sink's table can hold what is wanted of it, judged from its catalog alone: every finding at once, each with the
//! SQL that mends it.
//!
//! The rule for types is narrow on purpose: the same type with at least as much room, wider integers, an enum with all the
//! labels, or text (which holds every value, since values travel as text). Domains are what they are made of ([`Stored`]).
//! Everything else is refused, also where Postgres would cast: a cast that rounds or cuts is silent.

use super::catalog::{ColumnFacts, TableFacts, UniqueFacts};
use super::composites;
use super::soft;
use super::stored::Stored;
use super::values;
use super::{Findings, WantedColumn, WantedTable};
use crate::error::{Code, Halt};
use crate::key::KeyOrder;
use crate::relation::{Column, quote_identifier, type_names};

/// Judges one table. `role` is ours, for GRANTs.
pub fn judge(wanted: &WantedTable, facts: Option<&TableFacts>, role: &str) -> Findings {
    let Some(facts) = facts else {
        return Findings { halts: vec![missing_table(wanted)], notes: vec![] };
    };
    let mut halts = Vec::new();
    if !matches!(facts.kind.as_str(), "r" | "p") {
        halts.push(halt(
            format!("{} is not a table but a view, foreign table or the like", wanted.table),
            create_table(wanted),
        ));
    }
    if facts.unlogged {
        halts.push(halt(
            format!("table {} is unlogged: a crash of the sink would empty it", wanted.table),
            format!("ALTER TABLE {} SET LOGGED", wanted.table.quoted()),
        ));
    }
    for (place, wanted_column) in wanted.columns.iter().enumerate() {
        let column = facts.columns.iter().find(|c| c.name == wanted_column.column.name);
        if wanted.mark == Some(place) {
            halts.extend(soft::judge(wanted, &wanted_column.column.name, column));
            continue;
        }
        halts.extend(
            judge_column(wanted, facts, wanted_column, column)
                .or_else(|| judge_composite(wanted, facts, wanted_column, column?)),
        );
    }
    halts.extend(wanted.values.iter().filter_map(|value| values::judge(wanted, value, facts)));
    halts.extend(columns_left_empty(wanted, facts));
    halts.extend(judge_key(wanted, facts));
    halts.extend(judge_rights(wanted, facts, role));
    let notes = match facts.triggers.is_empty() {
        true => vec![],
        false => vec![format!("triggers of {} fire for what is applied: {}", wanted.table, facts.triggers.join(", "))],
    };
    Findings { halts, notes }
}

/// The unique index that an upsert by the wanted key needs.
pub fn arbiter<'a>(wanted: &WantedTable, facts: &'a TableFacts) -> Option<&'a UniqueFacts> {
    let mut key: Vec<&str> = wanted.key().into_iter().map(|i| wanted.columns[i].column.name.as_str()).collect();
    key.sort_unstable();
    facts.uniques.iter().filter(|unique| unique.immediate).find(|unique| same_columns(unique, &key))
}

fn same_columns(unique: &UniqueFacts, sorted: &[&str]) -> bool {
    let mut columns: Vec<&str> = unique.columns.iter().map(String::as_str).collect();
    columns.sort_unstable();
    columns == sorted
}

fn halt(message: String, hint: String) -> Halt {
    Halt { code: Code::SinkTable, message, facts: vec![], hint }
}

fn missing_table(wanted: &WantedTable) -> Halt {
    halt(format!("table {} does not exist at the sink", wanted.table), create_table(wanted))
}

fn create_table(wanted: &WantedTable) -> String {
    let column = |wanted: &WantedColumn| {
        let null = if wanted.column.nullable && wanted.column.key.is_none() { "" } else { " NOT NULL" };
        format!("{} {}{null}", quote_identifier(&wanted.column.name), declaration(&wanted.column))
    };
    let mut parts: Vec<String> = wanted.columns.iter().map(column).collect();
    parts.extend(wanted.values.iter().map(|value| format!("{} text", quote_identifier(&value.column))));
    if !wanted.is_keyless() {
        parts.push(format!("PRIMARY KEY ({})", key_list(wanted)));
    }
    format!("CREATE TABLE {} ({})", wanted.table.quoted(), parts.join(", "))
}

fn key_list(wanted: &WantedTable) -> String {
    let names = wanted.key().into_iter().map(|i| quote_identifier(&wanted.columns[i].column.name));
    names.collect::<Vec<_>>().join(", ")
}

fn judge_column(
    wanted: &WantedTable,
    facts: &TableFacts,
    source: &WantedColumn,
    sink: Option<&ColumnFacts>,
) -> Option<Halt> {
    let name = &source.column.name;
    let alter = |what: String| format!("ALTER TABLE {} {what}", wanted.table.quoted());
    let quoted = quote_identifier(name);
    let Some(sink) = sink else {
        let hint = alter(format!("ADD COLUMN {quoted} {}", declaration(&source.column)));
        return Some(halt(format!("table {} has no column {name} at the sink", wanted.table), hint));
    };
    if sink.generated {
        return Some(halt(
            format!("column {name} of {} is generated at the sink and can't be written", wanted.table),
            alter(format!("ALTER COLUMN {quoted} DROP EXPRESSION")),
        ));
    }
    if sink.identity_always && source.column.key.is_none() {
        return Some(halt(
            format!("column {name} of {} is always generated as identity and can't be updated", wanted.table),
            alter(format!("ALTER COLUMN {quoted} SET GENERATED BY DEFAULT")),
        ));
    }
    if wanted.is_constant(source) && !sink.deterministic {
        // Rows of two tables would be those of one wherever the collation takes their constants for equal.
        return Some(halt(
            format!(
                "column {name} of {} tells tables apart, and its collation takes different texts for equal",
                wanted.table
            ),
            alter(format!("ALTER COLUMN {quoted} TYPE {} COLLATE \"C\"", declaration(&source.column))),
        ));
    }
    let ordered = source.column.key.is_none() || same_order(source.column.type_oid, sink.base_oid);
    if holds(&source.column, sink) && ordered {
        if sink.not_null && source.column.nullable && source.column.key.is_none() {
            return Some(halt(
                format!("column {name} of {} is not null at the sink, but may be NULL at the source", wanted.table),
                alter(may_be_null(name, name, facts, &[])),
            ));
        }
        return None;
    }
    let hint = match renamed_type(&source.column, sink) {
        Some(hint) => hint,
        None => alter(format!("ALTER COLUMN {quoted} TYPE {}", declaration(&source.column))),
    };
    Some(halt(
        format!(
            "column {name} of {} is {} at the sink, which is not known to hold every {} of the source",
            wanted.table,
            modified(&sink.declared, sink.typmod),
            modified(&source.column.type_name, source.column.typmod)
        ),
        hint,
    ))
}

/// A column of a composite type takes texts whose places mean what they mean at the source.
fn judge_composite(
    wanted: &WantedTable,
    facts: &TableFacts,
    source: &WantedColumn,
    sink: &ColumnFacts,
) -> Option<Halt> {
    let found = composites::mismatches(wanted, facts, &source.column, sink);
    let first = found.first()?;
    let (name, table) = (&source.column.name, wanted.table.quoted());
    let message =
        format!("column {name} of {} is of another composite type at the sink: {}", wanted.table, first.found);
    let hints: Option<Vec<&str>> = found.iter().map(|mismatch| mismatch.hint.as_deref()).collect();
    let text = || format!("ALTER TABLE {table} ALTER COLUMN {} TYPE text", quote_identifier(name));
    Some(halt(message, hints.map_or_else(text, |hints| hints.join("; "))))
}

/// What to type where the sink has a type of its own kind under another name, as after `ALTER TYPE … RENAME` at the source. Also where
/// the table could follow: other tables may be made of that type, so it is its owner's to rename.
pub fn renamed_type(source: &Column, sink: &ColumnFacts) -> Option<String> {
    let (from, to) = (Stored::of(source), &sink.stored);
    let ((Some(_), new), (Some(schema), old)) = (type_names::split(&from.name), type_names::split(&to.name)) else {
        return None;
    };
    let alike = from.kind == to.kind && from.kind != 'b' && from.arrays == to.arrays;
    let renamed = alike && new != old && to.labels.iter().all(|label| from.labels.contains(label));
    renamed.then(|| {
        let old = format!("{}.{}", quote_identifier(&schema), quote_identifier(&old));
        format!("ALTER TYPE {old} RENAME TO {}", quote_identifier(&new))
    })
}

/// What lets a column of the table be NULL that is called `before` in the facts: one of its primary key can't be while the source
/// has given that up and it has not, which one of `steps` may have done.
pub fn may_be_null(name: &str, before: &str, facts: &TableFacts, steps: &[String]) -> String {
    let nullable = format!("ALTER COLUMN {} DROP NOT NULL", quote_identifier(name));
    let mut primary =
        facts.uniques.iter().filter(|unique| unique.primary && unique.columns.iter().any(|c| c == before));
    let given_up = primary.next().map(|unique| format!("DROP CONSTRAINT {}, ", quote_identifier(&unique.index)));
    match given_up {
        Some(drop) if !steps.iter().any(|step| step.contains(&drop)) => drop + &nullable,
        _ => nullable,
    }
}

/// Columns that we don't write must fill themselves.
fn columns_left_empty(wanted: &WantedTable, facts: &TableFacts) -> Vec<Halt> {
    let empty =
        facts.columns.iter().filter(|c| !wanted.writes(&c.name) && c.not_null && !c.has_default && !c.generated);
    empty
        .map(|c| {
            halt(
                format!("column {} of {} is not null, has no default, and is not written", c.name, wanted.table),
                format!(
                    "ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL",
                    wanted.table.quoted(),
                    quote_identifier(&c.name)
                ),
            )
        })
        .collect()
}

fn judge_key(wanted: &WantedTable, facts: &TableFacts) -> Option<Halt> {
    if wanted.is_keyless() || arbiter(wanted, facts).is_some() {
        return None;
    }
    let (table, list) = (wanted.table.quoted(), key_list(wanted));
    let mut key: Vec<&str> = wanted.key().into_iter().map(|i| wanted.columns[i].column.name.as_str()).collect();
    key.sort_unstable();
    Some(match facts.uniques.iter().find(|unique| same_columns(unique, &key)) {
        Some(deferrable) => halt(
            format!("the unique key ({list}) of {} is deferrable, so rows can't be upserted by it", wanted.table),
            format!(
                "ALTER TABLE {table} DROP CONSTRAINT {}, ADD PRIMARY KEY ({list})",
                quote_identifier(&deferrable.index)
            ),
        ),
        None => halt(
            format!("table {} has no unique index over the key ({list})", wanted.table),
            match facts.uniques.first() {
                None => format!("ALTER TABLE {table} ADD PRIMARY KEY ({list})"),
                Some(_) => format!("ALTER TABLE {table} ADD UNIQUE ({list})"),
            },
        ),
    })
}

fn judge_rights(wanted: &WantedTable, facts: &TableFacts, role: &str) -> Vec<Halt> {
    let right = |message: String, hint: String| Halt { code: Code::NoRight, message, facts: vec![], hint };
    let role = quote_identifier(role);
    let (schema, table): (Vec<&String>, Vec<&String>) =
        facts.rights_missing.iter().partition(|missing| missing.starts_with("USAGE"));
    let mut halts: Vec<Halt> = schema
        .into_iter()
        .map(|usage| right(format!("role lacks {usage} at the sink"), format!("GRANT {usage} TO {role}")))
        .collect();
    if !table.is_empty() {
        let list = table.iter().map(|right| right.as_str()).collect::<Vec<_>>().join(", ");
        halts.push(right(
            format!("role lacks {list} on {} at the sink", wanted.table),
            format!("GRANT {list} ON {} TO {role}", wanted.table.quoted()),
        ));
    }
    if facts.row_security {
        halts.push(right(
            format!("row security of {} applies to the role", wanted.table),
            format!("ALTER ROLE {role} BYPASSRLS"),
        ));
    }
    halts
}

/// Ranges of keys are cut by the source's order; the sink's column must sort the same way. An order by text is one of every
/// type, since a column that holds the source's values prints them alike; a domain's values are ordered so at the source,
/// whatever is below it.
fn same_order(source_oid: u32, sink_oid: u32) -> bool {
    match (KeyOrder::of(source_oid), KeyOrder::of(sink_oid)) {
        (KeyOrder::Text, _) | (KeyOrder::Integer, KeyOrder::Numeric) => true,
        (source, sink) => source == sink,
    }
}

/// Whether every value of the source's column is stored by the sink's without loss.
pub fn holds(source: &Column, sink: &ColumnFacts) -> bool {
    let (from, to) = (Stored::of(source), &sink.stored);
    if from.arrays == to.arrays && same_type(&from.name, &to.name) {
        return has_room(&from.name, from.typmod, to.typmod);
    }
    let is_label = |label: &String| to.labels.contains(label);
    if from.arrays == to.arrays && !from.labels.is_empty() && from.labels.iter().all(is_label) {
        return true;
    }
    // An entry that does not tell what its types are made of: then the name decides.
    if source.kind.is_base() && sink.declared != sink.base && same_type(&source.type_name, &sink.declared) {
        return true;
    }
    if source.kind.is_base() && same_type(&source.type_name, &sink.base) {
        return has_room(&source.type_name, source.typmod, sink.typmod);
    }
    match (from.name.as_str(), to.name.as_str()) {
        _ if to.arrays > 0 => false,
        (_, "text") => true,
        (_, "varchar") => to.typmod == -1,
        _ if from.arrays > 0 => false,
        ("int2", "int4" | "int8") | ("int4", "int8") => true,
        ("int2" | "int4" | "int8" | "oid", "numeric") => to.typmod == -1,
        _ => false,
    }
}

/// Types of extensions may live in another schema at the sink; the name decides.
pub fn same_type(source: &str, sink: &str) -> bool {
    source == sink
        || match (type_names::split(source), type_names::split(sink)) {
            ((Some(_), source), (Some(_), sink)) => source == sink,
            _ => false,
        }
}

/// The same type: does the sink's modifier leave at least the source's room? -1 is no modifier.
fn has_room(type_name: &str, source: i32, sink: i32) -> bool {
    if sink == -1 || sink == source {
        return true;
    }
    match type_name.strip_prefix('_').unwrap_or(type_name) {
        "varchar" | "varbit" => source != -1 && sink >= source,
        "numeric" if source != -1 => {
            let ((precision, scale), (sink_precision, sink_scale)) = (digits(source), digits(sink));
            sink_scale >= scale && sink_precision - sink_scale >= precision - scale
        }
        // Without a modifier these keep microseconds.
        "time" | "timetz" | "timestamp" | "timestamptz" => sink >= if source == -1 { 6 } else { source },
        "interval" => {
            let ((fields, digits), (sink_fields, sink_digits)) = (interval(source), interval(sink));
            (sink_fields == fields || sink_fields == INTERVAL_FIELDS_ALL) && sink_digits >= digits
        }
        _ => false,
    }
}

/// `INTERVAL_FULL_RANGE` of Postgres.
const INTERVAL_FIELDS_ALL: i32 = 0x7FFF;

/// Which fields an interval's modifier keeps, and how many digits of a second.
fn interval(typmod: i32) -> (i32, i32) {
    if typmod == -1 { (INTERVAL_FIELDS_ALL, 6) } else { (typmod >> 16 & INTERVAL_FIELDS_ALL, (typmod & 0xFFFF).min(6)) }
}

/// Precision and scale of a numeric's modifier; scale is 11 bits, signed.
fn digits(typmod: i32) -> (i32, i32) {
    let packed = typmod - 4;
    ((packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024)
}

/// A type that holds the column, as CREATE TABLE takes it. The source's domains are not the sink's business: it may lack them.
pub fn declaration(column: &Column) -> String {
    let Stored { name, typmod, arrays, .. } = Stored::of(column);
    format!("{}{}", modified(&name, typmod), if arrays > 0 { "[]" } else { "" })
}

pub(super) fn modified(type_name: &str, typmod: i32) -> String {
    let (element, array) = match type_name.strip_prefix('_') {
        Some(element) => (element, "[]"),
        None => (type_name, ""),
    };
    let modifier = match element {
        _ if typmod == -1 => String::new(),
        "varchar" | "bpchar" => format!("({})", typmod - 4),
        "numeric" => format!("({},{})", digits(typmod).0, digits(typmod).1),
        "bit" | "varbit" | "time" | "timetz" | "timestamp" | "timestamptz" => format!("({typmod})"),
        _ => String::new(),
    };
    let name = match type_names::split(element) {
        (Some(schema), name) => format!("{}.{}", quote_identifier(&schema), quote_identifier(&name)),
        // Without quotes it would be another type.
        (None, _) if element == "char" => quote_identifier(element),
        (None, _) => element.to_owned(),
    };
    format!("{name}{modifier}{array}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::{TypeKind, TypeName};

    fn source(type_name: &str, typmod: i32) -> Column {
        Column {
            name: "c".into(),
            type_oid: 25,
            type_name: type_name.into(),
            typmod,
            kind: TypeKind::Base,
            nullable: true,
            default: None,
            key: None,
            exact: true,
        }
    }

    fn sink(base: &str, typmod: i32) -> ColumnFacts {
        ColumnFacts {
            name: "c".into(),
            declared: base.into(),
            base: base.into(),
            base_oid: 25,
            typmod,
            stored: Stored::of(&source(base, typmod)),
            base_sql: String::new(),
            declared_sql: String::new(),
            input: None,
            not_null: false,
            has_default: false,
            identity_always: false,
            generated: false,
            deterministic: true,
        }
    }

    fn numeric(precision: i32, scale: i32) -> i32 {
        (precision << 16 | (scale & 0x7FF)) + 4
    }

    #[test]
    fn a_column_holds_what_it_can_store_without_loss() {
        for (from, from_mod, to, to_mod, expected) in [
            ("int4", -1, "int4", -1, true),
            ("int4", -1, "int8", -1, true),
            ("int8", -1, "int4", -1, false),
            ("int8", -1, "numeric", -1, true),
            ("int8", -1, "numeric", numeric(30, 0), false),
            ("varchar", 14, "varchar", 24, true),
            ("varchar", 24, "varchar", 14, false),
            ("varchar", -1, "varchar", 14, false),
            ("varchar", 14, "text", -1, true),
            ("text", -1, "varchar", -1, true),
            ("text", -1, "varchar", 24, false),
            ("bpchar", 9, "bpchar", 9, true),
            ("bpchar", 9, "bpchar", 14, false),
            ("numeric", numeric(10, 2), "numeric", numeric(12, 4), true),
            ("numeric", numeric(10, 2), "numeric", numeric(10, 4), false),
            ("numeric", numeric(10, 2), "numeric", numeric(20, 1), false),
            ("numeric", numeric(3, -2), "numeric", numeric(5, 0), true),
            ("numeric", -1, "numeric", numeric(10, 2), false),
            ("numeric", numeric(10, 2), "numeric", -1, true),
            ("timestamp", -1, "timestamp", 3, false),
            ("timestamp", 3, "timestamp", 6, true),
            ("timestamp", -1, "timestamptz", -1, false),
            ("interval", 0x7FFF_0002, "interval", 0x7FFF_0006, true),
            ("interval", 0x7FFF_0006, "interval", 0x7FFF_0002, false),
            ("interval", -1, "interval", 0x7FFF_0002, false),
            ("interval", -1, "interval", 0x7FFF_0006, true),
            ("interval", 0x0006_FFFF, "interval", 0x7FFF_0006, true),
            ("interval", 0x7FFF_FFFF, "interval", 0x0006_FFFF, false),
            ("_varchar", 14, "_varchar", 24, true),
            ("jsonb", -1, "json", -1, false),
            ("json", -1, "jsonb", -1, false),
            ("uuid", -1, "text", -1, true),
            ("public.mood", -1, "shop.mood", -1, true),
            ("public.mood", -1, "shop.humour", -1, false),
            ("float8", -1, "float4", -1, false),
        ] {
            assert_eq!(
                holds(&source(from, from_mod), &sink(to, to_mod)),
                expected,
                "{from}({from_mod}) in {to}({to_mod})"
            );
        }
    }

    fn domain(base: &str, typmod: i32) -> TypeKind {
        TypeKind::Domain { base: Box::new(TypeName { oid: 1, name: base.into(), typmod, kind: TypeKind::Base }) }
    }

    /// Of the same name on both sides, or on one side alone: what they are made of decides.
    #[test]
    fn a_domain_holds_what_its_base_holds() {
        let from = Column { kind: domain("numeric", numeric(10, 2)), ..source("public.price", -1) };
        let at_sink = |base: &str, typmod| ColumnFacts { declared: "shop.price".into(), ..sink(base, typmod) };
        assert!(holds(&from, &at_sink("numeric", numeric(10, 2))));
        assert!(!holds(&from, &at_sink("numeric", numeric(8, 1))), "it would round");
        assert!(holds(&from, &sink("numeric", numeric(10, 2))) && holds(&from, &sink("text", -1)));
        assert_eq!(declaration(&from), "numeric(10,2)", "the sink may have no such domain");
        let many = TypeKind::Array {
            element: Box::new(TypeName { oid: 2, name: "public.price".into(), typmod: -1, kind: from.kind.clone() }),
            delimiter: b',',
        };
        let many = Column { kind: many, ..source("public._price", -1) };
        assert!(holds(&many, &sink("_numeric", numeric(10, 2))) && !holds(&many, &sink("_numeric", numeric(8, 1))));
        assert!(!holds(&many, &sink("numeric", -1)) && holds(&many, &sink("text", -1)));
        assert_eq!(declaration(&many), "numeric(10,2)[]");
    }

    #[test]
    fn an_enum_with_all_the_labels_holds_them_under_any_name() {
        let labels = |names: &[&str]| TypeKind::Enum { labels: names.iter().map(|name| (*name).into()).collect() };
        let of = |name: &str, names: &[&str]| Column { kind: labels(names), ..source(name, -1) };
        let at_sink = |name: &str, names: &[&str]| {
            let stored = Stored::of(&of(name, names));
            ColumnFacts { stored, ..sink(name, -1) }
        };
        let new = of("public.humour", &["sad", "glad"]);
        assert!(holds(&new, &at_sink("public.mood", &["sad", "so-so", "glad"])));
        let lacking = at_sink("public.mood", &["sad"]);
        assert!(!holds(&new, &lacking));
        assert_eq!(renamed_type(&new, &lacking).unwrap(), "ALTER TYPE \"public\".\"mood\" RENAME TO \"humour\"");
        assert_eq!(renamed_type(&new, &at_sink("public.mood", &["big"])), None, "another type altogether");
        let pair = |name: &str| Column { kind: TypeKind::Composite, ..source(name, -1) };
        let lacking = ColumnFacts { stored: Stored::of(&pair("shop.\"od.d\"")), ..sink("shop.\"od.d\"", -1) };
        assert_eq!(
            renamed_type(&pair("public.pair"), &lacking).unwrap(),
            "ALTER TYPE \"shop\".\"od.d\" RENAME TO \"pair\""
        );
    }

    #[test]
    fn keys_sort_at_the_sink_as_at_the_source() {
        let (domain, text, int4, int8, numeric) = (16_385, 25, 23, 20, 1700);
        assert!(same_order(domain, int4) && same_order(int4, int8) && same_order(int4, numeric));
        assert!(!same_order(int4, text) && !same_order(numeric, int4));
    }

    #[test]
    fn types_are_declared_as_sql_takes_them() {
        assert_eq!(modified("numeric", numeric(10, 2)), "numeric(10,2)");
        assert_eq!(modified("varchar", 24), "varchar(20)");
        assert_eq!(modified("_timestamptz", 3), "timestamptz(3)[]");
        assert_eq!(modified("shop.mood", -1), "\"shop\".\"mood\"");
        assert_eq!(modified("\"od d.S\".\"mo.od\"", -1), "\"od d.S\".\"mo.od\"");
    }
}
