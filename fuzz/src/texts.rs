//! Postgres' text of values: arrays, composites, ranges, dates, intervals and all others, as the value of a column and alone.

use std::cmp::Ordering;
use std::hint::black_box;

use lockstep::codec::JsonWriter;
use lockstep::codec::mapping::{self, Encoding};
use lockstep::codec::write::{TreeWriter, write};
use lockstep::key::{self, KeyOrder};
use lockstep::pgtext::{self, Temporal};
use lockstep::postgres::types::column_default;

use super::bounds::bounded;
use super::cases::choose;
use super::input::Input;

/// The shortest entry of an hstore, `""=>"",`, is seven bytes and 48 here; a control character is six in JSON; three times while they
/// grow. An element of an array is two bytes at least, and a float that has one digit has three in JSON.
const JSON_PER_BYTE: u64 = 40;
/// An element of an array is a value of 32, three times while the list grows. Only of defaults, which are short, a tree is made.
const TREE_PER_BYTE: u64 = 120;

pub fn texts(data: &[u8]) {
    let mut input = Input(data);
    let cases = choose(&mut input);
    let text = input.0;
    // What has no field is written nowhere.
    for encoding in mapping::encodings(&cases.json.relation).into_iter().filter(|of| *of != Encoding::Skipped) {
        bounded(text.len(), JSON_PER_BYTE, || {
            let mut json = Vec::new();
            let written = write(&encoding, text, &mut JsonWriter::new(&mut json));
            json.truncate(if written.is_ok() { json.len() } else { 0 });
            assert!(json.is_empty() || is_json(&json), "{encoding:?} is no JSON");
        });
        bounded(text.len(), TREE_PER_BYTE, || {
            let mut tree = TreeWriter::default();
            let written = write(&encoding, text, &mut tree);
            assert!(written.is_err() || tree.value().is_some(), "{encoding:?} leaves something open");
        });
    }
    moments(text);
    orders(text);
    if let Ok(text) = std::str::from_utf8(text) {
        bounded(text.len(), JSON_PER_BYTE, || black_box(column_default(text)));
    }
}

/// Not by a value of serde_json's, which has no room for numbers beyond a double's.
fn is_json(json: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok()
}

/// What is printed of a moment is read as the same moment.
fn moments(text: &[u8]) {
    let printed = |print: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        print(&mut out);
        out
    };
    if let Some(Temporal::Finite(days)) = pgtext::parse_date(text).filter(|_| text.len() < 64) {
        let again = printed(&|out| pgtext::push_date(out, days));
        let inside = pgtext::DATE_RANGE.contains(&days);
        assert!(!inside || pgtext::parse_date(&again) == Some(Temporal::Finite(days)), "date");
        black_box(printed(&|out| pgtext::push_iso_date(out, days)));
    }
    let stamps = [pgtext::parse_timestamp(text), pgtext::parse_timestamptz(text)];
    for stamp in stamps.into_iter().flatten() {
        let Temporal::Finite(stamp) = stamp else { continue };
        let again = printed(&|out| pgtext::push_timestamp(out, stamp));
        let again_tz = printed(&|out| pgtext::push_timestamptz(out, stamp));
        let iso = printed(&|out| pgtext::push_iso_utc(out, stamp, 6));
        if stamp.is_valid() {
            let wanted = Some(Temporal::Finite(stamp));
            assert!(pgtext::parse_timestamp(&again) == wanted && pgtext::parse_timestamptz(&again_tz) == wanted);
            assert!(pgtext::parse_iso_utc(&iso) == Some(stamp));
        }
    }
    if let Some(micros) = pgtext::parse_time(text) {
        assert!(pgtext::parse_time(&printed(&|out| pgtext::push_time(out, micros))) == Some(micros));
    }
    black_box((pgtext::parse_timetz(text), pgtext::parse_interval(text), pgtext::parse_iso_utc(text)));
}

/// Two texts are ordered one way and back, or neither is a key.
fn orders(text: &[u8]) {
    let (a, b) = text.split_at(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    let b = b.strip_prefix(&[0]).unwrap_or(b);
    for order in [KeyOrder::Integer, KeyOrder::Micros, KeyOrder::Numeric, KeyOrder::Bytes, KeyOrder::Text] {
        let compare = |a, b| key::compare(&[order], &[a], &[b]);
        bounded(text.len(), JSON_PER_BYTE, || {
            let (there, back) = (compare(a, b), compare(b, a));
            assert_eq!(there.as_ref().ok().copied(), back.ok().map(Ordering::reverse));
            assert!(there.is_err() || compare(a, a) == Ok(Ordering::Equal));
        });
    }
}
