//! What the fuzz targets do with bytes that anybody may have sent: one function for each, of bytes alone.
//!
//! A target fails by a panic, and by holding more memory at once than [`bounded`] allows. Both are the promise of every decoder of
//! Lockstep: any bytes give a value or a named error, and nothing is reserved because a length says so. Where there is a way
//! back, a target takes it: what was written is read back exactly, and `apache-avro` agrees.
//!
//! The files in `fuzz_targets` hand libFuzzer's bytes to these functions, and `tests/fuzz_seeds.rs` includes this file and hands them
//! `seeds`, so that the normal run needs neither libFuzzer nor a second build. Bytes that once failed stay there.

mod avro;
mod bounds;
mod cases;
mod copytext;
mod documents;
mod frames;
mod input;
mod json;
mod ledger;
mod pgoutput;
mod records;
mod texts;

/// A name, which is that of the file in `fuzz_targets` and of the directory in `seeds`, and what is done with bytes.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 10] = [
    ("avro_record", avro::record),
    ("avro_schema", avro::schema),
    ("copy_text", copytext::copy_text),
    ("document", documents::document),
    ("frames", frames::frames),
    ("json_record", json::record),
    ("ledger", ledger::ledger),
    ("pgoutput", pgoutput::pgoutput),
    ("records", records::records),
    ("texts", texts::texts),
];

/// Runs the target of that name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(data);
}
