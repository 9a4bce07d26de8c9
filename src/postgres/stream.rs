//! The replication stream: bursts of frames in, status updates out.
//!
//! The server decodes a transaction into one small message per row, and pays the kernel for sending each of them as a segment of
//! its own. While our receive window is closed the same messages are appended to one queue and leave as few large segments. So
//! [`Stream::read`] takes everything there is in one burst and, while much is coming, naps before the next. It never naps when
//! little comes: latency does not pay for throughput. Measured with a backlog of 500 k rows on two busy cores: 209-281 k rows/s
//! instead of 178-200 k, and a third of our own CPU. A unix socket has no such queue, there a nap only stops the server (50 k).
//!
//! Status updates come from a task of their own ([`report`]): the server drops a client that says nothing for
//! `wal_sender_timeout`, and neither a full queue behind us nor a slow decode may look like that. The task owns the writing half,
//! so a write that blocks never stops reading.
//!
//! What holds:
//! - `confirmed` never goes back and never passes what was received, and `received` never passes what the server said it sent: the
//!   server believes every confirmation, even one beyond its log, and then skips what lies below for ever.
//! - Silence alone is not death (a server that decodes a large foreign transaction is silent): after one `sender_timeout` without a
//!   byte we ask for a reply, and only a question that stays unanswered ends the stream. A vanished host is seen by the kernel.
//! - What was read before an end is handed out before the end is reported. After it the stream stays ended.
//! - Every method that waits can be dropped and called again: nothing is lost.
//!
//! Deliberately not here: what frames mean, when something is safe to confirm, reconnecting.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::failure::{is_not_utf8, not_utf8};
use super::frame::{self, BUFFER_BYTES, Buffer, Frame, FrameError, MESSAGE_BYTES_MAX};
use super::socket::Socket;
use super::wire::Connection;
use crate::error::{Code, Error, Halt, Result};
use crate::lsn::Lsn;
use crate::session::ServerError;

/// A status is sent at least this often, however long `wal_sender_timeout` is (or when it is off): the server shows our lag by it.
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// And at most this often for a new confirmation alone: each costs the server a wake-up, and retained log is a matter of seconds.
const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(250);
/// Takes the place of a `wal_sender_timeout` that is off. Postgres' own default.
const SENDER_TIMEOUT_OFF: Duration = Duration::from_secs(60);
/// A server that is busy sending a large transaction reads our goodbye when its queue is full, or at half its own timeout.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(6);
/// While closing, the queue is drained slowly: a server that waits for it reads our goodbye, one that does not may go on sending.
const CLOSE_NAP: Duration = Duration::from_millis(10);

/// How to stream.
#[derive(Debug, Clone)]
pub struct Start {
    /// Further options of pgoutput, such as `origin` (Postgres 16).
    pub more: Vec<(String, String)>,
    /// The stream is dead after this many `sender_timeout`s without a byte, the last ones with an unanswered question. Raise it
    /// after such a death without progress: a server can be that slow with one transaction.
    pub silence_timeouts_max: u32,
}

impl Default for Start {
    fn default() -> Start {
        Start { more: Vec::new(), silence_timeouts_max: 3 }
    }
}

/// What the server is told.
#[derive(Debug, Clone, Copy, Default)]
struct Positions {
    received: Lsn,
    confirmed: Lsn,
    /// Counts of requests: a status at once, and one that asks for a reply.
    answers: u64,
    asks: u64,
    closing: bool,
}

/// The part of a stream that says how far we are; lives beside the reader, in another task if need be.
#[derive(Debug, Clone)]
pub struct Status {
    positions: watch::Sender<Positions>,
}

impl Status {
    /// Everything that ends at or before `lsn` is safe. The slot moves there within moments.
    ///
    /// # Panics
    /// When `lsn` lies before an earlier confirmation or beyond what was received: going on would lose changes.
    pub fn confirm(&self, lsn: Lsn) {
        self.positions.send_if_modified(|p| {
            assert!(lsn >= p.confirmed, "confirming {lsn} after {}", p.confirmed);
            assert!(lsn <= p.received, "confirming {lsn}, received only {}", p.received);
            std::mem::replace(&mut p.confirmed, lsn) != lsn
        });
    }

