//! The byte stream below the replication connection: TCP with a small receive window, TCP under TLS, or a unix socket.
//!
//! The window is set before the connection is made, because the peer learns the scale of it in the first packet. Reads go on until
//! the kernel really has nothing left: tokio's own `poll_read` takes a short read as a sign that the socket is empty, but here each
//! read opens the window, and the server's next segment is already behind it.
//!
//! Deliberately not here: what the bytes mean.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Database, Host, Tls};
use crate::error::{Error, Result};
use crate::session::{self, tls};

/// A connected byte stream.
#[derive(Debug)]
pub enum Socket {
    Plain(Raw),
    Tls(Box<TlsStream<Raw>>),
}

/// A connected socket without TLS.
#[derive(Debug)]
pub enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects; `receive_bytes` is the receive window of a TCP connection, 0 leaves it to the system.
    pub async fn connect(db: &Database, receive_bytes: usize) -> Result<Socket> {
        let doing = || format!("connecting to {}", session::place(db));
        let name = match &db.host {
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", db.port));
                let stream = UnixStream::connect(path).await.map_err(|e| Error::retry(doing(), e))?;
                return Ok(Socket::Plain(Raw::Unix(stream)));
            }
            Host::Tcp(name) => name,
        };
        let tcp = connect_tcp(name, db, receive_bytes).await.map_err(|e| Error::retry(doing(), e))?;
        match &db.tls {
            Tls::Off => Ok(Socket::Plain(Raw::Tcp(tcp))),
            Tls::Verified { ca_file } => {
                let config = tls::tls_config(ca_file.as_deref())?;
                handshake(tcp, tls::server_name(name)?, config, db).await
            }
        }
    }

    /// What SCRAM binds the exchange to, if there is TLS and a digest for the server's certificate.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        let Socket::Tls(stream) = self else { return None };
        let certificates = stream.get_ref().1.peer_certificates()?;
        certificates.first().and_then(|certificate| tls::end_point(certificate))
    }

    /// Nobody between us and the server can read what is sent: TLS, a unix socket, or an address of this machine.
    pub fn is_private(&self) -> bool {
        match self {
            Socket::Tls(_) | Socket::Plain(Raw::Unix(_)) => true,
            Socket::Plain(Raw::Tcp(tcp)) => tcp.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()),
        }
    }

    /// TCP with or without TLS: the only kind whose sender merges small segments while our window is closed. The sender on a unix
    /// socket just stops.
    pub fn has_window(&self) -> bool {
        !matches!(self, Socket::Plain(Raw::Unix(_)))
    }
}

async fn connect_tcp(name: &str, db: &Database, receive_bytes: usize) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((name, db.port)).await? {
        match tokio::time::timeout(session::address_timeout(db), connect_address(address, receive_bytes)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

async fn connect_address(address: SocketAddr, receive_bytes: usize) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if receive_bytes > 0 {
        socket.set_recv_buffer_size(u32::try_from(receive_bytes).unwrap_or(u32::MAX))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let options = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(session::KEEPALIVE_IDLE)
        .with_interval(session::KEEPALIVE_INTERVAL)
        .with_retries(session::KEEPALIVE_PROBES);
    options.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(session::TCP_USER_TIMEOUT))?;
    Ok(stream)
}

/// Asks for TLS and verifies the server. A server without it is refused; there is no way back to plain text.
async fn handshake(
    mut tcp: TcpStream,
    name: ServerName<'static>,
    config: Arc<rustls::ClientConfig>,
    db: &Database,
) -> Result<Socket> {
    let doing = || format!("starting TLS with {}", session::place(db));
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    tcp.write_all(&request).await.map_err(|e| Error::retry(doing(), e))?;
    // One byte and no more: whatever follows an S in plain text must meet TLS, not us (CVE-2021-23222).
    match tcp.read_u8().await.map_err(|e| Error::retry(doing(), e))? {
        b'S' => {}
        b'N' => return Err(tls::not_offered(db)),
        // An error before TLS, in plain text that anyone could have written: a server that can't fork.
        _ => return Err(Error::retry_plain(format!("{}: the server answered with an error", doing()))),
    }
    match TlsConnector::from(config).connect(name, Raw::Tcp(tcp)).await {
        Ok(stream) => Ok(Socket::Tls(Box::new(stream))),
        Err(error) => Err(tls::explain(&error, db).unwrap_or_else(|| Error::retry(doing(), error))),
    }
}

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let room = buf.initialize_unfilled();
            let read = match &*self {
                Raw::Tcp(stream) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read(room)
                }
                Raw::Unix(stream) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read(room)
                }
            };
            match read {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                // Clears the readiness; the next round waits for it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Raw::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Raw::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Raw::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Raw::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Raw::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Raw::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(raw) => Pin::new(raw).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(raw) => Pin::new(raw).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(raw) => Pin::new(raw).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(raw) => Pin::new(raw).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
