//! Turns the log into databases. It never imports `capture`: the topics and the ledger are the contract.

pub mod machine;
pub mod net;
pub mod span;
pub mod driver;
pub mod merge;
pub mod writer;
