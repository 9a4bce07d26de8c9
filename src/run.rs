//! The supervisor: starts roles, starts them again, stops them in order, and knows what the process's exit code means.
//!
//! Every role (the source reader, each sink) runs on a thread of its own with a runtime of its own, because a reader's hot
//! loop and a sink's blocking Kafka polls must not hold each other up. A role is a function that runs until it is asked to
//! stop or fails; what a failure means is in the error ([`Error::Retry`], [`Error::Halt`]) and is carried out here, once.
//!
//! | a role ends with | then |
//! |---|---|
//! | `Ok` after it was asked to stop | it has drained |
//! | `Ok` unasked, or `Error::Retry` | state `retrying`; again after a jittered pause, which grows with every attempt that got nowhere ([`breaker`]) |
//! | `Error::Halt` | state `halted`, logged once with code and hint; stays so until the process is started again; others go on. But for a password that was taken before: as `Error::Retry` |
//! | `Error::Retry` that names what it is if it stays, [`Limits::stays`] times in a row without progress | as that halt |
//! | a panic | the process ends with 1 at once: state in memory is not to be trusted, a restart from the ledger always is |
//!
//! The process ends
//! - with 0 once it was asked to stop and every role ended in order and in time; what was not written down by then is done again
//!   at the next start,
//! - with 1 when a role does not stop in time, or after a panic,
//! - with 3 when nothing can move any more, that is: (a) every role of this process is halted, or (b) the source role is halted
//!   and for [`Limits::nothing_moves`] no sink of this process had anything left to apply. A process whose source is halted
//!   stays while a sink works off a backlog, or is known to have one and tries again.
//!
//! Order of a stop: the source stops reading, flushes, cuts its last checkpoint and confirms it; then the sinks apply what is
//! there; then HTTP. One deadline over all of it.
//!
//! Invariants: no detached task or thread outlives [`supervise`] unless it missed the deadline, and then it is named in the
//! log. A role's state in the board is never ahead of what the supervisor has done.
//!
//! Not here: what roles do, signals, configuration.

mod breaker;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::error::{Code, Error, Halt, Result, Retry};
use crate::http::metrics::{Metrics, SinkMetrics, SourceMetrics};
use crate::http::{Http, Pulse};
use crate::lsn::Lsn;
use crate::status::{
    Board, BreakerState, HaltStatus, RetryStatus, SinkReporter, SinkStatus, SourceReporter, SourceStatus, State,
};
use breaker::Breaker;

/// Of a role's thread. A sink's future is polled through some dozens of frames, which without optimisation need more than the 2 MiB
/// that a thread has by default. What is not touched costs nothing.
const STACK_BYTES: usize = 8 * 1024 * 1024;

/// How often a role's loop shows that it turns.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the rule "nothing can move" is looked at.
const STUCK_INTERVAL: Duration = Duration::from_millis(200);

/// The supervisor's patience. Constants of the product; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The shortest pause before a role is started again: a restarted broker or a fail-over is not over sooner.
    pub retry_min: Duration,
    /// The longest: an outage that ends is noticed at once by human standards.
    pub retry_max: Duration,
    /// So many attempts in a row fail alike before a failure that may be lasting counts as lasting.
    pub stays: u32,
    /// From the request to stop to exit 1. Orchestrators kill after 30 s (Kubernetes) or 10 s (Docker).
    pub drain: Duration,
    /// Of it, what the source may take before the sinks are stopped all the same.
    pub source_drain: Duration,
    /// How long sinks may take to show that they can move, when the source can't.
    pub nothing_moves: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            stays: 7,
            drain: Duration::from_secs(10),
            source_drain: Duration::from_millis(5_500),
            nothing_moves: Duration::from_secs(5),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Asked to stop, and every role ended in order.
    Drained,
    /// Something did not stop in time, or died.
    Failed,
    /// Nothing can move any more; a person must act.
    Halted,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Drained => 0,
            Exit::Failed => 1,
            Exit::Halted => 3,
        }
    }
}

/// Which part of the pipeline a role is. Prints and parses as `source` or `sink:NAME`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RoleName {
    Source,
    Sink(String),
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoleName::Source => f.write_str("source"),
            RoleName::Sink(name) => write!(f, "sink:{name}"),
        }
    }
}

impl FromStr for RoleName {
    type Err = String;

