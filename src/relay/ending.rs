//! Ends a relay: for good, or to be replaced by another one in the same process.
//!
//! Never does: losing what could be kept. A relay whose disk does not accept writes is not
//! replaced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Relay;
use crate::deliver::Health;
use crate::observe::status::Status;
use crate::receive::{Inherited, Listener};

/// How long requests in progress may take when another relay takes over. Meanwhile, a socket's
/// buffer holds what 500 hosts send.
const HAND_OVER_TIME: Duration = Duration::from_millis(500);
/// How long a takeover waits for tasks that still use a file or an address.
const LAST_TASKS: Duration = Duration::from_millis(500);
/// How long the disk may take to write what was received before.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// How long a clean shutdown waits for the other relay of a pair to ask once more. It asks every
/// second.
const LAST_NEWS: Duration = Duration::from_millis(1200);
/// How often to check for that.
const NEWS_POLL: Duration = Duration::from_millis(10);

/// What a relay leaves to its successor.
#[derive(Debug, Default)]
pub struct Legacy {
    /// The sockets. What arrives meanwhile waits in them.
    pub(super) sockets: Inherited,
    /// Backends that an operator holds.
    pub(super) held: Vec<String>,
    /// Backends to which no readers are sent.
    pub(super) closed: Vec<String>,
}

/// Why a relay does not give way to a successor.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The disk did not write in time what memory holds.
    #[error("the journal's disk does not take what comes: what memory holds would be lost")]
    Unwritten,
    /// The sockets cannot be duplicated.
    #[error("cannot keep the sockets: {0}")]
    Sockets(#[from] io::Error),
}

impl From<Inherited> for Legacy {
    fn from(sockets: Inherited) -> Self {
        Self { sockets, ..Self::default() }
    }
}

impl Legacy {
    /// Duplicates the legacy.
    ///
    /// # Errors
    /// The system's error if it has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { sockets: self.sockets.try_clone()?, held: self.held.clone(), closed: self.closed.clone() })
    }

    /// The initial health of a backend.
    pub(super) fn health(&self, name: &str) -> Arc<Health> {
        let health = Health::default();
        if self.held.iter().any(|held| held == name) {
            health.hold_back(true);
        }
        Arc::new(health)
    }
}

impl Relay {
    /// Empties the sockets and stops receiving, delivers what it can within the configured time or
    /// until it is hurried, and returns the final status.
    pub fn shutdown(self) -> Status {
        let time = self.shutdown_timeout;
        self.end(time, None)
    }

    /// Ends in favour of a successor. Returns the legacy and the final status. Waits only for
    /// requests in progress.
    ///
    /// # Errors
    /// Why the relay cannot end; it then continues.
    pub fn hand_over(self) -> Result<(Legacy, Status), (Box<Self>, HandOverError)> {
        if !self.view.journal.wait_written(LAST_WRITES) {
            return Err((Box::new(self), HandOverError::Unwritten));
        }
        let mut sockets = match Listener::share(&self.view.listeners) {
            Ok(sockets) => sockets,
            Err(error) => return Err((Box::new(self), HandOverError::Sockets(error))),
        };
        let listeners = Arc::clone(&self.view.listeners);
        let names = |is: fn(&crate::observe::view::BackendView) -> bool| {
            self.view.backends.iter().filter(|backend| is(backend)).map(|backend| backend.name.clone()).collect()
        };
        let held = names(|backend| backend.health.is_held_back());
        let closed = names(|backend| backend.readers.as_ref().is_some_and(|readers| readers.is_closed(&backend.name)));
        let last = self.end(HAND_OVER_TIME, Some(LAST_TASKS));
        Listener::note_last_drops(&listeners, &mut sockets);
        Ok((Legacy { sockets, held, closed }, last))
    }

    /// Ends within `time`. `followed`: a successor takes over, and waits this long for tasks that
    /// still use a file.
    fn end(mut self, time: Duration, followed: Option<Duration>) -> Status {
        let is_ending = if followed.is_some() { &self.view.is_followed } else { &self.view.is_stopping };
        is_ending.store(true, Ordering::Release);
        // Requests may take a while to end. Datagrams are received meanwhile.
        let (datagrams, streams): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.workers).into_iter().partition(|(listener, _)| self.is_of_datagrams(*listener));
        self.stop(streams, |listener| !matches!(listener, Listener::Udp(_)));
        self.stop(datagrams, |listener| matches!(listener, Listener::Udp(_)));
        self.journal_stop.store(true, Ordering::Release);
        self.ring.wake();
        report_panic(&self.journal_thread.join());
        self.view.journal.close();
        self.closing.send_replace(true);
        let mut hurried = self.hurry.subscribe();
        let asked = Arc::clone(&self.view.reports);
        self.runtime.block_on(async {
            let deadline = tokio::time::Instant::now() + time;
            let delivering = async {
                for flusher in &mut self.flushers {
                    // What has not been delivered by then is shown as pending.
                    drop(tokio::time::timeout_at(deadline, flusher).await);
                }
                // The other relay of a pair then knows that this one owes nothing.
                let (begun, before) = (Instant::now(), asked.count());
                while followed.is_none() && asked.is_recent() && asked.count() == before && begun.elapsed() < LAST_NEWS
                {
                    tokio::time::sleep(NEWS_POLL).await;
                }
            };
            tokio::select! {
                () = delivering => {}
                Ok(_) = hurried.wait_for(|is_hurried| *is_hurried) => {}
            }
            for flusher in self.flushers.into_iter().filter(|flusher| !flusher.is_finished()) {
                flusher.abort();
                drop(flusher.await);
            }
        });
        self.view.journal.requeue_leases();
        if let Some(threads) = self.disk_threads {
            report_panic(&threads.stop());
        }
        let status = self.view.status();
        self.runtime.shutdown_timeout(followed.unwrap_or_default());
        self.admin_runtime.shutdown_timeout(followed.unwrap_or_default());
        status
    }

    fn is_of_datagrams(&self, listener: usize) -> bool {
        matches!(self.view.listeners.get(listener), Some(Listener::Udp(_)))
    }

    /// Tells these listeners to end, and waits for their threads.
    fn stop(&self, workers: Vec<(usize, JoinHandle<()>)>, which: impl Fn(&Listener) -> bool) {
        self.view.listeners.iter().filter(|listener| which(listener)).for_each(Listener::stop);
        for (_, worker) in workers {
            report_panic(&worker.join());
        }
    }
}

fn report_panic(ended: &std::thread::Result<()>) {
    if ended.is_err() {
        tracing::error!("BUG: a thread panicked; its last batch may be missing");
    }
}
