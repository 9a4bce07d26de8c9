//! The settings that shape a value's text, pinned in every session that carries values (docs/protocol.md, version 1).
//!
//! They travel as startup options, so that `RESET` and `DISCARD` come back to them and they beat what the role or the database
//! sets. Then they are read back and compared: nothing that was not seen to hold is relied on. Pure.

use crate::error::{Code, Error, Result};

/// Name and value as `current_setting` prints it.
pub const SETTINGS: [(&str, &str); 10] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    // Off, an array's NULL is read as the text "NULL".
    ("array_nulls", "on"),
    ("search_path", "pg_catalog"),
];

/// Limits that a role or a database may have for its sessions, lifted. What ours do has limits of its own; and what is cut off in
/// the middle is begun again, so a copy that takes longer than such a limit would be tried for ever.
const LIMITS: [(&str, &str); 3] =
    [("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0"), ("idle_session_timeout", "0")];

/// Lifts the one that a startup option can't: before Postgres 17 there is none, and options that don't exist are refused.
pub const LIFT_TRANSACTION_TIMEOUT: &str =
    "SELECT CASE WHEN pg_catalog.current_setting('transaction_timeout', true) <> '0'
    THEN pg_catalog.set_config('transaction_timeout', '0', false) END";

/// The startup parameter `options`: `-c name=value` for every pinned setting and for `more`.
pub fn startup_options(more: &[(&str, &str)]) -> String {
    let options: Vec<String> = SETTINGS
        .iter()
        .chain(&LIMITS)
        .chain(more)
        .map(|(name, value)| format!("-c {name}={}", escape(value)))
        .collect();
    options.join(" ")
}

/// The server splits options at white space; a backslash takes the next byte as it is (`pg_split_opts`).
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_ascii_whitespace() || c == '\\' {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A query whose only row is what [`check`] wants.
pub fn assertion() -> String {
    let columns: Vec<String> =
        SETTINGS.iter().map(|(name, _)| format!("pg_catalog.current_setting('{name}')")).collect();
    format!("SELECT {}", columns.join(", "))
}

/// Compares the answer to [`assertion`] with what was pinned.
pub fn check(values: &[Option<&str>]) -> Result<()> {
    let wrong: Vec<String> = SETTINGS
        .iter()
        .enumerate()
        .map(|(i, (name, wanted))| (name, wanted, values.get(i).copied().flatten()))
        .filter(|(_, wanted, found)| *found != Some(**wanted))
        .map(|(name, wanted, found)| {
            format!("{name} is {} instead of {wanted:?}", found.map_or("missing".into(), |f| format!("{f:?}")))
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let message = "the server did not take the session's settings, so values would be read wrongly; a pooler in between drops them";
    let error =
        Error::halt(Code::SourceProtocol, message, "PGOPTIONS='-c bytea_output=hex' psql URL -c 'SHOW bytea_output'");
    Err(wrong.into_iter().fold(error, Error::fact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_by_the_server_into_what_was_meant() {
        let options = startup_options(&[("wal_sender_timeout", "10000"), ("x", "a\\b c")]);
        assert!(options.starts_with("-c client_encoding=UTF8 -c DateStyle=ISO,\\ YMD -c IntervalStyle=postgres "));
        assert!(options.ends_with(" -c idle_session_timeout=0 -c wal_sender_timeout=10000 -c x=a\\\\b\\ c"));
    }

    #[test]
    fn a_setting_that_was_dropped_is_named() {
        let mut values: Vec<Option<&str>> = SETTINGS.iter().map(|(_, value)| Some(*value)).collect();
        assert!(check(&values).is_ok());
        values[5] = Some("escape");
        values.pop();
        let error = check(&values).unwrap_err();
        assert_eq!(error.code(), Some(Code::SourceProtocol));
        let text = error.to_string();
        assert!(
            text.contains(
                "bytea_output is \"escape\" instead of \"hex\"\n  search_path is missing instead of \"pg_catalog\"\n"
            ),
            "{text}"
        );
    }
}
