//! A configuration written to disk and the real binary that runs it: start, kill, ask, wait.
//!
//! The binary is handed in, because only a test knows `env!("CARGO_BIN_EXE_lockstep")`. Its stderr goes into one file in the
//! configuration's folder, over all starts, and the end of that file is printed when a test fails: a process that halted has
//! said why there.
//!
//! Waiting always has a deadline, and ends at once when the process has ended by itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lockstep::lsn::Lsn;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use super::compare::{Comparison, TablePair, compare};
use super::services::{Database, Services, unique_name};

/// Between two looks at a process or a row.
const POLL: Duration = Duration::from_millis(20);
/// A role that has halted never catches up, so who waits for it looks now and then.
const HALT_POLL: Duration = Duration::from_secs(1);
/// The status page is on this machine and answers from memory.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(15);
/// What of the log is printed when something failed.
const TAIL_LINES: usize = 60;

/// One pipeline: its configuration on disk and what is needed to run and judge it.
#[derive(Debug)]
pub struct Pipeline {
    pub name: String,
    /// Holds lockstep.toml and connectors/.
    pub dir: PathBuf,
    pub http_port: u16,
    binary: PathBuf,
    kafka: String,
    source_url: String,
    sinks: BTreeMap<String, String>,
    /// Lines by section of lockstep.toml; "" is the top.
    settings: BTreeMap<String, Vec<String>>,
    /// Text of each connector by file name.
    connectors: BTreeMap<String, String>,
    delete_topics: bool,
    /// Each process listens on a port of its own.
    several: bool,
    _temp: Option<TempDir>,
}

/// Names the port of a process where several share one configuration.
const HTTP_PORT_ENV: &str = "LOCKSTEP_TEST_HTTP_PORT";

impl Pipeline {
    /// A pipeline under a name that nobody else has, in a temporary folder. Its topics go when it is dropped.
    pub fn new(binary: impl Into<PathBuf>, services: &Services, source: &Database) -> Pipeline {
        let temp = tempfile::Builder::new().prefix("lockstep-test-").tempdir().expect("a temporary folder");
        let dir = temp.path().to_owned();
        let mut pipeline = Pipeline::at(&unique_name("t"), dir, binary, services, source);
        if std::env::var_os("LOCKSTEP_TEST_KEEP").is_some() {
            eprintln!("kept: {}", temp.keep().display());
        } else {
            pipeline.delete_topics = true;
            pipeline._temp = Some(temp);
        }
        pipeline
    }

    /// A pipeline of that name in that folder; both stay.
    pub fn at(
        name: &str,
        dir: PathBuf,
        binary: impl Into<PathBuf>,
        services: &Services,
        source: &Database,
    ) -> Pipeline {
        Pipeline {
            name: name.to_owned(),
            dir,
            http_port: free_port(),
            binary: binary.into(),
            kafka: services.kafka.clone(),
            source_url: source.url(),
            sinks: BTreeMap::new(),
            settings: BTreeMap::new(),
            connectors: BTreeMap::new(),
            delete_topics: false,
            several: false,
            _temp: None,
        }
    }

    pub fn sink(mut self, name: &str, database: &Database) -> Pipeline {
        self.sinks.insert(name.to_owned(), database.url());
        self
    }

    /// Takes a sink away again, out of every connector too.
    pub fn without_sink(mut self, name: &str) -> Pipeline {
        self.sinks.remove(name);
        for text in self.connectors.values_mut() {
            *text = text.replace(&format!("[sinks.{name}]\n"), "");
        }
        self
    }

    /// Another way into the source than the role lockstep's.
    pub fn source_url(mut self, url: String) -> Pipeline {
        self.source_url = url;
        self
    }

    /// Another way into a sink.
    pub fn sink_url(mut self, name: &str, url: String) -> Pipeline {
        self.sinks.insert(name.to_owned(), url);
        self
    }

    /// A table that every sink named so far takes whole and under the same name.
    pub fn table(self, table: &str) -> Pipeline {
        let sinks: String = self.sinks.keys().map(|sink| format!("[sinks.{sink}]\n")).collect();
        self.connector(table, &sinks)
    }

    /// A table with the rest of its connector's text.
    pub fn connector(self, table: &str, text: &str) -> Pipeline {
        self.connector_file(table, table, text)
    }

