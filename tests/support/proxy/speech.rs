//! What a proxy understands of what it passes on: which answer says that something was done, and where a broker names itself.
//!
//! Not here: anything else of the protocols. Frames are told apart, and that is all.

use std::collections::HashMap;

/// The protocol of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    Any,
    /// Without TLS.
    Postgres,
    /// Without TLS.
    Kafka,
}

/// Requests of Kafka by their number.
const PRODUCE: i16 = 0;
/// Metadata, FindCoordinator and DescribeCluster answer with addresses of brokers.
const WITH_ADDRESSES: [i16; 3] = [3, 10, 60];
const HOST: &[u8] = b"127.0.0.1";
/// A query message with nothing but COMMIT.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// Larger than any frame of a broker here; a length beyond it is none.
pub const FRAME_BYTES_MAX: usize = 128 << 20;

/// What was asked over one link and has no answer yet.
#[derive(Debug, Default)]
pub struct Asked {
    commit: bool,
    /// Kafka's requests by correlation id.
    requests: HashMap<i32, i16>,
}

impl Asked {
    /// Something that the client says: a frame of Kafka (without its length), or any bytes.
    pub fn note(&mut self, speech: Speech, said: &[u8]) {
        match speech {
            Speech::Any => {}
            Speech::Postgres => self.commit |= said.windows(COMMIT.len()).any(|bytes| bytes == COMMIT),
            Speech::Kafka => {
                if let [a, b, _, _, c, d, e, f, ..] = *said {
                    self.requests.insert(i32::from_be_bytes([c, d, e, f]), i16::from_be_bytes([a, b]));
                }
            }
        }
    }

    /// Whether that is the server's answer to a COMMIT or to what was produced.
    pub fn is_outcome(&mut self, speech: Speech, said: &[u8]) -> bool {
        match speech {
            Speech::Any => false,
            Speech::Postgres => std::mem::take(&mut self.commit),
            Speech::Kafka => self.request_of(said) == Some(PRODUCE),
        }
    }

    /// Puts the proxy's port where a broker's answer has its own.
    pub fn readdress(&mut self, said: &mut [u8], (from, to): (u16, u16)) {
        let request = self.request_of(said);
        if let Some(correlation) = correlation(said) {
            self.requests.remove(&correlation);
        }
        if !request.is_some_and(|request| WITH_ADDRESSES.contains(&request)) {
            return;
        }
        let (from, to) = (u32::from(from).to_be_bytes(), u32::from(to).to_be_bytes());
        let length = HOST.len() + from.len();
        for at in 0..said.len().saturating_sub(length - 1) {
            if said[at..].starts_with(HOST) && said[at + HOST.len()..].starts_with(&from) {
                said[at + HOST.len()..at + length].copy_from_slice(&to);
            }
        }
    }

    fn request_of(&self, said: &[u8]) -> Option<i16> {
        self.requests.get(&correlation(said)?).copied()
    }
}

/// The number that an answer has from its request.
fn correlation(answer: &[u8]) -> Option<i32> {
    answer.first_chunk().map(|bytes| i32::from_be_bytes(*bytes))
}