    fn from_str(text: &str) -> Result<RoleName, String> {
        match text.split_once(':') {
            None if text == "source" => Ok(RoleName::Source),
            Some(("sink", name)) if !name.is_empty() => Ok(RoleName::Sink(name.to_owned())),
            _ => Err("a role is \"source\" or \"sink:NAME\"".to_owned()),
        }
    }
}

/// A role at work. It stays on its thread, so it need not be `Send`.
type Running = Pin<Box<dyn Future<Output = Result<()>>>>;

/// One role: its name, where it reports, and how it is started.
pub struct Role {
    name: RoleName,
    desk: Desk,
    start: Box<dyn Fn(CancellationToken) -> Running + Send>,
}

/// Where a role and its supervisor report.
#[derive(Clone)]
enum Desk {
    Source(SourceReporter, SourceMetrics),
    Sink(SinkReporter, SinkMetrics),
}

impl Role {
    /// The source reader. `start` is called for every attempt.
    pub fn source<F, R>(metrics: &Metrics, start: F) -> Role
    where
        F: Fn(SourceReporter, SourceMetrics, CancellationToken) -> R + Send + 'static,
        R: Future<Output = Result<()>> + 'static,
    {
        let (reporter, metrics) = (SourceReporter::default(), metrics.source());
        let desk = Desk::Source(reporter.clone(), metrics.clone());
        let start = move |token| -> Running { Box::pin(start(reporter.clone(), metrics.clone(), token)) };
        Role { name: RoleName::Source, desk, start: Box::new(start) }
    }

    /// One sink. `start` is called for every attempt.
    pub fn sink<F, R>(name: &str, metrics: &Metrics, start: F) -> Role
    where
        F: Fn(SinkReporter, SinkMetrics, CancellationToken) -> R + Send + 'static,
        R: Future<Output = Result<()>> + 'static,
    {
        let (reporter, metrics) = (SinkReporter::default(), metrics.sink(name));
        let desk = Desk::Sink(reporter.clone(), metrics.clone());
        let start = move |token| -> Running { Box::pin(start(reporter.clone(), metrics.clone(), token)) };
        Role { name: RoleName::Sink(name.to_owned()), desk, start: Box::new(start) }
    }
}

impl Desk {
    /// A new state; `None` leaves what is waited for as it was.
    fn set(&self, state: State, waiting_for: Option<String>) {
        match self {
            Desk::Source(reporter, _) => reporter.update(|s| {
                s.state = state;
                s.waiting_for = waiting_for.or(s.waiting_for.take());
            }),
            Desk::Sink(reporter, _) => reporter.update(|s| {
                s.state = state;
                s.waiting_for = waiting_for.or(s.waiting_for.take());
            }),
        }
    }

    fn halt(&self, halt: &Halt) {
        let halt = Some(HaltStatus::new(halt, Timestamp::now()));
        match self {
            Desk::Source(reporter, _) => {
                reporter.update(|s| (s.state, s.halt, s.waiting_for) = (State::Halted, halt, None));
            }
            Desk::Sink(reporter, _) => {
                reporter.update(|s| (s.state, s.halt, s.waiting_for) = (State::Halted, halt, None));
            }
        }
        self.set_retry(None);
    }

    fn set_retry(&self, retry: Option<RetryStatus>) {
        match self {
            Desk::Source(reporter, _) => reporter.update(|s| s.retry = retry),
            Desk::Sink(reporter, _) => reporter.update(|s| s.retry = retry),
        }
    }

    /// How far the role is; rises with its progress.
    fn closed(&self) -> Option<Lsn> {
        match self {
            Desk::Source(reporter, _) => reporter.watch().borrow().position,
            Desk::Sink(reporter, _) => reporter.watch().borrow().closed_lsn,
        }
    }

    /// What the retry says of the breaker, as long as there is one.
    fn set_breaker(&self, state: BreakerState) {
        let set = |retry: &mut Option<RetryStatus>| {
            if let Some(retry) = retry {
                retry.breaker = state;
            }
        };
        match self {
            Desk::Source(reporter, _) => reporter.update(|s| set(&mut s.retry)),
            Desk::Sink(reporter, _) => reporter.update(|s| set(&mut s.retry)),
        }
    }

    fn count_retry(&self, opened: bool) {
        match self {
            Desk::Source(_, metrics) => metrics.retry(),
            Desk::Sink(_, metrics) => metrics.retry(opened),
        }
    }

