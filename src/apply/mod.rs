//! Turns the log into databases. It never imports `capture`: the topics and the ledger are the contract.

pub mod bag;
pub mod driver;
pub mod fold;
pub mod machine;
pub mod merge;
pub mod net;
mod routes;
pub mod span;
pub mod sparse;
pub mod targets;
pub mod writer;
