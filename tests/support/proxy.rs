//! A way to a server of this machine that can go deaf: bytes are taken and thrown away, and no end is passed on.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Dropping it closes the door, not what has come in.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    /// Of the connections that are open and not deaf.
    links: Arc<Mutex<Vec<CancellationToken>>>,
    door: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy to a port of this machine.
    pub async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound address").port();
        let links = Arc::new(Mutex::new(Vec::new()));
        let open = links.clone();
        let door = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
                let deaf = CancellationToken::new();
                open.lock().unwrap().push(deaf.clone());
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, deaf.clone()));
                tokio::spawn(pass(from_server, to_client, deaf));
            }
        });
        Proxy { port, links, door }
    }

    /// Every connection that is open now goes deaf; new ones work. Gives their number.
    pub fn swallow(&self) -> usize {
        let links = std::mem::take(&mut *self.links.lock().unwrap());
        links.iter().for_each(CancellationToken::cancel);
        links.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.door.abort();
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    deaf: CancellationToken,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if !deaf.is_cancelled() && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    // The end of one side is no news for the other once the link is deaf.
    if deaf.is_cancelled() {
        std::future::pending::<()>().await;
    }
}
