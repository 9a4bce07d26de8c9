//! What integration tests, the demo and the benchmarks share: real servers, a real process, a shop and a verifier.
//!
//! | module | holds |
//! |---|---|
//! | [`avro`] | records in Avro as a plain consumer reads them |
//! | [`server`] | a Postgres server of one test, for what would end every other test's |
//! | [`services`] | the servers that scripts/services runs, and databases of one's own in them |
//! | [`pipeline`] | a configuration written to disk and the binary that runs it: start, kill, ask, wait |
//! | [`compare`] | every row of a table in two databases, and in what they differ |
//! | [`proxy`] | a way to a server on which whatever can happen to a network happens |
//! | [`shop`] | four tables of a shop, rows for them, and a load that is as unkind as real ones are |
//! | [`scene`] | a source, its sinks and a pipeline between them; counted effects; topics as consumers see them |
//! | [`recording`] | recorded records and ours, made comparable |
//! | [`shaping`] | Debezium's options about columns, as a connector's keys |
//! | [`latency`] | how long a commit takes to be visible elsewhere |
//!
//! Everything works on real servers, nothing is mocked. What was made is taken away again when its owner is dropped, also when
//! a test panics; `LOCKSTEP_TEST_KEEP=1` leaves it for a look by hand.
//!
//! Failures are `anyhow::Error` with a context that says what was tried: a test unwraps them, the demo prints them.
//!
//! Included as `mod support;` by tests and through `#[path]` by the demo and the benchmarks, each of which uses only a part.
#![allow(dead_code, unused_imports)]

pub mod admin;
pub mod avro;
pub mod compare;
pub mod latency;
pub mod pipeline;
pub mod proxy;
pub mod recording;
pub mod scene;
pub mod server;
pub mod services;
pub mod shaping;
pub mod shop;

pub use compare::{Comparison, Difference, TablePair, compare};
pub use pipeline::{Pipeline, Process, Status};
pub use services::{Database, Server, Services};
