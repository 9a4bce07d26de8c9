//! A refusal is told of the row that it is about: of a batch by writing it again in pieces, of a chunk by halving it.
//!
//! Everything here happens after the transaction has failed and before the halt is told, and nothing of it stays: what is tried is
//! rolled back. A row that can't be told leaves the halt as it was.

use super::Worker;
use crate::apply::net::NetEffect;
use crate::apply::refused::Way;
use crate::apply::writer::{ChunkRows, Refused};
use crate::error::{Code, Error, Halt};
use crate::sink::{Failure, Sink};
use crate::value::RowBuf;

impl<S: Sink> Worker<S> {
    /// The failure with the row that it is about, as far as that is known or can be found.
    pub(super) async fn told_of_its_row(&mut self, failure: Failure) -> Failure {
        let (Some(refused), Some(_)) = (self.writer.refused.take(), refusal(&failure)) else { return failure };
        let (named, row) = match refused {
            Refused::Row(named, row) => (named, Some(row)),
            Refused::Chunk(chunk) => {
                let row = self.row_of_chunk(&chunk, &failure).await;
                (chunk.version.named.clone(), row.and_then(|row| chunk.version.named.row(&row, Way::Chunk)))
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

    /// The row of a chunk that is refused by itself in the same words.
    async fn row_of_chunk(&mut self, chunk: &ChunkRows<S::Plan>, failure: &Failure) -> Option<RowBuf> {
        let words = &refusal(failure)?.message;
        let mut rows = &chunk.rows[..];
        while rows.len() > 1 {
            let (first, second) = rows.split_at(rows.len() / 2);
            rows = if self.refuses(chunk, first, words).await? { first } else { second };
        }
        let [row] = rows else { return None };
        self.refuses(chunk, rows, words).await?.then(|| row.clone())
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

/// What a sink says of rows that it does not take.
pub(super) fn refusal(failure: &Failure) -> Option<&Halt> {
    match failure {
        Failure::Constraint(halt) | Failure::Reference(halt) | Failure::Unique(halt) => Some(halt),
        Failure::Error(Error::Halt(halt)) => {
            let is_of_rows = matches!(halt.code, Code::ValueRefused | Code::ConstraintRefused | Code::UniqueHandover);
            is_of_rows.then_some(halt)
        }
        _ => None,
    }
}
