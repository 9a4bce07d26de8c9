//! What a server's refusal means: one table from SQLSTATE to what now.
//!
//! | SQLSTATE | means | fate |
//! |---|---|---|
//! | 28xxx | role or password refused, no line in pg_hba.conf | halt `AUTH_FAILED` |
//! | 3D000, 57P04 | the database is not there, or was dropped | halt `DATABASE_MISSING` |
//! | 42501 | a right is missing | halt `NO_RIGHT` |
//! | 22xxx | a value does not fit its type | halt `VALUE_REFUSED` |
//! | 23xxx | a constraint refuses a row | halt `CONSTRAINT_REFUSED` |
//! | 08, 40, 53, 57, 58, 55P03, 55006 | connection, serialization, resources, shutdown, I/O, locks | retry |
//! | everything else | names that do not exist, shapes that changed, what the server can't do | retry |
//!
//! The last line is a choice: a missing table or column means that the catalog changed after we read it. The retry reads it
//! again, and the checks at a start know the table, what it is for and what to type, which a SQLSTATE does not. A failure that no
//! check names stays visible as `retrying`, with the server's own words; a halt would have no better ones.
//!
//! Who knows more judges first and comes here with the rest: a sink knows which row a constraint refused, the replication client
//! which slot is missing. Server messages may be translated (`lc_messages`), so nothing is decided by their text.

use tokio_postgres::error::DbError;

use super::{place, psql, tls};
use crate::config::{Database, Tls};
use crate::error::{Code, Error, Halt};
use crate::relation::quote_identifier;

/// What a server said, kept behind a [`Error::Retry`] so that a caller can still ask for the SQLSTATE.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// SQLSTATE, five bytes.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)
    }
}

impl std::error::Error for ServerError {}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> ServerError {
        ServerError {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl ServerError {
    /// The fate of this refusal by the table above.
    pub fn judge(self, doing: &str) -> Error {
        let Some((code, hint)) = named(&self.code) else {
            return Error::retry(doing, self);
        };
        self.halt(code, format!("{doing}: {self}"), hint)
    }

    /// A named halt with the server's own detail and hint as facts.
    pub fn halt(&self, code: Code, message: impl Into<String>, hint: impl Into<String>) -> Error {
        let facts = [&self.detail, &self.hint].into_iter().flatten().cloned().collect();
        Halt { code, message: message.into(), facts, hint: hint.into() }.into()
    }
}

/// The halt that a SQLSTATE stands for, if any, and a hint for who knows nothing else.
fn named(sqlstate: &str) -> Option<(Code, &'static str)> {
    match sqlstate {
        "3D000" | "57P04" => Some((Code::DatabaseMissing, "psql -l")),
        "42501" => {
            Some((Code::NoRight, "GRANT … TO … -- psql: \\du shows a role's attributes, \\dp the rights on tables"))
        }
        state => match state.get(..2) {
            Some("28") => Some((Code::AuthFailed, "ALTER ROLE … PASSWORD '…'")),
            Some("22") => Some((Code::ValueRefused, "lockstep check")),
            Some("23") => Some((Code::ConstraintRefused, "lockstep check")),
            _ => None,
        },
    }
}

/// The fate of a failed call on a session.
pub fn classify(doing: &str, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(refusal) => ServerError::from(refusal).judge(doing),
        // Closed, broken or timed out. What remains is a wrong number or type of parameters: a mistake of ours, which retrying
        // makes visible and nothing else would heal.
        None => Error::retry(doing, error),
    }
}

/// The fate of a failed connection attempt: TLS and authentication have names here.
pub(super) fn of_connecting(doing: &str, error: tokio_postgres::Error, db: &Database) -> Error {
    if let Some(refusal) = error.as_db_error() {
        return refused(ServerError::from(refusal), doing, db);
    }
    if let Some(halt) = tls::explain(&error, db) {
        return halt;
    }
    // tokio-postgres tells these apart only by their text (0.7.18: connect_tls.rs, connect_raw.rs).
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    match cause.as_str() {
        "server does not support TLS" => tls::not_offered(db),
        "password missing" => password_missing(db),
        _ if error.to_string() == "authentication error" => not_authenticated(db, &cause),
        _ => Error::retry(doing, error),
    }
}

/// A server's refusal while we come in, with hints that know where.
pub fn refused(refusal: ServerError, doing: &str, db: &Database) -> Error {
    let Error::Halt(mut halt) = refusal.clone().judge(doing) else {
        return Error::retry(doing, refusal);
    };
    halt.hint = match halt.code {
        Code::AuthFailed => {
            if db.tls == Tls::Off {
                halt.facts.push("the connection is not encrypted; the server's pg_hba.conf may want it to be".into());
            }
            format!("{} -c 'SELECT 1'", psql(db))
        }
        Code::DatabaseMissing => psql(db).replacen("psql", "createdb", 1).replace(" -d ", " "),
        Code::NoRight => {
            let (dbname, user) = (quote_identifier(&db.dbname), quote_identifier(&db.user));
            format!("GRANT CONNECT ON DATABASE {dbname} TO {user}")
        }
        _ => halt.hint,
    };
    Error::Halt(halt)
}

pub fn password_missing(db: &Database) -> Error {
    Error::halt(
        Code::AuthFailed,
        format!("{} wants a password for {}, and none is configured", place(db), db.user),
        "password_file = \"…\" or password_env = \"…\" beside url",
    )
}

/// The exchange failed without the server's refusal: a method we do not speak, or a server that could not prove itself.
pub fn not_authenticated(db: &Database, what: &str) -> Error {
    Error::halt(
        Code::AuthFailed,
        format!("{} and we can't agree on who {} is: {what}", place(db), db.user),
        format!("{} -c 'SELECT type, database, user_name, address, auth_method FROM pg_hba_file_rules'", psql(db)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        let judge = |code: &str| ServerError { code: code.into(), ..ServerError::default() }.judge("x").code();
        for (state, code) in [
            ("28P01", Code::AuthFailed),
            ("28000", Code::AuthFailed),
            ("3D000", Code::DatabaseMissing),
            ("57P04", Code::DatabaseMissing),
            ("42501", Code::NoRight),
            ("22003", Code::ValueRefused),
            ("23505", Code::ConstraintRefused),
        ] {
            assert_eq!(judge(state), Some(code), "{state}");
        }
        for state in
            ["08006", "40001", "40P01", "53300", "57P01", "57014", "58030", "55P03", "55006", "42P01", "XX000", "", "é"]
        {
            assert_eq!(judge(state), None, "{state}");
        }
    }

    #[test]
    fn a_retry_keeps_the_sqlstate() {
        let refusal = ServerError { code: "40001".into(), message: "no".into(), ..ServerError::default() };
        let Error::Retry(retry) = refusal.clone().judge("writing") else { panic!("40001 is retried") };
        assert_eq!(retry.source.unwrap().downcast_ref::<ServerError>(), Some(&refusal));
    }
}
