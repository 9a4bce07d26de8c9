//! Sessions that run SQL: one way into a Postgres, for the source's catalog and chunks as for the sinks.
//!
//! Every session of this program pins the settings that shape a value's text ([`settings`]) and asserts that the server took
//! them: a pooler that drops them would otherwise corrupt values silently. TLS is verified or off ([`tls`]), never "preferred".
//! Failures are judged once, here ([`failure`]): what may heal is retried, what needs a person halts with a name.
//!
//! The connection's driver is a task that a [`Session`] owns: it ends with the session, nothing is detached. Dropping a session
//! drops its socket, and the server rolls back what was open; [`Session::close`] says goodbye first.
//!
//! Deliberately not here: replication (tokio-postgres can't; [`crate::postgres::wire`] can), pools (whoever needs a session owns
//! one), and any SQL besides the assertion.

pub mod failure;
pub mod settings;
pub mod tls;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Database, Host, Tls};
use crate::error::{Error, Result};

pub use failure::{ServerError, classify};

/// When data that we sent is not acknowledged by the peer's kernel for this long, the connection is dead. Ends a wait on a host
/// that vanished; Linux alone would try for a quarter of an hour.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections are probed, so that a peer that vanished is seen within about [`TCP_USER_TIMEOUT`].
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub const KEEPALIVE_PROBES: u32 = 4;
/// A goodbye is a courtesy: a server that does not take it in this time gets none.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connected client and the task that drives it. Use it as the client that it derefs to.
#[derive(Debug)]
pub struct Session {
    client: Client,
    driver: AbortOnDropHandle<()>,
}

impl Session {
    /// Ends the session in order; what the server did before is done.
    pub async fn close(self) {
        let Session { client, driver } = self;
        drop(client);
        // Late is as good as closed: the driver is aborted by the drop.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, driver).await;
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Connects, authenticates, asserts [`settings::SETTINGS`] and lifts limits of the role's, all within `db.connect_timeout`.
pub async fn connect(db: &Database, application_name: &str) -> Result<Session> {
    let doing = format!("connecting to {}", place(db));
    let attempt = async {
        let session = match (&db.tls, &db.host) {
            (Tls::Verified { ca_file }, Host::Tcp(name)) => {
                tls::server_name(name)?;
                let config = tls::tls_config(ca_file.as_deref())?;
                open(db, application_name, MakeRustlsConnect::new((*config).clone()), &doing).await?
            }
            // A unix socket never leaves the machine, and Postgres offers no TLS on it.
            (Tls::Off, _) | (_, Host::Unix(_)) => open(db, application_name, NoTls, &doing).await?,
        };
        assert_settings(&session).await?;
        Ok(session)
    };
    match tokio::time::timeout(db.connect_timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::retry_plain(format!("{doing}: no session after {:?}", db.connect_timeout))),
    }
}

async fn open<T>(db: &Database, application_name: &str, tls: T, doing: &str) -> Result<Session>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    match client_config(db, application_name).connect(tls).await {
        Ok((client, connection)) => {
            let driver = tokio::spawn(async move {
                // The client's own calls fail with the same; here it is only the end of an idle session.
                if let Err(error) = connection.await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "session ended");
                }
            });
            Ok(Session { client, driver: AbortOnDropHandle::new(driver) })
        }
        Err(error) => Err(failure::of_connecting(doing, error, db)),
    }
}

fn client_config(db: &Database, application_name: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    match &db.host {
        Host::Tcp(name) => config.host(name),
        Host::Unix(folder) => config.host_path(folder),
    };
    let encrypted = matches!((&db.tls, &db.host), (Tls::Verified { .. }, Host::Tcp(_)));
    config
        .port(db.port)
        .user(&db.user)
        .dbname(&db.dbname)
        .application_name(application_name)
        .options(settings::startup_options(&[]))
        .ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable })
        .connect_timeout(address_timeout(db))
        .tcp_user_timeout(TCP_USER_TIMEOUT)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_PROBES);
    if let Some(password) = &db.password {
        config.password(password.expose_secret());
    }
    config
}

async fn assert_settings(session: &Session) -> Result<()> {
    let doing = "asserting the session's settings";
    let asked = format!("{}; {}", settings::assertion(), settings::LIFT_TRANSACTION_TIMEOUT);
    let messages = session.simple_query(&asked).await.map_err(|e| classify(doing, e))?;
    let row = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let values = row.map(|row| (0..row.len()).map(|i| row.get(i)).collect::<Vec<_>>()).unwrap_or_default();
    settings::check(&values)
}

/// How long one address of a host may take to accept: half of what all of it may take, so that a name whose first address is a
/// black hole gets to its second.
pub fn address_timeout(db: &Database) -> Duration {
    db.connect_timeout / 2
}

/// Names a database in messages: `orders at 127.0.0.1:5433`. Never holds a secret.
pub fn place(db: &Database) -> String {
    match &db.host {
        Host::Tcp(host) => format!("{} at {host}:{}", db.dbname, db.port),
        Host::Unix(folder) => format!("{} at {}, port {}", db.dbname, folder.display(), db.port),
    }
}

/// The beginning of a command that enters the same database, for hints.
pub fn psql(db: &Database) -> String {
    let host = match &db.host {
        Host::Tcp(host) => host.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    };
    format!("psql -h {host} -p {} -U {} -d {}", db.port, db.user, db.dbname)
}
