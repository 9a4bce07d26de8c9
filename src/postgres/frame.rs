//! The server's messages as they lie in a buffer, and what of a replication stream is inside them. Pure.
//!
//! [`Buffer`] holds what was read and not yet handed out. Messages are handed out where they lie; only the cut-off rest of a burst
//! is moved to the front, so a row is never copied before its values are written somewhere. All lengths come from the wire and
//! are checked: any bytes give messages or a [`FrameError`], and a buffer grows only after bytes that fill it have arrived, never
//! because a length promises them.
//!
//! Deliberately not here: sockets, and what a row means ([`super::pgoutput`]).
//!
//! Source for the layout: Postgres' manual, "Message Formats" and "Streaming Replication Protocol".

use std::ops::Range;

use super::pgoutput::unix_us;
use crate::error::{Code, Error};
use crate::lsn::Lsn;
use crate::session::ServerError;

/// Type, length.
const HEADER_BYTES: usize = 1 + 4;
/// Postgres can't build a message above 1 GiB (`MaxAllocSize`); a few bytes of header come on top.
pub const MESSAGE_BYTES_MAX: usize = (1 << 30) + 1024;
/// Before a stream begins, messages are small: an authentication request, a parameter, a row of `IDENTIFY_SYSTEM`. The largest
/// is a timeline history: a line of some 50 bytes per fail-over.
pub const COMMAND_BYTES_MAX: usize = 16 << 20;

/// Bytes of a buffer without a large message: as much as one burst hands to the next room at once.
pub const BUFFER_BYTES: usize = 1 << 20;
/// After this many bursts that needed no more than [`BUFFER_BYTES`], a grown buffer shrinks. Large rows seldom come alone, and
/// growing again copies; 64 bursts under load are some 100 ms.
const SHRINK_AFTER_BURSTS: u32 = 64;

/// Why bytes are not messages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a message of {0} bytes is below what a message has or above what is taken here")]
    Length(usize),
    #[error("a message of type {:?} has no place here", char::from(*.0))]
    Unexpected(u8),
    #[error("a message of type {:?} is cut off", char::from(*.0))]
    CutOff(u8),
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Error {
        Error::halt(
            Code::SourceProtocol,
            format!("what the source sends is not Postgres' protocol: {error}"),
            "psql 'URL replication=database' -c IDENTIFY_SYSTEM -- directly, with no pooler in between",
        )
    }
}

/// One frame of a replication stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    XLogData {
        /// 0/0 for messages without a place of their own (relations, types). Never a position: see [`crate::lsn`].
        start: Lsn,
        wal_end: Lsn,
        /// Microseconds since 1970, by the server's clock.
        sent_at_us: i64,
        data: &'a [u8],
    },
    Keepalive {
        /// Everything that ends at or before here and is ours to see was sent.
        wal_end: Lsn,
        /// The server wants a status at once.
        reply: bool,
    },
}

impl<'a> Frame<'a> {
    /// Reads the content of a CopyData message.
    pub fn read(body: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let (&kind, rest) = body.split_first().ok_or(FrameError::CutOff(b'd'))?;
        let cut_off = FrameError::CutOff(kind);
        match kind {
            b'w' => {
                let Some((head, data)) = rest.split_first_chunk::<24>() else { return Err(cut_off) };
                let field = |i: usize| u64::from_be_bytes(head[i * 8..][..8].try_into().expect("8 of 24 bytes"));
                let sent_at_us = unix_us(field(2).cast_signed());
                Ok(Frame::XLogData { start: Lsn(field(0)), wal_end: Lsn(field(1)), sent_at_us, data })
            }
            b'k' => {
                let body: &[u8; 17] = rest.try_into().map_err(|_| cut_off)?;
                let wal_end = u64::from_be_bytes(body[..8].try_into().expect("8 of 17 bytes"));
                Ok(Frame::Keepalive { wal_end: Lsn(wal_end), reply: body[16] != 0 })
            }
            other => Err(FrameError::Unexpected(other)),
        }
    }
}

/// What was read and not yet handed out.
#[derive(Debug)]
pub struct Buffer {
    /// All initialized, so that a read needs no `unsafe`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    message_bytes_max: usize,
    small_bursts: u32,
}

/// A message in the buffer, until the next [`Buffer::room`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Range<usize>,
}

