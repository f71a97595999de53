//! Statements, owed to every InfluxDB like lines are, and remembered for those that are down.
//!
//! Those that create something run at once, ahead of the lines that wait. Every other one is a barrier: each backend gets the
//! lines that came before it first, then the statement, then what came later.
//!
//! What is owed stands in one file, which is replaced and synced with each change. A statement is done once a backend ran it or
//! refused it; only no answer, a 5xx and a 401 wait. One that a crash leaves half done runs twice: creating and removing twice
//! changes nothing.
//!
//! Never does: a statement with more right than who asked for it (see [`Statements::run`]). Bounds: `MOST_OWED` statements.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::health::Backoff;
use super::influx::{Influx, Ran};
use super::{Health, State};
use crate::journal::Journal;
use crate::protocol::Span;

/// Statements that are owed, of all backends together, at most.
const MOST_OWED: usize = 1000;
/// The file in the data folder.
const NAME: &str = "statements.json";
/// How long somebody waits for lines that a statement came after.
const LONGEST_REACH: Duration = Duration::from_secs(60);

/// What is owed.
#[derive(Debug)]
pub struct Statements {
    path: PathBuf,
    journal: Journal,
    owed: Mutex<Vec<Owed>>,
    changed: watch::Sender<()>,
    /// The InfluxDBs.
    backends: Mutex<Vec<Known>>,
}

/// An InfluxDB that runs statements.
#[derive(Debug)]
struct Known {
    name: String,
    /// Its place in the journal.
    place: usize,
    influx: Influx,
    health: Arc<Health>,
    /// Statements that it refused and another backend ran.
    differed: Arc<AtomicU64>,
}

/// A statement that one backend is owed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Owed {
    backend: String,
    statement: String,
    /// The database that it means where it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    /// Where it stands among the lines; none for what runs at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    barrier: Option<Barrier>,
}

/// A place among the lines.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Barrier {
    sequence: u64,
    /// The database whose lines wait; none for all.
    database: Option<String>,
    /// Whether a backend has run it, so that it is to be run on the others.
    is_sure: bool,
}

/// Who wants a statement to be run.
#[derive(Clone, Debug)]
pub enum Asker {
    /// Somebody who may administer here: the backends' own credentials are used.
    Administrator,
    /// Somebody whom a backend must know: with these credentials, or none.
    Client(Option<HeaderValue>),
}

/// Why a statement was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRun {
    /// A backend says no: its words.
    Refused(String),
    /// No backend can run it now.
    NoBackend(String),
}

