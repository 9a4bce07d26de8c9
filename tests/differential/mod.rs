//! Random tables and random transactions over them, from a seed alone.
//!
//! A case is SQL text: what made it can be forgotten, statements can be left out, and what is left is still a case. Statements
//! may fail (a key that is taken, a table that is empty); each runs under a savepoint, so a failure is one more aborted
//! sub-transaction.

pub mod types;

use std::fmt::Write as _;

use lockstep::relation::{quote_identifier, quote_literal};
use types::{LONG, TYPES, Type};

/// SplitMix64: small, and the same on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What a connector may say of records, in keys of `[wire]` and their values.
const WIRE: &[(&str, &[&str])] = &[
    ("format", &["\"avro\""]),
    ("decimal_handling", &["\"precise\"", "\"double\""]),
    ("time_precision", &["\"connect\"", "\"isostring\"", "\"adaptive\"", "\"nanoseconds\""]),
    ("interval_handling", &["\"numeric\""]),
    ("binary_handling", &["\"hex\"", "\"base64\""]),
    ("hstore_handling", &["\"map\""]),
    ("unknown_types", &["\"skip\"", "\"bytes\""]),
    ("schemas", &["true"]),
    ("null_as_default", &["true"]),
    ("field_name_adjustment", &["\"avro_unicode\""]),
];

/// Which changes of shape there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ddl {
    None,
    /// Only such that a sink's table is still fit for what it never heard to be another column's name.
    Unkept,
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Identity {
    Default,
    Full,
    /// Another unique index than the primary key's.
    Index,
    /// No key at all.
    Keyless,
    InsertOnly,
}

#[derive(Clone)]
struct Column {
    name: String,
    of: &'static Type,
    nullable: bool,
    /// Has a unique index of its own, though it names no row.
    unique: bool,
    /// The sink holds its texts.
    text_at_sink: bool,
    dropped: bool,
}

#[derive(Clone)]
struct Table {
    /// Quoted, with its schema.
    name: String,
    columns: Vec<Column>,
    /// Columns of the primary key.
    primary: Vec<usize>,
    /// Columns of the replica identity; empty where it is not a key.
    identity: Vec<usize>,
    kind: Identity,
    /// Its shape changes, and the sink's table follows it.
    changes_shape: bool,
    /// Of an enum of its own, which gets more of them while rows have them.
    labels: Vec<String>,
}

/// As many seeds as one pipeline follows at a time.
pub const DOZEN: u64 = 12;

/// One case: what is made on both sides, and what then happens at the source.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// Its tables are loaded before they change, else while they do.
    pub settled: bool,
    /// The table's name as a connector names it, and what the connector says.
    pub connectors: Vec<(String, String)>,
    pub source: String,
    pub sink: String,
    /// Transactions before the pipeline starts, and after.
    pub before: Vec<Transaction>,
    pub after: Vec<Transaction>,
    /// Of another session, at the same time as the end of `after`.
    pub rival: Vec<Transaction>,
    /// A table that is read again meanwhile.
    pub resync: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Transaction {
    pub statements: Vec<String>,
    pub commits: bool,
}

impl Case {
    pub fn random(seed: u64) -> Case {
        let random = &mut Random::new(seed);
        let schema = format!("d{seed}");
        let tables: Vec<Table> = (0..1 + random.below(3)).map(|i| Table::random(random, &schema, i)).collect();
        let create = format!("CREATE SCHEMA {schema};\n");
        let (mut source, mut sink) = (create.clone(), create);
        for table in &tables {
            source += &table.create(random, false);
            sink += &table.create(random, true);
        }
        let connectors = tables.iter().map(|table| (table.name.clone(), table.connector(random))).collect();
        let resync = random.chance(50).then(|| random.pick(&tables)).filter(|table| table.has_stand_ins());
        let resync = resync.map(|table| table.name.clone());
        let mut tables = tables;
        // Half of the dozens.
        let settled = (seed / DOZEN).is_multiple_of(2);
        // What the sink's tables are like before the pipeline has seen the source's nobody can follow.
        let followed = if settled { Ddl::All } else { Ddl::Unkept };
        let mut transactions = |random: &mut Random, count: usize, ddl: Ddl| {
            (0..count).map(|_| transaction(random, &mut tables, ddl)).collect::<Vec<_>>()
        };
        let count = if random.chance(50) { random.below(12) } else { 0 };
        let before = transactions(random, count, Ddl::None);
        let count = 5 + random.below(25);
        let after = transactions(random, count, followed);
        let count = if random.chance(50) { random.below(15) } else { 0 };
        let rival = transactions(random, count, Ddl::None);
        Case { seed, settled, connectors, source, sink, before, after, rival, resync }
    }

