//! Whether the process that owns a sink is alive, as others on the same machine see it.
//!
//! SQLite knows no sessions, so each owner has a small file beside the database, locked for as long as its process lives: the
//! kernel lets go of it whatever ends the process, and a standby takes the sink at once. A process that is frozen keeps its
//! lock; but it no longer counts up in the file, and its lease runs out. The name says which connection it is, by what the
//! progress row says of its owner: process and start.
//!
//! Counting goes on inside a transaction too, where the row itself can't be written for others to see, and costs no sync.
//!
//! Nothing here is needed for safety: a predecessor that wakes up is fenced by the compare-and-set of the row.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::sink::lease::Activity;
use crate::sink::progress::Owner;

/// Our own file.
#[derive(Debug)]
pub(super) struct Alive {
    file: File,
    path: PathBuf,
    pub pid: i32,
    /// Microseconds since 1970.
    pub start_us: i64,
    beats: i64,
}

impl Alive {
    /// Makes and locks it.
    pub fn begin(database: &Path) -> io::Result<Alive> {
        let pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        loop {
            let start_us = Timestamp::now().as_microsecond();
            let path = path_of(database, pid, start_us);
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    file.lock()?;
                    return Ok(Alive { file, path, pid, start_us, beats: 0 });
                }
                // Processes of two containers may have one number; the next microsecond is another name.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Others see it: nobody has said that we count as gone.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    pub fn beat(&mut self) {
        self.beats += 1;
        // Who can't write it looks frozen and loses the sink, which costs nothing but time.
        let _ = self.file.write_all_at(&self.beats.to_be_bytes(), 0);
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What the owner does; `None` when it is gone.
pub(super) fn look(database: &Path, owner: &Owner) -> Option<Activity> {
    let path = path_of(database, owner.backend_pid, owner.backend_start_us);
    let file = File::open(&path).ok()?;
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            None
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {
            let mut beats = [0; 8];
            // An empty file has not been counted in yet.
            let _ = file.read_exact_at(&mut beats, 0);
            Some(Activity { waits: true, since_us: i64::from_be_bytes(beats) })
        }
    }
}

/// From here on the owner counts as gone, although it holds its lock.
pub(super) fn forget(database: &Path, owner: &Owner) -> bool {
    fs::remove_file(path_of(database, owner.backend_pid, owner.backend_start_us)).is_ok()
}

fn path_of(database: &Path, pid: i32, start_us: i64) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(format!("-lockstep-{pid}-{start_us}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn who_is_gone_is_seen_at_once_and_who_counts_is_not_silent() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("a.db");
        let mut alive = Alive::begin(&database).unwrap();
        let owner =
            Owner { worker_epoch: 1, worker_id: Uuid::nil(), backend_pid: alive.pid, backend_start_us: alive.start_us };
        let first = look(&database, &owner).unwrap();
        alive.beat();
        assert_ne!(look(&database, &owner).unwrap(), first, "it counted");
        let other = Owner { backend_start_us: 1, ..owner.clone() };
        assert_eq!(look(&database, &other), None, "another connection of the same process number");
        // As after a kill: the file is there and nobody holds it.
        let path = alive.path.clone();
        drop(alive);
        File::create(&path).unwrap();
        assert_eq!(look(&database, &owner), None);
        assert!(!path.exists(), "and it is cleared away");
        let alive = Alive::begin(&database).unwrap();
        let owner = Owner { backend_pid: alive.pid, backend_start_us: alive.start_us, ..owner };
        assert!(forget(&database, &owner) && look(&database, &owner).is_none());
    }
}
