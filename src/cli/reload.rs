//! What somebody edits in the configuration while the process runs.
//!
//! The files are read every second. Once they stay as they are for a second they are judged, as a start and `lockstep check` would:
//! what has findings, or would halt something that is not halted now, is not taken, and what was before stays in force. What is
//! refused for what servers say is judged again every few seconds: a table may be made after its connector was written.
//!
//! Deliberately not here: the end and the beginning of roles (`run`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::run::selected;
use super::{Failure, check};
use crate::config::{Config, Files};
use crate::run::RoleName;
use crate::status::ConfigurationStatus;

/// Two looks see the same before anything is judged: editors write files in pieces.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two judgements of the same files. Each asks every server.
const AGAIN_INTERVAL: Duration = Duration::from_secs(5);

/// A configuration that may be run, and the roles of this process in it.
pub(super) struct Taken {
    pub config: Arc<Config>,
    pub names: Vec<RoleName>,
}

/// Why files are not taken.
enum Refused {
    /// They say it themselves.
    ByFiles(String),
    /// Servers do, for now.
    ByServers(String),
}

/// The files, and the configuration in force.
pub(super) struct Reload {
    dir: PathBuf,
    /// Roles that the command line names.
    asked: Vec<RoleName>,
    config: Arc<Config>,
    watch: Watch,
    /// When files that servers refused are judged again.
    again_at: Option<Instant>,
    hangup: Signal,
    told: watch::Sender<ConfigurationStatus>,
}

impl Reload {
    pub fn new(dir: PathBuf, asked: Vec<RoleName>, config: &Arc<Config>) -> Result<Reload, Failure> {
        let hangup = signal(SignalKind::hangup())
            .map_err(|error| Failure::Other(format!("can't listen for signals: {error}")))?;
        let watch = Watch { judged: Files::read(&dir, &config.connectors), seen: None };
        let told = watch::Sender::new(ConfigurationStatus { since: Timestamp::now(), refused: None });
        Ok(Reload { dir, asked, config: config.clone(), watch, again_at: None, hangup, told })
    }

    /// What the status says of it.
    pub fn watch(&self) -> watch::Receiver<ConfigurationStatus> {
        self.told.subscribe()
    }

    /// The next configuration that may be taken.
    pub async fn next(&mut self) -> Taken {
        loop {
            let is_due = tokio::select! {
                _ = self.hangup.recv() => {
                    info!("asked to look at the configuration");
                    self.watch.judged = Files::read(&self.dir, &self.config.connectors);
                    true
                }
                () = sleep(LOOK_INTERVAL) => self.config.reload && self.look(),
            };
            if !is_due {
                continue;
            }
            self.again_at = None;
            match self.judge().await {
                Ok(taken) => {
                    info!("the configuration was edited: the roles begin anew by it");
                    self.config = taken.config.clone();
                    // Its connectors may be in another folder.
                    self.watch = Watch { judged: Files::read(&self.dir, &self.config.connectors), seen: None };
                    self.told.send_replace(ConfigurationStatus { since: Timestamp::now(), refused: None });
                    return taken;
                }
                Err(refused) => self.refuse(refused),
            }
        }
    }

    fn look(&mut self) -> bool {
        let again = self.again_at.is_some_and(|at| Instant::now() >= at);
        self.watch.look(Files::read(&self.dir, &self.config.connectors)) || again
    }

    async fn judge(&self) -> Result<Taken, Refused> {
        let by_files = |failure: Failure| Refused::ByFiles(failure.text());
        let config = Arc::new(super::load(&self.dir).map_err(by_files)?);
        let names = selected(&config, &self.asked).map_err(by_files)?;
        if let Some(key) = fixed(&self.config, &config) {
            return Err(Refused::ByFiles(format!(
                "{key} is taken at a start alone: start the process again, or write it as it was"
            )));
        }
        let found = check::found(&config).await;
        if !found.is_empty() {
            let before = check::found(&self.config).await;
            let new = found.into_iter().find(|found| !before.contains(found));
            if let Some((place, halt)) = new {
                let what = halt.unwrap_or_else(|| "it can't be reached, or not be asked".to_owned());
                return Err(Refused::ByServers(format!("{place}:\n{what}")));
            }
        }
        Ok(Taken { config, names })
    }

    fn refuse(&mut self, refused: Refused) {
        let why = match refused {
            Refused::ByFiles(why) => why,
            Refused::ByServers(why) => {
                self.again_at = Some(Instant::now() + AGAIN_INTERVAL);
                why
            }
        };
        let is_news = self.told.borrow().refused.as_ref() != Some(&why);
        if is_news {
            warn!("the edited configuration is not taken, what was before stays in force: {why}");
            self.told.send_modify(|status| status.refused = Some(why));
        }
    }
}

/// A key that a running process can't change.
fn fixed(old: &Config, new: &Config) -> Option<&'static str> {
    match (old, new) {
        _ if old.name != new.name => Some("name"),
        _ if old.http.listen != new.http.listen => Some("http.listen"),
        _ if old.http.admin != new.http.admin => Some("http.admin"),
        _ => None,
    }
}

/// When files are to be judged.
struct Watch {
    /// As they were then.
    judged: Files,
    /// Others, met at the last look.
    seen: Option<Files>,
}

impl Watch {
    /// Whether these are others than were judged, and stay as they are.
    fn look(&mut self, now: Files) -> bool {
        if now == self.judged {
            self.seen = None;
            return false;
        }
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            return false;
        }
        self.judged = now;
        self.seen = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_judged_once_they_rest() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(folder.path().join("lockstep.toml"), text).unwrap();
        let read = || Files::read(folder.path(), &folder.path().join("connectors"));
        write("a");
        let mut watch = Watch { judged: read(), seen: None };
        assert!(!watch.look(read()));
        write("b");
        assert!(!watch.look(read()), "somebody may be writing still");
        write("c");
        assert!(!watch.look(read()));
        assert!(watch.look(read()));
        assert!(!watch.look(read()), "once");
        write("b");
        assert!(!watch.look(read()));
        write("c");
        assert!(!watch.look(read()), "as it was");
        std::fs::create_dir(folder.path().join("connectors")).unwrap();
        std::fs::write(folder.path().join("connectors/x.toml"), "").unwrap();
        std::fs::write(folder.path().join("connectors/.x.toml.swp"), "").unwrap();
        assert!(!watch.look(read()));
        assert!(watch.look(read()), "another file");
    }
}
