//! The thread that a file's calls run on. SQLite blocks its caller, and the sink's role has a lease to keep and records to
//! wait for meanwhile.
//!
//! One call after the other, as the contract promises. Dropping the link interrupts what runs, waits for it, and closes the
//! file; an open transaction ends without a trace.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rusqlite::InterruptHandle;
use tokio::sync::oneshot;

use super::file::OpenFile;
use crate::error::{Error, Result};

type Job = Box<dyn FnOnce(&mut OpenFile) + Send>;

pub(super) struct Link {
    /// `None` only while it ends.
    jobs: Option<mpsc::Sender<Job>>,
    interrupt: InterruptHandle,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Opens the file on a thread of its own.
    pub async fn open(open: impl FnOnce() -> Result<OpenFile> + Send + 'static) -> Result<Link> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, is_open) = oneshot::channel();
        let run = move || {
            let mut file = match open() {
                Ok(file) => file,
                Err(error) => return drop(opened.send(Err(error))),
            };
            if opened.send(Ok(file.interrupt())).is_ok() {
                queue.iter().for_each(|job| job(&mut file));
            }
        };
        let thread = thread::Builder::new().name("sqlite".to_owned()).spawn(run);
        let thread = thread.map_err(|error| Error::retry("starting a thread for the sink's file", error))?;
        let interrupt = is_open.await.expect("a thread that opens a file says how it went")?;
        Ok(Link { jobs: Some(jobs), interrupt, thread: Some(thread) })
    }

    /// Runs a job there.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut OpenFile) -> T + Send + 'static) -> T {
        let (answer, answered) = oneshot::channel();
        let job = move |file: &mut OpenFile| drop(answer.send(job(file)));
        let jobs = self.jobs.as_ref().expect("jobs are given before the end");
        // Gone only after a panic there, which has said why.
        jobs.send(Box::new(job)).expect("the file's thread is there");
        answered.await.expect("the file's thread answers")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.interrupt.interrupt();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
