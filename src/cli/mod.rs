//! The command line: one file per verb, help texts that are the reference, exit codes that scripts rely on.
//!
//! | code | means |
//! |---|---|
//! | 0 | done; for `run`: asked to stop, and every role ended in order |
//! | 1 | failed: something could not be reached, or did not stop in time, or a bug |
//! | 2 | usage or configuration; nothing was started |
//! | 3 | halted with a named code; `lockstep explain CODE` says what to do |
//!
//! What a verb is asked for goes to standard output, everything else to standard error. Text that comes from databases or
//! other processes passes through [`printable`] before it reaches a terminal.
//!
//! Not here: what verbs do to a pipeline; they call the rooms.

mod check;
mod explain;
mod foreign;
mod leave;
mod ledger;
mod log;
mod progress;
mod reload;
mod restart;
mod resync;
mod retry;
mod run;
mod snapshot;
mod status;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Findings};
use crate::error::{Code, Error};

/// Keeps shared data the same in every service that needs it: reads one Postgres' log, writes every change to Kafka, applies
/// the changes to other Postgres databases: exactly once, whole transactions, in commit order.
#[derive(Parser)]
#[command(name = "lockstep", version, disable_help_subcommand = true, verbatim_doc_comment, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 halted with a named code (see `lockstep explain`).
Environment: LOCKSTEP_CONFIG is --config, LOCKSTEP_LOG filters logs (\"info\", \"debug\", \"info,lockstep::apply=debug\").";

#[derive(Subcommand)]
enum Verb {
    Run(run::RunArgs),
    /// Find what stands in the way of `run` in servers, rights, tables and settings, and change nothing
    ///
    /// Reads the configuration, asks the source, Kafka, the schema registry and every sink about these, and prints all findings
    /// at once, each with the command that removes it. The ledger is read too: whether slot, topics and the sinks' progress are
    /// still those that it was written for.
    ///
    /// Exits with 0 when nothing was found (warnings are printed all the same), 1 when something could not be reached, 2 when
    /// the configuration has findings, 3 when `run` would halt (with --upgrade: or the slot is not drained).
    #[command(verbatim_doc_comment)]
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Ledger(ledger::LedgerArgs),
    Resync(resync::ResyncArgs),
    Retry(retry::RetryArgs),
    Snapshot(snapshot::SnapshotArgs),
    Restart(restart::RestartArgs),
    Leave(leave::LeaveArgs),
    Explain(explain::ExplainArgs),
}

#[derive(Args, Clone)]
struct ConfigArgs {
    /// The folder that holds lockstep.toml; connectors are read from connectors/ inside it or beside it
    #[arg(long, value_name = "DIR", default_value = "config", env = "LOCKSTEP_CONFIG")]
    config: PathBuf,
}

/// Why a verb could not do its work.
#[derive(Debug)]
enum Failure {
    Config(Findings),
    /// What was asked for makes no sense here; says what to type instead.
    Usage(String),
    Failed(Error),
    /// Something outside of the product's vocabulary.
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Failed(error)
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Config(_) | Failure::Usage(_) => 2,
            Failure::Failed(error) => match error.code() {
                Some(Code::Config | Code::RequestRefused) => 2,
                Some(_) => 3,
                None => 1,
            },
            Failure::Other(_) => 1,
        }
    }

    fn text(&self) -> String {
        match self {
            Failure::Config(findings) => findings.to_string(),
            Failure::Usage(text) | Failure::Other(text) => format!("error: {text}"),
            Failure::Failed(error @ Error::Halt(_)) => error.to_string(),
            Failure::Failed(error) => format!("error: {}", error.chain()),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    crate::malloc::set_up();
    // Two crates bring rustls in; whichever builds a client first must not have to choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = match Cli::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Ledger(args) => ledger::run(&args),
        Verb::Resync(args) => resync::run(&args),
        Verb::Retry(args) => retry::run(&args),
        Verb::Snapshot(args) => snapshot::run(&args),
        Verb::Restart(args) => restart::run(&args),
        Verb::Leave(args) => leave::run(&args),
        Verb::Explain(args) => explain::run(&args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{}", printable(&failure.text()));
            ExitCode::from(failure.code())
        }
    }
}

fn load(dir: &Path) -> Result<Config, Failure> {
    crate::config::load(dir, &|name| std::env::var(name).ok()).map_err(Failure::Config)
}

/// For verbs that are about a ledger, or about a source that is read here.
fn load_own(dir: &Path, verb: &str) -> Result<Config, Failure> {
    let config = load(dir)?;
    match config.topics {
        None => Ok(config),
        Some(_) => Err(Failure::Usage(format!(
            "lockstep {verb} is about a ledger, and the topics of this pipeline are another program's ([topics])\n  \
             help: ask Debezium, with signals or its connector's options"
        ))),
    }
}

/// Drives a verb that is not `run`: one thread is plenty.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime needs nothing but file descriptors");
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// Writes what the verb was asked for. A reader that has gone (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(printable(text).as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("can't write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Text without anything that a terminal would obey: control characters but line breaks become escapes.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !c.is_control() { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    out
}

/// Rows in columns as wide as their widest cell, two blanks between them.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(wide).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_explains_itself() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{} has no help", verb.get_name());
            for arg in verb.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {} has no help", verb.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn exit_codes_follow_from_the_failure() {
        assert_eq!(Failure::Usage(String::new()).code(), 2);
        assert_eq!(Failure::from(Error::halt(Code::Config, "", "")).code(), 2);
        assert_eq!(Failure::from(Error::halt(Code::SlotLost, "", "")).code(), 3);
        assert_eq!(Failure::from(Error::retry_plain("connecting")).code(), 1);
    }

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\td\u{9b}"), "a\\u{1b}[2Jb\\u{d}\nc\\u{9}d\\u{9b}");
    }

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let text = columns(&[row(&["a", "bb", ""]), row(&["–ä–", "b", "c"])]);
        assert_eq!(text, "a    bb\n–ä–  b   c\n");
    }
}
