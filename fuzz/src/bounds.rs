//! The bound of what decoding may hold at once: so many bytes for each byte of the input, and [`FIXED_BYTES`].
//!
//! What one byte may cost is each target's to say, beside its reason. It is a small number everywhere, since what is decoded is
//! either borrowed or copied once; vectors that grow hold two copies for a moment, the new one twice as large, which makes three.

use allocation_counter::measure;

/// What does not depend on the input: the text of an error, and the first size of buffers.
const FIXED_BYTES: u64 = 16 * 1024;

/// What `work` makes of `input_bytes`; panics if that held more than `per_byte` for each and [`FIXED_BYTES`].
pub fn bounded<T>(input_bytes: usize, per_byte: u64, work: impl FnOnce() -> T) -> T {
    let mut made = None;
    let held = measure(|| made = Some(work())).bytes_max;
    let most = u64::try_from(input_bytes).expect("inputs are small") * per_byte + FIXED_BYTES;
    assert!(held <= most, "{held} bytes were held at once for {input_bytes} bytes of input, where {most} are allowed");
    made.expect("the work was done")
}
