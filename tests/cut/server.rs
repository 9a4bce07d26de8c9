//! A Postgres server of one test: its commits wait for a standby that nobody is, unless a session says otherwise.
//!
//! Made from the binaries of the running set, beside its data, as the user that its servers run as. It ends with the value.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::time::sleep;

use super::bed::PATIENCE;
use crate::support::services::unique_name;
use crate::support::{Server, Services};

/// `local` by default: whoever is to wait says so.
const SETTINGS: [&str; 8] = [
    "wal_level=logical",
    "synchronous_standby_names=nobody",
    "synchronous_commit=local",
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "shared_buffers=64MB",
    "max_wal_size=2GB",
    "fsync=off",
];

pub struct WaitingServer {
    pub server: Server,
    process: Child,
    data: PathBuf,
}

impl WaitingServer {
    pub async fn start(services: &Services) -> WaitingServer {
        let running = services.catalog.superuser().await.unwrap();
        let one = async |sql: &str| -> String { running.query_one(sql, &[]).await.unwrap().get(0) };
        let binaries = PathBuf::from(one("SELECT setting FROM pg_config WHERE name = 'BINDIR'").await);
        let beside = PathBuf::from(one("SELECT setting FROM pg_settings WHERE name = 'data_directory'").await);
        let data = beside.with_file_name(unique_name("waiting"));
        let initdb = as_owner_of(&beside, &binaries.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"])
            .output()
            .unwrap();
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut postgres = as_owner_of(&beside, &binaries.join("postgres"));
        postgres.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        for setting in SETTINGS {
            postgres.args(["-c", setting]);
        }
        // Not a pipe: nobody would read it, and every cancelled wait writes a line.
        let process = postgres.stderr(File::create(data.join("log")).unwrap()).spawn().unwrap();
        let mut server = services.catalog.clone();
        server.port = port;
        let waiting = WaitingServer { server, process, data };
        let begun = Instant::now();
        let session = loop {
            match waiting.server.superuser().await {
                Ok(session) => break session,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error:#}"),
            }
            sleep(Duration::from_millis(20)).await;
        };
        session.batch_execute("CREATE ROLE lockstep LOGIN REPLICATION").await.unwrap();
        waiting
    }
}

/// Postgres refuses to run as root.
fn as_owner_of(place: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if geteuid().is_root() {
        let owner = std::fs::metadata(place).unwrap();
        command.uid(owner.uid()).gid(owner.gid());
    }
    command
}

impl Drop for WaitingServer {
    fn drop(&mut self) {
        // At once, without a shutdown: whoever waits for a standby would go on waiting.
        let pid = Pid::from_child(&self.process);
        let _ = kill_process(pid, Signal::QUIT);
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}
