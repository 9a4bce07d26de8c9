//! Which tables a sink has where patterns say so: those of the reader's that its patterns match.
//!
//! A sink does not see the source. The reader's bases say which tables the reader has, and the sink follows them in the order of
//! the ledger: a table that came is asked for by a start of the sink's role; one that is gone is let go of (`leave`) once all
//! that stands before that base is applied. A start that finds such a base still ahead of its row keeps the table until there.
//!
//! Pure: the ledger's state comes in, and nobody is asked anything.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Config, LeftOut};
use crate::ledger::state::State;
use crate::relation::TableName;

#[derive(Debug)]
pub struct Routes {
    sink: String,
    /// With every table by its name.
    config: Arc<Config>,
    /// Tables by pattern that this sink has.
    tables: BTreeSet<TableName>,
    left_out: Vec<LeftOut>,
    /// The base that was known at the start; those before it are older news.
    since: i64,
}

/// What another list of the reader's tables means for a sink.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// A table that the sink does not have yet.
    Came(TableName),
    /// Tables that are told to their ends.
    Gone(BTreeSet<TableName>),
}

impl Routes {
    /// At a start of a sink whose row is at this offset, with the ledger's state at its end.
    pub fn new(config: &Config, sink: &str, state: &State, row: i64) -> Routes {
        let listed = state.routed.as_ref();
        let (routed, since) = listed.map_or((&[][..], -1), |routed| (routed.tables.as_slice(), routed.offset));
        let joined = state.joined(sink);
        let ending = joined.iter().filter(|table| since > row && config.is_by_pattern(table));
        let (config, left_out) = config.resolve(routed.iter().chain(ending));
        let tables = by_pattern(&config, sink);
        Routes { sink: sink.to_owned(), config: Arc::new(config), tables, left_out, since }
    }

    /// The configuration with every table by its name.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Tables that the reader has, that patterns match here and that can't stand beside the others.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Whether a table was let go of.
    pub fn is_gone(&self, table: &TableName) -> bool {
        self.config.table(table).is_some_and(|table| table.by_pattern) && !self.tables.contains(table)
    }

    /// A base at this offset says that the reader has these tables.
    pub fn follow(&mut self, offset: i64, routed: &[TableName]) -> News {
        if offset < self.since {
            return News::Nothing;
        }
        let now = by_pattern(&self.config.resolve(routed).0, &self.sink);
        if let Some(came) = now.difference(&self.tables).next() {
            return News::Came(came.clone());
        }
        let gone: BTreeSet<TableName> = self.tables.difference(&now).cloned().collect();
        self.tables = now;
        if gone.is_empty() { News::Nothing } else { News::Gone(gone) }
    }
}

/// Whether the sink has tables by pattern at all.
pub fn has_patterns(config: &Config, sink: &str) -> bool {
    config.routes.iter().any(|route| route.is_for(sink))
}

fn by_pattern(config: &Config, sink: &str) -> BTreeSet<TableName> {
    let mine = config.tables.iter().filter(|table| table.by_pattern && table.sinks.iter().any(|s| s.sink == sink));
    mine.map(|table| table.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::example;
    use crate::ledger::entry::{Join, Request, RequestKind};
    use crate::ledger::loaded::Loaded;
    use crate::ledger::state::Routed;
    use uuid::Uuid;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    fn state(offset: i64, routed: &[&str], joined: &[&str]) -> State {
        let tables = joined.iter().map(|name| table(name)).collect();
        let request = Request::new(Uuid::nil(), RequestKind::Join, "orders", tables, "");
        let joins = vec![Join { offset: 0, request, loaded: Loaded::default(), done: true }];
        let tables = routed.iter().map(|name| table(name)).collect();
        State { joins, routed: Some(Routed { offset, tables }), ..State::default() }
    }

    fn config() -> Config {
        let own = "table = 'own'\n[sinks.orders]\n";
        let config =
            example(&[("a.toml", "table = 't_*'\n[sinks.orders]\n"), ("own.toml", own), ("b.toml", "table = 'u*'\n")]);
        assert!(has_patterns(&config, "orders") && !has_patterns(&config, "others"));
        config
    }

    fn names(routes: &Routes) -> Vec<&str> {
        routes.config().tables.iter().map(|table| table.name.table.as_str()).collect()
    }

    #[test]
    fn a_sink_has_what_its_patterns_match_of_the_readers_tables() {
        let mut routes = Routes::new(&config(), "orders", &state(7, &["t_1", "u_1", "x"], &["t_1"]), 9);
        assert_eq!(names(&routes), ["own", "t_1", "u_1"]);
        assert_eq!(routes.follow(8, &[table("t_1"), table("u_1"), table("u_2")]), News::Nothing, "another sink's");
        assert_eq!(routes.follow(9, &[table("t_1"), table("t_2")]), News::Came(table("t_2")));
        assert_eq!(routes.follow(10, &[table("u_1")]), News::Gone([table("t_1")].into()));
        assert!(routes.is_gone(&table("t_1")) && !routes.is_gone(&table("own")));
        assert_eq!(routes.follow(11, &[]), News::Nothing, "once");
        assert_eq!(routes.follow(12, &[table("t_1")]), News::Came(table("t_1")), "made again");
    }

    #[test]
    fn a_table_whose_end_is_ahead_of_the_row_is_kept_until_there() {
        let ledger = state(7, &["t_2"], &["t_1", "t_2"]);
        let mut routes = Routes::new(&config(), "orders", &ledger, 5);
        assert_eq!(names(&routes), ["own", "t_1", "t_2"]);
        assert_eq!(routes.follow(6, &[table("t_1")]), News::Nothing, "older than what is known");
        assert_eq!(routes.follow(7, &[table("t_2")]), News::Gone([table("t_1")].into()));
        assert_eq!(names(&Routes::new(&config(), "orders", &ledger, 7)), ["own", "t_2"], "the row is behind it");
    }
}
