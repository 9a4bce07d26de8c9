//! The only room that speaks to the source.

pub mod pgoutput;
