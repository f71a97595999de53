//! Statements that every InfluxDB has to run, kept for those that are down.
//!
//! Statements that create something run at once, ahead of pending lines. Every other statement is a
//! barrier: each backend gets the earlier lines first, then the statement, then the later lines.
//! Statements about the same database run on each backend in the order of their arrival.
//!
//! A statement is done on a backend once it ran or was refused there. It waits only if there is no
//! answer, a 5xx or a 401. After a crash a half-done statement runs twice, but before any later
//! line.
//!
//! Owns: the list of pending statements (`owed.rs`). Never does: run a statement with more rights
//! than its sender has (see [`Statements::run`]). Bounds: see `owed.rs`.

mod owed;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::watch;
use tokio::time::timeout;

use super::health::Backoff;
use super::influx::{Influx, Ran};
use super::{Health, State};
use crate::journal::Sequence;
use crate::journal::{BackendId, Journal};
use crate::protocol::Span;
pub use owed::Scope;
use owed::{Barrier, List, Owed, Stage, creates, shown};

/// How long a sender waits for the lines that precede the statement.
const LONGEST_REACH: Duration = Duration::from_secs(60);

/// The pending statements of all backends.
#[derive(Debug)]
pub struct Statements {
    journal: Journal,
    owed: Mutex<List>,
    changed: watch::Sender<()>,
    /// The InfluxDBs.
    backends: Mutex<Vec<Known>>,
}

/// An InfluxDB that runs statements.
#[derive(Debug)]
struct Known {
    name: String,
    id: BackendId,
    /// How to reach it. `None` for a backend that nothing is sent to, which still gets pending
    /// statements.
    asked: Option<(Influx, Arc<Health>)>,
    /// Number of statements that it refused and another backend ran.
    differed: Arc<AtomicU64>,
}

/// The sender of a statement.
#[derive(Clone, Debug)]
pub enum Asker {
    /// An administrator of this relay: the backends' own credentials are used.
    Administrator,
    /// A user whom a backend must know: these credentials, or none, are used.
    Client(Option<HeaderValue>),
}

/// Why a statement was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRun {
    /// A backend refused it, with this answer.
    Refused(String),
    /// No backend can run it now, or none confirmed that it has.
    NoBackend(String),
}

/// A statement that creates something failed.
#[derive(Debug, thiserror::Error)]
pub enum StatementFailure {
    /// A backend refused it, with this answer.
    #[error("{0}")]
    Refused(String),
    /// It cannot be kept for the backends that did not run it.
    #[error("cannot remember the statement: {0}")]
    Unkept(#[from] io::Error),
}

impl Statements {
    /// Reads the pending statements of these backends (in the journal's order) from a data folder,
    /// and restores their barriers in the journal.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(data_dir: &Path, journal: &Journal, backends: &[&str]) -> io::Result<Self> {
        let owed = List::open(data_dir)?;
        for one in owed.iter() {
            let Some(Barrier { sequence, scope, .. }) = &one.barrier else { continue };
            let id = backends.iter().position(|name| **name == *one.backend).map(BackendId::new);
            let id = id.filter(|_| scope.lines().is_some());
            journal.restore_barrier(id.as_slice(), *sequence, scope.lines().flatten());
        }
        let (journal, changed) = (journal.clone(), watch::Sender::new(()));
        Ok(Self { journal, owed: Mutex::new(owed), changed, backends: Mutex::default() })
    }

    /// Adds an InfluxDB that nothing is sent to. It gets pending statements, too.
    pub(super) fn note_absent(&self, name: String, id: BackendId) {
        self.known().push(Known { name, id, asked: None, differed: Arc::default() });
    }

    /// Returns the number of a backend's pending statements.
    pub fn pending(&self, backend: &str) -> u64 {
        self.owed().iter().filter(|owed| owed.backend == backend).count() as u64
    }