    /// The same under a file name of its own: a table's name can be none.
    pub fn connector_file(mut self, file: &str, table: &str, text: &str) -> Pipeline {
        self.connectors.insert(format!("{file}.toml"), format!("table = '''{table}'''\n{text}"));
        self
    }

    /// Takes a table's connector away.
    pub fn without(mut self, table: &str) -> Pipeline {
        self.connectors.remove(&format!("{table}.toml"));
        self
    }

    /// A line for a section of lockstep.toml: `set("source.snapshot", "chunk_rows = 100")`; "" is the top of the file.
    pub fn set(mut self, section: &str, line: &str) -> Pipeline {
        self.settings.entry(section.to_owned()).or_default().push(line.to_owned());
        self
    }

    /// Takes back the lines that were added to a section.
    pub fn unset(mut self, section: &str) -> Pipeline {
        self.settings.remove(section);
        self
    }

    /// Several processes will run with this configuration at the same time.
    pub fn several(mut self) -> Pipeline {
        self.several = true;
        self
    }

    /// Writes the configuration. Called by whoever changed it after a start; [`Pipeline::spawn`] writes it too.
    pub fn write(&self) -> Result<()> {
        let connectors = self.dir.join("connectors");
        fs::create_dir_all(&connectors).with_context(|| connectors.display().to_string())?;
        for entry in fs::read_dir(&connectors)? {
            let entry = entry?;
            if !self.connectors.contains_key(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        write_if_other(&self.dir.join("lockstep.toml"), &self.process_toml())?;
        for (file, text) in &self.connectors {
            write_if_other(&connectors.join(file), text)?;
        }
        Ok(())
    }

    fn process_toml(&self) -> String {
        let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut add = |section: &str, line: String| sections.entry(section.to_owned()).or_default().push(line);
        add("", format!("name = \"{}\"", self.name));
        // What a test edits is for the next start unless it says otherwise.
        if !self.settings.get("").is_some_and(|lines| lines.iter().any(|line| line.starts_with("reload"))) {
            add("", "reload = false".to_owned());
        }
        // Where another program writes the topics there is none.
        if !self.settings.contains_key("topics") {
            add("source", format!("url = \"{}\"", self.source_url));
        }
        add("kafka", format!("brokers = \"{}\"", self.kafka));
        let port = if self.several { format!("${{{HTTP_PORT_ENV}}}") } else { self.http_port.to_string() };
        add("http", format!("listen = \"127.0.0.1:{port}\""));
        for (name, url) in &self.sinks {
            add(&format!("sinks.{name}"), format!("url = \"{url}\""));
        }
        for (section, lines) in &self.settings {
            lines.iter().for_each(|line| add(section, line.clone()));
        }
        let mut text = String::new();
        for (section, lines) in &sections {
            if !section.is_empty() {
                let _ = writeln!(text, "\n[{section}]");
            }
            let _ = writeln!(text, "{}", lines.join("\n"));
        }
        text
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("lockstep.log")
    }

    /// Starts `lockstep run` with the roles given, or all of them. Does not wait until it does anything.
    pub fn spawn(&self, roles: &[&str]) -> Result<Process> {
        let roles = roles.iter().flat_map(|role| ["--role", role]);
        self.spawn_with(&roles.collect::<Vec<_>>(), &[])
    }

    /// Starts `lockstep run` with further arguments and environment variables.
    pub fn spawn_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Process> {
        self.write()?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).context("opening the log")?;
        let http_port = if self.several { free_port() } else { self.http_port };
        let child = Command::new(&self.binary)
            .env(HTTP_PORT_ENV, http_port.to_string())
            .args(["run", "--config"])
            .arg(&self.dir)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        Ok(Process { child, started: Instant::now(), log: self.log_path(), http_port })
    }

    /// Runs another verb to its end: `command(&["status"])`. The configuration is given, stdout and stderr are returned.
    pub fn command(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let (verb, rest) = arguments.split_first().context("no verb")?;
        let mut command = Command::new(&self.binary);
        command.arg(verb).arg("--config").arg(&self.dir).args(rest).env(HTTP_PORT_ENV, self.http_port.to_string());
        let output = command.output();
        output.with_context(|| format!("running {} {verb}", self.binary.display()))
    }

    /// Waits until every sink holds everything that the source has committed when this is called, and streams.
    pub async fn wait_caught_up(
        &self,
        process: &mut Process,
        source: &Database,
        sinks: &[(&str, &Database)],
        patience: Duration,
    ) -> Result<Lsn> {
        let client = source.connect().await?;
        let text: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
        let lsn: Lsn = text.parse()?;
        // The log must go on beyond that point, or on a quiet server nothing would ever say that it was passed.
        client.execute("SELECT pg_logical_emit_message(true, 'lockstep test', '')", &[]).await?;
        for (name, database) in sinks {
            self.wait_progress(process, name, database, lsn, patience).await?;
        }
        Ok(lsn)
    }

    /// Waits for one sink's progress row to say that it is whole up to `lsn`.
    async fn wait_progress(
        &self,
        process: &mut Process,
        sink: &str,
        database: &Database,
        lsn: Lsn,
        patience: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        let client = database.connect().await?;
        let mut last = String::from("no row");
        let mut looked = Instant::now();
        loop {
            if let Some((closed, phase)) = self.progress(&client, sink).await? {
                if closed >= lsn && phase == "streaming" {
                    return Ok(());
                }
                last = format!("{phase} at {closed}");
            }
            process.ensure_running()?;
            if Instant::now() >= looked + HALT_POLL {
                looked = Instant::now();
                // Another sink may have halted, and be meant to.
                process.ensure_none_halted(|role| role == sink || role == "source").await?;
            }
            if Instant::now() >= deadline {
                let status = process.status().await.map_or_else(|e| format!("{e:#}"), |s| s.to_string());
                bail!("sink {sink} has not reached {lsn} within {patience:?}: {last}\nstatus: {status}");
            }
            sleep(POLL).await;
        }
    }

    /// Closed LSN and phase in the sink's progress row; `None` before there is one.
    pub async fn progress(&self, client: &tokio_postgres::Client, sink: &str) -> Result<Option<(Lsn, String)>> {
        let there = client.query_one("SELECT to_regclass('lockstep.progress') IS NOT NULL", &[]).await?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        let row = "SELECT closed_lsn::text, phase FROM lockstep.progress WHERE pipeline = $1 AND sink = $2";
        let row = client.query_opt(row, &[&self.name, &sink]).await?;
        row.map(|row| Ok((row.get::<_, &str>(0).parse()?, row.get(1)))).transpose()
    }

    /// Waits until the sinks have caught up, then compares every row. The source must be at rest.
    pub async fn wait_equal(
        &self,
        process: &mut Process,
        source: &Database,
        sinks: &[(&str, &Database)],
        tables: &[TablePair],
        patience: Duration,
    ) -> Result<()> {
        let lsn = self.wait_caught_up(process, source, sinks, patience).await?;
        let mut found = String::new();
        for (name, sink) in sinks {
            for table in tables {
                let comparison = compare(source, sink, table).await?;
                if !comparison.is_equal() {
                    let _ = writeln!(found, "sink {name}, {comparison}");
                }
            }
        }
        ensure!(found.is_empty(), "not equal at {lsn}:\n{found}");
        Ok(())
    }

    /// Deletes the pipeline's topics, its ledger among them.
    pub async fn delete_topics(&self) -> Result<()> {
        delete_topics(&self.kafka, &format!("{}.", self.name)).await
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if !self.delete_topics {
            return;
        }
        let (kafka, prefix) = (self.kafka.clone(), format!("{}.", self.name));
        let outcome = super::services::block_on_elsewhere(async move { delete_topics(&kafka, &prefix).await });
        if let Err(error) = outcome {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Deletes every topic whose name begins with `prefix`.
pub async fn delete_topics(brokers: &str, prefix: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().context("a client for Kafka")?;
    let metadata = admin.inner().fetch_metadata(None, KAFKA_TIMEOUT).context("listing topics")?;
    let names: Vec<&str> = metadata.topics().iter().map(|t| t.name()).filter(|n| n.starts_with(prefix)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let options = AdminOptions::new().operation_timeout(Some(KAFKA_TIMEOUT));
    for outcome in admin.delete_topics(&names, &options).await.context("deleting topics")? {
        outcome.map_err(|(topic, code)| anyhow!("deleting topic {topic}: {code}"))?;
    }
    Ok(())
}

/// Another process may be reading the file just now, so one that is right already is left alone.
fn write_if_other(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// A port that nobody listens on. Taken from the kernel and given back at once; another program could be quicker than ours.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

/// A running `lockstep run`. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: Instant,
    log: PathBuf,
    http_port: u16,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of the log if the process has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("lockstep ended with {status} after {:?}\n{}", self.started.elapsed(), tail(&self.log))
            }
        }
    }

    /// Fails if a role of this process has halted. A process that does not answer has not said so.
    pub async fn ensure_not_halted(&self) -> Result<()> {
        self.ensure_none_halted(|_| true).await
    }

    async fn ensure_none_halted(&self, concerns: impl Fn(&str) -> bool) -> Result<()> {
        let Ok(status) = self.status().await else { return Ok(()) };
        let sinks = status.0["sinks"].as_object().into_iter().flatten();
        let roles = sinks.map(|(name, sink)| (name.as_str(), sink)).chain([("source", &status.0["source"])]);
        let halted = roles.filter(|(name, role)| concerns(name) && !role["halt"].is_null());
        let halted: Vec<&str> = halted.map(|(name, _)| name).collect();
        ensure!(halted.is_empty(), "halted: {}\nstatus: {status}\n{}", halted.join(", "), tail(&self.log));
        Ok(())
    }

    /// SIGKILL: no word to anyone.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then waits for the end; the exit status and how long it took.
    pub async fn terminate(&mut self, patience: Duration) -> Result<(ExitStatus, Duration)> {
        self.signal(Signal::TERM)?;
        let asked = Instant::now();
        let status = self.wait(patience).await.context("after SIGTERM")?;
        Ok((status, asked.elapsed()))
    }

    /// Waits until the process ends by itself.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "lockstep still runs after {patience:?}\n{}", tail(&self.log));
            sleep(POLL).await;
        }
    }

