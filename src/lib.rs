//! Lockstep keeps shared data the same in every service that needs it.
//!
//! `capture` turns a Postgres into a log, `apply` turns a log into databases; they never import each other: the topics and
//! the ledger are the contract. docs/architecture.md is the map.

#![deny(unsafe_code)]

pub mod config;
pub mod error;
pub mod kafka;
pub mod lsn;
pub mod record;
pub mod relation;
pub mod value;
