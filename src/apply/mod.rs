//! Turns the log into databases. It never imports `capture`: the topics and the ledger are the contract.

mod ahead;
pub mod bag;
mod decode;
pub mod driver;
pub mod fold;
pub mod foreign;
pub mod letters;
pub mod machine;
mod merge;
pub mod net;
mod parking;
mod refused;
mod routes;
pub mod rows;
pub mod soft;
pub mod span;
pub mod sparse;
pub mod start;
pub mod targets;
pub mod writer;
