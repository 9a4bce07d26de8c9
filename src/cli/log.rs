//! Logs: to standard error, as text for people or JSON for machines, never with a control character in them.
//!
//! Names and error texts come from databases and other people's clients; an ESC or a line break in them must neither steer a
//! terminal nor forge a second log line. So every line passes through [`Escaping`], whichever layer made it, and colours are
//! off.
//!
//! A panic is logged like everything else and ends the process with 1: what the panicking thread left half done is not to be
//! trusted, and a restart resumes from the ledger. This holds for threads of clients too, whose panic nobody would see.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::{Failure, progress};

/// What is logged unless LOCKSTEP_LOG says otherwise.
const DEFAULT_FILTER: &str = "info";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Sets up logging for the whole process; once. Without a format: text for a terminal, else JSON.
pub fn init(format: Option<LogFormat>) -> Result<(), Failure> {
    let filter = match std::env::var("LOCKSTEP_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Failure::Usage(format!(
                "LOCKSTEP_LOG={text:?} is no filter ({error}); write for example \"info\" or \"debug\""
            ))
        })?,
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Escaping);
    let outcome = match format.unwrap_or_else(detected) {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_span_list(false).try_init(),
    };
    outcome.map_err(|error| Failure::Other(format!("can't set up logging: {error}")))
}

/// The format where none is asked for.
pub fn detected() -> LogFormat {
    if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json }
}

/// Makes a panic in any thread the end of the process.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("without a message");
        tracing::error!(location, "a bug: {message}; the process ends, a restart resumes from the ledger");
        std::process::exit(1);
    }));
}

/// Standard error, with control characters escaped but for the line break at the end of each write. The formatting layer
/// writes each line at once.
#[derive(Clone, Copy)]
struct Escaping;

impl MakeWriter<'_> for Escaping {
    type Writer = Escaping;

    fn make_writer(&self) -> Escaping {
        Escaping
    }
}

impl Write for Escaping {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let line_shown = escaped(&String::from_utf8_lossy(line));
        progress::beside(|| io::stderr().lock().write_all(line_shown.as_bytes()))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// `\u001b` for each control character: legible in text, and still the same string where the line is JSON.
fn escaped(line: &str) -> String {
    let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
    let mut out = String::with_capacity(line.len());
    for c in body.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_steers_nothing() {
        assert_eq!(escaped("a\u{1b}[31m\r\nERROR forged\n"), "a\\u001b[31m\\u000d\\nERROR forged\n");
        assert_eq!(escaped("plain ä\n"), "plain ä\n");
    }

    #[test]
    fn json_stays_json_with_the_same_content() {
        let json = serde_json::to_string(&serde_json::json!({"m": "a\u{9b}\u{7f}\nb"})).unwrap();
        let back: serde_json::Value = serde_json::from_str(&escaped(&json)).unwrap();
        assert_eq!(back["m"], "a\u{9b}\u{7f}\nb");
    }
}