    /// Sends a status at once: for a keepalive that wants a reply.
    pub fn answer_keepalive(&self) {
        self.positions.send_modify(|p| p.answers += 1);
    }

    /// Sends a status that asks the server for a keepalive, which tells how far its log is.
    pub fn request_reply(&self) {
        self.positions.send_modify(|p| p.asks += 1);
    }

    pub fn confirmed(&self) -> Lsn {
        self.positions.borrow().confirmed
    }

    pub fn received(&self) -> Lsn {
        self.positions.borrow().received
    }

    fn receive(&self, lsn: Lsn) {
        // Nobody is woken: the next status says it.
        self.positions.send_if_modified(|p| {
            p.received = p.received.max(lsn);
            false
        });
    }
}

/// A running stream. [`Stream::read`], then [`Stream::next`] until it has no more, and again.
#[derive(Debug)]
pub struct Stream {
    read: ReadHalf<Socket>,
    buffer: Buffer,
    status: Status,
    /// `None` once its end was seen.
    reporter: Option<AbortOnDropHandle<io::Result<()>>>,
    /// The furthest place that the server named.
    seen: Lsn,
    window_bytes: usize,
    receive_nap: Duration,
    nap_until: Option<Instant>,
    recent_bytes: usize,
    recent_since: Instant,
    sender_timeout: Duration,
    silence_max: Duration,
    arrived_at: Instant,
    asked_at: Option<Instant>,
    end: Option<End>,
}

/// Why nothing more will come.
#[derive(Debug)]
enum End {
    Closed,
    Failed(io::Error),
    /// Reported already.
    Reported,
}

impl Stream {
    pub(super) fn new(connection: Connection, start: Lsn, options: &Start) -> Stream {
        let Connection { read, write, mut buffer, window_bytes, receive_nap, sender_timeout, .. } = connection;
        buffer.limit(MESSAGE_BYTES_MAX);
        let sender_timeout = if sender_timeout.is_zero() { SENDER_TIMEOUT_OFF } else { sender_timeout };
        let interval = (sender_timeout / 4).clamp(STATUS_INTERVAL_MIN, STATUS_INTERVAL_MAX);
        let (positions, receiver) = watch::channel(Positions { received: start, ..Positions::default() });
        Stream {
            read,
            buffer,
            status: Status { positions },
            reporter: Some(AbortOnDropHandle::new(tokio::spawn(report(write, receiver, interval)))),
            seen: start,
            window_bytes,
            receive_nap,
            nap_until: None,
            recent_bytes: 0,
            recent_since: Instant::now(),
            sender_timeout,
            silence_max: sender_timeout * options.silence_timeouts_max.max(2),
            arrived_at: Instant::now(),
            asked_at: None,
            end: None,
        }
    }

    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Everything up to `lsn` was taken over: the end of a commit, or a keepalive's place.
    ///
    /// # Panics
    /// When the server never named such a place.
    pub fn received(&mut self, lsn: Lsn) {
        assert!(lsn <= self.seen, "received {lsn}, the server sent only {}", self.seen);
        self.status.receive(lsn);
    }

    /// See [`Status::confirm`].
    pub fn confirm(&self, lsn: Lsn) {
        self.status.confirm(lsn);
    }

    /// See [`Status::answer_keepalive`].
    pub fn answer_keepalive(&self) {
        self.status.answer_keepalive();
    }

    /// See [`Status::request_reply`].
    pub fn request_reply(&self) {
        self.status.request_reply();
    }

