//! The client against small registries on real sockets, each of which answers one way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::config::{Endpoint, RegistryAuth};

/// A registry and what it was sent.
struct Server {
    endpoint: Endpoint,
    seen: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

async fn server(status: u16, location: Option<&'static str>, body: &'static str) -> Server {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = seen.clone();
    let answer = move |request: Request| {
        let log = log.clone();
        async move {
            let (head, sent) = request.into_parts();
            let auth = head.headers.get("authorization").map_or("-", |auth| auth.to_str().unwrap()).to_owned();
            let sent = axum::body::to_bytes(sent, 1 << 20).await.unwrap();
            let sent = String::from_utf8(sent.to_vec()).unwrap();
            log.lock().unwrap().push(format!("{} {} {auth} {sent}", head.method, head.uri));
            let mut answer = Response::builder().status(status);
            if let Some(location) = location {
                answer = answer.header("location", location);
            }
            answer.body(Body::from(body)).unwrap()
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = axum::Router::new().fallback(answer);
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let endpoint = Endpoint { tls: false, host: "127.0.0.1".into(), port, path: "/api".into() };
    Server { endpoint, seen, _task: AbortOnDropHandle::new(task) }
}

fn registry(endpoints: Vec<Endpoint>, auth: Option<RegistryAuth>) -> Registry {
    let timeout = Duration::from_secs(10);
    Registry::open(&config::Registry { endpoints, auth, ca_file: None, timeout }).unwrap()
}

async fn register(server: &Server) -> Result<u32> {
    registry(vec![server.endpoint.clone()], None).register("table public.t", "shop.public.t-value", "{\"a\"}").await
}

async fn refusal(status: u16, body: &'static str) -> Error {
    register(&server(status, None, body).await).await.unwrap_err()
}

#[tokio::test]
async fn a_schema_gets_its_id() {
    let server = server(200, None, "{\"id\":7,\"guid\":\"x\"}").await;
    assert_eq!(register(&server).await.unwrap(), 7);
    let basic = RegistryAuth::Basic { username: "u".into(), password: "p w".into() };
    let bearer = RegistryAuth::Bearer("t".into());
    for auth in [basic, bearer] {
        let registry = registry(vec![server.endpoint.clone()], Some(auth));
        assert_eq!(registry.register("", "a b/c", "\"int\"").await.unwrap(), 7);
    }
    assert_eq!(
        *server.seen.lock().unwrap(),
        [
            "POST /api/subjects/shop.public.t-value/versions - {\"schema\":\"{\\\"a\\\"}\"}",
            "POST /api/subjects/a%20b%2Fc/versions Basic dTpwIHc= {\"schema\":\"\\\"int\\\"\"}",
            "POST /api/subjects/a%20b%2Fc/versions Bearer t {\"schema\":\"\\\"int\\\"\"}",
        ]
    );
}

#[tokio::test]
async fn what_a_registry_refuses_has_a_name_and_a_reason() {
    let incompatible = "{\"error_code\":409,\"message\":\"reader type\\n STRING\"}";
    let error = refusal(409, incompatible).await;
    assert_eq!(error.code(), Some(Code::SchemaRefused));
    let text = error.to_string();
    for part in
        ["table public.t", "shop.public.t-value", "reader type  STRING (error 409)", "/config/shop.public.t-value"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(refusal(422, "{\"error_code\":42201}").await.code(), Some(Code::SchemaRefused));
    for (status, body) in [
        (401, ""),
        (403, "<html>"),
        (404, "{\"error_code\":404,\"message\":\"HTTP 404 Not Found\"}"),
        (200, "<html>welcome</html>"),
        (200, "{\"id\":\"7\"}"),
        (200, "{\"id\":-1}"),
        (200, "{}"),
        (413, ""),
    ] {
        let error = refusal(status, body).await;
        assert_eq!(error.code(), Some(Code::RegistryRefused), "{status} {body}: {error}");
    }
}

/// A registry whose subjects answer one way, and whose compatibility another.
async fn trial(subjects: (u16, &'static str), compatibility: (u16, &'static str)) -> Result<Vec<String>> {
    let (first, second) =
        (server(subjects.0, None, subjects.1).await, server(compatibility.0, None, compatibility.1).await);
    let ports = [first.endpoint.port, second.endpoint.port];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint { port: listener.local_addr().unwrap().port(), ..first.endpoint.clone() };
    let forward = tokio::spawn(async move {
        for port in ports {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut to = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    let _forward = AbortOnDropHandle::new(forward);
    registry(vec![endpoint], None).would_take("table public.t", "t-value", "\"int\"").await?;
    Ok([first, second].iter().flat_map(|server| server.seen.lock().unwrap().clone()).collect())
}

const NO_SUBJECT: (u16, &str) = (404, "{\"error_code\":40401,\"message\":\"Subject 't-value' not found.\"}");
const OTHERS: (u16, &str) = (404, "{\"error_code\":40403,\"message\":\"Schema not found\"}");

#[tokio::test]
async fn what_a_registration_would_come_to_is_found_out_without_one() {
    let (lookup, ask) = (
        "POST /api/subjects/t-value - {\"schema\":\"\\\"int\\\"\"}",
        "POST /api/compatibility/subjects/t-value/versions?verbose=true - {\"schema\":\"\\\"int\\\"\"}",
    );
    let never = (200, "");
    assert_eq!(trial(NO_SUBJECT, never).await.unwrap(), [lookup]);
    assert_eq!(trial((200, "{\"id\":1}"), never).await.unwrap(), [lookup]);
    assert_eq!(trial(OTHERS, (200, "{\"is_compatible\":true}")).await.unwrap(), [lookup, ask]);
    // Registries without the question.
    assert_eq!(trial(OTHERS, (404, "")).await.unwrap(), [lookup, ask]);

    let verbose = "{\"is_compatible\":false,\"messages\":[\"TYPE_MISMATCH at /\",\"b\",\"c\",\"d\"]}";
    let error = trial(OTHERS, (200, verbose)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::SchemaRefused));
    let text = error.to_string();
    for part in ["would refuse the schema of table public.t", "TYPE_MISMATCH at /", "/config/t-value"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let code = |found: Result<Vec<String>>| found.unwrap_err().code();
    assert_eq!(code(trial(OTHERS, (422, "{\"error_code\":42201}")).await), Some(Code::SchemaRefused));
    for subjects in [(200, "<html>welcome</html>"), (404, "<html>"), (401, ""), (301, "")] {
        assert_eq!(code(trial(subjects, never).await), Some(Code::RegistryRefused), "{subjects:?}");
    }
    for compatibility in [(200, "<html>"), (403, "")] {
        assert_eq!(code(trial(OTHERS, compatibility).await), Some(Code::RegistryRefused), "{compatibility:?}");
    }
    assert_eq!(code(trial((503, ""), never).await), None);
    // Whether anybody answers is asked with a subject that nobody has.
    let empty = server(NO_SUBJECT.0, None, NO_SUBJECT.1).await;
    registry(vec![empty.endpoint.clone()], None).answers().await.unwrap();
    let page = server(200, None, "<html>").await;
    assert!(registry(vec![page.endpoint.clone()], None).answers().await.is_err());
}

#[tokio::test]
async fn what_may_heal_is_retried() {
    for status in [500, 502, 503, 429, 408] {
        let error = refusal(status, "{\"error_code\":50001,\"message\":\"the store is down\"}").await;
        assert_eq!(error.code(), None, "{error}");
        assert!(error.chain().contains("the store is down"), "{}", error.chain());
    }
    // Nobody listens on a port that was just given back.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let endpoint = Endpoint { tls: false, host: "127.0.0.1".into(), port: gone, path: String::new() };
    let error = registry(vec![endpoint], None).register("", "s", "{}").await.unwrap_err();
    assert!(matches!(&error, Error::Retry(retry) if retry.doing.contains(&gone.to_string())), "{error}");
    // A server that takes the connection and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        tls: false,
        host: "127.0.0.1".into(),
        port: silent.local_addr().unwrap().port(),
        path: String::new(),
    };
    let config =
        config::Registry { endpoints: vec![endpoint], auth: None, ca_file: None, timeout: Duration::from_millis(100) };
    let error = Registry::open(&config).unwrap().register("", "s", "{}").await.unwrap_err();
    assert!(error.chain().contains("no answer within 0.1 s"), "{}", error.chain());
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = server(200, None, "{\"id\":1}").await;
    let to: &'static str = format!("{}/subjects", other.endpoint).leak();
    for status in [301, 302, 307, 308] {
        let error = register(&server(status, Some(to), "").await).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::RegistryRefused));
        assert!(error.to_string().contains(to), "{error}");
    }
    assert!(other.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_without_tls_is_not_spoken_to_in_clear() {
    let server = server(200, None, "{\"id\":1}").await;
    let endpoint = Endpoint { tls: true, ..server.endpoint.clone() };
    let error = registry(vec![endpoint], None).register("", "s", "{}").await.unwrap_err();
    assert_eq!(error.code(), Some(Code::TlsFailed), "{error}");
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_does_not_answer() {
    let (down, up) = (server(503, None, "").await, server(200, None, "{\"id\":3}").await);
    let registry = registry(vec![down.endpoint.clone(), up.endpoint.clone()], None);
    for _ in 0..3 {
        assert_eq!(registry.register("", "s", "{}").await.unwrap(), 3);
    }
    assert_eq!((down.seen.lock().unwrap().len(), up.seen.lock().unwrap().len()), (1, 3));
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_read_to_its_end() {
    let endless: &'static str = "x".repeat(2 << 20).leak();
    let error = refusal(200, endless).await;
    assert_eq!(error.code(), None, "{error}");
}
