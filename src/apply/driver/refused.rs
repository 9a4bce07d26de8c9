//! A refusal is told of the row that it is about: of a batch by writing it again in pieces, of a chunk by halving it.
//!
//! Everything here happens after the transaction has failed and before the halt is told, and nothing of it stays: what is tried is
//! rolled back. A row that can't be told leaves the halt as it was.

use super::Worker;
use crate::apply::net::NetEffect;
use crate::apply::refused::{Way, refusal};
use crate::apply::writer::{ChunkRows, Refused};
use crate::error::{Error, Halt};
use crate::sink::{Failure, Sink};
use crate::value::RowBuf;

impl<S: Sink> Worker<S> {
    /// The failure with the row that it is about, as far as that is known or can be found.
    pub(super) async fn told_of_its_row(&mut self, failure: Failure) -> Failure {
        let (Some(refused), Some(_)) = (self.writer.refused.take(), refusal(&failure)) else { return failure };
        let (named, row) = match refused {
            Refused::Row(named, row, _) => (named, Some(row)),
            Refused::Chunk(chunk) => {
                let place = self.place_in_chunk(&chunk, &failure).await;
                let named = &chunk.version.named;
                (named.clone(), place.and_then(|place| named.row(&chunk.rows[place], Way::Chunk)))
            }
            Refused::Changes(_) => return failure,
        };
        let Some(row) = row else { return failure };
        let tell = |halt: Box<Halt>| Box::new(named.halt(*halt, &row));
        match failure {
            Failure::Constraint(halt) => Failure::Constraint(tell(halt)),
            Failure::Reference(halt) => Failure::Reference(tell(halt)),
            Failure::Unique(halt) => Failure::Unique(tell(halt)),
            Failure::Error(Error::Halt(halt)) => Failure::Error(Error::Halt(tell(halt))),
            other => other,
        }
    }

    /// The place of the row of a chunk that is refused by itself in the same words.
    pub(super) async fn place_in_chunk(&mut self, chunk: &ChunkRows<S::Plan>, failure: &Failure) -> Option<usize> {
        let words = &refusal(failure)?.message;
        let mut rows = 0..chunk.rows.len();
        while rows.len() > 1 {
            let middle = rows.start + rows.len() / 2;
            let first = rows.start..middle;
            let is_first = self.refuses(chunk, &chunk.rows[first.clone()], words).await?;
            rows = if is_first { first } else { middle..rows.end };
        }
        let place = rows.next()?;
        self.refuses(chunk, &chunk.rows[place..=place], words).await?.then_some(place)
    }

    /// Whether the sink refuses these rows in these words. `None`: it has other things to say.
    async fn refuses(&mut self, chunk: &ChunkRows<S::Plan>, rows: &[RowBuf], words: &str) -> Option<bool> {
        self.abort().await.ok()?;
        let standing = self.row.standing.clone();
        self.writer.sink.begin(&self.row, &standing).await.ok()?;
        let net = NetEffect { loading: true, inserts: rows.to_vec(), ..NetEffect::default() };
        let outcome = self.writer.sink.apply(&[(&chunk.version.plan, net)]).await;
        self.abort().await.ok()?;
        match outcome {
            Ok(_) => Some(false),
            Err(failure) => Some(refusal(&failure)?.message == words),
        }
    }
}
