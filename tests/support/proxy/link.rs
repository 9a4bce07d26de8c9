//! One connection through a proxy: two directions, and what was done to them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;

use super::Weather;
use super::speech::{Asked, FRAME_BYTES_MAX, Speech};

const BUFFER_BYTES: usize = 64 * 1024;
/// No cut.
const WHOLE: u64 = u64::MAX;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

#[derive(Debug)]
pub struct Link {
    speech: Speech,
    /// The server's port and the proxy's.
    ports: (u16, u16),
    weather: Arc<Weather>,
    asked: Mutex<Asked>,
    /// Nobody hears any more what this side says.
    deaf: [AtomicBool; 2],
    /// Bytes that may still come from the server.
    left: AtomicU64,
    end: CancellationToken,
    /// One of the two directions has ended in order.
    half_over: AtomicBool,
}

impl Link {
    pub fn new(speech: Speech, ports: (u16, u16), weather: Arc<Weather>) -> Link {
        Link {
            speech,
            ports,
            weather,
            asked: Mutex::default(),
            deaf: Default::default(),
            left: AtomicU64::new(WHOLE),
            end: CancellationToken::new(),
            half_over: AtomicBool::new(false),
        }
    }

    pub fn run(self: Arc<Link>, client: TcpStream, server: TcpStream) {
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::spawn(self.clone().direct(Side::Client, from_client, to_server));
        tokio::spawn(self.direct(Side::Server, from_server, to_client));
    }

    pub fn deafen(&self, sides: &[Side]) {
        sides.iter().for_each(|&side| self.deaf[side as usize].store(true, Ordering::Release));
    }

    pub fn is_deaf(&self) -> bool {
        self.deaf.iter().any(|deaf| deaf.load(Ordering::Acquire))
    }

    pub fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Release);
    }

    /// RST to both sides.
    pub fn end(&self) {
        self.end.cancel();
    }

    pub fn over(&self) -> bool {
        self.end.is_cancelled()
    }

    async fn direct(self: Arc<Link>, side: Side, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let ended = tokio::select! {
            () = self.end.cancelled() => false,
            ended = self.pass(side, &mut from, &mut to) => ended.is_ok(),
        };
        // An end in order is passed on, and the other direction goes on by itself.
        if ended && !self.half_over.swap(true, Ordering::AcqRel) {
            return;
        }
        self.end();
        if ended {
            return;
        }
        reset(from.as_ref());
        reset(to.as_ref());
    }

    /// Until the side that speaks ends in order; an error is an end for both.
    async fn pass(&self, side: Side, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut bytes = vec![0; BUFFER_BYTES];
        while let count @ 1.. = self.hear(from, &mut bytes).await? {
            let said = &mut bytes[..count];
            if self.weather_and_words(side, said).await {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if self.deaf[side as usize].load(Ordering::Acquire) {
                continue;
            }
            let whole = self.take(side, count);
            to.write_all(&said[..whole]).await?;
            if whole < count {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        // The end of one side is no news for the other once the link is deaf.
        if self.is_deaf() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// A frame, where frames matter, or whatever there is; 0 at the end.
    async fn hear(&self, from: &mut OwnedReadHalf, bytes: &mut Vec<u8>) -> io::Result<usize> {
        if self.speech != Speech::Kafka {
            return from.read(bytes).await;
        }
        let mut length = [0; 4];
        match from.read_exact(&mut length).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            read => read?,
        };
        let frame = u32::from_be_bytes(length) as usize;
        if frame > FRAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.resize(BUFFER_BYTES.max(4 + frame), 0);
        bytes[..4].copy_from_slice(&length);
        from.read_exact(&mut bytes[4..4 + frame]).await?;
        Ok(4 + frame)
    }

    /// Waits as long as the weather has it, and notes or changes what is said. True: this is an answer to lose.
    async fn weather_and_words(&self, side: Side, said: &mut [u8]) -> bool {
        let passage = self.weather.passage(said.len());
        if passage > Duration::ZERO {
            tokio::time::sleep(passage).await;
        }
        let speech = self.speech;
        let words = if speech == Speech::Kafka { &mut said[4..] } else { said };
        let mut asked = self.asked.lock().unwrap();
        if side == Side::Client {
            asked.note(speech, words);
            return false;
        }
        let lost = asked.is_outcome(speech, words) && self.weather.lose();
        if speech == Speech::Kafka {
            asked.readdress(words, self.ports);
        }
        lost
    }

    /// How many of so many bytes still pass before the cut.
    fn take(&self, side: Side, count: usize) -> usize {
        let left = self.left.load(Ordering::Acquire);
        if side == Side::Client || left == WHOLE {
            return count;
        }
        let taken = left.min(count as u64);
        self.left.store(left - taken, Ordering::Release);
        usize::try_from(taken).expect("no more than the buffer")
    }
}

/// The close that follows is an RST.
pub fn reset(stream: &TcpStream) {
    // It fails only for a socket that has ended already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