    /// Runs a statement that creates something on one backend that is up. If it ran there, it
    /// becomes pending for the others; if no backend is up, for all. An administrator's statement
    /// runs with the backends' own credentials, any other with the credentials that came with it,
    /// so nobody has more rights here than there.
    ///
    /// # Errors
    /// The backend refused the statement, or it cannot be kept.
    pub async fn run(&self, statement: &str, asker: Asker) -> Result<(), StatementFailure> {
        let scope = creates(statement);
        let names: Vec<String> = self.known().iter().map(|known| known.name.clone()).collect();
        let first = {
            let (backends, owed) = (self.known(), self.owed());
            // A backend that has yet to run an earlier barrier must create it after that.
            let mut free = backends.iter().filter(|known| known.is_up() && !owed.owes_before(&known.name, &scope));
            free.find_map(Known::another)
        };
        let mut done = None;
        if let Some((name, _, mut influx)) = first {
            match asker.run(&mut influx, statement, None).await {
                Ran::Done(_) => done = Some(name),
                Ran::Refused(error) => return Err(StatementFailure::Refused(error)),
                // The statement was not refused.
                Ran::Later(error) | Ran::Unsure(error) => {
                    tracing::debug!(backend = name, error, "cannot run a statement now");
                }
            }
        }
        let others = names.into_iter().filter(|name| Some(name) != done.as_ref());
        let owed = |backend| Owed { backend, statement: statement.to_owned(), default: None, barrier: None };
        Ok(self.owe(others.map(owed))?)
    }

    /// Runs a barrier statement on the backend that has most of the earlier lines. If it ran there,
    /// it becomes pending for the others. Returns the backend's answer. `default` is the database
    /// for a statement that names none.
    ///
    /// # Errors
    /// The statement was not run. No backend will run it, unless the error says so.
    pub async fn order(
        &self,
        statement: &str,
        (default, scope): (Option<String>, Scope),
        asker: Asker,
    ) -> Result<String, NotRun> {
        let Some((first, id, mut influx)) = self.most_complete(&scope) else {
            return Err(NotRun::NoBackend("no backend is up: nothing was changed".to_owned()));
        };
        let sequence = self
            .set_barrier(statement, default.as_deref(), &scope)
            .map_err(|error| NotRun::NoBackend(format!("cannot remember the statement: {error}")))?;
        if timeout(LONGEST_REACH, self.reach((&first, id), sequence)).await.is_err() {
            self.undo(sequence);
            return Err(NotRun::NoBackend(format!("{first} has not taken what came before the statement")));
        }
        if let Err(error) = self.note(sequence, Stage::Sent, None) {
            self.undo(sequence);
            return Err(NotRun::NoBackend(format!("cannot remember the statement: {error}")));
        }
        let (error, done) = match asker.run(&mut influx, statement, default.as_deref()).await {
            Ran::Done(answer) => (None, Ok(answer)),
            Ran::Refused(error) => {
                self.undo(sequence);
                return Err(NotRun::Refused(error));
            }
            Ran::Later(error) => {
                self.undo(sequence);
                return Err(NotRun::NoBackend(error));
            }
            Ran::Unsure(error) => {
                let told =
                    format!("{first} may have run the statement: every backend runs it once it answers ({error})");
                (Some(error), Err(NotRun::NoBackend(told)))
            }
        };
        let is_done = error.is_none().then_some(first.as_str());
        if let Err(error) = self.note(sequence, Stage::Sure, is_done) {
            // The file says that it may have run, so after a restart all backends run it.
            let statement = shown(statement);
            tracing::error!(%error, statement, "cannot remember that a statement was run: a restart runs it again");
        }
        if is_done.is_some() {
            self.journal.pass_barrier(id, sequence);
        }
        done
    }

