//! The replication connection: startup, authentication and the simple commands that come before a stream.
//!
//! tokio-postgres has no replication mode, and a client of our own is the product's core: it sets the receive window, pins the
//! session's settings, and hands out frames where they lie ([`super::stream`]). Passwords and SCRAM come from postgres-protocol.
//!
//! What holds:
//! - Commands go one at a time: a reply is read to its end before the next is sent. A call that was dropped in the middle leaves
//!   the connection marked, and the next call fails instead of reading someone else's reply.
//! - SCRAM is finished before the server's "you are in" is believed: a server that does not know the password can't say it.
//! - A password travels in plain text only where nobody is in between.
//!
//! Deliberately not here: which slot, where to start, what to do about a refusal. That is [`super::stream`]'s caller.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::frame::{self, Buffer, COMMAND_BYTES_MAX, FrameError, Message};
use super::socket::Socket;
use super::stream::{Start, Stream};
use crate::config::{Database, Source};
use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;
use crate::relation::quote_identifier;
use crate::session::failure::{self, ServerError};
use crate::session::{self, settings};

/// Rows of a simple command: text or NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// Who the source is, by `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_id: u64,
    pub timeline: u32,
    /// The end of the flushed log.
    pub wal_end: Lsn,
    pub dbname: String,
}

/// A replication connection that does not stream yet.
#[derive(Debug)]
pub struct Connection {
    pub(super) read: ReadHalf<Socket>,
    pub(super) write: WriteHalf<Socket>,
    pub(super) buffer: Buffer,
    /// Bytes of the receive window that reading in bursts plays with; 0 where there is none.
    pub(super) window_bytes: usize,
    pub(super) receive_nap: Duration,
    pub(super) sender_timeout: Duration,
    db: Database,
    /// A reply was not read to its end.
    mid_reply: bool,
    channel_bound: bool,
}