impl Buffer {
    pub fn new(message_bytes_max: usize) -> Buffer {
        Buffer { bytes: vec![0; BUFFER_BYTES], start: 0, end: 0, message_bytes_max, small_bursts: 0 }
    }

    pub fn limit(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// The next whole message, or `None` until more is read.
    pub fn message(&mut self) -> Result<Option<Message>, FrameError> {
        let Some(header) = self.bytes[self.start..self.end].first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let total = self.total(header)?;
        if self.end - self.start < total {
            return Ok(None);
        }
        let message = Message { tag: header[0], body: self.start + HEADER_BYTES..self.start + total };
        self.start += total;
        Ok(Some(message))
    }

    fn total(&self, header: &[u8; HEADER_BYTES]) -> Result<usize, FrameError> {
        let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        // The length counts itself, not the type.
        if len < size_of::<u32>() || len > self.message_bytes_max {
            return Err(FrameError::Length(len));
        }
        Ok(len + 1)
    }

    /// The bytes of a message that was just handed out.
    pub fn body(&self, message: &Message) -> &[u8] {
        &self.bytes[message.body.clone()]
    }

    /// Ends the life of all messages handed out and makes room for the next read; never empty.
    pub fn room(&mut self) -> &mut [u8] {
        let left = self.end - self.start;
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, left);
        }
        if left > BUFFER_BYTES / 2 {
            self.small_bursts = 0;
        } else if self.bytes.len() > BUFFER_BYTES {
            self.small_bursts += 1;
            if self.small_bursts >= SHRINK_AFTER_BURSTS {
                self.bytes.truncate(BUFFER_BYTES);
                self.bytes.shrink_to_fit();
                self.small_bursts = 0;
            }
        }
        if left == self.bytes.len() {
            // A whole buffer of one cut-off message. Doubling keeps the cost linear and follows what really arrived.
            self.bytes.resize((left * 2).min(self.message_bytes_max + 1), 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Says how much of [`Buffer::room`] was read.
    pub fn filled(&mut self, bytes: usize) {
        self.end += bytes;
        assert!(self.end <= self.bytes.len(), "no more can be read than there was room");
    }

    /// Room for the rest of a burst, without moving anything; may be empty.
    pub fn rest(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

/// The fields of an ErrorResponse or NoticeResponse; what is missing or cut off stays empty.
pub fn server_error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    let mut rest = body;
    while let Some((&field, after)) = rest.split_first() {
        let Some(end) = memchr::memchr(0, after) else { break };
        let text = || String::from_utf8_lossy(&after[..end]).into_owned();
        match field {
            b'C' => error.code = text(),
            b'M' => error.message = text(),
            b'D' => error.detail = Some(text()),
            b'H' => error.hint = Some(text()),
            _ => {}
        }
        rest = &after[end + 1..];
    }
    error
}

/// A status update as CopyData: everything up to `received` was read, up to `confirmed` is safe. Apply is flush: nothing here
/// applies. `now_us` counts from 1970.
pub fn status_update(received: Lsn, confirmed: Lsn, now_us: i64, reply: bool) -> [u8; 39] {
    let mut out = [0; 39];
    out[0] = b'd';
    out[1..5].copy_from_slice(&38u32.to_be_bytes());
    out[5] = b'r';
    out[6..14].copy_from_slice(&received.0.to_be_bytes());
    out[14..22].copy_from_slice(&confirmed.0.to_be_bytes());
    out[22..30].copy_from_slice(&confirmed.0.to_be_bytes());
    out[30..38].copy_from_slice(&super::pgoutput::postgres_us(now_us).to_be_bytes());
    out[38] = u8::from(reply);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        out.extend(body);
        out
    }

    /// Reads `sent` in pieces, handing out what is whole after each.
    fn read_in_pieces(sent: &[u8], mut piece: impl FnMut() -> usize) -> Vec<(u8, Vec<u8>)> {
        let mut buffer = Buffer::new(MESSAGE_BYTES_MAX);
        let (mut got, mut at) = (Vec::new(), 0);
        while at < sent.len() {
            let room = buffer.room();
            let len = room.len().min(sent.len() - at).min(piece().max(1));
            room[..len].copy_from_slice(&sent[at..at + len]);
            buffer.filled(len);
            at += len;
            while let Some(message) = buffer.message().unwrap() {
                got.push((message.tag, buffer.body(&message).to_vec()));
            }
        }
        got
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_are_cut(
            bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            pieces in prop::collection::vec(1usize..200, 1..50),
        ) {
            let sent: Vec<u8> = bodies.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
            let mut pieces = pieces.iter().cycle();
            prop_assert_eq!(read_in_pieces(&sent, || *pieces.next().unwrap()), bodies);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::read(&bytes);
            let _ = server_error(&bytes);
            let mut buffer = Buffer::new(MESSAGE_BYTES_MAX);
            buffer.room()[..bytes.len()].copy_from_slice(&bytes);
            buffer.filled(bytes.len());
            while let Ok(Some(message)) = buffer.message() {
                let _ = Frame::read(buffer.body(&message));
            }
        }
    }

    #[test]
    fn a_large_message_grows_the_buffer_and_small_ones_shrink_it_again() {
        let large = vec![7; 3 * BUFFER_BYTES];
        let mut buffer = Buffer::new(MESSAGE_BYTES_MAX);
        let sent = message(b'd', &large);
        let mut at = 0;
        while at < sent.len() {
            let room = buffer.room();
            let len = room.len().min(sent.len() - at);
            room[..len].copy_from_slice(&sent[at..at + len]);
            buffer.filled(len);
            at += len;
        }
        let whole = buffer.message().unwrap().unwrap();
        assert!(buffer.body(&whole) == large);
        assert!(buffer.capacity() > BUFFER_BYTES);
        for _ in 0..=SHRINK_AFTER_BURSTS {
            let small = message(b'd', b"x");
            buffer.room()[..small.len()].copy_from_slice(&small);
            buffer.filled(small.len());
            assert_eq!(buffer.message().unwrap().unwrap().tag, b'd');
        }
        assert_eq!(buffer.capacity(), BUFFER_BYTES);
    }

    #[test]
    fn a_promised_length_reserves_nothing() {
        let mut buffer = Buffer::new(MESSAGE_BYTES_MAX);
        buffer.room()[..6].copy_from_slice(b"d\x40\0\0\0x");
        buffer.filled(6);
        assert_eq!(buffer.message(), Ok(None));
        buffer.room();
        assert_eq!(buffer.capacity(), BUFFER_BYTES);
        for (length, found) in [(b"d\x7f\xff\xff\xff", 0x7fff_ffff), (b"d\0\0\0\x03", 3)] {
            let mut buffer = Buffer::new(MESSAGE_BYTES_MAX);
            buffer.room()[..5].copy_from_slice(length);
            buffer.filled(5);
            assert_eq!(buffer.message(), Err(FrameError::Length(found)));
        }
    }

    #[test]
    fn frames_are_read_in_place() {
        let mut body = b"w".to_vec();
        body.extend(1u64.to_be_bytes());
        body.extend(2u64.to_be_bytes());
        body.extend(0i64.to_be_bytes());
        body.extend(b"row");
        let wanted = Frame::XLogData { start: Lsn(1), wal_end: Lsn(2), sent_at_us: 946_684_800_000_000, data: b"row" };
        assert_eq!(Frame::read(&body), Ok(wanted));
        assert_eq!(Frame::read(&body[..24]), Err(FrameError::CutOff(b'w')));
        assert_eq!(Frame::read(b"x"), Err(FrameError::Unexpected(b'x')));
        assert_eq!(Frame::read(b""), Err(FrameError::CutOff(b'd')));
        let keepalive = b"k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\x01";
        assert_eq!(Frame::read(keepalive), Ok(Frame::Keepalive { wal_end: Lsn(9), reply: true }));
        assert_eq!(Frame::read(&keepalive[..17]), Err(FrameError::CutOff(b'k')));
    }

    #[test]
    fn a_status_says_flush_and_apply_alike() {
        let status = status_update(Lsn(3), Lsn(2), 946_684_800_000_001, true);
        assert_eq!(hex::encode(&status[..6]), "640000002672");
        assert_eq!(
            hex::encode(&status[6..]),
            "00000000000000030000000000000002000000000000000200000000000000010".to_owned() + "1"
        );
    }

    #[test]
    fn an_error_is_read_field_by_field() {
        let error = server_error(b"SFATAL\0VFATAL\0C57P01\0Mbye\0Dd\0\0");
        assert_eq!((error.code.as_str(), error.message.as_str(), error.detail.as_deref()), ("57P01", "bye", Some("d")));
        assert_eq!(server_error(b"Ccut").code, "");
    }
}