    /// Runs this backend's pending statements until the relay shuts down.
    pub(super) async fn serve(
        self: Arc<Self>,
        (name, id): (String, BackendId),
        influx: Influx,
        health: Arc<Health>,
        mut closing: watch::Receiver<bool>,
        longest_pause: Duration,
    ) {
        let differed = Arc::new(AtomicU64::new(0));
        let mut influx = influx.with_statement_timeout();
        let asked = Some((influx.another(), health));
        self.known().push(Known { name: name.clone(), id, asked, differed: Arc::clone(&differed) });
        let mut changed = self.changed.subscribe();
        let mut backoff = Backoff::default();
        while !*closing.borrow() {
            changed.mark_unchanged();
            let next = self.owed().next(&name);
            let Some(owed) = next else {
                backoff.reset();
                tokio::select! {
                    _ = closing.changed() => return,
                    _ = changed.changed() => continue,
                }
            };
            if let Some(Barrier { sequence, .. }) = owed.barrier {
                tokio::select! {
                    _ = closing.changed() => return,
                    // A statement that creates something does not wait behind a barrier.
                    _ = changed.changed() => continue,
                    () = self.journal.reach_barrier(id, sequence) => {}
                }
            }
            match influx.run(&owed.statement, owed.default.as_deref()).await {
                Ran::Later(_) | Ran::Unsure(_) => {
                    drop(timeout(backoff.next_pause(longest_pause), closing.changed()).await);
                    continue;
                }
                Ran::Done(_) => tracing::info!(backend = name, statement = shown(&owed.statement), "ran a statement"),
                Ran::Refused(error) => {
                    differed.fetch_add(1, Ordering::Relaxed);
                    let statement = shown(&owed.statement);
                    tracing::warn!(backend = name, statement, error, "refused a statement: it is not tried again");
                }
            }
            backoff.reset();
            // Later lines must not be there when the statement runs again, so they wait until it is
            // removed.
            while let Err(error) = self.ack(&owed) {
                tracing::error!(%error, "cannot remove a statement that was run: later lines wait");
                if timeout(backoff.next_pause(longest_pause), closing.changed()).await.is_ok() {
                    return;
                }
            }
            if let Some(Barrier { sequence, .. }) = owed.barrier {
                self.journal.pass_barrier(id, sequence);
            }
        }
    }

    /// Returns how many statements a backend refused that another one ran.
    pub fn differed(&self, backend: &str) -> u64 {
        let known = self.known();
        let found = known.iter().find(|one| one.name == backend);
        found.map_or(0, |one| one.differed.load(Ordering::Relaxed))
    }

    /// Returns the backend that is up and has most of the lines before a statement: name, id, and a
    /// connection.
    fn most_complete(&self, scope: &Scope) -> Option<(String, BackendId, Influx)> {
        let (known, owed) = (self.known(), self.owed());
        let lacks = |one: &&Known| {
            let found = self.journal.completeness(one.id, scope.lines().flatten(), &Span::ALWAYS, &[]);
            let is_owed = owed.owes_before(&one.name, scope);
            (is_owed, found.gap_count, found.pending_since.map_or(0, |since| u64::MAX - since.nanoseconds()))
        };
        known.iter().filter(|one| one.is_up()).min_by_key(lacks).and_then(Known::another)
    }

    /// Makes a statement pending for every backend, behind all earlier lines. Returns its sequence
    /// number.
    fn set_barrier(&self, statement: &str, default: Option<&str>, scope: &Scope) -> io::Result<Sequence> {
        let known: Vec<(String, BackendId)> = self.known().iter().map(|one| (one.name.clone(), one.id)).collect();
        let waiting: Vec<BackendId> = known.iter().filter(|_| scope.lines().is_some()).map(|(_, id)| *id).collect();
        let mut owed = self.owed();
        // Done with the list locked, so that the list has the order of the sequence numbers.
        let sequence = self.journal.set_barrier(&waiting, scope.lines().flatten());
        let barrier = Barrier { sequence, scope: scope.clone(), stage: Stage::Asked };
        let saved = owed.owe(known.iter().map(|(backend, _)| Owed {
            backend: backend.clone(),
            statement: statement.to_owned(),
            default: default.map(str::to_owned),
            barrier: Some(barrier.clone()),
        }));
        drop(owed);
        if saved.is_err() {
            waiting.iter().for_each(|id| self.journal.pass_barrier(*id, sequence));
        }
        saved.map(|()| sequence)
    }