impl Connection {
    /// Connects in replication mode, authenticates and asserts the pinned settings, all within the source's connect timeout.
    pub async fn open(source: &Source, application_name: &str) -> Result<Connection> {
        let db = &source.database;
        match tokio::time::timeout(db.connect_timeout, Connection::enter(source, application_name)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let doing = format!("connecting to {}: no session after {:?}", session::place(db), db.connect_timeout);
                Err(Error::retry_plain(doing))
            }
        }
    }

    async fn enter(source: &Source, application_name: &str) -> Result<Connection> {
        let db = &source.database;
        let socket = Socket::connect(db, source.receive_bytes).await?;
        let window_bytes = if socket.has_window() { source.receive_bytes } else { 0 };
        let (end_point, is_private) = (socket.end_point(), socket.is_private());
        let (read, write) = tokio::io::split(socket);
        let mut connection = Connection {
            read,
            write,
            buffer: Buffer::new(COMMAND_BYTES_MAX),
            window_bytes,
            receive_nap: source.receive_nap,
            sender_timeout: source.sender_timeout,
            db: db.clone(),
            mid_reply: true,
            channel_bound: false,
        };
        connection.start_up(application_name).await?;
        connection.authenticate(end_point, is_private).await?;
        connection.until_ready("entering").await?.map_err(|refusal| connection.refused(refusal))?;
        connection.assert_settings().await?;
        Ok(connection)
    }

    async fn start_up(&mut self, application_name: &str) -> Result<()> {
        let timeout_ms = self.sender_timeout.as_millis().to_string();
        let options = settings::startup_options(&[("wal_sender_timeout", &timeout_ms)]);
        let parameters = [
            ("user", self.db.user.as_str()),
            ("database", &self.db.dbname),
            ("replication", "database"),
            ("application_name", application_name),
            ("options", &options),
        ];
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message).map_err(|e| self.broken(e))?;
        self.send(&message).await
    }

    /// Answers the server's requests until it says that we are in.
    async fn authenticate(&mut self, end_point: Option<Vec<u8>>, is_private: bool) -> Result<()> {
        let (kind, rest) = self.authentication_request().await?;
        match kind {
            OK => return Ok(()),
            CLEARTEXT if is_private => self.send_password(|password, _| password.into()).await?,
            CLEARTEXT => {
                let what = "the server wants the password in plain text over a network";
                return Err(failure::not_authenticated(&self.db, what));
            }
            MD5 => {
                let salt: [u8; 4] = rest.as_slice().try_into().map_err(|_| FrameError::CutOff(b'R'))?;
                self.send_password(|password, user| md5_hash(user.as_bytes(), password, salt).into_bytes()).await?;
            }
            SASL => self.exchange_scram(&rest, end_point).await?,
            other => {
                let what = format!(
                    "the server wants authentication method {other} (GSS, SSPI or newer), which is not supported"
                );
                return Err(failure::not_authenticated(&self.db, &what));
            }
        }
        match self.authentication_request().await? {
            (OK, _) => Ok(()),
            _ => Err(failure::not_authenticated(&self.db, "the server asks again after an answer")),
        }
    }

    async fn send_password(&mut self, answer: impl FnOnce(&[u8], &str) -> Vec<u8>) -> Result<()> {
        let password = self.password()?;
        let mut message = BytesMut::new();
        frontend::password_message(&answer(&password, &self.db.user), &mut message).map_err(|e| self.broken(e))?;
        self.send(&message).await
    }

    fn password(&self) -> Result<Vec<u8>> {
        let password = self.db.password.as_ref().ok_or_else(|| failure::password_missing(&self.db))?;
        Ok(password.expose_secret().as_bytes().to_vec())
    }

    async fn exchange_scram(&mut self, mechanisms: &[u8], end_point: Option<Vec<u8>>) -> Result<()> {
        let offered = |name: &str| mechanisms.split(|&b| b == 0).any(|m| m == name.as_bytes());
        let (mechanism, binding) = match end_point {
            Some(digest) if offered(SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(digest))
            }
            // "We could have": the server aborts if it did offer it and someone in between removed the offer.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offered(mechanism) {
            return Err(failure::not_authenticated(&self.db, "the server speaks SASL but not SCRAM-SHA-256"));
        }
        let mut scram = ScramSha256::new(&self.password()?, binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut message).map_err(|e| self.broken(e))?;
        self.send(&message).await?;
        let challenge = self.scram_reply(SASL_CONTINUE).await?;
        scram.update(&challenge).map_err(|e| failure::not_authenticated(&self.db, &e.to_string()))?;
        message.clear();
        frontend::sasl_response(scram.message(), &mut message).map_err(|e| self.broken(e))?;
        self.send(&message).await?;
        let proof = self.scram_reply(SASL_FINAL).await?;
        scram.finish(&proof).map_err(|e| failure::not_authenticated(&self.db, &e.to_string()))?;
        self.channel_bound = mechanism == SCRAM_SHA_256_PLUS;
        Ok(())
    }

    /// The password exchange was bound to this TLS connection: nobody in between can have relayed it.
    pub fn is_channel_bound(&self) -> bool {
        self.channel_bound
    }

    async fn scram_reply(&mut self, wanted: u32) -> Result<Vec<u8>> {
        let (kind, body) = self.authentication_request().await?;
        if kind != wanted {
            return Err(failure::not_authenticated(&self.db, "the server left the SCRAM exchange"));
        }
        Ok(body)
    }

    /// The next authentication request: its kind and what follows.
    async fn authentication_request(&mut self) -> Result<(u32, Vec<u8>)> {
        let message = self.message("authenticating").await?;
        let body = self.buffer.body(&message);
        match message.tag {
            b'R' => {
                let (kind, rest) = body.split_first_chunk::<4>().ok_or(FrameError::CutOff(b'R'))?;
                Ok((u32::from_be_bytes(*kind), rest.to_vec()))
            }
            b'E' => Err(self.refused(frame::server_error(body))),
            other => Err(FrameError::Unexpected(other).into()),
        }
    }

    async fn assert_settings(&mut self) -> Result<()> {
        let rows = self.simple(&settings::assertion()).await?;
        let values: Vec<Option<&str>> = rows.first().into_iter().flatten().map(Option::as_deref).collect();
        settings::check(&values)
    }

    /// Runs one command to its end: a replication command or SQL. Rows of several result sets come one after the other. Has no
    /// time limit of its own: making a slot waits for every running transaction.
    pub async fn simple(&mut self, command: &str) -> Result<Rows> {
        let refused = |refusal: ServerError| refusal.judge(&format!("running {}", first_words(command)));
        self.try_simple(command).await?.map_err(refused)
    }

    /// Like [`Connection::simple`], with the server's refusal kept apart for who knows more about the command.
    pub async fn try_simple(&mut self, command: &str) -> Result<Result<Rows, ServerError>> {
        self.begin(command).await?;
        self.until_ready(command).await
    }

    async fn begin(&mut self, command: &str) -> Result<()> {
        if self.mid_reply {
            return Err(Error::retry_plain("an earlier command on the replication connection was abandoned"));
        }
        let mut message = BytesMut::new();
        frontend::query(command, &mut message).map_err(|e| self.broken(e))?;
        self.mid_reply = true;
        self.send(&message).await
    }

    /// Reads replies until the server is ready for the next command.
    async fn until_ready(&mut self, doing: &str) -> Result<Result<Rows, ServerError>> {
        let mut outcome = Ok(Vec::new());
        loop {
            let message = match self.message(doing).await {
                Ok(message) => message,
                // A fatal refusal ends the connection: the refusal says more than the end does.
                Err(Error::Retry(_)) if outcome.is_err() => return Ok(outcome),
                Err(error) => return Err(error),
            };
            let body = self.buffer.body(&message);
            match message.tag {
                b'Z' => {
                    self.mid_reply = false;
                    return Ok(outcome);
                }
                b'D' => {
                    let row = data_row(body).ok_or(FrameError::CutOff(b'D'))?;
                    if let Ok(rows) = &mut outcome {
                        rows.push(row);
                    }
                }
                b'E' => outcome = Err(frame::server_error(body)),
                // Parameters, the key for cancelling, descriptions, ends of commands.
                b'S' | b'K' | b'T' | b'C' | b'I' => {}
                other => return Err(FrameError::Unexpected(other).into()),
            }
        }
    }

    /// Who this server is. Checked at every connection: another server under the same name has other history.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let rows = self.within_timeout("IDENTIFY_SYSTEM").await?;
        let identity = rows.first().and_then(|row| match row.as_slice() {
            [Some(system_id), Some(timeline), Some(wal_end), Some(dbname), ..] => Some(SystemIdentity {
                system_id: system_id.parse().ok()?,
                timeline: timeline.parse().ok()?,
                wal_end: wal_end.parse().ok()?,
                dbname: dbname.clone(),
            }),
            _ => None,
        });
        identity.ok_or_else(|| unreadable("IDENTIFY_SYSTEM", &rows))
    }

    /// The content of a timeline's history file. Timeline 1 has none: asking for it is an error of the server.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<String> {
        let command = format!("TIMELINE_HISTORY {timeline}");
        let rows = self.within_timeout(&command).await?;
        match rows.first().map(Vec::as_slice) {
            Some([Some(_file), Some(content), ..]) => Ok(content.clone()),
            _ => Err(unreadable(&command, &rows)),
        }
    }

    /// For commands that a live server answers at once.
    async fn within_timeout(&mut self, command: &str) -> Result<Rows> {
        let limit = self.db.connect_timeout;
        match tokio::time::timeout(limit, self.simple(command)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::retry_plain(format!("running {command}: no answer after {limit:?}"))),
        }
    }

    /// Starts streaming from a slot with pgoutput, protocol 1, logical messages included. The server starts at the later of
    /// `start` and what the slot has confirmed.
    pub async fn start_replication(self, slot: &str, publication: &str, start: Lsn, options: &Start) -> Result<Stream> {
        let mut connection = self;
        let command = start_command(slot, publication, start, options);
        connection.begin(&command).await?;
        let message = connection.message("starting to stream").await?;
        match message.tag {
            // CopyBothResponse
            b'W' => Ok(Stream::new(connection, start, options)),
            b'E' => {
                let refusal = frame::server_error(connection.buffer.body(&message));
                Err(super::stream::start_refused(refusal, slot))
            }
            other => Err(FrameError::Unexpected(other).into()),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let outcome = match self.write.write_all(bytes).await {
            Ok(()) => self.write.flush().await,
            failed => failed,
        };
        outcome.map_err(|e| self.broken(e))
    }

    /// The next message that is meant for us: notices are logged and passed over.
    async fn message(&mut self, doing: &str) -> Result<Message> {
        loop {
            match self.buffer.message()? {
                Some(message) if message.tag == b'N' => {
                    let notice = frame::server_error(self.buffer.body(&message));
                    tracing::debug!(%notice, "notice from the source");
                }
                Some(message) => return Ok(message),
                None => {
                    let bytes = self.read.read(self.buffer.room()).await.map_err(|e| self.broken(e))?;
                    if bytes == 0 {
                        let doing = format!("{}: the server closed the connection", first_words(doing));
                        return Err(Error::retry_plain(doing));
                    }
                    self.buffer.filled(bytes);
                }
            }
        }
    }

    fn broken(&self, error: std::io::Error) -> Error {
        Error::retry(format!("talking to {}", session::place(&self.db)), error)
    }

    fn refused(&self, refusal: ServerError) -> Error {
        let doing = format!("connecting to {} for replication", session::place(&self.db));
        let error = failure::refused(refusal, &doing, &self.db);
        match error {
            Error::Halt(mut halt) if halt.code == Code::NoRight => {
                let (dbname, user) = (quote_identifier(&self.db.dbname), quote_identifier(&self.db.user));
                halt.hint =
                    format!("ALTER ROLE {user} LOGIN REPLICATION; GRANT CONNECT ON DATABASE {dbname} TO {user}");
                Error::Halt(halt)
            }
            error => error,
        }
    }
}

