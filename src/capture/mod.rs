//! Turns a Postgres into a log: streams changes, writes records, cuts checkpoints, answers requests with chunks.
//!
//! [`machine`], [`snapshot`], [`pace`], `ahead`, [`forgets`], `signals` and `requests` decide and are pure; [`start`], [`driver`] and the readers of
//! chunks do the IO. Knows nothing about sinks but their names.

pub mod machine;

mod ahead;
pub mod answerable;
pub mod asks;
pub mod chunks;
mod departures;
pub mod driver;
pub mod emit;
pub mod forgets;
mod heard;
mod lanes;
pub mod looks;
pub mod pace;
mod partitions;
pub mod requests;
pub mod routing;
pub mod schemas;
pub mod shape;
pub mod signal_table;
mod signals;
pub mod snapshot;
pub mod start;
pub mod steering;
pub mod trim;
pub mod upgrade;
mod withheld;

#[cfg(test)]
mod machine_tests;