    fn look(&self) -> Look {
        match self {
            Desk::Source(reporter, _) => Look::Source(reporter.watch()),
            Desk::Sink(reporter, _) => Look::Sink(reporter.watch()),
        }
    }
}

/// The supervisor's look at a role that runs.
enum Look {
    Source(watch::Receiver<SourceStatus>),
    Sink(watch::Receiver<SinkStatus>),
}

impl Look {
    /// The role has spoken since the last look, and does what it is there for with nothing left to do. Not so one that sits in a
    /// statement: what it said last was true before that.
    fn is_at_rest(&mut self) -> bool {
        let is_moving = |state| matches!(state, State::Snapshot | State::Streaming);
        match self {
            // Its lag is of log that may be of no table of ours.
            Look::Source(watch) => watch.has_changed().unwrap_or(false) && is_moving(watch.borrow_and_update().state),
            Look::Sink(watch) => {
                let spoke = watch.has_changed().unwrap_or(false);
                let status = watch.borrow_and_update();
                spoke && is_moving(status.state) && status.lag_bytes == Some(0)
            }
        }
    }
}

/// How a role ended for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Drained,
    Halted,
}

/// Runs the roles until they are stopped through `shutdown`, or until nothing can move any more. Roles have distinct names, at
/// most one of them is the source. HTTP is served on `listener` meanwhile.
pub async fn supervise(
    pipeline: &str,
    roles: Vec<Role>,
    metrics: Metrics,
    listener: Option<TcpListener>,
    limits: Limits,
    shutdown: CancellationToken,
) -> Exit {
    supervise_as(board(pipeline, &roles), roles, metrics, listener, limits, shutdown).await
}

/// The same with the board that the roles are on.
pub async fn supervise_as(
    board: Board,
    roles: Vec<Role>,
    metrics: Metrics,
    listener: Option<TcpListener>,
    limits: Limits,
    shutdown: CancellationToken,
) -> Exit {
    assert!(!roles.is_empty(), "a process without a role");
    let mut supervisor = Supervisor::start(roles, limits);
    let http_token = CancellationToken::new();
    if let Some(listener) = listener {
        let http = Http::new(board.clone(), metrics, std::mem::take(&mut supervisor.pulses));
        let token = http_token.clone();
        supervisor.tasks.spawn(async move {
            http.serve(listener, token).await;
            Task::Http
        });
        supervisor.http_runs = true;
    }
    let mut exit = supervisor.watch(&board, &shutdown).await;
    let deadline = Instant::now() + limits.drain;
    if exit != Exit::Failed && !supervisor.drain(deadline).await {
        exit = Exit::Failed;
    }
    http_token.cancel();
    supervisor.end_http(deadline).await;
    exit
}

/// Whether a sink can move although nothing new comes.
fn has_work(sink: &SinkStatus) -> bool {
    match sink.state {
        State::Snapshot | State::Streaming | State::Paused | State::Standby => sink.lag_bytes != Some(0),
        State::Retrying => sink.lag_bytes.is_some_and(|bytes| bytes > 0),
        State::Starting | State::Halted => false,
    }
}

/// What the roles will say of themselves.
pub fn board(pipeline: &str, roles: &[Role]) -> Board {
    let mut board = Board { pipeline: pipeline.to_owned(), source: None, sinks: BTreeMap::new(), configuration: None };
    for role in roles {
        match (&role.name, &role.desk) {
            (RoleName::Sink(name), Desk::Sink(reporter, _)) => {
                let before = board.sinks.insert(name.clone(), reporter.watch());
                assert!(before.is_none(), "two roles for sink {name:?}");
            }
            (RoleName::Source, Desk::Source(reporter, _)) => {
                let before = board.source.replace(reporter.watch());
                assert!(before.is_none(), "two source roles");
            }
            _ => unreachable!("a role is made with the desk of its kind"),
        }
    }
    board
}

/// What the one set of tasks waits for.
enum Task {
    /// A role's thread ended; `None`: it panicked.
    Role(RoleName, Option<End>),
    Http,
}

struct Supervisor {
    tasks: JoinSet<Task>,
    pulses: Vec<Pulse>,
    /// Roles that have not ended for good.
    running: Vec<RoleName>,
    source_halted: bool,
    source_token: CancellationToken,
    sinks_token: CancellationToken,
    http_runs: bool,
    limits: Limits,
}

