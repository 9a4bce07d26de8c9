//! Records of JSON that anybody may have written, under a relation version of ours.

use lockstep::value::RowBuf;

use super::bounds::bounded;
use super::cases::choose;
use super::input::Input;
use super::records::read_all;

/// An entry of `ls-text` is seven bytes at least and a place of 24 here, three times while the list grows; texts are copied into
/// the row, and once more where they have escapes.
const PER_BYTE: u64 = 20;

pub fn record(data: &[u8]) {
    let mut input = Input(data);
    let cases = choose(&mut input);
    let (absent, text) = (input.piece(), input.piece());
    let (absent, text) = ((!absent.is_empty()).then_some(absent), (!text.is_empty()).then_some(text));
    let value = input.0;
    bounded(data.len(), PER_BYTE, || read_all(&cases.json.decoder, value, absent, text, &mut RowBuf::new()));
}
