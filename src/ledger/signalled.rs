//! Which signals of the source stand in the ledger as requests: none becomes one twice.
//!
//! A reader that starts gets changes again that the one before it had met already, signals among them, and it need not know
//! what became of them: a request says which signal it is of, and whoever folds the ledger passes over the second one. Signals
//! are told of in the order of their positions, each with all of its requests before the next, so the newest is all that must
//! be known, and of that one for whom it was told.

use serde::{Deserialize, Serialize};

use crate::ledger::entry::Request;
use crate::lsn::Position;
use crate::relation::TableName;

/// The newest signal that became requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signalled {
    pub at: Position,
    /// Its requests: the sink of each, and the table where it is about a range of one.
    told: Vec<(String, Option<TableName>)>,
}

impl Signalled {
    /// Whether all that a signal at this place asks for is in the ledger.
    pub fn is_past(&self, at: Position) -> bool {
        at < self.at
    }
}

/// Whether the request is of a signal that became this request before; known from here on.
pub fn is_repeat(known: &mut Option<Signalled>, request: &Request) -> bool {
    let Some(at) = request.signal else { return false };
    let table = request.within.as_ref().and_then(|_| request.tables.first().cloned());
    let mine = (request.sink.clone(), table);
    match known {
        Some(newest) if newest.is_past(at) => return true,
        Some(newest) if newest.at == at && newest.told.contains(&mine) => return true,
        Some(newest) if newest.at == at => newest.told.push(mine),
        _ => *known = Some(Signalled { at, told: vec![mine] }),
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyRange;
    use crate::ledger::entry::{Body, Entry, RequestKind};
    use crate::ledger::state::{Event, State};
    use crate::ledger::within::Within;
    use crate::lsn::Lsn;
    use crate::relation::Fingerprint;
    use uuid::Uuid;

    fn request(id: u128, signal: Option<(u64, u64)>, sink: &str, ranged: bool) -> Request {
        let tables = vec![TableName::new("public", "t")];
        let within = ranged.then(|| Within { relation: Fingerprint(1), types: vec![23], ranges: vec![KeyRange::ALL] });
        let signal = signal.map(|(lsn, ordinal)| Position::new(Lsn(lsn), ordinal));
        Request { signal, within, ..Request::new(Uuid::from_u128(id), RequestKind::Resync, sink, tables, "signal") }
    }

    #[test]
    fn a_signal_that_comes_again_asks_for_nothing_more() {
        let mut state = State::default();
        let asked = [
            request(1, Some((10, 0)), "a", false),
            request(2, Some((10, 0)), "b", false),
            request(3, Some((10, 0)), "a", true),
            request(4, Some((10, 1)), "a", false),
            request(5, Some((20, 0)), "a", false),
            // a reader that begins behind 9 meets them all again, with names of its own
            request(6, Some((10, 0)), "a", false),
            request(7, Some((10, 1)), "a", false),
            request(8, Some((20, 0)), "a", false),
            request(9, Some((20, 0)), "b", false),
            request(10, None, "a", false),
        ];
        let mut offset = 0;
        for request in asked {
            offset += 1;
            let (id, event) = (request.id.as_u128(), state.apply(offset, Entry::new(None, Body::Request(request))));
            assert_eq!(event == Event::Repeated, (6..=8).contains(&id), "{id}");
        }
        let joins: Vec<u128> = state.joins.iter().map(|join| join.request.id.as_u128()).collect();
        assert_eq!(joins, [1, 2, 3, 4, 5, 9, 10], "what the one before it did not get to tell counts");
        let known = state.signalled.as_ref().unwrap();
        assert!(!known.is_past(Position::new(Lsn(20), 0)) && known.is_past(Position::new(Lsn(10), 7)));
        let text = serde_json::to_string(known).unwrap();
        assert_eq!(text, r#"{"at":{"lsn":"0/14","ordinal":"0"},"told":[["a",null],["b",null]]}"#);
    }
}
