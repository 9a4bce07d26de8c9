//! What a MariaDB's error means for the pipeline: one match from error number to what now.
//!
//! | class | means | fate |
//! |---|---|---|
//! | value | it does not fit its column | halt `VALUE_REFUSED` |
//! | unique, reference, constraint | a constraint or a trigger refuses the rows | another way, then halt `CONSTRAINT_REFUSED` |
//! | table | what the plan was made for is not there | halt `SINK_TABLE` |
//! | right | | halt `NO_RIGHT` |
//! | retry | locks, deadlocks, a server that goes, is full or only reads | retry |
//!
//! Messages quote values ("Duplicate entry '…' for key '…'"), so nothing of them is passed on but names that stand where the server
//! alone writes, and those of schemas. They are in English, since the session pins it.

use mysql_async::{Error as Lib, IoError, ServerError as Refusal};

use super::fit::quote;
use super::sql::Plan;
use crate::config::Database;
use crate::error::{Code, Error, Halt};
use crate::relation::TableName;
use crate::session::{ServerError, place, tls};
use crate::sink::Failure;

/// What kind of refusal an error of the server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Value,
    Unique,
    Reference,
    Constraint,
    Table,
    Right,
    /// Not the rows, but how the server is set up.
    Setup,
    Retry,
}

/// The class of an error number; of one that is not listed its SQLSTATE decides.
pub(super) fn class(number: u16, state: &str) -> Class {
    match number {
        // NULL, no default, out of range, cut, wrong, too long, generated, not in the character set, not of an exact type, larger
        // than a packet.
        1048 | 1153 | 1264 | 1265 | 1292 | 1300 | 1364 | 1366 | 1367 | 1406 | 1411 | 1441 | 1525 | 1690 | 1906
        | 4038 => Class::Value,
        1022 | 1062 | 1169 | 1586 | 1859 => Class::Unique,
        1216 | 1217 | 1451 | 1452 | 1557 | 1761 | 1762 => Class::Reference,
        // CHECK, SIGNAL, what a trigger may not do.
        3819 | 4025 | 1442 | 1643 | 1644 | 1645 => Class::Constraint,
        1044 | 1142 | 1143 | 1227 | 1370 => Class::Right,
        1663..=1666 => Class::Setup,
        1049 | 1051 | 1054 | 1136 | 1146 | 1288 | 1348 | 1932 => Class::Table,
        // Lock time-out, deadlock, read-only, too many connections, disk or table full, killed, a definition that changed under us.
        1020
        | 1021
        | 1030
        | 1040
        | 1041
        | 1047
        | 1053
        | 1114
        | 1158..=1161
        | 1180
        | 1203
        | 1205
        | 1206
        | 1213
        | 1226
        | 1290
        | 1317
        | 1412
        | 1615
        | 1792
        | 1836
        | 1927
        | 1969 => Class::Retry,
        _ => match state.get(..2) {
            Some("22") => Class::Value,
            Some("23" | "44" | "45") => Class::Constraint,
            Some("42") => Class::Table,
            _ => Class::Retry,
        },
    }
}

/// As every room keeps what a server said.
fn said(refusal: &Refusal) -> ServerError {
    ServerError { code: refusal.state.clone(), message: refusal.message.clone(), detail: None, hint: None }
}

/// The fate of a failed call that is about no table of the service's.
pub(super) fn classify(doing: &str, error: Lib) -> Error {
    match error {
        Lib::Server(refusal) => match class(refusal.code, &refusal.state) {
            Class::Right => {
                let hint = "SHOW GRANTS";
                Error::halt(Code::NoRight, format!("{doing}: {}", refusal.message), hint)
            }
            Class::Setup => setup(&refusal),
            _ => Error::retry(doing, said(&refusal)),
        },
        other => Error::retry(doing, other),
    }
}

fn setup(refusal: &Refusal) -> Error {
    let message =
        format!("the sink's server does not log changes of read committed transactions: error {}", refusal.code);
    Error::halt(Code::SinkTable, message, "SET GLOBAL binlog_format = 'ROW'")
}