    /// The next whole frame of what was read, where it lies; `None` until more is read.
    #[expect(clippy::should_implement_trait, reason = "a frame borrows the stream, which no Iterator can say")]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>> {
        let message = loop {
            let Some(message) = self.buffer.message()? else { return Ok(None) };
            match message.tag {
                b'd' => break message,
                b'N' => {
                    let notice = frame::server_error(self.buffer.body(&message));
                    tracing::debug!(%notice, "notice from the source");
                }
                // The server reloaded its configuration; our settings are pinned.
                b'S' => {}
                b'E' => {
                    self.end = Some(End::Reported);
                    return Err(refused_in_stream(frame::server_error(self.buffer.body(&message))));
                }
                // CopyDone, or CommandComplete from a server that shuts down.
                b'c' | b'C' | b'Z' => {
                    self.end = Some(End::Reported);
                    return Err(Error::retry_plain("streaming: the server ended the stream"));
                }
                other => return Err(FrameError::Unexpected(other).into()),
            }
        };
        let frame = Frame::read(self.buffer.body(&message))?;
        let named = match frame {
            Frame::XLogData { start, wal_end, .. } => start.max(wal_end),
            Frame::Keepalive { wal_end, .. } => wal_end,
        };
        self.seen = self.seen.max(named);
        Ok(Some(frame))
    }

    /// Waits for bytes and takes all there are, up to a buffer. Frames that were not taken out by [`Stream::next`] stay.
    pub async fn read(&mut self) -> Result<()> {
        if let Some(until) = self.nap_until {
            sleep_until(until).await;
            self.nap_until = None;
        }
        let bytes = self.burst().await?;
        self.arrived_at = Instant::now();
        self.asked_at = None;
        if self.is_much(bytes) {
            // The nap counts from here: work on this burst is part of it.
            self.nap_until = Some(self.arrived_at + self.receive_nap);
        }
        Ok(())
    }

    /// Is more than half a window per nap coming in? Bytes are added up over that time, because a reader that keeps pace gets the
    /// same flood in many small bursts, and would pay for each.
    fn is_much(&mut self, bytes: usize) -> bool {
        if self.window_bytes == 0 || self.receive_nap.is_zero() {
            return false;
        }
        if self.arrived_at - self.recent_since > self.receive_nap {
            (self.recent_bytes, self.recent_since) = (0, self.arrived_at);
        }
        self.recent_bytes += bytes;
        let much = self.recent_bytes > self.window_bytes / 2;
        if much {
            (self.recent_bytes, self.recent_since) = (0, self.arrived_at);
        }
        much
    }

    async fn burst(&mut self) -> Result<usize> {
        self.buffer.room();
        loop {
            let deadline = match self.asked_at {
                None => self.arrived_at + self.sender_timeout,
                Some(asked_at) => asked_at + (self.silence_max - self.sender_timeout),
            };
            tokio::select! {
                biased;
                outcome = poll_fn(|cx| self.poll_burst(cx)) => return outcome,
                () = sleep_until(deadline) => {}
            }
            if self.asked_at.is_some() {
                let doing =
                    format!("streaming: nothing from the server for {:?}, not even an answer", self.silence_max);
                return Err(Error::retry_plain(doing));
            }
            self.status.request_reply();
            self.asked_at = Some(Instant::now());
        }
    }

    fn poll_burst(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if let Some(end) = &mut self.end {
            return Poll::Ready(Err(match std::mem::replace(end, End::Reported) {
                End::Closed => Error::retry_plain("streaming: the server closed the connection"),
                End::Failed(error) => Error::retry("streaming", error),
                End::Reported => Error::retry_plain("streaming: the stream has ended"),
            }));
        }
        let mut total = 0;
        while total < BUFFER_BYTES && self.end.is_none() {
            let rest = self.buffer.rest();
            let room = rest.len().min(BUFFER_BYTES - total);
            if room == 0 {
                break;
            }
            let mut space = ReadBuf::new(&mut rest[..room]);
            match Pin::new(&mut self.read).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) => {
                    let bytes = space.filled().len();
                    self.buffer.filled(bytes);
                    total += bytes;
                    if bytes == 0 {
                        self.end = Some(End::Closed);
                    }
                }
                Poll::Ready(Err(error)) => self.end = Some(End::Failed(error)),
                Poll::Pending => break,
            }
        }
        match (total, &self.end) {
            (0, None) => self.poll_reporter(cx),
            // Comes round at once, to report it.
            (0, Some(_)) => self.poll_burst(cx),
            (total, _) => Poll::Ready(Ok(total)),
        }
    }

    /// Nothing to read: has the writing half failed?
    fn poll_reporter(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        let Some(reporter) = &mut self.reporter else { return Poll::Pending };
        let Poll::Ready(outcome) = Pin::new(reporter).poll(cx) else { return Poll::Pending };
        self.reporter = None;
        self.end = Some(End::Reported);
        Poll::Ready(Err(match outcome {
            Ok(Err(error)) => Error::retry("sending a status to the source", error),
            Err(error) => Error::retry("sending a status to the source", error),
            Ok(Ok(())) => Error::retry_plain("streaming: the stream is closing"),
        }))
    }

    /// Ends the stream in order: the server has our last confirmation when this returns `Ok`.
    ///
    /// Terminate without CopyDone before it: a server in the middle of a large transaction takes CopyDone as "no more from you" and
    /// goes on sending to the end, but it leaves at Terminate. The rest is drained, because closing a socket that holds unread
    /// bytes resets the connection, and a reset can overtake the status.
    pub async fn close(mut self) -> Result<()> {
        let Some(reporter) = self.reporter.take() else {
            return Err(Error::retry_plain("closing the stream: it had ended"));
        };
        self.status.positions.send_modify(|p| p.closing = true);
        let read = &mut self.read;
        let drain = async {
            let mut sink = vec![0; BUFFER_BYTES];
            while read.read(&mut sink).await.is_ok_and(|bytes| bytes > 0) {
                sleep(CLOSE_NAP).await;
            }
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, async { tokio::join!(reporter, drain) }).await {
            Ok((Ok(Ok(())), ())) => Ok(()),
            Ok((Ok(Err(error)), ())) => Err(Error::retry("closing the stream", error)),
            Ok((Err(error), ())) => Err(Error::retry("closing the stream", error)),
            Err(_) => Err(Error::retry_plain(format!("closing the stream: no end after {CLOSE_TIMEOUT:?}"))),
        }
    }
}

