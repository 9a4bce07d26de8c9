//! The server's messages in a buffer that is filled in pieces, and what of a replication stream is inside them.

use lockstep::postgres::frame::{Buffer, Frame, MESSAGE_BYTES_MAX, server_error};

use super::bounds::bounded;
use super::input::Input;

/// The four texts of an error are copied, and longer by two bytes for each that is not UTF-8; the list of messages is ours.
const PER_BYTE: u64 = 20;

pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let piece_bytes = usize::from(input.byte()) + 1;
    let sent = input.0;
    // Holds a megabyte whatever comes.
    let mut buffer = Buffer::new(MESSAGE_BYTES_MAX);
    let read = bounded(sent.len(), PER_BYTE, || in_pieces(&mut buffer, sent, piece_bytes));
    assert!(sent.starts_with(&read), "messages are the bytes that came");
}

/// The bytes of all whole messages, one behind the other.
fn in_pieces(buffer: &mut Buffer, mut sent: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while !sent.is_empty() {
        let room = buffer.room();
        let len = room.len().min(sent.len()).min(piece_bytes);
        room[..len].copy_from_slice(&sent[..len]);
        buffer.filled(len);
        sent = &sent[len..];
        loop {
            let Ok(message) = buffer.message() else { return read };
            let Some(message) = message else { break };
            let body = buffer.body(&message);
            read.push(message.tag);
            read.extend_from_slice(&u32::try_from(body.len() + 4).expect("counted in 32 bits").to_be_bytes());
            read.extend_from_slice(body);
            let _ = Frame::read(body);
            let _ = server_error(body);
        }
    }
    read
}
