//! Entries of the ledger, one on each line: read, put together, folded, and written again.

use std::sync::Arc;

use lockstep::codec::Decoder;
use lockstep::ledger::entry::{Assembler, Body, Entry, Piece};
use lockstep::ledger::state::State;
use lockstep::record::{Epoch, Header, read_texts};
use lockstep::value::RowBuf;

use super::bounds::bounded;

/// `0,` in a list of what nobody asked for is two bytes and a value of 32 until it is known what the entry is, three times while the
/// list grows, and relations are looked through twice.
const PER_BYTE: u64 = 160;

pub fn ledger(data: &[u8]) {
    let _ = (Header::decode(data), read_texts(data));
    let (mut state, mut assembler) = (State::default(), Assembler::default());
    for (offset, line) in (0..).zip(data.split(|byte| *byte == b'\n')) {
        let Ok(piece) = bounded(line.len(), PER_BYTE, || Entry::decode(offset, line)) else { continue };
        let _ = Entry::base_of(offset, line);
        if let Piece::Whole(entry) = &piece {
            written_again(offset, entry);
        }
        if let Ok(Some(entry)) = assembler.push(offset, piece) {
            if let Body::Relation(relation) = &entry.body
                && let Ok(decoder) = Decoder::of(Arc::new(relation.relation.clone()))
            {
                let _ = decoder.key(line, None, &mut RowBuf::new());
            }
            state.apply(offset, entry);
        }
    }
    for join in state.open_joins() {
        let loaded = join.request.tables.iter().filter_map(|table| join.loaded.table(table));
        loaded.for_each(|table| drop(table.cover.ranges.missing()));
    }
}

fn written_again(offset: i64, entry: &Entry) {
    let epoch = Epoch { offset: 1, nonce: 2 };
    let mut assembler = Assembler::default();
    let parts = entry.encode(epoch, 0);
    let read = |part: &Vec<u8>| {
        let piece = Entry::decode(offset, part).expect("what was written is read");
        assembler.push(offset, piece).expect("what was written is put together")
    };
    let again = parts.iter().filter_map(read).next();
    // NaN and the like are nowhere in an entry, so that equal is equal.
    assert_eq!(again.as_ref(), Some(entry));
}
