//! The ledger: the one-partition topic that says which records count.
//!
//! Data topics hold rows; a record counts iff a valid checkpoint's spans name it. Nobody needs Kafka transactions for this.
//! [`entry`] fixes the bytes, [`state`] folds entries into what is true after them (claims, validity by epoch, relations,
//! bases), [`loaded`] and [`cover`] say what of a request's tables is loaded, [`taken`] how a sink takes them,
//! [`within`] which ranges of one are asked for alone, [`signalled`] which signals of the source it has, [`start`] where a fold begins, all pure;
//! [`topic`] is where entries are read and appended. Reader and sinks use the same fold, so they cannot disagree about which
//! checkpoints are valid.

pub mod cover;
pub mod entry;
pub mod loaded;
pub mod signalled;
pub mod start;
pub mod state;
pub mod taken;
pub mod topic;
pub mod within;
