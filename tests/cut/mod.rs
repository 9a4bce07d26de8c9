//! A reader without Kafka: what the loader makes of chunks, compared with what the stream says at the same place.
//!
//! | module | holds |
//! |---|---|
//! | [`bed`] | a source of one's own: tables, publication, slot, and the configuration that names them |
//! | [`copy`] | a table as the stream tells it, and as a sink has it that is being loaded |
//! | [`follower`] | the stream, decoded and folded, and its loads |
//! | [`load`] | one loader with its reader of chunks, and what is known of its chunks |
//! | [`writers`] | sessions that change hot rows as fast as they can |
//!
//! Stream, decoder, reader of chunks, loader and machine are the product's. What is here is a driver that writes nothing, and
//! two small copies of tables that know nothing of chunks being merged with anything. A loader is driven by its actions alone,
//! as many as it gives, and answered by their names.

pub mod bed;
pub mod copy;
pub mod follower;
pub mod load;
pub mod writers;

pub use bed::Bed;
pub use follower::Follower;
pub use load::{Fence, Load, Rule};