/// The fate of a failed connection attempt.
pub(super) fn of_connecting(doing: &str, error: Lib, database: &Database) -> Error {
    match error {
        Lib::Server(refusal) => match refusal.code {
            1045 | 1698 | 1130 | 1251 => Error::halt(
                Code::AuthFailed,
                format!("{doing}: {} (error {})", refusal.message, refusal.code),
                mariadb(database),
            ),
            1044 => Error::halt(
                Code::NoRight,
                format!("{doing}: {}", refusal.message),
                format!("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON {}.* TO …", quote(&database.dbname)),
            ),
            1049 => Error::halt(
                Code::DatabaseMissing,
                format!("{doing}: {}", refusal.message),
                format!("CREATE DATABASE {}", quote(&database.dbname)),
            ),
            _ => classify(doing, Lib::Server(refusal)),
        },
        Lib::Driver(error) if error.to_string().contains("SSL") => Error::halt(
            Code::TlsFailed,
            format!("{} offers no TLS, and verified TLS is configured", place(database)),
            "SHOW VARIABLES LIKE 'have_ssl'",
        ),
        Lib::Io(IoError::Tls(error)) => {
            tls::explain(&error, database).unwrap_or_else(|| Error::retry(doing, Lib::Io(IoError::Tls(error))))
        }
        other => match tls::explain(&other, database) {
            Some(halt) => halt,
            None => Error::retry(doing, other),
        },
    }
}

/// The beginning of a command that enters the same database, for hints.
fn mariadb(database: &Database) -> String {
    let host = match &database.host {
        crate::config::Host::Tcp(host) => format!("-h {host} -P {}", database.port),
        crate::config::Host::Unix(socket) => format!("-S {}", socket.display()),
    };
    format!("mariadb {host} -u {} -p {}", database.user, database.dbname)
}

/// A failed statement about a table as what must happen now. `parking`: the changes are tried with rows out of the way of unique
/// values, which is the last that can be done for a hand-over but one by one.
pub(super) fn failure(doing: &str, plan: &Plan, error: Lib, parking: bool) -> Failure {
    let Lib::Server(refusal) = error else { return Failure::Error(Error::retry(doing, error)) };
    let number = format!("error {}", refusal.code);
    let halt = |code, message, hint| Halt { code, message, facts: vec![number.clone()], hint };
    let table = &plan.table;
    match class(refusal.code, &refusal.state) {
        Class::Retry => Failure::Error(Error::retry(doing, said(&refusal))),
        Class::Setup => setup(&refusal).into(),
        Class::Value => {
            let column = column(&refusal.message, plan);
            value(plan, column, vec![number]).into()
        }
        Class::Right => halt(
            Code::NoRight,
            format!("the user may not do this at the sink: {doing}"),
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO …", quoted(table)),
        )
        .into(),
        Class::Table => halt(
            Code::SinkTable,
            format!("{table} is not the table that it was at the start: {}", refusal.message),
            "lockstep check".to_owned(),
        )
        .into(),
        Class::Unique => {
            let index = duplicate_key(&refusal.message).unwrap_or("?").to_owned();
            Failure::Unique(Box::new(unique(plan, &index, parking, number)))
        }
        Class::Reference => {
            let name = constraint(&refusal.message).unwrap_or("?").to_owned();
            Failure::Reference(Box::new(halt(
                Code::ConstraintRefused,
                format!("constraint {name} refuses changes of {table}"),
                format!("ALTER TABLE … DROP FOREIGN KEY {}", quote(&name)),
            )))
        }
        Class::Constraint => {
            let what = match constraint(&refusal.message) {
                Some(name) => format!("constraint {name} of {table} refuses the changes"),
                None => format!("changes of {table} are refused by the sink: a constraint or a trigger"),
            };
            Failure::Constraint(Box::new(halt(
                Code::ConstraintRefused,
                what,
                format!("SHOW CREATE TABLE {}", quoted(table)),
            )))
        }
    }
}

