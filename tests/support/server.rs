//! A Postgres server of one test, for what would end every other test's: a crash for good, a standby promoted, an older copy of
//! its files put back, another major version.
//!
//! Made from the binaries of the running set, beside its data, as the user that its servers run as. It ends with the value.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::time::sleep;

use super::services::{Server, Services, unique_name};

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What every such server has; a test adds its own.
const SETTINGS: [&str; 6] = [
    "wal_level = logical",
    "listen_addresses = '127.0.0.1'",
    "unix_socket_directories = ''",
    "shared_buffers = 64MB",
    "max_wal_size = 2GB",
    "fsync = off",
];

#[derive(Debug)]
pub struct OwnServer {
    pub server: Server,
    pub data: PathBuf,
    binaries: PathBuf,
    process: Option<Child>,
    /// Its files are on a disk of their own.
    disk: bool,
}

/// A file that takes what was left of a disk.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Ballast {
    /// Fills the disk to the last byte.
    pub fn fill(folder: &Path) -> Ballast {
        let ballast = Ballast(folder.join("ballast"));
        let mut file = fs::File::create(&ballast.0).unwrap();
        let block = [0; 1 << 12];
        while file.write_all(&block).is_ok() {}
        ballast
    }
}

/// A disk in memory, for the owner of the place beside; fails where we have no right to it.
pub fn mount(at: &Path, beside: &Path, megabytes: u32) -> Option<()> {
    let owner = fs::metadata(beside).unwrap();
    fs::create_dir(at).unwrap();
    let options = format!("size={megabytes}m,mode=0700,uid={},gid={}", owner.uid(), owner.gid());
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
    if mounted.is_ok_and(|output| output.status.success()) {
        return Some(());
    }
    fs::remove_dir(at).unwrap();
    None
}

impl OwnServer {
    /// A new one, running, with the role lockstep.
    pub async fn start(services: &Services, hint: &str, settings: &[&str]) -> OwnServer {
        OwnServer::make(services, hint, settings, None).await.expect("only a disk can be refused")
    }

    /// The same on a disk of so many megabytes; `None` where we may not mount one.
    pub async fn start_on_disk(
        services: &Services,
        hint: &str,
        settings: &[&str],
        megabytes: u32,
    ) -> Option<OwnServer> {
        OwnServer::make(services, hint, settings, Some(megabytes)).await
    }

    async fn make(services: &Services, hint: &str, settings: &[&str], disk: Option<u32>) -> Option<OwnServer> {
        let running = services.catalog.superuser().await.unwrap();
        let one = async |sql: &str| -> String { running.query_one(sql, &[]).await.unwrap().get(0) };
        let binaries = PathBuf::from(one("SELECT setting FROM pg_config WHERE name = 'BINDIR'").await);
        let beside = PathBuf::from(one("SELECT setting FROM pg_settings WHERE name = 'data_directory'").await);
        let data = beside.with_file_name(unique_name(hint));
        if let Some(megabytes) = disk {
            mount(&data, &beside, megabytes)?;
        }
        done(as_owner_of(&beside, &binaries.join("initdb")).arg("-D").arg(&data).args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]));
        let mut own =
            OwnServer { server: services.catalog.clone(), data, binaries, process: None, disk: disk.is_some() };
        own.move_port();
        own.set(&SETTINGS);
        own.set(settings);
        own.run().await;
        own.superuser("CREATE ROLE lockstep LOGIN REPLICATION").await;
        Some(own)
    }

    /// Fills its disk to the last byte; what is in the way goes with the value.
    pub fn fill_disk(&self) -> Ballast {
        assert!(self.disk, "only a disk of its own");
        Ballast::fill(&self.data)
    }

    /// Lines for its configuration; read at its next start.
    pub fn set(&self, lines: &[&str]) {
        let path = self.data.join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        lines.iter().for_each(|line| writeln!(file, "{line}").unwrap());
    }

    /// A port that nobody has; where it was others may be for good.
    fn move_port(&mut self) {
        self.server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    }

    /// Starts it, and waits until it answers.
    pub async fn run(&mut self) {
        let mut postgres = as_owner_of(&self.data, &self.binaries.join("postgres"));
        postgres.arg("-D").arg(&self.data).args(["-p", &self.server.port.to_string()]);
        // Not a pipe: nobody would read it.
        let log = OpenOptions::new().create(true).append(true).open(self.data.with_extension("log")).unwrap();
        self.process = Some(postgres.stderr(log).spawn().unwrap());
        let begun = Instant::now();
        while let Err(error) = self.server.superuser().await {
            assert!(begun.elapsed() < PATIENCE, "{error:#}\n{}", self.log());
            sleep(POLL).await;
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }

    /// A fast shutdown, which waits for whoever replicates: how long it took.
    pub async fn stop(&mut self) -> Duration {
        self.end(Signal::INT).await
    }

    /// At once: recovery at the next start.
    pub async fn crash(&mut self) {
        self.end(Signal::QUIT).await;
    }

    async fn end(&mut self, signal: Signal) -> Duration {
        let begun = Instant::now();
        let Some(mut process) = self.process.take() else { return Duration::ZERO };
        kill_process(Pid::from_child(&process), signal).unwrap();
        while process.try_wait().unwrap().is_none() {
            if begun.elapsed() > PATIENCE {
                self.process = Some(process);
                panic!("the server does not end\n{}", self.log());
            }
            sleep(POLL).await;
        }
        begun.elapsed()
    }

    /// Statements of the superuser, one at a time.
    pub async fn superuser(&self, sql: &str) {
        let client = self.server.superuser().await.unwrap();
        client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Its files as they are, as another server with a port of its own; both are stopped.
    pub fn copy(&self, hint: &str) -> OwnServer {
        assert!(self.process.is_none(), "files of a running server are nothing to copy");
        let data = self.data.with_file_name(unique_name(hint));
        copy(&self.data, &data);
        let mut other = OwnServer {
            server: self.server.clone(),
            data,
            binaries: self.binaries.clone(),
            process: None,
            disk: false,
        };
        other.move_port();
        other
    }

    /// Puts the files of another in the place of its own; both are stopped.
    pub fn restore(&mut self, from: &OwnServer) {
        assert!(self.process.is_none() && from.process.is_none());
        fs::remove_dir_all(&self.data).unwrap();
        copy(&from.data, &self.data);
    }

    /// Gives it other files, and the binaries that can read them.
    pub fn become_of(&mut self, data: PathBuf, binaries: PathBuf) {
        assert!(self.process.is_none());
        fs::remove_dir_all(&self.data).unwrap();
        let _ = fs::remove_file(self.data.with_extension("log"));
        (self.data, self.binaries) = (data, binaries);
    }

    pub fn binaries(&self) -> &Path {
        &self.binaries
    }
}

fn copy(from: &Path, to: &Path) {
    done(as_owner_of(from, Path::new("cp")).arg("-a").arg(from).arg(to));
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Postgres refuses to run as root.
fn as_owner_of(place: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if geteuid().is_root() {
        let owner = fs::metadata(place).unwrap();
        command.uid(owner.uid()).gid(owner.gid());
    }
    command
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // At once, without a shutdown: who waits for a standby would go on waiting.
            let _ = kill_process(Pid::from_child(&process), Signal::QUIT);
            let _ = process.wait();
        }
        if self.disk {
            let _ = Command::new("umount").arg(&self.data).output();
        }
        let _ = fs::remove_dir_all(&self.data);
        let _ = fs::remove_file(self.data.with_extension("log"));
    }
}