impl Supervisor {
    fn start(roles: Vec<Role>, limits: Limits) -> Supervisor {
        let mut supervisor = Supervisor {
            tasks: JoinSet::new(),
            pulses: Vec::new(),
            running: Vec::new(),
            source_halted: false,
            source_token: CancellationToken::new(),
            sinks_token: CancellationToken::new(),
            http_runs: false,
            limits,
        };
        for role in roles {
            let name = role.name.clone();
            let token = match name {
                RoleName::Source => supervisor.source_token.clone(),
                RoleName::Sink(_) => supervisor.sinks_token.clone(),
            };
            let (pulse, last) = watch::channel(Some(Instant::now()));
            supervisor.pulses.push(Pulse { role: name.to_string(), last });
            supervisor.running.push(name.clone());
            let ended = spawn(role, token, pulse, limits);
            supervisor.tasks.spawn(async move { Task::Role(name, ended.await.ok()) });
        }
        supervisor
    }

    /// Until the process is asked to stop or can't go on.
    async fn watch(&mut self, board: &Board, shutdown: &CancellationToken) -> Exit {
        let mut look = tokio::time::interval(STUCK_INTERVAL);
        let mut still_since = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Exit::Drained,
                Some(task) = self.tasks.join_next() => if !self.note(task) {
                    return Exit::Failed;
                },
                _ = look.tick() => {}
            }
            if self.running.is_empty() {
                error!("every role is halted: nothing can move any more");
                return Exit::Halted;
            }
            if !self.source_halted || board.sinks.values().any(|sink| has_work(&sink.borrow())) {
                still_since = Instant::now();
            } else if still_since.elapsed() >= self.limits.nothing_moves {
                error!("the source is halted and no sink has anything left to apply: nothing can move any more");
                return Exit::Halted;
            }
        }
    }

    /// Takes note of an ended task; false when that means the end of the process.
    fn note(&mut self, task: Result<Task, tokio::task::JoinError>) -> bool {
        match task {
            Ok(Task::Role(name, Some(end))) => {
                self.running.retain(|running| *running != name);
                self.source_halted |= name == RoleName::Source && end == End::Halted;
                true
            }
            Ok(Task::Role(name, None)) => {
                error!(role = %name, "the role's thread panicked; the process ends, a restart resumes from the ledger");
                false
            }
            Ok(Task::Http) => {
                self.http_runs = false;
                true
            }
            Err(error) => {
                error!(%error, "the HTTP task failed");
                false
            }
        }
    }

    /// Source first, then sinks. False if something did not stop in time.
    async fn drain(&mut self, deadline: Instant) -> bool {
        info!(roles = self.running.len(), "stopping: the source first, then the sinks");
        self.source_token.cancel();
        let source_deadline = deadline.min(Instant::now() + self.limits.source_drain);
        let source_ended = |running: &[RoleName]| !running.contains(&RoleName::Source);
        let Some(in_time) = self.wait_until(source_ended, source_deadline).await else { return false };
        if !in_time {
            warn!("the source reader has not drained yet; stopping the sinks meanwhile");
        }
        self.sinks_token.cancel();
        let Some(in_time) = self.wait_until(<[RoleName]>::is_empty, deadline).await else { return false };
        for name in &self.running {
            error!(role = %name, after = ?self.limits.drain, "the role did not stop in time; ending without it");
        }
        if in_time {
            info!("stopped");
        }
        in_time
    }

    /// Waits until the running roles are as wished; false at the deadline, `None` if something died.
    async fn wait_until(&mut self, done: impl Fn(&[RoleName]) -> bool, deadline: Instant) -> Option<bool> {
        while !done(&self.running) {
            match timeout_at(deadline, self.tasks.join_next()).await {
                Ok(Some(task)) => self.note(task).then_some(())?,
                Ok(None) => return Some(done(&self.running)),
                Err(_) => return Some(false),
            }
        }
        Some(true)
    }

    /// The token is cancelled; answers under way end by themselves, soon.
    async fn end_http(&mut self, deadline: Instant) {
        // At least this long even after a drain that took all the time there was: the answers are small.
        let deadline = deadline.max(Instant::now() + Duration::from_millis(100));
        while self.http_runs {
            match timeout_at(deadline, self.tasks.join_next()).await {
                Ok(Some(task)) => {
                    self.note(task);
                }
                _ => return,
            }
        }
    }
}

