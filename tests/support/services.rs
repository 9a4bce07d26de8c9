//! The servers that scripts/services runs, and databases of one's own in them.
//!
//! Tests run at the same time against the same servers, so each makes databases under names that nobody else has and takes
//! them away in the end. Taking a source away means its slots too: a slot that stays would hold the log of the whole server
//! for as long as the server lives, and a database with a slot can't be dropped.
//!
//! Not here: starting the servers. A test that finds none says what to type; it never starts any behind one's back.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

/// The server is on this machine: who does not answer at once does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a database or a slot may stay in use by somebody whom we have just ended.
const DROP_TIMEOUT: Duration = Duration::from_secs(20);
const DROP_POLL: Duration = Duration::from_millis(50);

/// The role that owns the databases of tests; scripts/services makes it.
pub const ROLE: &str = "lockstep";
const SUPERUSER: &str = "postgres";

/// One set of scripts/services.
#[derive(Clone, Debug)]
pub struct Services {
    /// The source's server.
    pub catalog: Server,
    pub orders: Server,
    pub inventory: Server,
    /// HOST:PORT of the broker, or of each of three with commas between them.
    pub kafka: String,
    /// The schema registry's address; empty for a set without one.
    pub registry: String,
    /// Signs the servers' certificates.
    pub ca: PathBuf,
    /// Where the Unix sockets are; only root and the servers' user can enter.
    pub socket_dir: PathBuf,
    /// The set's state directory, for scripts/services.
    pub dir: PathBuf,
    /// Major version.
    pub postgres_version: u32,
}

impl Services {
    /// Reads what `scripts/services env` prints.
    ///
    /// # Panics
    /// Without it: nothing of a test could go on.
    pub fn from_env() -> Services {
        Services::read(|name| env::var(name).ok())
    }

    /// A set of a test's own, started; the owner takes it down.
    pub fn start_set(dir: &PathBuf) -> Result<Services> {
        services(dir, &["up"])?;
        let printed = services(dir, &["env"])?;
        let exports = printed.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let exports: std::collections::HashMap<&str, &str> = exports.collect();
        Ok(Services::read(|name| exports.get(name).map(|value| (*value).to_owned())))
    }

    pub fn take_down(&self) -> Result<()> {
        services(&self.dir, &["down", "--purge"]).map(drop)
    }

    fn read(find: impl Fn(&str) -> Option<String>) -> Services {
        let get = |name: &str| {
            let name = format!("LOCKSTEP_TEST_{name}");
            find(&name).unwrap_or_else(|| {
                panic!(
                    "{name} is not set: run scripts/test, or: scripts/services up && eval \"$(scripts/services env)\""
                )
            })
        };
        let number = |name: &str| -> u32 {
            let text = get(name);
            text.parse().unwrap_or_else(|_| panic!("LOCKSTEP_TEST_{name} is not a number: {text:?}"))
        };
        let dir = PathBuf::from(get("DIR"));
        let server = |name: &'static str, variable: &str| {
            let port = number(variable).try_into().expect("a port is below 65536");
            Server { name, port, set: dir.clone() }
        };
        Services {
            catalog: server("catalog", "CATALOG_PORT"),
            orders: server("orders", "ORDERS_PORT"),
            inventory: server("inventory", "INVENTORY_PORT"),
            kafka: get("KAFKA"),
            registry: find("LOCKSTEP_TEST_REGISTRY").unwrap_or_default(),
            ca: PathBuf::from(get("CA")),
            socket_dir: PathBuf::from(get("SOCKET_DIR")),
            postgres_version: number("POSTGRES_VERSION"),
            dir,
        }
    }

    /// The broker with that node's number, crashed with SIGKILL.
    pub fn crash_broker(&self, node: i32) -> Result<()> {
        script(&self.dir, "crash", &broker(node))
    }

    pub fn start_broker(&self, node: i32) -> Result<()> {
        script(&self.dir, "start", &broker(node))
    }

    /// The broker, crashed with SIGKILL.
    pub fn crash_kafka(&self) -> Result<()> {
        script(&self.dir, "crash", "kafka")
    }

    pub fn stop_kafka(&self) -> Result<()> {
        script(&self.dir, "stop", "kafka")
    }

    pub fn start_kafka(&self) -> Result<()> {
        script(&self.dir, "start", "kafka")
    }

    /// SIGSTOP and SIGCONT make a broker that takes connections and answers nothing.
    pub fn signal_kafka(&self, signal: Signal) -> Result<()> {
        let path = self.dir.join("data/kafka/kafka.pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).with_context(|| format!("no pid: {text:?}"))?;
        kill_process(pid, signal).with_context(|| format!("signalling {pid:?}"))
    }
}

/// What scripts/services calls it.
fn broker(node: i32) -> String {
    if node == 1 { "kafka".to_owned() } else { format!("kafka{node}") }
}

/// Runs `scripts/services COMMAND NAME` on a set.
fn script(set: &PathBuf, command: &str, name: &str) -> Result<()> {
    services(set, &[command, name]).map(drop)
}

/// What scripts/services prints.
fn services(set: &PathBuf, arguments: &[&str]) -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
    let output = Command::new(path).arg("--dir").arg(set).args(arguments).output().context(path)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "scripts/services {arguments:?}: {}\n{stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A name that no other test of this machine has, of this run or one before: `products_mha3k2_1f0c_0`.