/// Sends a status every `interval`, at once when one is asked for, and soon after a confirmation. Ends after the goodbye, with the
/// connection, or with the stream that owns it.
async fn report(
    mut write: WriteHalf<Socket>,
    mut positions: watch::Receiver<Positions>,
    interval: Duration,
) -> io::Result<()> {
    let mut sent = Positions::default();
    let mut sent_at: Option<Instant> = None;
    loop {
        let now = *positions.borrow_and_update();
        let wait = if now.confirmed == sent.confirmed { interval } else { STATUS_INTERVAL_MIN };
        let asked = now.closing || now.answers != sent.answers || now.asks != sent.asks;
        let due = sent_at.map(|at| at + wait).filter(|due| !asked && *due > Instant::now());
        if let Some(due) = due {
            tokio::select! {
                changed = positions.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(due) => {}
            }
            continue;
        }
        let reply = now.asks != sent.asks;
        write.write_all(&frame::status_update(now.received, now.confirmed, unix_time_us(), reply)).await?;
        if now.closing {
            let mut goodbye = bytes::BytesMut::new();
            frontend::terminate(&mut goodbye);
            write.write_all(&goodbye).await?;
            return write.shutdown().await;
        }
        write.flush().await?;
        (sent, sent_at) = (now, Some(Instant::now()));
    }
}

fn unix_time_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// `START_REPLICATION` was refused.
pub(super) fn start_refused(refusal: ServerError, slot: &str) -> Error {
    match refusal.code.as_str() {
        "55006" => {
            let pid = pid_in(&refusal.message, slot).map_or("NULL".into(), |pid| pid.to_string());
            refusal.halt(
                Code::SlotInUse,
                format!("slot {slot:?} is being read by another process, pid {pid} of the source"),
                format!(
                    "SELECT pid, application_name, client_addr, backend_start FROM pg_stat_activity WHERE pid = {pid}"
                ),
            )
        }
        "42704" => refusal.halt(
            Code::SlotLost,
            format!("slot {slot:?} does not exist: changes since its last position can't be read again"),
            "lockstep restart",
        ),
        // Also says that wal_level is too low or that the slot is another database's; the checks before a start name those.
        "55000" => refusal.halt(
            Code::SlotLost,
            format!("slot {slot:?} can't be read from any more: {refusal}"),
            format!("SELECT * FROM pg_replication_slots WHERE slot_name = '{slot}'"),
        ),
        "0A000" => refusal.halt(
            Code::SlotForeign,
            format!("slot {slot:?} is not a logical slot for us: {refusal}"),
            format!("SELECT * FROM pg_replication_slots WHERE slot_name = '{slot}'"),
        ),
        _ => refusal.judge(&format!("starting to stream from slot {slot:?}")),
    }
}