    /// How many statements there are to leave out.
    pub fn statements(&self) -> usize {
        self.before.iter().chain(&self.after).chain(&self.rival).map(|t| t.statements.len()).sum()
    }

    /// The case without the statements `from..to`, counted over all transactions.
    pub fn without(&self, from: usize, to: usize) -> Case {
        let mut case = self.clone();
        let mut place = 0;
        for transaction in case.before.iter_mut().chain(&mut case.after).chain(&mut case.rival) {
            transaction.statements.retain(|_| {
                place += 1;
                !(from..to).contains(&(place - 1))
            });
        }
        for transactions in [&mut case.before, &mut case.after, &mut case.rival] {
            transactions.retain(|transaction| !transaction.statements.is_empty());
        }
        case
    }

    pub fn show(&self) -> String {
        let mut out = format!("-- seed {}\n-- source:\n{}-- sink:\n{}", self.seed, self.source, self.sink);
        let parts =
            [("before the start", &self.before), ("after it", &self.after), ("by another session", &self.rival)];
        for (title, transactions) in parts {
            let _ = writeln!(out, "-- {title}:");
            for transaction in transactions {
                let end = if transaction.commits { "COMMIT" } else { "ROLLBACK" };
                let _ = writeln!(out, "BEGIN;\n{};\n{end};", transaction.statements.join(";\n"));
            }
        }
        if let Some(table) = &self.resync {
            let _ = writeln!(out, "-- and meanwhile: lockstep resync {table} --sink orders");
        }
        out
    }
}

impl Table {
    fn random(random: &mut Random, schema: &str, place: usize) -> Table {
        let kind = match random.below(10) {
            0..=3 => Identity::Default,
            4 | 5 => Identity::Full,
            6 | 7 => Identity::Index,
            8 => Identity::Keyless,
            _ if random.chance(50) => Identity::InsertOnly,
            _ => Identity::Keyless,
        };
        let count = 2 + random.below(7);
        let mut columns: Vec<Column> = (0..count)
            .map(|i| {
                let of = random.pick(TYPES);
                let name = match random.below(8) {
                    0 => format!("C {i}\"."),
                    1 => format!("select{i}é"),
                    _ => format!("c{i}"),
                };
                Column {
                    name,
                    of,
                    nullable: random.chance(70),
                    unique: of.key && random.chance(15),
                    text_at_sink: random.chance(10),
                    dropped: false,
                }
            })
            .collect();
        let keyed = !matches!(kind, Identity::Keyless | Identity::InsertOnly);
        let make_key = |random: &mut Random, columns: &mut Vec<Column>, prefix: &str| -> Vec<usize> {
            let more = if random.chance(60) { 0 } else { random.below(3) };
            (0..1 + more)
                .map(|i| {
                    let keys: Vec<&'static Type> = TYPES.iter().filter(|of| of.key).collect();
                    let of = keys[random.below(keys.len())];
                    let name = format!("{prefix}{i}");
                    columns.push(Column::new(name, of, false));
                    columns.len() - 1
                })
                .collect()
        };
        let primary = if keyed { make_key(random, &mut columns, "k") } else { vec![] };
        let identity = match kind {
            Identity::Default | Identity::Full => primary.clone(),
            Identity::Index => make_key(random, &mut columns, "i"),
            Identity::Keyless | Identity::InsertOnly => vec![],
        };
        let name = format!("{schema}.t{place}");
        let mut table = Table { name, columns, primary, identity, kind, changes_shape: false, labels: vec![] };
        table.changes_shape = kind != Identity::InsertOnly && table.has_stand_ins() && random.chance(50);
        if table.changes_shape && random.chance(50) {
            table.labels = vec!["sad".to_owned(), "glad".to_owned()];
            for (name, array) in [("mood", false), ("moods", true)] {
                table.columns.push(Column::new(name.to_owned(), table.mood(array), true));
            }
        }
        table
    }

