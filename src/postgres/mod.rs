//! The only room that speaks to the source.

pub mod frame;
pub mod pgoutput;
mod socket;
pub mod stream;
pub mod wire;
