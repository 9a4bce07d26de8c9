//! A GET over plain HTTP, for `lockstep status`: one request, one answer, within a time and a size.
//!
//! It asks with HTTP/1.0, so the answer ends where the connection does and needs no chunk decoding. Our own server is the one
//! it is made for; through a proxy that insists on TLS, use curl.
//!
//! Not here: TLS, redirects, keep-alive. Nothing is followed, so an answer can't send us anywhere else.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A status document of some hundred tables is below 1 MiB.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Fetches `http://HOST[:PORT][/PATH]`. The error is a sentence for the user.
pub async fn get(url: &str, patience: Duration) -> Result<Answer, String> {
    let (authority, path) = split(url)?;
    let asking = async {
        let mut stream = TcpStream::connect(with_port(authority)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: application/json\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(patience, asking).await {
        Err(_) => Err(format!("{url} did not answer within {} s", patience.as_secs())),
        Ok(Err(error)) => Err(format!("can't reach {url}: {error}")),
        Ok(Ok(answer)) => parse(&answer).ok_or_else(|| format!("{url} did not answer in HTTP")),
    }
}

/// Authority and path with query of an URL.
fn split(url: &str) -> Result<(&str, &str), String> {
    let plain = !url.chars().any(|c| c.is_control() || c.is_whitespace());
    let rest = url.strip_prefix("http://").filter(|rest| plain && !rest.is_empty() && !rest.starts_with('/'));
    let rest = rest.ok_or_else(|| format!("not an URL of the kind http://HOST:PORT: {url:?}"))?;
    Ok(rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash)))
}

fn with_port(authority: &str) -> String {
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    if after_host.contains(':') { authority.to_owned() } else { format!("{authority}:80") }
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_nothing_can_be_smuggled_in() {
        assert_eq!(split("http://a:1/x?y").unwrap(), ("a:1", "/x?y"));
        assert_eq!(split("http://[::1]:1").unwrap(), ("[::1]:1", "/"));
        for bad in ["https://a", "a:1", "http://", "http:///x", "http://a/\r\nX: y", "http://a b"] {
            assert!(split(bad).is_err(), "{bad}");
        }
        assert_eq!(with_port("[::1]"), "[::1]:80");
        assert_eq!(with_port("[::1]:9"), "[::1]:9");
        assert_eq!(with_port("a"), "a:80");
    }

    #[test]
    fn answers_are_read_or_refused() {
        let answer = parse(b"HTTP/1.0 503 x\r\nA: b\r\n\r\nbody").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "body"));
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_none());
        assert!(parse(b"HTTP/1.0 x y\r\n\r\n").is_none());
    }
}