    /// Its own enum, or an array of it, with the labels that there are by now.
    fn mood(&self, array: bool) -> &'static Type {
        let name = format!("{}_mood{}", self.name, if array { "[]" } else { "" });
        let labels = self.labels.iter().map(|label| match array {
            true => format!("{{{label},NULL}}"),
            false => label.clone(),
        });
        let values: Vec<&'static str> = labels.map(|value| &*value.leak()).collect();
        Box::leak(Box::new(Type { name: name.leak(), key: false, big: false, values: values.leak() }))
    }

    /// Rows of the next transaction have it.
    fn add_label(&mut self, random: &mut Random) -> String {
        let label = format!("l{} é", self.labels.len());
        let place = format!("{} '{}'", random.pick(&["BEFORE", "AFTER"]), random.pick(&self.labels));
        self.labels.push(label.clone());
        for array in [false, true] {
            let mood = self.mood(array);
            self.columns.iter_mut().filter(|column| column.of.name == mood.name).for_each(|column| column.of = mood);
        }
        format!("ALTER TYPE {}_mood ADD VALUE '{label}' {place}", self.name)
    }

    /// What its connector says: formats and modes too, for whatever a mode makes of a value, our sinks have it whole.
    fn connector(&self, random: &mut Random) -> String {
        let mut text = if self.kind == Identity::InsertOnly { "insert_only = true\n" } else { "" }.to_owned();
        text += "[wire]\nconversion_failure = \"null\"\n";
        for (key, words) in WIRE {
            if random.chance(30) {
                let _ = writeln!(text, "{key} = {}", random.pick(words));
            }
        }
        text += "[sinks.orders]\n";
        text += if self.changes_shape { "evolve = \"full\"\n" } else { "" };
        text
    }

    fn live(&self) -> impl Iterator<Item = usize> {
        (0..self.columns.len()).filter(|&i| !self.columns[i].dropped)
    }

    /// Another shape. What was said of the table before stays true of the columns that are left.
    fn alter(&mut self, random: &mut Random, ddl: Ddl) -> String {
        let name = self.name.clone();
        if !self.labels.is_empty() && random.chance(50) {
            return self.add_label(random);
        }
        // The first may have a generated column that depends on it; another's index or type at the sink is the test's own.
        let is_free = |i: &usize| {
            let column = &self.columns[*i];
            *i > 0 && !self.primary.contains(i) && !self.identity.contains(i) && !column.unique && !column.text_at_sink
        };
        let kept = |i: &usize| ddl == Ddl::Unkept && !self.columns[*i].nullable;
        let free: Vec<usize> = self.live().filter(is_free).filter(|i| !kept(i)).collect();
        let fresh = format!("{}{}", random.pick(&["a", "Ä ", "order"]), self.columns.len() + random.below(1000) * 100);
        let place = (!free.is_empty()).then(|| *random.pick(&free));
        match (random.below(10), place) {
            (4 | 5, Some(place)) if free.len() > 1 => {
                self.columns[place].dropped = true;
                format!("ALTER TABLE {name} DROP COLUMN {}", self.list(&[place]))
            }
            (6 | 7, _) => {
                let live: Vec<usize> = self.live().filter(|i| !kept(i)).collect();
                let Some(place) = (!live.is_empty()).then(|| *random.pick(&live)) else { return "SELECT".to_owned() };
                let old = self.list(&[place]);
                self.columns[place].name = fresh;
                format!("ALTER TABLE {name} RENAME COLUMN {old} TO {}", self.list(&[place]))
            }
            (8 | 9, Some(place)) => {
                let column = self.list(&[place]);
                self.columns[place].of = TYPES.iter().find(|of| of.name == "text" && of.big).expect("there is one");
                format!(
                    "ALTER TABLE {name} ALTER {column} DROP DEFAULT, ALTER {column} TYPE text USING {column}::text || '~'"
                )
            }
            _ => {
                let column = Column::new(fresh, random.pick(TYPES), true);
                let default =
                    if random.chance(50) { format!(" DEFAULT {}", column.value(random)) } else { String::new() };
                let column_name = quote_identifier(&column.name);
                let sql = format!("ALTER TABLE {name} ADD COLUMN {column_name} {}{default}", column.of.name);
                self.columns.push(column);
                sql
            }
        }
    }

    /// Rows of a copy that is read again get out of each other's way, else it may be UNIQUE_HANDOVER (src/sink/uniques.rs).
    fn has_stand_ins(&self) -> bool {
        let has = |column: &Column| column.nullable || types::STAND_INS.contains(&column.of.name);
        let keys_too = self.kind != Identity::Index || self.primary.iter().any(|&place| has(&self.columns[place]));
        keys_too && self.columns.iter().filter(|column| column.unique).all(has)
    }

    /// At the sink the columns stand in another order, some were dropped before, some are its own.
    fn create(&self, random: &mut Random, sink: bool) -> String {
        let name = &self.name;
        let labels: Vec<String> = self.labels.iter().map(|label| quote_literal(label)).collect();
        let mood = match self.labels.is_empty() {
            true => String::new(),
            false => format!("CREATE TYPE {name}_mood AS ENUM ({});\n", labels.join(", ")),
        };
        let mut parts: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let null = if column.nullable { "" } else { " NOT NULL" };
                let unique = if column.unique { " UNIQUE" } else { "" };
                let of = if sink && column.text_at_sink && !column.unique { "text" } else { column.of.name };
                format!("{} {of}{null}{unique}", quote_identifier(&column.name))
            })
            .collect();
        if sink {
            let by = random.below(parts.len());
            parts.rotate_left(by);
            parts.insert(by, "dropped int".to_owned());
            if random.chance(50) {
                parts.push("own_id int GENERATED ALWAYS AS IDENTITY, own_text text DEFAULT 'own'".to_owned());
            }
        }
        // Postgres 18 refuses changes of a published table whose identity has them.
        let whole = matches!(self.kind, Identity::Full | Identity::Keyless);
        if random.chance(30) && (sink || !whole || generated_everywhere()) {
            let of = self.columns[0].name.clone();
            parts.push(format!("generated bool GENERATED ALWAYS AS ({} IS NULL) STORED", quote_identifier(&of)));
        }
        if !self.primary.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", self.list(&self.primary)));
        }
        let mut sql = format!("{mood}CREATE TABLE {name} ({});\n", parts.join(", "));
        if sink {
            let _ = writeln!(sql, "ALTER TABLE {name} DROP dropped;");
        }
        match self.kind {
            Identity::Default | Identity::InsertOnly => {}
            Identity::Full | Identity::Keyless => {
                let _ = writeln!(sql, "ALTER TABLE {name} REPLICA IDENTITY FULL;");
            }
            Identity::Index => {
                let index = format!("{}_identity", name.replace('.', "_"));
                let _ = writeln!(sql, "CREATE UNIQUE INDEX {index} ON {name} ({});", self.list(&self.identity));
                let _ = writeln!(sql, "ALTER TABLE {name} REPLICA IDENTITY USING INDEX {index};");
            }
        }
        for column in self.columns.iter().filter(|column| column.of.big) {
            let _ = writeln!(sql, "ALTER TABLE {name} ALTER {} SET STORAGE EXTERNAL;", quote_identifier(&column.name));
        }
        sql
    }

    fn list(&self, columns: &[usize]) -> String {
        columns.iter().map(|&i| quote_identifier(&self.columns[i].name)).collect::<Vec<_>>().join(", ")
    }

    fn rows(&self, random: &mut Random) -> String {
        let row = |random: &mut Random| {
            let values: Vec<String> = self.live().map(|i| self.columns[i].value(random)).collect();
            format!("({})", values.join(", "))
        };
        let rows: Vec<String> = (0..1 + random.below(5)).map(|_| row(random)).collect();
        let list: Vec<usize> = self.live().collect();
        format!("INSERT INTO {} ({}) VALUES {} ON CONFLICT DO NOTHING", self.name, self.list(&list), rows.join(", "))
    }

    /// Some rows, the same for the same contents.
    fn some(&self, random: &mut Random, rows: usize) -> String {
        format!(
            "ctid = ANY (ARRAY(SELECT ctid FROM {} t ORDER BY md5(t::text || '{}'), ctid LIMIT {rows}))",
            self.name,
            random.below(1000)
        )
    }

    fn update(&self, random: &mut Random) -> String {
        let in_key = |i: &usize| self.primary.contains(i) || self.identity.contains(i);
        let others: Vec<usize> = self.live().filter(|i| !in_key(i)).collect();
        let column = *random.pick(&others);
        let mut set = format!("{} = {}", self.list(&[column]), self.columns[column].value(random));
        if random.chance(30) {
            let other = *random.pick(&others);
            if other != column {
                let _ = write!(set, ", {} = {}", self.list(&[other]), self.columns[other].value(random));
            }
        }
        let rows = *random.pick(&[1, 1, 2, 3, 1000]);
        format!("UPDATE {} SET {set} WHERE {}", self.name, self.some(random, rows))
    }

    fn change_key(&self, random: &mut Random) -> String {
        let keys: Vec<usize> = self.primary.iter().chain(&self.identity).copied().collect();
        let column = *random.pick(&keys);
        let value = self.columns[column].value(random);
        format!("UPDATE {} SET {} = {value} WHERE {}", self.name, self.list(&[column]), self.some(random, 1))
    }

    /// Two rows change places through a third key, as programs do it.
    fn swap(&self, random: &mut Random) -> String {
        let key = if random.chance(50) || self.identity.is_empty() { &self.primary } else { &self.identity };
        let values: Vec<String> = key.iter().map(|&i| self.columns[i].value(random)).collect();
        let (list, name) = (self.list(key), &self.name);
        let of = |row: &str| {
            let parts: Vec<String> =
                key.iter().map(|&i| format!("{row}.{}", quote_identifier(&self.columns[i].name))).collect();
            format!("ROW({})", parts.join(", "))
        };
        let order = format!("ORDER BY md5(t::text || '{}'), ctid", random.below(1000));
        format!(
            "DO $swap$ DECLARE a {name}; b {name}; BEGIN
               SELECT * INTO STRICT a FROM {name} t {order} LIMIT 1; SELECT * INTO STRICT b FROM {name} t {order} OFFSET 1 LIMIT 1;
               UPDATE {name} t SET ({list}) = ROW({}) WHERE ROW({list}) = {};
               UPDATE {name} t SET ({list}) = {} WHERE ROW({list}) = {};
               UPDATE {name} t SET ({list}) = {} WHERE ROW({list}) = ROW({}); END $swap$",
            values.join(", "),
            of("a"),
            of("a"),
            of("b"),
            of("b"),
            values.join(", "),
        )
    }
}

