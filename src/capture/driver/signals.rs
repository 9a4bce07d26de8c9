//! Signals as the stream brings them: rows that people of the source insert into `source.signal_table`.
//!
//! What a signal asks for stands in the ledger before any checkpoint that covers its commit: its requests are appended where the
//! row is met, so whatever is appended behind them in the one partition is read behind them. A reader that meets the row again
//! knows by the newest signal of the ledger whether it is told, and where it does not, whoever folds the ledger passes over the
//! second one (`ledger::signalled`). What can't be done as it was written is refused in the log, in the status and by a metric,
//! and holds up nobody.

use std::borrow::Cow;

use super::{ChangeKind, Core, Transaction, streamed};
use crate::capture::asks;
use crate::capture::emit::Streamed;
use crate::capture::signals::{Layout, Signal};
use crate::capture::steering::{self, Steer};
use crate::error::{Error, Halt, Result};
use crate::ledger::entry::{Body, Request};
use crate::lsn::{Lsn, Position};
use crate::postgres::failure::is_refused;
use crate::postgres::pgoutput::RelationBody;
use crate::status::RefusedSignal;

/// What a signal may cost the stream: a lock that somebody holds, an expression that does not end.
const LIMITS: &str = "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '2s'";

/// Of what people wrote so much is shown.
const SHOWN_CHARS: usize = 200;

/// What this reader knows of the table of signals.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Its OID, and where its columns stand, if it has them.
    table: Option<(u32, Option<Layout>)>,
    /// The transaction of the last signal, and how many of its signals were met.
    met: (Lsn, u64),
}

impl Signals {
    pub(super) fn is_of(&self, oid: u32) -> bool {
        self.table.is_some_and(|(of, _)| of == oid)
    }

    /// The place of the next signal.
    fn next(&mut self, commit: Lsn) -> Position {
        let (of, number) = self.met;
        let number = if of == commit { number + 1 } else { 0 };
        self.met = (commit, number);
        Position::new(commit, number)
    }
}

/// A row as it was written.
struct Written {
    id: String,
    kind: String,
    data: String,
}

impl Core {
    /// Whether a RELATION message is of the table of signals, whose rows nobody else takes.
    pub(super) fn is_signal_table(&mut self, body: &RelationBody) -> bool {
        let named = self.config.source.signal_table.as_ref();
        if named.is_none_or(|table| (&table.schema, &table.table) != (&body.schema, &body.table)) {
            if self.signals.is_of(body.oid) {
                self.signals.table = None;
            }
            return false;
        }
        let columns: Vec<&str> = body.columns.iter().map(|column| column.name.as_str()).collect();
        self.signals.table = Some((body.oid, Layout::of(&columns)));
        self.streamed.remove(&body.oid);
        self.unrouted.insert(body.oid);
        true
    }

    /// A change of the table of signals. Only what is inserted is one.
    pub(super) async fn signal(&mut self, transaction: Transaction, data: &[u8], kind: ChangeKind) -> Result<()> {
        let Streamed::Insert(row) = streamed(&self.scratch, data, kind) else { return Ok(()) };
        let at = self.signals.next(transaction.commit);
        if self.state.signalled.as_ref().is_some_and(|newest| newest.is_past(at)) {
            return Ok(());
        }
        let Some((_, layout)) = self.signals.table else { return Ok(()) };
        let text = |column: usize| {
            let text = (column < row.len()).then(|| row.get(column).text()).flatten().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        let written = layout.map(|at| Written { id: text(at.id), kind: text(at.kind), data: text(at.data) });
        let Some(written) = written else {
            let nothing = || String::new();
            let written = Written { id: nothing(), kind: nothing(), data: nothing() };
            let unlike = asks::refused("its table has no columns id, type and data", "lockstep check");
            return self.outcome(at, &written, Err(unlike));
        };
        let asked = match Signal::parse(&written.kind, &written.data) {
            Ok(None) => return Ok(()),
            Ok(Some(signal)) => self.requests(at, &written, &signal).await,
            Err(error) => Err(error),
        };
        self.outcome(at, &written, asked)
    }

    /// What a signal becomes; nothing is written yet.
    async fn requests(&mut self, at: Position, written: &Written, signal: &Signal) -> Result<Vec<Request>> {
        let asked_by = format!("signal {} at {at}", shown(&written.id));
        match signal {
            Signal::Execute(execute) => {
                self.session.batch_execute(LIMITS).await.map_err(|e| Error::retry("reading a signal", e))?;
                let (session, config, state) = (&self.session, &self.config, &self.state);
                let made = asks::of_signal(session, config, &self.order, state, execute, &asked_by).await;
                // In a transaction for its limits, which takes back whatever failed too.
                self.session.batch_execute("ROLLBACK").await.map_err(|e| Error::retry("reading a signal", e))?;
                made
            }
            Signal::Pause => Ok(vec![steering::request(&Steer::Pause, &self.state, &asked_by)?]),
            Signal::Resume => Ok(vec![steering::request(&Steer::Resume, &self.state, &asked_by)?]),
            Signal::Stop(tables) => {
                let stop = Steer::Stop(tables.clone());
                Ok(vec![steering::request(&stop, &self.state, &asked_by)?])
            }
            Signal::Log(message) => {
                let message = message.replace("{}", &at.to_string());
                tracing::info!(signal = %shown(&written.id), "a signal says: {}", shown(&message));
                Ok(Vec::new())
            }
        }
    }

    fn outcome(&mut self, at: Position, written: &Written, asked: Result<Vec<Request>>) -> Result<()> {
        let requests = match asked {
            Ok(requests) => requests,
            Err(Error::Halt(halt)) => {
                self.refuse(at, written, &halt);
                return Ok(());
            }
            Err(error) if is_refused(&error) => {
                let again = asks::refused(error.chain(), "write the signal again");
                if let Error::Halt(halt) = again {
                    self.refuse(at, written, &halt);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let count = requests.len();
        for request in requests {
            self.append(Body::Request(Request { signal: Some(at), ..request }))?;
        }
        tracing::info!(signal = %shown(&written.id), kind = %shown(&written.kind), %at, requests = count, "a signal was taken");
        self.metrics.signal(true);
        self.reporter.update(|s| s.signals.get_or_insert_default().taken += 1);
        Ok(())
    }

    fn refuse(&mut self, at: Position, written: &Written, halt: &Halt) {
        let (id, kind) = (shown(&written.id), shown(&written.kind));
        tracing::warn!(signal = %id, %kind, %at, hint = %halt.hint, "a signal is refused: {}", halt.message);
        self.metrics.signal(false);
        let last = RefusedSignal {
            id: id.into_owned(),
            r#type: kind.into_owned(),
            position: at.lsn,
            message: shown(&halt.message).into_owned(),
            hint: halt.hint.clone(),
        };
        self.reporter.update(|s| {
            let signals = s.signals.get_or_insert_default();
            signals.refused += 1;
            signals.last_refused = Some(last);
        });
    }

    /// Says, once for each reason, why no signals are read.
    pub(super) fn note_signal_table(&mut self, unfit: Option<&Halt>) {
        let why = unfit.map(|halt| format!("{} ({})", halt.message, halt.hint));
        if let Some(why) = why.as_ref().filter(|why| self.signals_unread.as_ref() != Some(why)) {
            tracing::warn!("{why}");
        }
        self.signals_unread.clone_from(&why);
        if self.config.source.signal_table.is_some() {
            self.reporter.update(|s| s.signals.get_or_insert_default().unread = why);
        }
    }
}

fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
