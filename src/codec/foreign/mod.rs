//! Records that Debezium itself wrote, read as changes of rows: JSON with and without schemas.
//!
//! Nothing of ours is in these records: no header says which relation version they are of, and no exact text rides beside a value.
//! What a value means is said by its schema, where the record has one, or else by the sink's column and by what the writer is
//! configured to have been told. From there on it is the [`mapping`](super::mapping) of our own writer, read backwards.
//!
//! Never guessed: a value whose form leaves two meanings open is [`Unread::Ambiguous`], with the option of Debezium that
//! would settle it. A column that Debezium was not sent is [`Reading::Unsent`] and never a value.
//!
//! Pure: no Kafka, no registry, no database.

mod decimal;
mod envelope;
mod placeholder;
mod schema;
mod value;

pub use envelope::{Envelope, Fields, Key, Snapshot, Source, Unlike, key, row_schema};
pub use placeholder::Placeholders;
pub use schema::{Node, changes, encoding, plain_encoding};
pub use value::{Reading, Unread, read};
