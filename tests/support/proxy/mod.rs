//! A way to a server of this machine on which whatever can happen to a network happens when a test says so.
//!
//! | what | who it strikes |
//! |---|---|
//! | [`Proxy::swallow`]: bytes are taken and thrown away, and no end is passed on | links that are open |
//! | [`Proxy::half_open`]: the same in one direction | links that are open |
//! | [`Proxy::reset`]: RST to both sides | links that are open |
//! | [`Proxy::cut_after`]: RST once so many more bytes came from the server, in the middle of whatever they are | links that are open |
//! | [`Proxy::delay`], [`Proxy::throttle`], [`Proxy::refuse`] | all, until [`Proxy::mend`] |
//! | [`Proxy::lose_answers`]: RST instead of the answer that says that something was done | the next requests of that kind |
//!
//! The last one needs to know the protocol ([`Speech`]): the server has done what it was asked for, and the client can't know.
//! A broker names its own address in what it answers; a proxy that speaks Kafka puts its own port in, or clients would pass it by.

mod link;
mod speech;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use link::{Link, Side};
pub use speech::Speech;

/// Dropping it closes the door, not what has come in.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    /// Every connection that is open, and those that are deaf.
    links: Arc<Mutex<Vec<Arc<Link>>>>,
    weather: Arc<Weather>,
    door: tokio::task::JoinHandle<()>,
}

/// What holds for every link, those to come included.
#[derive(Debug, Default)]
struct Weather {
    delay_ms: AtomicU64,
    /// 0: no limit.
    bytes_per_second: AtomicU64,
    refuse: std::sync::atomic::AtomicBool,
    /// Answers that are still to be lost, and that were.
    to_lose: AtomicU64,
    lost: AtomicU64,
}

impl Weather {
    /// How long so many bytes take.
    fn passage(&self, bytes: usize) -> Duration {
        let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
        match self.bytes_per_second.load(Ordering::Relaxed) {
            0 => delay,
            rate => delay + Duration::from_micros(bytes as u64 * 1_000_000 / rate),
        }
    }

    /// Whether the answer at hand is one to lose.
    fn lose(&self) -> bool {
        let one = self.to_lose.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok();
        self.lost.fetch_add(u64::from(one), Ordering::Relaxed);
        one
    }
}

impl Proxy {
    /// A proxy to a port of this machine.
    pub async fn start(to: u16) -> Proxy {
        Proxy::speaking(to, Speech::Any).await
    }

    /// One that knows what it passes on.
    pub async fn speaking(to: u16, speech: Speech) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound address").port();
        let links: Arc<Mutex<Vec<Arc<Link>>>> = Arc::default();
        let weather: Arc<Weather> = Arc::default();
        let (open, above) = (links.clone(), weather.clone());
        let door = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if above.refuse.load(Ordering::Relaxed) {
                    link::reset(&client);
                    continue;
                }
                // Dropped without a word, the client would take it for a server that ended in order.
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else {
                    link::reset(&client);
                    continue;
                };
                let link = Arc::new(Link::new(speech, (to, port), above.clone()));
                let mut open = open.lock().unwrap();
                open.retain(|link| !link.over());
                open.push(link.clone());
                drop(open);
                link.run(client, server);
            }
        });
        Proxy { port, links, weather, door }
    }

    /// Every connection that is open now goes deaf; new ones work. Gives their number.
    pub fn swallow(&self) -> usize {
        self.strike(|link| link.deafen(&[Side::Client, Side::Server]))
    }

    /// Every connection that is open now goes deaf for what the server says, or for what the client says.
    pub fn half_open(&self, server: bool) -> usize {
        let side = if server { Side::Server } else { Side::Client };
        self.strike(|link| link.deafen(&[side]))
    }

    pub fn reset(&self) -> usize {
        self.strike(Link::end)
    }

    pub fn cut_after(&self, bytes: u64) -> usize {
        self.strike(|link| link.cut_after(bytes))
    }

    pub fn delay(&self, delay: Duration) {
        self.weather.delay_ms.store(u64::try_from(delay.as_millis()).expect("a delay"), Ordering::Relaxed);
    }

    pub fn throttle(&self, bytes_per_second: u64) {
        self.weather.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// New connections are reset.
    pub fn refuse(&self) {
        self.weather.refuse.store(true, Ordering::Relaxed);
    }

    /// The next so many answers to a COMMIT, or to what was produced, are lost with their connection.
    pub fn lose_answers(&self, count: u64) {
        self.weather.to_lose.store(count, Ordering::Release);
    }

    /// Answers that were lost so far.
    pub fn lost(&self) -> u64 {
        self.weather.lost.load(Ordering::Relaxed)
    }

    /// All is well again. What went deaf is reset: a server whose client gave up long ago would keep its session for ever.
    pub fn mend(&self) {
        self.delay(Duration::ZERO);
        self.throttle(0);
        self.lose_answers(0);
        self.weather.refuse.store(false, Ordering::Relaxed);
        for link in self.links.lock().unwrap().iter().filter(|link| link.is_deaf()) {
            link.end();
        }
    }

    /// Does that to every link that works; their number.
    fn strike(&self, what: impl Fn(&Link)) -> usize {
        let links = self.links.lock().unwrap();
        let working = links.iter().filter(|link| !link.over() && !link.is_deaf());
        working.map(|link| what(link)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.door.abort();
    }
}