    /// SIGSTOP and SIGCONT make a zombie out of a process that holds leases.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("signalling {pid:?}"))
    }

    /// GET /status.
    pub async fn status(&self) -> Result<Status> {
        Ok(Status(serde_json::from_str(&self.get("/status").await?)?))
    }

    /// GET of any path; the body, whatever the code.
    pub async fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.http_port);
        let answer = lockstep::http::client::get(&url, STATUS_TIMEOUT).await.map_err(|text| anyhow!(text))?;
        Ok(answer.body)
    }

    /// Waits until the status document satisfies `wanted`. A process that does not answer yet is waited for.
    pub async fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = Instant::now() + patience;
        let mut last = String::from("no answer");
        loop {
            match self.status().await {
                Ok(status) if wanted(&status) => return Ok(status),
                Ok(status) => last = status.to_string(),
                Err(error) => last = format!("{error:#}; before: {last}"),
            }
            self.ensure_running()?;
            ensure!(Instant::now() < deadline, "{what}: not within {patience:?}\nstatus: {last}\n{}", tail(&self.log));
            sleep(POLL).await;
        }
    }

    /// The largest resident set so far, in bytes.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).context(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", tail(&self.log));
        }
    }
}

/// The end of a log, with where it stands.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    format!("---- the end of {} ----\n{}\n----", log.display(), lines[from..].join("\n"))
}

/// The document of `/status`.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    pub fn source_state(&self) -> &str {
        self.0["source"]["state"].as_str().unwrap_or_default()
    }

    pub fn sink_state(&self, sink: &str) -> &str {
        self.0["sinks"][sink]["state"].as_str().unwrap_or_default()
    }

    pub fn sink_closed_lsn(&self, sink: &str) -> Option<Lsn> {
        self.0["sinks"][sink]["closed_lsn"].as_str()?.parse().ok()
    }

    /// Code of the halt of `source` or of a sink.
    pub fn halt_code(&self, sink: Option<&str>) -> Option<&str> {
        let role = sink.map_or(&self.0["source"], |sink| &self.0["sinks"][sink]);
        role["halt"]["code"].as_str()
    }

    /// Every role of this process streams.
    pub fn all_streaming(&self) -> bool {
        let sinks = self.0["sinks"].as_object();
        let mut roles = sinks.into_iter().flat_map(|sinks| sinks.values()).chain(Some(&self.0["source"]));
        roles.all(|role| role.is_null() || role["state"] == "streaming")
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