/// Starts a role's thread. The answer comes when the role ended for good, and is an error if the thread panicked.
fn spawn(
    role: Role,
    token: CancellationToken,
    pulse: watch::Sender<Option<Instant>>,
    limits: Limits,
) -> oneshot::Receiver<End> {
    let (tell, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name(role.name.to_string()).stack_size(STACK_BYTES);
    let body = move || {
        // The thread belongs to the role, so everything logged on it does.
        let _span = tracing::info_span!("role", name = %role.name).entered();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs nothing but file descriptors");
        let end = runtime.block_on(keep_running(&role, &token, &pulse, &limits));
        runtime.shutdown_background();
        // The role ended as it should: not a silence that /healthz must report.
        pulse.send_replace(None);
        let _ = tell.send(end);
    };
    thread.spawn(body).expect("the system gives a process its few threads");
    ended
}

/// Attempt after attempt, until the role has drained or halted.
async fn keep_running(
    role: &Role,
    token: &CancellationToken,
    pulse: &watch::Sender<Option<Instant>>,
    limits: &Limits,
) -> End {
    let (mut breaker, mut worked, mut stayed) = (Breaker::new(*limits), false, 0);
    while !token.is_cancelled() {
        let before = role.desk.closed();
        let (mut look, mut at_rest_since, mut moved) = (role.desk.look(), None, false);
        role.desk.set_breaker(breaker.attempt());
        let see = || {
            let progressed = before.is_some() && role.desk.closed() > before;
            moved |= progressed;
            worked |= role.desk.closed().is_some();
            at_rest_since = look.is_at_rest().then(|| at_rest_since.unwrap_or_else(Instant::now));
            let works = at_rest_since.is_some_and(|since| since.elapsed() >= limits.retry_max);
            // A role that made progress, or worked for a while without anything to do, has earned a quick first attempt; one that
            // fails again at the same place has not.
            if (progressed || works) && breaker.close() {
                role.desk.set_retry(None);
            }
        };
        let outcome = beating((role.start)(token.clone()), pulse, see).await;
        let error = match outcome {
            Ok(()) if token.is_cancelled() => break,
            Ok(()) => Error::retry_plain("the role ended without being asked to"),
            Err(Error::Halt(halt)) if worked && halt.code == Code::AuthFailed => no_longer(&halt),
            Err(error) => error,
        };
        let stays = matches!(&error, Error::Retry(retry) if retry.if_it_stays.is_some());
        stayed = if stays { u32::from(!moved) * stayed + 1 } else { 0 };
        let error = match error {
            Error::Halt(halt) => return halted(role, &halt),
            Error::Retry(Retry { if_it_stays: Some(halt), .. }) if stayed >= limits.stays => {
                return halted(role, &halt);
            }
            error => error,
        };
        if token.is_cancelled() {
            warn!("stopped while failing: {}", error.chain());
            break;
        }
        let pause = breaker.failed(error.chain(), rand::random(), (Instant::now(), Timestamp::now()));
        warn!(failures = pause.status.failures, pause = ?pause.time, "will try again: {}", error.chain());
        role.desk.count_retry(pause.opened);
        role.desk.set(State::Retrying, Some(error.chain()));
        role.desk.set_retry(Some(pause.status));
        let asked_to_stop = token.run_until_cancelled(beating(sleep(pause.time), pulse, || ())).await.is_none();
        if asked_to_stop {
            break;
        }
        role.desk.set(State::Starting, None);
    }
    End::Drained
}

fn halted(role: &Role, halt: &Halt) -> End {
    error!(code = %halt.code, facts = ?halt.facts, hint = %halt.hint, "halted: {}", halt.message);
    role.desk.halt(halt);
    End::Halted
}

/// A password that was right and is not any more was changed, and the configuration is to follow, or it comes back: nothing that a
/// start has to begin for.
fn no_longer(halt: &Halt) -> Error {
    Error::retry_plain(format!(
        "{}; this password was taken before: if it was changed, write the new one where the configuration has it and send this \
         process SIGHUP",
        halt.message
    ))
}

/// Polls `work` to its end and shows meanwhile that the loop turns; calls `see` each time and once at the end.
async fn beating<T>(work: impl Future<Output = T>, pulse: &watch::Sender<Option<Instant>>, mut see: impl FnMut()) -> T {
    tokio::pin!(work);
    let mut tick = tokio::time::interval(PULSE_INTERVAL);
    loop {
        tokio::select! {
            biased;
            outcome = &mut work => {
                see();
                return outcome;
            }
            _ = tick.tick() => {
                see();
                pulse.send_replace(Some(Instant::now()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
