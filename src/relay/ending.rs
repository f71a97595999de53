//! How a relay ends: for good, or for another one that takes its place in the same process.
//!
//! Never does: giving up what could be kept. A relay whose disk does not take what comes is not handed over.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Relay;
use crate::deliver::Health;
use crate::observe::status::Status;
use crate::receive::{Inherited, Listener};

/// How long requests that are under way have when another relay takes this one's place: a socket's buffer holds what 500 hosts
/// send meanwhile.
const HAND_OVER_TIME: Duration = Duration::from_millis(500);
/// How long what still works on a file or holds an address is waited for then.
const LAST_TASKS: Duration = Duration::from_millis(500);
/// How long the disk has to take what came before.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// How long the other relay of a pair has to ask once more, at a clean end: it asks each second.
const LAST_NEWS: Duration = Duration::from_millis(1200);
/// How often to look for that.
const LOOK: Duration = Duration::from_millis(10);

/// What a relay leaves to the one that takes its place.
#[derive(Debug, Default)]
pub struct Legacy {
    /// The sockets, in which waits what comes meanwhile.
    pub(super) sockets: Inherited,
    /// Backends that an operator holds.
    pub(super) held: Vec<String>,
    /// Backends to which no readers are to be sent.
    pub(super) closed: Vec<String>,
}

impl From<Inherited> for Legacy {
    fn from(sockets: Inherited) -> Self {
        Self { sockets, ..Self::default() }
    }
}

impl Legacy {
    /// The same once more.
    ///
    /// # Errors
    /// What the system says: there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { sockets: self.sockets.try_clone()?, held: self.held.clone(), closed: self.closed.clone() })
    }

    /// A backend's health, to begin with.
    pub(super) fn health(&self, name: &str) -> Arc<Health> {
        let health = Health::default();
        if self.held.iter().any(|held| held == name) {
            health.hold_back(true);
        }
        Arc::new(health)
    }
}

impl Relay {
    /// Stops receiving once the sockets are empty, delivers what can be delivered in the configured time, or until it
    /// is to hurry, and returns the last figures.
    pub fn shutdown(self) -> Status {
        let time = self.shutdown_timeout;
        self.end(time, None)
    }

    /// Ends for one that takes its place, and returns what that gets, with the last figures. Nothing is waited for but what is
    /// under way.
    ///
    /// # Errors
    /// What is in the way, as a sentence; the relay then goes on.
    pub fn hand_over(self) -> Result<(Legacy, Status), (Box<Self>, String)> {
        if !self.view.journal.wait_written(LAST_WRITES) {
            let what = "the journal's disk does not take what comes: what memory holds would be lost";
            return Err((Box::new(self), what.to_owned()));
        }
        let mut sockets = match Listener::share(&self.view.listeners) {
            Ok(sockets) => sockets,
            Err(error) => return Err((Box::new(self), format!("cannot keep the sockets: {error}"))),
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

    /// Ends within this time. `followed`: somebody takes its place, and waits so long for what still works on a file.
    fn end(mut self, time: Duration, followed: Option<Duration>) -> Status {
        let is_ending = if followed.is_some() { &self.view.is_followed } else { &self.view.is_stopping };
        is_ending.store(true, Ordering::Release);
        // Requests may take a while to end. Datagrams are read meanwhile.
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
                    // Whatever is not delivered by then shows as pending.
                    drop(tokio::time::timeout_at(deadline, flusher).await);
                }
                // The other relay of a pair then knows that this one owes nothing.
                let (begun, before) = (Instant::now(), asked.count());
                while followed.is_none() && asked.is_recent() && asked.count() == before && begun.elapsed() < LAST_NEWS
                {
                    tokio::time::sleep(LOOK).await;
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
