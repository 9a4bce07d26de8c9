//! The source: the only room that speaks to the Postgres that owns the data.
//!
//! It turns a server into plain facts and bytes and back again; what they mean for a pipeline is decided in `capture`.

pub mod borders;
pub mod catalog;
pub mod chunk;
pub mod copytext;
pub mod failure;
pub mod filter;
pub mod frame;
pub mod look;
pub mod named;
pub mod named_key;
pub mod pgoutput;
pub mod preflight;
pub mod publication;
pub mod row_key;
pub mod slot;
pub mod snapshot;
mod socket;
pub mod stream;
pub mod timeline;
pub mod types;
mod unserved;
pub mod wire;