impl Column {
    fn new(name: String, of: &'static Type, nullable: bool) -> Column {
        Column { name, of, nullable, unique: false, text_at_sink: false, dropped: false }
    }

    fn value(&self, random: &mut Random) -> String {
        if self.nullable && random.chance(15) {
            return "NULL".to_owned();
        }
        let value = *random.pick(self.of.values);
        match value.split_once(LONG) {
            None => format!("{}::{}", quote_literal(value).trim_start(), self.of.name),
            // Random enough not to be compressed away, and of hexadecimal digits, which every type here takes.
            Some((head, tail)) => format!(
                "({} || repeat(md5('{}'), {}) || {})::{}",
                quote_literal(head).trim_start(),
                random.below(1000),
                80 + random.below(100),
                quote_literal(tail).trim_start(),
                self.of.name
            ),
        }
    }
}

fn generated_everywhere() -> bool {
    let version = std::env::var("LOCKSTEP_TEST_POSTGRES_VERSION");
    version.ok().and_then(|version| version.parse().ok()).is_none_or(|version: u32| version < 18)
}

fn statement(random: &mut Random, table: &Table) -> String {
    let keyed = !table.primary.is_empty();
    if table.kind == Identity::InsertOnly {
        return if random.chance(95) { table.rows(random) } else { format!("TRUNCATE {}", table.name) };
    }
    match random.below(100) {
        0..=34 => table.rows(random),
        35..=59 => table.update(random),
        60..=74 if keyed => table.change_key(random),
        75..=79 if keyed => table.swap(random),
        60..=79 => table.update(random),
        80..=96 => {
            let rows = *random.pick(&[1, 1, 2, 1000]);
            format!("DELETE FROM {} WHERE {}", table.name, table.some(random, rows))
        }
        _ => format!("TRUNCATE {}", table.name),
    }
}

/// Tables may change their shapes, and are left as the transaction leaves them.
fn transaction(random: &mut Random, tables: &mut Vec<Table>, ddl: Ddl) -> Transaction {
    let found = tables.clone();
    let one = |random: &mut Random, tables: &mut [Table], place: usize| {
        if ddl != Ddl::None && tables[place].changes_shape && random.chance(15) {
            tables[place].alter(random, ddl)
        } else {
            statement(random, &tables[place])
        }
    };
    let mut statements = Vec::new();
    for _ in 0..1 + random.below(6) {
        let place = random.below(tables.len());
        if random.chance(10) {
            let before = tables.clone();
            let (first, second) = (one(random, tables, place), one(random, tables, place));
            statements.push(format!("SAVEPOINT undone;\n{first};\n{second};\nROLLBACK TO undone"));
            *tables = before;
        } else {
            statements.push(one(random, tables, place));
        }
    }
    let commits = random.chance(95);
    if !commits {
        *tables = found;
    }
    Transaction { statements, commits }
}
