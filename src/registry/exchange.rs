//! One request and its answer over a connection of its own.
//!
//! Schemas are registered when a relation version is new, a few times a day, so no connection is kept.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Endpoint, Registry, RegistryAuth};
use crate::error::{Code, Error, Result};
use crate::session::tls;

/// A schema of a thousand columns is below 1 MiB, and answers are smaller than schemas.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

pub(super) struct Answer {
    pub status: u16,
    /// Where a redirect points to.
    pub location: Option<String>,
    pub body: String,
}

/// POSTs a body of JSON. The path is below the endpoint's own.
pub(super) async fn exchange(
    config: &Registry,
    endpoint: &Endpoint,
    tls_config: Option<&Arc<rustls::ClientConfig>>,
    path: &str,
    body: &str,
) -> Result<Answer> {
    let failed = |source: Failure| Error::retry(format!("asking the schema registry {endpoint}"), source);
    let request = request(config, endpoint, path, body);
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(|e| failed(e.into()))?;
    if !endpoint.tls {
        return over(stream, request).await.map_err(failed);
    }
    let connector = TlsConnector::from(tls_config.expect("made where an address has TLS").clone());
    let stream = connector.connect(tls::server_name(&endpoint.host)?, stream).await;
    match stream {
        Ok(stream) => over(stream, request).await.map_err(failed),
        Err(error) => match tls::rustls_error(&error) {
            Some(refused) => Err(Error::halt(
                Code::TlsFailed,
                format!("no TLS with the schema registry {endpoint}: {refused}"),
                format!("openssl s_client -connect {}:{} -showcerts </dev/null", endpoint.host, endpoint.port),
            )),
            None => Err(failed(error.into())),
        },
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn request(config: &Registry, endpoint: &Endpoint, path: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}{path}", endpoint.path))
        .header(HOST, endpoint.authority())
        .header(USER_AGENT, concat!("lockstep/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, format!("{}, application/json", super::CONTENT_TYPE))
        .header(CONTENT_TYPE, super::CONTENT_TYPE);
    if let Some(auth) = &config.auth {
        let text = match auth {
            RegistryAuth::Basic { username, password } => {
                let pair = format!("{username}:{}", password.expose_secret());
                format!("Basic {}", BASE64_STANDARD.encode(pair))
            }
            RegistryAuth::Bearer(token) => format!("Bearer {}", token.expose_secret()),
        };
        let mut value = HeaderValue::try_from(text).expect("the configuration refuses control characters in secrets");
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    request.body(Full::from(body.to_owned())).expect("the configuration refuses addresses that no request can hold")
}

/// HTTP/1.1 over a stream. The connection's driver runs beside the request and ends with it.
async fn over<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let asking = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let location = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok::<_, Failure>(Answer { status, location, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let driving = async {
        connection.await?;
        // The server closed; what it sent before is with the request, which then ends by itself.
        std::future::pending::<Result<Answer, Failure>>().await
    };
    tokio::select! {
        biased;
        answer = asking => answer,
        failed = driving => failed,
    }
}