impl Statements {
    /// Reads what is owed in a data folder to these backends, in the order of the journal's, which has their barriers again.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(data_dir: &Path, journal: &Journal, backends: &[&str]) -> io::Result<Self> {
        let path = data_dir.join(NAME);
        let owed = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(%error, file = %path.display(), "cannot read the statements that are owed: none are");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let owed = restore(owed, journal, backends);
        let (journal, changed) = (journal.clone(), watch::Sender::new(()));
        Ok(Self { path, journal, owed: Mutex::new(owed), changed, backends: Mutex::default() })
    }

    /// How many a backend is owed.
    pub fn pending(&self, backend: &str) -> u64 {
        self.owed().iter().filter(|owed| owed.backend == backend).count() as u64
    }

    /// Runs a statement on one backend that is up, and owes it to the others if that one ran it; to all if none is up.
    /// An administrator's runs with the backends' own credentials. Anybody else's runs there with the credentials that came with
    /// it: so nobody has more right here than there.
    ///
    /// # Errors
    /// What the backend says against it, or what keeps it from being owed.
    pub async fn run(&self, statement: &str, asker: Asker) -> Result<(), String> {
        let (names, first) = {
            let backends = self.known();
            let first = backends.iter().find(|known| known.health.state() == State::Up);
            let first = first.map(|known| (known.name.clone(), known.influx.another()));
            (backends.iter().map(|known| known.name.clone()).collect::<Vec<_>>(), first)
        };
        let mut done = None;
        if let Some((name, mut influx)) = first {
            let ran = match asker {
                Asker::Administrator => influx.run(statement, None).await,
                Asker::Client(authorization) => influx.run_as(statement, None, authorization.as_ref()).await,
            };
            match ran {
                Ran::Done(_) => done = Some(name),
                Ran::Refused(error) => return Err(error),
                // Nothing was said against it.
                Ran::Later(error) => tracing::debug!(backend = name, error, "cannot run a statement now"),
            }
        }
        let others = names.into_iter().filter(|name| Some(name) != done.as_ref());
        let owed = |backend| Owed { backend, statement: statement.to_owned(), default: None, barrier: None };
        self.owe(others.map(owed)).map_err(|error| format!("cannot remember the statement: {error}"))
    }

    /// Runs a statement that is a barrier for this database (for all without one) on the backend that has most of what came
    /// before it, and owes it to the others if that one ran it. Returns that backend's answer. `default` is the database that
    /// the statement means where it names none.
    ///
    /// # Errors
    /// Why it was not run. Then no backend will.
    pub async fn order(
        &self,
        statement: &str,
        (default, database): (Option<String>, Option<String>),
        asker: Asker,
    ) -> Result<String, NotRun> {
        let Some((first, mut influx)) = self.foremost(database.as_deref()) else {
            return Err(NotRun::NoBackend("no backend is up: nothing was changed".to_owned()));
        };
        let places: Vec<(String, usize)> = self.known().iter().map(|one| (one.name.clone(), one.place)).collect();
        let all: Vec<usize> = places.iter().map(|(_, place)| *place).collect();
        let sequence = self.journal.set_barrier(&all, database.as_deref());
        let owed = |(backend, _): &(String, usize)| Owed {
            backend: backend.clone(),
            statement: statement.to_owned(),
            default: default.clone(),
            barrier: Some(Barrier { sequence, database: database.clone(), is_sure: false }),
        };
        let undo = |why: NotRun| {
            self.forget(sequence);
            all.iter().for_each(|place| self.journal.pass_barrier(*place, sequence));
            Err(why)
        };
        if let Err(error) = self.owe(places.iter().map(owed)) {
            return undo(NotRun::NoBackend(format!("cannot remember the statement: {error}")));
        }
        let place = places.iter().find(|(name, _)| *name == first).map_or(0, |(_, place)| *place);
        if timeout(LONGEST_REACH, self.journal.reach_barrier(place, sequence)).await.is_err() {
            return undo(NotRun::NoBackend(format!("{first} has not taken the lines that came before the statement")));
        }
        let ran = match asker {
            Asker::Administrator => influx.run(statement, default.as_deref()).await,
            Asker::Client(authorization) => influx.run_as(statement, default.as_deref(), authorization.as_ref()).await,
        };
        match ran {
            Ran::Done(answer) => {
                if let Err(error) = self.make_sure(sequence, &first) {
                    tracing::error!(%error, statement, "cannot remember that a statement was run: after a crash, others lack it");
                }
                self.journal.pass_barrier(place, sequence);
                Ok(answer)
            }
            Ran::Refused(error) => undo(NotRun::Refused(error)),
            Ran::Later(error) => undo(NotRun::NoBackend(error)),
        }
    }

    /// Runs what this backend is owed, until the relay is to end. `place` is its place in the journal.
    pub(super) async fn serve(
        self: Arc<Self>,
        (name, place): (String, usize),
        influx: Influx,
        health: Arc<Health>,
        mut closing: watch::Receiver<bool>,
        longest_pause: Duration,
    ) {
        let differed = Arc::new(AtomicU64::new(0));
        let mut influx = influx.patient();
        let known =
            Known { name: name.clone(), place, influx: influx.another(), health, differed: Arc::clone(&differed) };
        self.known().push(known);
        let mut changed = self.changed.subscribe();
        let mut backoff = Backoff::default();
        while !*closing.borrow() {
            changed.mark_unchanged();
            let Some(owed) = self.next(&name) else {
                backoff.reset();
                tokio::select! {
                    _ = closing.changed() => return,
                    _ = changed.changed() => continue,
                }
            };
            if let Some(Barrier { sequence, .. }) = owed.barrier {
                tokio::select! {
                    _ = closing.changed() => return,
                    // What creates something does not wait behind it.
                    _ = changed.changed() => continue,
                    () = self.journal.reach_barrier(place, sequence) => {}
                }
            }
            match influx.run(&owed.statement, owed.default.as_deref()).await {
                Ran::Later(_) => {
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
            if let Err(error) = self.settle(&owed) {
                tracing::error!(%error, "cannot forget a statement that was run: it will be run again");
            }
            if let Some(Barrier { sequence, .. }) = owed.barrier {
                self.journal.pass_barrier(place, sequence);
            }
        }
    }

    /// How many statements a backend refused that another one ran.
    pub fn differed(&self, backend: &str) -> u64 {
        let known = self.known();
        let found = known.iter().find(|one| one.name == backend);
        found.map_or(0, |one| one.differed.load(Ordering::Relaxed))
    }

    /// The backend that is up and has most of a database.
    fn foremost(&self, database: Option<&str>) -> Option<(String, Influx)> {
        let known = self.known();
        let up = known.iter().filter(|one| one.health.state() == State::Up);
        let lacks = |one: &&Known| {
            let found = self.journal.completeness(one.place, database, &Span::ALWAYS, &[]);
            (found.gap_count, found.pending_since.map_or(0, |since| u64::MAX - since))
        };
        let best = up.min_by_key(lacks)?;
        Some((best.name.clone(), best.influx.another()))
    }

    /// What a backend is to run next: what creates something first, and else what is the oldest.
    fn next(&self, backend: &str) -> Option<Owed> {
        let owed = self.owed();
        let mut own = owed.iter().filter(|owed| owed.backend == backend);
        let first = own.clone().find(|owed| owed.barrier.is_none());
        first.or_else(|| own.find(|owed| owed.barrier.as_ref().is_some_and(|barrier| barrier.is_sure))).cloned()
    }

    /// A backend has run a statement: the others are to.
    fn make_sure(&self, sequence: u64, done: &str) -> io::Result<()> {
        let mut owed = self.owed();
        let is_it = |one: &Owed| one.barrier.as_ref().is_some_and(|barrier| barrier.sequence == sequence);
        owed.retain(|one| !(is_it(one) && one.backend == done));
        for barrier in owed.iter_mut().filter_map(|one| one.barrier.as_mut()) {
            barrier.is_sure |= barrier.sequence == sequence;
        }
        let saved = self.save(&owed);
        drop(owed);
        self.changed.send_replace(());
        saved
    }

    /// No backend is to run a statement.
    fn forget(&self, sequence: u64) {
        let mut owed = self.owed();
        owed.retain(|one| one.barrier.as_ref().is_none_or(|barrier| barrier.sequence != sequence));
        if let Err(error) = self.save(&owed) {
            tracing::error!(%error, "cannot forget a statement that is not to be run");
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owe(&self, more: impl Iterator<Item = Owed>) -> io::Result<()> {
        let mut owed = self.owed();
        let more: Vec<Owed> = more.filter(|one| !owed.contains(one)).collect();
        if more.is_empty() {
            return Ok(());
        }
        if owed.len() + more.len() > MOST_OWED {
            return Err(io::Error::other("too many statements wait for backends that are down"));
        }
        let known = owed.len();
        owed.extend(more);
        if let Err(error) = self.save(&owed) {
            owed.truncate(known);
            return Err(error);
        }
        drop(owed);
        self.changed.send_replace(());
        Ok(())
    }

    fn settle(&self, done: &Owed) -> io::Result<()> {
        let mut owed = self.owed();
        owed.retain(|one| one != done);
        self.save(&owed)
    }

    /// Replaces the file: a crash leaves the old one, or the new one.
    fn save(&self, owed: &[Owed]) -> io::Result<()> {
        let new = self.path.with_extension("tmp");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(owed)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        File::open(self.path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
    }

    fn owed(&self) -> MutexGuard<'_, Vec<Owed>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is owed after a restart: the journal has its barriers again. Of what no backend ran nobody was told anything.
fn restore(mut owed: Vec<Owed>, journal: &Journal, backends: &[&str]) -> Vec<Owed> {
    owed.retain(|one| {
        let is_sure = one.barrier.as_ref().is_none_or(|barrier| barrier.is_sure);
        if !is_sure {
            let (backend, statement) = (&one.backend, shown(&one.statement));
            tracing::warn!(backend, statement, "a statement was under way when the relay ended: it is not run");
        }
        is_sure
    });
    for one in &owed {
        let place = backends.iter().position(|name| **name == *one.backend);
        if let (Some(place), Some(barrier)) = (place, &one.barrier) {
            journal.restore_barrier(place, barrier.sequence, barrier.database.as_deref());
        }
    }
    owed
}

/// A statement for the log: without what may be a password.
fn shown(statement: &str) -> &str {
    let lower = statement.to_ascii_lowercase();
    lower.find("password").map_or(statement, |at| &statement[..at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::BackendSetup;

    fn owed(backend: &str, statement: &str) -> Owed {
        Owed { backend: backend.to_owned(), statement: statement.to_owned(), default: None, barrier: None }
    }

    fn open(folder: &Path) -> Statements {
        let backend = |name: &str| BackendSetup { name: name.to_owned(), address: String::new(), replay_share: 0.5 };
        let journal = Journal::new(1 << 20, &[backend("a"), backend("b")]);
        Statements::open(folder, &journal, &["a", "b"]).expect("open")
    }

    #[test]
    fn what_is_owed_is_there_after_a_restart_once() {
        let folder = tempfile::tempdir().expect("folder");
        let statements = open(folder.path());
        statements.owe([owed("a", "x"), owed("b", "x")].into_iter()).expect("owe");
        statements.owe([owed("a", "x"), owed("a", "y")].into_iter()).expect("owe");
        statements.settle(&owed("b", "x")).expect("settle");
        drop(statements);
        let statements = open(folder.path());
        assert_eq!((statements.pending("a"), statements.pending("b")), (2, 0));
        assert_eq!(*statements.owed(), [owed("a", "x"), owed("a", "y")]);
    }

    #[test]
    fn they_are_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let statements = open(folder.path());
        let many = |from: usize, to| (from..to).map(|number: usize| owed("a", &number.to_string()));
        statements.owe(many(0, MOST_OWED)).expect("owe");
        statements.owe(many(MOST_OWED, MOST_OWED + 1)).expect_err("one more");
        assert_eq!(statements.pending("a"), MOST_OWED as u64);
    }

    #[test]
    fn a_file_that_cannot_be_read_owes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(NAME), "nonsense").expect("write");
        assert_eq!(open(folder.path()).pending("a"), 0);
    }

    #[test]
    fn a_statement_that_nobody_ran_is_forgotten_by_a_restart_and_one_that_somebody_ran_is_a_barrier_again() {
        let folder = tempfile::tempdir().expect("folder");
        let statements = open(folder.path());
        let at = |backend: &str, sequence, is_sure| Owed {
            barrier: Some(Barrier { sequence, database: Some("db".to_owned()), is_sure }),
            ..owed(backend, "DROP MEASUREMENT m")
        };
        statements.owe([at("a", 7, false), at("b", 7, false), at("b", 9, false)].into_iter()).expect("owe");
        assert_eq!(statements.next("b"), None, "nobody ran it yet");
        statements.make_sure(7, "a").expect("saved");
        assert_eq!((statements.next("a"), statements.next("b")), (None, Some(at("b", 7, true))));
        drop(statements);
        let statements = open(folder.path());
        assert_eq!(*statements.owed(), [at("b", 7, true)]);
        let lacks = |place| statements.journal.completeness(place, Some("db"), &Span::ALWAYS, &[]);
        assert!(lacks(1).has_statement && !lacks(0).has_statement);
        // What comes now comes behind it, also where the end of the journal is gone.
        assert!(statements.journal.set_barrier(&[0], None) > 7);
    }

    #[test]
    fn no_password_is_logged() {
        assert_eq!(shown("CREATE USER me WITH PASSWORD 'x'"), "CREATE USER me WITH ");
        assert_eq!(shown("DROP USER me"), "DROP USER me");
    }
}