/// Authentication requests, by number (Postgres' manual, "Message Formats").
const OK: u32 = 0;
const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// `START_REPLICATION` has a grammar of its own: in its literals only the quote is doubled, a backslash is a backslash.
fn start_command(slot: &str, publication: &str, start: Lsn, options: &Start) -> String {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let own = [("proto_version", "1"), ("publication_names", &quote_identifier(publication)), ("messages", "true")];
    let more = options.more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let all: Vec<String> = own
        .into_iter()
        .chain(more)
        .map(|(name, value)| format!("{} {}", quote_identifier(name), literal(value)))
        .collect();
    format!("START_REPLICATION SLOT {} LOGICAL {start} ({})", quote_identifier(slot), all.join(", "))
}

fn data_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len);
        if len == u32::MAX {
            (rest, _) = (after, row.push(None));
            continue;
        }
        let (value, after) = after.split_at_checked(len as usize)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    Some(row)
}

/// A command without its values: enough for a message, and no literal gets into a log.
fn first_words(command: &str) -> String {
    command.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn unreadable(command: &str, rows: &Rows) -> Error {
    Error::halt(
        Code::SourceProtocol,
        format!("the answer to {command} can't be read: {rows:?}"),
        format!("psql 'URL replication=database' -c '{command}'"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_enter_the_command_quoted() {
        let options = Start { more: vec![("origin".into(), "no'ne".into())], ..Start::default() };
        assert_eq!(
            start_command("lockstep_shop", "o'p\"q\\", Lsn(0x1_0000_0010), &options),
            "START_REPLICATION SLOT \"lockstep_shop\" LOGICAL 1/10 (\"proto_version\" '1', \
             \"publication_names\" '\"o''p\"\"q\\\"', \"messages\" 'true', \"origin\" 'no''ne')"
        );
    }

    #[test]
    fn rows_are_read_or_refused_whole() {
        let body = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(data_row(body), Some(vec![Some("ab".into()), None, Some(String::new())]));
        for len in 0..body.len() {
            assert_eq!(data_row(&body[..len]), None);
        }
    }
}
