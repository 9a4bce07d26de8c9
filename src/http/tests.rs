//! The endpoints by a real TCP client.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::*;
use crate::error::Halt;
use crate::lsn::Lsn;
use crate::relation::TableName;
use crate::status::{HaltStatus, Phase, SinkReporter, SourceReporter, State, TableStatus};

struct Server {
    address: SocketAddr,
    source: SourceReporter,
    sink: SinkReporter,
    pulse: watch::Sender<Option<Instant>>,
    token: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

const SHORT_HEAD_TIMEOUT: Duration = Duration::from_secs(1);

async fn server() -> Server {
    let (source, sink) = (SourceReporter::default(), SinkReporter::default());
    source.moving(State::Streaming);
    sink.moving(State::Streaming);
    let sinks = BTreeMap::from([("orders".to_owned(), sink.watch())]);
    let board = Board { pipeline: "shop".to_owned(), source: Some(source.watch()), sinks, configuration: None };
    let (pulse, last) = watch::channel(Some(Instant::now()));
    let pulses = vec![Pulse { role: "source".to_owned(), last }];
    let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = CancellationToken::new();
    let http = Http { head_timeout: SHORT_HEAD_TIMEOUT, ..Http::new(board, Metrics::new(), pulses) };
    let task = tokio::spawn(http.serve(listener, token.clone()));
    Server { address, source, sink, pulse, token, task }
}

impl Server {
    /// Sends bytes, returns everything until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut answer = Vec::new();
        // A server that refuses a request may close before it has all of it, and reset the connection.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = client::get(&format!("http://{}{path}", self.address), Duration::from_secs(10)).await.unwrap();
        (answer.status, answer.body)
    }

    async fn json(&self, path: &str) -> (u16, serde_json::Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

/// The port can be bound again. Another test's connection may have it for a moment as its own.
pub async fn freed(address: SocketAddr) -> bool {
    for _ in 0..40 {
        if bind(address).await.is_ok() {
            return true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    false
}

fn halt_status(message: &str) -> HaltStatus {
    let halt = Halt {
        code: Code::TopicGap,
        message: message.to_owned(),
        facts: vec![],
        hint: "lockstep resync --all --sink orders".to_owned(),
    };
    HaltStatus::new(&halt, "2026-01-01T00:00:00Z".parse().unwrap())
}

#[tokio::test]
async fn status_and_metrics_follow_the_roles() {
    let server = server().await;
    server.source.update(|s| s.position = Some(Lsn(16)));
    let (code, status) = server.json("/status").await;
    assert_eq!((code, &status["source"]["position"]), (200, &json!("0/10")));
    server.source.update(|s| s.position = Some(Lsn(32)));
    assert_eq!(server.json("/status").await.1["source"]["position"], "0/20");
    let (code, text) = server.get("/metrics").await;
    assert_eq!(code, 200);
    assert!(text.contains("lockstep_source_position_lsn 32"), "{text}");
}

#[tokio::test]
async fn ready_while_every_role_works_and_the_reasons_otherwise() {
    let server = server().await;
    for state in [State::Snapshot, State::Streaming, State::Standby, State::Paused] {
        server.sink.moving(state);
        assert_eq!(server.json("/readyz").await, (200, json!({"ready": true, "not_ready": []})), "{state}");
    }
    server.sink.update(|s| (s.state, s.halt) = (State::Halted, Some(halt_status("2 records are missing"))));
    server.source.update(|s| (s.state, s.waiting_for) = (State::Retrying, Some("connecting".to_owned())));
    let expected = json!({"ready": false, "not_ready": [
        {"role": "source", "state": "retrying", "reason": "connecting"},
        {"role": "sink:orders", "state": "halted", "reason": "TOPIC_GAP: 2 records are missing"},
    ]});
    assert_eq!(server.json("/readyz").await, (503, expected));
    assert_eq!(server.json("/healthz").await.0, 200, "a restart would not help a halted role");
}

#[tokio::test]
async fn healthy_while_loops_tick() {
    let server = server().await;
    assert_eq!(server.json("/healthz").await, (200, json!({"alive": true})));
    // A machine that is up for less than a minute has no such instant.
    if let Some(long_ago) = Instant::now().checked_sub(LOOP_SILENCE_MAX * 2) {
        server.pulse.send_replace(Some(long_ago));
        let (code, body) = server.json("/healthz").await;
        assert_eq!((code, &body["silent"][0]["role"]), (503, &json!("source")));
    }
    server.pulse.send_replace(None);
    assert_eq!(server.json("/healthz").await.0, 200, "a role that ended in order is not silent");
}

#[tokio::test]
async fn unhealthy_when_a_role_died() {
    let mut server = server().await;
    let (other, _) = watch::channel(None);
    drop(std::mem::replace(&mut server.pulse, other));
    assert_eq!(server.json("/healthz").await.0, 503);
}

#[tokio::test]
async fn the_page_shows_the_status_and_escapes_it() {
    let server = server().await;
    server.sink.update(|s| {
        let evil = "<script>alert('x')</script> & \"co\"";
        (s.state, s.halt) = (State::Halted, Some(halt_status(evil)));
        s.waiting_for = Some("<b>bold</b>".to_owned());
        s.tables.insert(TableName::new("public", "<i>t"), TableStatus::new(Phase::Waiting));
    });
    let (code, html) = server.get("/").await;
    assert_eq!(code, 200);
    assert!(html.contains("lockstep · shop") && html.contains("TOPIC_GAP") && html.contains("2026-01-01T00:00:00Z"));
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;co&quot;"), "{html}");
    assert!(html.contains("lockstep resync --all --sink orders"));
    for raw in ["<script", "<b>", "<i>", "http://", "https://"] {
        assert!(!html.contains(raw), "{raw} in {html}");
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let server = server().await;
    let (code, body) = server.json("/config").await;
    assert_eq!((code, &body["error"]), (404, &json!("no such path")));
    assert_eq!(server.json("/../../etc/passwd").await.0, 404);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = server.raw(&format!("{method} /status HTTP/1.0\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.0 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
        assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
    }
    let head = server.raw("HEAD /status HTTP/1.0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.0 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("cache-control: no-store") && head.contains("content-security-policy: default-src 'none'"));
}

#[tokio::test]
async fn requests_beyond_the_limits_are_refused() {
    let server = server().await;
    let many: String = (0..HEADERS_MAX + 1).map(|i| format!("x-{i}: y\r\n")).collect();
    let answer = server.raw(&format!("GET /status HTTP/1.1\r\nhost: x\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = "y".repeat(HEAD_BYTES_MAX * 2);
    let answer = server.raw(&format!("GET /status HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n")).await;
    assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A body is never read: the answer comes at once, then the connection closes.
    let answer = server.raw("GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(server.json("/healthz").await.0, 200);
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_dropped() {
    let server = server().await;
    let begun = Instant::now();
    let answer = server.raw("GET /status HTTP/1.1\r\nhost").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(begun.elapsed() >= SHORT_HEAD_TIMEOUT && begun.elapsed() < HEAD_TIMEOUT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_frees_the_port() {
    let server = server().await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    server.token.cancel();
    let Server { task, address, .. } = server;
    tokio::time::timeout(CLOSE_GRACE * 2, task).await.expect("in time").unwrap();
    assert!(freed(address).await);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = first.local_addr().unwrap();
    let error = bind(address).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Config));
    let text = error.to_string();
    assert!(text.contains(&format!("http.listen = \"{address}\" is in use")), "{text}");
    assert!(text.contains(&format!("sport = :{}", address.port())), "{text}");
}