/// The running stream was refused. What became of the slot is said by the next start; of the names in a stream only the
/// publication's can be missing.
fn refused_in_stream(refusal: ServerError) -> Error {
    match refusal.code.as_str() {
        "42704" => refusal.halt(
            Code::PublicationChanged,
            format!(
                "the source can't decode: {refusal}; a publication made after the slot, or dropped, is missing for it"
            ),
            "SELECT pubname FROM pg_publication",
        ),
        state if is_not_utf8(state) => not_utf8("streaming", state),
        state if state.starts_with(INTERNAL) => undecodable(refusal),
        _ => refusal.judge("streaming"),
    }
}

/// The class of internal errors: a damaged file, a broken invariant of the server.
const INTERNAL: &str = "XX";

/// The server fails at its own log: that may have been the moment's trouble, or meet every reader of this slot.
fn undecodable(refusal: ServerError) -> Error {
    let facts = [&refusal.detail, &refusal.hint].into_iter().flatten().cloned().collect();
    let message = format!("the source can't decode its own log: {refusal}; no sink was touched");
    let stays = Halt { code: Code::SourceUndecodable, message, facts, hint: "lockstep restart".to_owned() };
    refusal.judge("streaming").if_it_stays(stays)
}

/// The process that holds the slot: the last number in the message, which may be translated, beside the slot's own name.
fn pid_in(message: &str, slot: &str) -> Option<u32> {
    let without_name = message.replace(slot, "");
    let numbers = without_name.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|digits| digits.parse().ok()).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: &str, message: &str) -> ServerError {
        ServerError { code: code.into(), message: message.into(), ..ServerError::default() }
    }

    #[test]
    fn refusals_of_a_start_are_named() {
        let error = start_refused(refusal("55006", "replication slot \"shop_7\" is active for PID 4711"), "shop_7");
        assert_eq!(error.code(), Some(Code::SlotInUse));
        assert!(error.to_string().contains("pid 4711"), "{error}");
        for (state, code) in [
            ("42704", Some(Code::SlotLost)),
            ("55000", Some(Code::SlotLost)),
            ("0A000", Some(Code::SlotForeign)),
            ("57P03", None),
        ] {
            assert_eq!(start_refused(refusal(state, "x"), "s").code(), code, "{state}");
        }
        assert_eq!(refused_in_stream(refusal("42704", "x")).code(), Some(Code::PublicationChanged));
        assert_eq!(refused_in_stream(refusal("57P01", "x")).code(), None);
        assert_eq!(refused_in_stream(refusal("55000", "x")).code(), None);
        let Error::Retry(retry) = refused_in_stream(refusal("XX001", "x")) else { panic!("it may heal") };
        assert_eq!(retry.if_it_stays.map(|halt| halt.code), Some(Code::SourceUndecodable));
    }

    fn status(received: u64) -> Status {
        Status { positions: watch::channel(Positions { received: Lsn(received), ..Positions::default() }).0 }
    }

    #[test]
    fn confirmations_move_forward_within_what_was_received() {
        let status = status(5);
        status.confirm(Lsn(3));
        status.confirm(Lsn(3));
        status.confirm(Lsn(5));
        status.receive(Lsn(4));
        assert_eq!((status.received(), status.confirmed()), (Lsn(5), Lsn(5)));
    }

    #[test]
    #[should_panic(expected = "confirming 0/2 after 0/3")]
    fn a_confirmation_never_goes_back() {
        let status = status(5);
        status.confirm(Lsn(3));
        status.confirm(Lsn(2));
    }

    #[test]
    #[should_panic(expected = "confirming 0/6, received only 0/5")]
    fn a_confirmation_never_passes_what_was_received() {
        status(5).confirm(Lsn(6));
    }
}
