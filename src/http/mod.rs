//! The process seen from outside: `/metrics`, `/healthz`, `/readyz`, `/status` and a page. Read-only.
//!
//! Nothing here can change anything, which is why there is no login: whoever reaches the port may read table and sink names,
//! positions and error texts. It listens on 127.0.0.1 unless told otherwise. A database never waits for a slow HTTP client:
//! answers are made from watch channels, and connections, headers and time are limited.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while every role's loop ticks. 503: restart the process, that is always right |
//! | `/readyz` | 200 while every role does its work (`snapshot`, `streaming`, `standby`, `paused`), else 503 with the reasons |
//! | `/status` | the [`Board`] as JSON |
//! | `/metrics` | Prometheus text |
//! | `/` | `/status` for the eye |
//!
//! A halted role makes the process not ready, but not unhealthy: a restart would find the same.
//!
//! Not here: any command (those go through the ledger; see [`admin`] for a way there), TLS, CORS.

pub mod admin;
pub mod client;
pub mod metrics;
mod page;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as With;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::error::{Code, Error, Result};
use crate::status::Board;

use self::metrics::{Metrics, UPKEEP_INTERVAL};

/// Scrapers, probes and a few people. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// A request's head must be here by then; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Then a connection is closed after the answer it is at, so that a reader that stands still frees its place.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(120);
/// And this much later even within it. Also how long the end of the process waits for answers under way.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Headers of a request. Browsers send about 15.
const HEADERS_MAX: usize = 64;
/// The largest request head; far above what any of our clients sends.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A role whose loop did not turn for so long is taken for dead. Above every time-out that a loop may block in.
pub const LOOP_SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the handlers read.
#[derive(Clone)]
pub struct Http {
    board: Board,
    metrics: Metrics,
    /// Every role's last sign of life.
    pulses: Arc<Vec<Pulse>>,
    /// [`HEAD_TIMEOUT`], shortened by tests.
    head_timeout: Duration,
}

/// A role's sign of life: when its loop last turned. `None` once the role ended in an orderly way (halted, drained).
#[derive(Clone, Debug)]
pub struct Pulse {
    pub role: String,
    pub last: tokio::sync::watch::Receiver<Option<Instant>>,
}

/// Takes the port. Before any role starts, so that a second process on one machine is noticed before it does anything.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let (what, hint) = match error.kind() {
            std::io::ErrorKind::AddrInUse => (
                "is in use by another program".to_owned(),
                format!("ss -ltnp 'sport = :{}'   # stop that program, or set another [http] listen", listen.port()),
            ),
            std::io::ErrorKind::AddrNotAvailable => (
                "is no address of this machine".to_owned(),
                format!("ip -brief address   # then set [http] listen to one of these, port {}", listen.port()),
            ),
            _ => (format!("can't be listened on: {error}"), "set another [http] listen in lockstep.toml".to_owned()),
        };
        Error::halt(Code::Config, format!("http.listen = \"{listen}\" {what}"), hint)
    })
}

impl Http {
    pub fn new(board: Board, metrics: Metrics, pulses: Vec<Pulse>) -> Http {
        Http { board, metrics, pulses: Arc::new(pulses), head_timeout: HEAD_TIMEOUT }
    }

    /// Answers until the token is cancelled, then ends the answers under way.
    pub async fn serve(self, listener: TcpListener, token: CancellationToken) {
        let (upkeep, head_timeout) = (self.metrics.clone(), self.head_timeout);
        let router = self.router();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                _ = tick.tick() => upkeep.upkeep(),
                Some(_) = connections.join_next() => {}
                (stream, place) = accept(&listener, &places) => {
                    let (router, token) = (router.clone(), token.clone());
                    connections.spawn(async move {
                        connection(stream, router, head_timeout, token).await;
                        drop(place);
                    });
                }
            }
        }
        drop(listener);
        // Each ends by itself within CLOSE_GRACE.
        while connections.join_next().await.is_some() {}
    }

    fn router(self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/status", get(status))
            .route("/metrics", get(render_metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .fallback(not_found)
            .method_not_allowed_fallback(not_allowed)
            .layer(axum::middleware::map_response(harden))
            .with_state(self)
    }

    /// Roles whose loop stands still, with for how long.
    fn silent(&self, now: Instant) -> Vec<(&str, Duration)> {
        self.pulses
            .iter()
            .filter_map(|pulse| {
                let silence = now.saturating_duration_since((*pulse.last.borrow())?);
                // The role's thread is gone without a word: the other end was dropped while it still had a pulse.
                let gone = pulse.last.has_changed().is_err();
                (gone || silence > LOOP_SILENCE_MAX).then_some((pulse.role.as_str(), silence))
            })
            .collect()
    }
}

/// The next connection and its place. Failures (out of file descriptors, a client gone at once) pass; wait and go on.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection<S>(stream: S, router: Router, head_timeout: Duration, token: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    tokio::select! {
        // An error here is the client's: a broken request, a connection cut. There is nobody to tell.
        _ = serving.as_mut() => return,
        () = token.cancelled() => {}
        () = sleep(CONNECTION_AGE_MAX) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_GRACE, serving).await;
}

async fn page(With(http): With<Http>) -> Response {
    let html = page::render(&http.board.status(), &http.board.roles());
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

async fn status(With(http): With<Http>) -> Response {
    axum::Json(http.board.status()).into_response()
}

async fn render_metrics(With(http): With<Http>) -> Response {
    let text = http.metrics.render(&http.board);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn healthz(With(http): With<Http>) -> Response {
    let silent = http.silent(Instant::now());
    if silent.is_empty() {
        return axum::Json(json!({"alive": true})).into_response();
    }
    let silent: Vec<_> =
        silent.iter().map(|(role, silence)| json!({"role": role, "silent_seconds": silence.as_secs()})).collect();
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"alive": false, "silent": silent}))).into_response()
}

async fn readyz(With(http): With<Http>) -> Response {
    let waiting: Vec<_> = http.board.roles().into_iter().filter(|role| !role.state.able_to_move()).collect();
    let code = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(json!({"ready": waiting.is_empty(), "not_ready": waiting}))).into_response()
}

async fn not_found() -> Response {
    let paths = ["/", "/status", "/metrics", "/healthz", "/readyz"];
    (StatusCode::NOT_FOUND, axum::Json(json!({"error": "no such path", "paths": paths}))).into_response()
}

async fn not_allowed(request: Request<axum::body::Body>) -> Response {
    let allow = [(header::ALLOW, format!("{}, {}", Method::GET, Method::HEAD))];
    let body = json!({"error": format!("{} is not allowed: everything here is read-only", request.method())});
    (StatusCode::METHOD_NOT_ALLOWED, allow, axum::Json(body)).into_response()
}

/// No caching, no sniffing, no scripts, no frames: the page is text and a style sheet.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
pub mod tests;