/// A unique index that refuses the rows.
fn unique(plan: &Plan, index: &str, parking: bool, number: String) -> Halt {
    let (table, facts) = (&plan.table, vec![number]);
    if index == plan.index {
        let message = format!("the key of {table} refuses the changes: a row stands there that should not");
        let hint = format!("lockstep resync {}", plan.source);
        return Halt { code: Code::ConstraintRefused, message, facts, hint };
    }
    let drop = format!("ALTER TABLE {} DROP INDEX {}", quoted(table), quote(index));
    match parking {
        true => Halt {
            code: Code::UniqueHandover,
            message: format!(
                "rows of {table} hand over a value of its unique index {index}, which MariaDB checks with every row"
            ),
            facts,
            hint: drop,
        },
        false => Halt {
            code: Code::ConstraintRefused,
            message: format!("constraint {index} of {table} refuses the changes"),
            facts,
            hint: drop,
        },
    }
}

/// A value that its column does not hold.
pub(super) fn value(plan: &Plan, column: Option<&str>, facts: Vec<String>) -> Halt {
    let message = match column {
        Some(column) => format!("a value does not fit column {column} of {}", plan.table),
        None => format!("a value does not fit a column of {}", plan.table),
    };
    Halt { code: Code::ValueRefused, message, facts, hint: format!("SHOW CREATE TABLE {}", quoted(&plan.table)) }
}

fn quoted(table: &TableName) -> String {
    super::fit::quoted(table)
}

/// `Duplicate entry '…' for key 'NAME'`: what the server writes last.
pub(super) fn duplicate_key(message: &str) -> Option<&str> {
    let name = message.rsplit_once(" for key '")?.1.strip_suffix('\'')?;
    // MySQL writes the table in front.
    Some(name.rsplit_once('.').map_or(name, |(_, name)| name))
}

/// `… CONSTRAINT `name` FOREIGN KEY …` and `CONSTRAINT `db`.`name` failed for …`.
fn constraint(message: &str) -> Option<&str> {
    let rest = message.split_once("CONSTRAINT ")?.1;
    let end = rest.find([' ', ','])?;
    rest[..end].rsplit('.').next().map(|name| name.trim_matches('`'))
}

/// `… for column 'name' at row 1`, `… for column `db`.`table`.`name` at row 1`, `Column 'name' cannot be null`: only a name that
/// the plan has, since values stand in these messages too.
fn column<'a>(message: &str, plan: &'a Plan) -> Option<&'a str> {
    let name = match message.rsplit_once(" for column ") {
        Some((_, rest)) => rest.split(" at row ").next()?.rsplit('.').next()?.trim_matches(['`', '\'']),
        None => message.strip_prefix("Column '")?.split('\'').next()?,
    };
    plan.columns.iter().map(|column| column.name.as_str()).find(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_class() {
        for (number, state, expected) in [
            (1048, "23000", Class::Value),
            (1264, "22003", Class::Value),
            (1406, "22001", Class::Value),
            (1062, "23000", Class::Unique),
            (1452, "23000", Class::Reference),
            (4025, "23000", Class::Constraint),
            (1644, "45000", Class::Constraint),
            (1146, "42S02", Class::Table),
            (1142, "42000", Class::Right),
            (1665, "HY000", Class::Setup),
            (1205, "HY000", Class::Retry),
            (1213, "40001", Class::Retry),
            (1290, "HY000", Class::Retry),
            (1927, "70100", Class::Retry),
            (9999, "22012", Class::Value),
            (9999, "HY000", Class::Retry),
        ] {
            assert_eq!(class(number, state), expected, "{number}");
        }
    }

    #[test]
    fn names_are_read_where_the_server_writes_them() {
        assert_eq!(duplicate_key("Duplicate entry 'x for key 'y'' for key 'u'"), Some("u"));
        assert_eq!(duplicate_key("Duplicate entry '1' for key 't.PRIMARY'"), Some("PRIMARY"));
        let foreign = "Cannot add or update a child row: a foreign key constraint fails (`d`.`c`, CONSTRAINT `fk` FOREIGN KEY (`p`) …)";
        assert_eq!(constraint(foreign), Some("fk"));
        assert_eq!(constraint("CONSTRAINT `t.chk` failed for `d`.`t`"), Some("chk"));
    }
}