    /// Waits until a backend has all that precedes a statement.
    async fn reach(&self, (name, id): (&str, BackendId), sequence: Sequence) {
        self.journal.reach_barrier(id, sequence).await;
        let mut changed = self.changed.subscribe();
        while self.owed().is_held_up(name, sequence) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Removes a statement that no backend is to run.
    fn undo(&self, sequence: Sequence) {
        if let Err(error) = self.owed().forget(sequence) {
            tracing::error!(%error, "cannot remove a statement that will not be run");
        }
        self.known().iter().for_each(|one| self.journal.pass_barrier(one.id, sequence));
        self.changed.send_replace(());
    }

    fn note(&self, sequence: Sequence, stage: Stage, done: Option<&str>) -> io::Result<()> {
        let noted = self.owed().note(sequence, stage, done);
        self.changed.send_replace(());
        noted
    }

    fn owe(&self, more: impl Iterator<Item = Owed>) -> io::Result<()> {
        let owed = self.owed().owe(more);
        self.changed.send_replace(());
        owed
    }

    fn ack(&self, done: &Owed) -> io::Result<()> {
        let acked = self.owed().ack(done);
        self.changed.send_replace(());
        acked
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owed(&self) -> MutexGuard<'_, List> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_up(&self) -> bool {
        self.asked.as_ref().is_some_and(|(_, health)| health.state() == State::Up)
    }

    /// Returns a connection of its own to the backend.
    fn another(&self) -> Option<(String, BackendId, Influx)> {
        self.asked.as_ref().map(|(influx, _)| (self.name.clone(), self.id, influx.another()))
    }
}

impl Asker {
    /// Runs a statement with the sender's credentials.
    async fn run(&self, influx: &mut Influx, statement: &str, default: Option<&str>) -> Ran {
        match self {
            Self::Administrator => influx.run(statement, default).await,
            Self::Client(authorization) => influx.run_as(statement, default, authorization.as_ref()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::BackendConfig;

    #[test]
    fn after_a_restart_a_statement_is_a_barrier_again_where_lines_wait_for_it() {
        let folder = tempfile::tempdir().expect("folder");
        let open = || {
            let backend =
                |name: &str| BackendConfig { name: name.to_owned(), address: String::new(), replay_share: 0.5 };
            let journal = Journal::new(1 << 20, &[backend("a"), backend("b")]);
            let statements = Statements::open(folder.path(), &journal, &["a", "b"]).expect("open");
            statements.note_absent("a".to_owned(), BackendId::new(0));
            statements.note_absent("b".to_owned(), BackendId::new(1));
            statements
        };
        let statements = open();
        let removing = statements.set_barrier("DROP MEASUREMENT m", None, &Scope::Database("db".to_owned()));
        let removing = removing.expect("remembered");
        statements.note(removing, Stage::Sure, Some("a")).expect("remembered");
        let of_users = statements.set_barrier("DROP USER u", None, &Scope::NoPoints).expect("remembered");
        assert!(of_users > removing);
        statements.note(of_users, Stage::Sure, Some("b")).expect("remembered");
        let statements = open();
        assert_eq!((statements.pending("a"), statements.pending("b")), (1, 1));
        let lacks = |id| statements.journal.completeness(id, Some("db"), &Span::ALWAYS, &[]);
        assert!(lacks(BackendId::new(1)).has_statement && !lacks(BackendId::new(0)).has_statement);
        // A new barrier comes after them, even if the end of the journal is lost.
        assert!(statements.journal.set_barrier(&[BackendId::new(0)], None) > of_users);
    }
}
