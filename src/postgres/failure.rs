//! What a failed statement at the source means: something to try again, or a right that is missing.
//!
//! Only what every statement shares is decided here; a caller that knows more (a missing table, a lock that did not come)
//! looks at the SQLSTATE first.

use tokio_postgres::error::SqlState;

use crate::error::{Code, Error};

/// The fate of a statement that failed. `doing` is lowercase: `reading the catalog`.
pub fn failed(doing: impl Into<String>, error: tokio_postgres::Error) -> Error {
    let doing = doing.into();
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            Error::halt(Code::NoRight, format!("{doing}: {}", db.message()), "lockstep check")
                .fact("lockstep check prints the GRANT that is missing")
        }
        Some(db) if is_not_utf8(db.code().code()) => not_utf8(&doing, db.code().code()),
        _ => Error::retry(doing, error),
    }
}

/// Whether somebody else's lock was in the way for too long.
pub fn is_lock_timeout(error: &Error) -> bool {
    let Error::Retry(retry) = error else { return false };
    let cause = retry.source.as_ref().and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    cause.and_then(|cause| cause.code()) == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Whether the server refused a statement and goes on: other statements of the session are none the worse for it.
pub fn is_refused(error: &Error) -> bool {
    let Error::Retry(retry) = error else { return false };
    let cause = retry.source.as_ref().and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    // Class 57P: the server, or the session, ends.
    cause.and_then(|cause| cause.code()).is_some_and(|state| !state.code().starts_with("57P"))
}

/// Of a SQLSTATE: character_not_in_repertoire or untranslatable_character.
pub fn is_not_utf8(state: &str) -> bool {
    matches!(state, "22021" | "22P05")
}

/// The server's own message shows the value's bytes, so it is left out.
pub fn not_utf8(doing: &str, state: &str) -> Error {
    let message = format!("{doing}: a value is no text in the database's encoding (SQLSTATE {state})");
    Error::halt(
        Code::SourceEncoding,
        message,
        "SHOW server_encoding; then repair the value: docs/errors.md, SOURCE_ENCODING",
    )
}

/// A catalog answered with something that its documentation rules out.
pub fn unreadable(what: &str, value: impl std::fmt::Display) -> Error {
    Error::halt(
        Code::SourceProtocol,
        format!("the source's {what} can't be read: {value}"),
        "lockstep check, and report the server's version",
    )
}