pub fn unique_name(hint: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands after 1970").as_secs();
    format!("{hint}_{seconds:x}_{:x}_{count}", std::process::id())
}

/// One Postgres server.
#[derive(Clone, Debug)]
pub struct Server {
    pub name: &'static str,
    pub port: u16,
    set: PathBuf,
}

impl Server {
    /// Whether a database here could `CREATE EXTENSION`: PostGIS and pgvector are in a set made with `--extensions` alone.
    pub async fn has_extension(&self, name: &str) -> Result<bool> {
        let client = self.superuser().await?;
        let row =
            client.query_one("SELECT count(*) = 1 FROM pg_available_extensions WHERE name = $1", &[&name]).await?;
        Ok(row.try_get(0)?)
    }

    /// A new, empty database of the role lockstep; dropped with the value.
    pub async fn create_database(&self, hint: &str) -> Result<Database> {
        let mut database = self.recreate_database(&unique_name(hint)).await?;
        database.drop_in_the_end = env::var_os("LOCKSTEP_TEST_KEEP").is_none();
        Ok(database)
    }

    /// An empty database of that name, whatever was in it before; stays when the value is dropped.
    pub async fn recreate_database(&self, name: &str) -> Result<Database> {
        self.drop_database(name).await?;
        let admin = self.superuser().await?;
        let create = format!("CREATE DATABASE {name} OWNER {ROLE} TEMPLATE template0");
        admin.batch_execute(&create).await.with_context(|| format!("creating {name} on {}", self.name))?;
        Ok(Database { server: self.clone(), name: name.to_owned(), drop_in_the_end: false })
    }

    /// Drops the database with everything that holds it: sessions, slots and who reads from them.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        let admin = self.superuser().await?;
        let deadline = tokio::time::Instant::now() + DROP_TIMEOUT;
        loop {
            let outcome = self.try_drop(&admin, name).await;
            match outcome {
                Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(DROP_POLL).await,
                outcome => return outcome.with_context(|| format!("dropping {name} on {}", self.name)),
            }
        }
    }

    async fn try_drop(&self, admin: &Client, name: &str) -> Result<()> {
        // A walsender is no session of the database for DROP … FORCE, and its slot is in use until it has gone.
        let terminate =
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active";
        admin.execute(terminate, &[&name]).await?;
        let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1";
        admin.execute(slots, &[&name]).await?;
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        Ok(())
    }

    /// A session of the superuser in the server's maintenance database.
    pub async fn superuser(&self) -> Result<Client> {
        connect(self, "postgres", SUPERUSER, "").await
    }

    /// At once, without a shutdown: recovery at the next start.
    pub fn crash(&self) -> Result<()> {
        script(&self.set, "crash", self.name)
    }

    pub fn stop(&self) -> Result<()> {
        script(&self.set, "stop", self.name)
    }

    pub fn start(&self) -> Result<()> {
        script(&self.set, "start", self.name)
    }
}

/// A database, and the way into it.
#[derive(Debug)]
pub struct Database {
    pub server: Server,
    pub name: String,
    drop_in_the_end: bool,
}

impl Database {
    /// For the configuration: the role lockstep over TCP, without TLS.
    pub fn url(&self) -> String {
        format!("postgres://{ROLE}:{ROLE}@127.0.0.1:{}/{}", self.server.port, self.name)
    }

    /// A session of the role lockstep, which owns the database.
    pub async fn connect(&self) -> Result<Client> {
        connect(&self.server, &self.name, ROLE, "").await
    }

    /// A session of the superuser.
    pub async fn superuser(&self) -> Result<Client> {
        connect(&self.server, &self.name, SUPERUSER, "").await
    }

    /// A session of the role lockstep with startup options (`-c name=value`).
    pub async fn connect_with(&self, options: &str) -> Result<Client> {
        connect(&self.server, &self.name, ROLE, options).await
    }

    /// Runs statements in a session of their own.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let client = self.connect().await?;
        client.batch_execute(sql).await.with_context(|| format!("in {}: {sql}", self.name))
    }

    /// The end of what the server has written of its log.
    pub async fn wal_lsn(&self) -> Result<lockstep::lsn::Lsn> {
        let client = self.connect().await?;
        let text: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
        Ok(text.parse()?)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.drop_in_the_end {
            return;
        }
        let (server, name) = (self.server.clone(), self.name.clone());
        let outcome = block_on_elsewhere(async move { server.drop_database(&name).await });
        if let Err(error) = outcome {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Runs async work to its end from a `drop`, which may itself be inside a runtime: on a thread of its own.
pub fn block_on_elsewhere<F>(work: F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work)
    });
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("cleaning up panicked")))
}

async fn connect(server: &Server, database: &str, user: &str, options: &str) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    // Both roles have their name as their password in these servers.
    config.host("127.0.0.1").port(server.port).user(user).password(user).dbname(database);
    config.application_name("lockstep test").options(options).connect_timeout(CONNECT_TIMEOUT);
    let place = || format!("connecting to {database} on {} (port {}) as {user}", server.name, server.port);
    let (client, connection) = config.connect(NoTls).await.with_context(place)?;
    // Ends with the client; a connection that breaks fails the client's next call, so nothing is said here.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}
