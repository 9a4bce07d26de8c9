//! Lockstep keeps shared data the same in every service that needs it.
//!
//! `capture` turns a Postgres into a log, `apply` turns a log into databases; they never import each other: the topics and
//! the ledger are the contract. docs/architecture.md is the map.

#![deny(unsafe_code)]

pub mod apply;
pub mod capture;
pub mod change;
pub mod cli;
pub mod codec;
pub mod config;
pub mod error;
pub mod http;
pub mod kafka;
pub mod key;
pub mod ledger;
pub mod look;
pub mod lsn;
mod malloc;
pub mod parts;
pub mod pgtext;
pub mod postgres;
pub mod progress;
pub mod rate;
pub mod record;
pub mod registry;
pub mod relation;
pub mod run;
pub mod session;
pub mod sink;
pub mod status;
pub mod transform;
pub mod value;
