//! Statements that create something, owed to every InfluxDB at once: ahead of the lines that wait, and remembered for those
//! that are down.
//!
//! What is owed stands in one file, which is replaced and synced with each change. A statement is done once a backend ran it or
//! refused it; only no answer, a 5xx and a 401 wait. Running one twice changes nothing: what is there already stays.
//!
//! Never does: a statement with more right than who asked for it (see [`Statements::run`]). Bounds: `MOST_OWED` statements.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::health::Backoff;
use super::influx::{Influx, Ran};
use super::{Health, State};

/// Statements that are owed, of all backends together, at most.
const MOST_OWED: usize = 1000;
/// The file in the data folder.
const NAME: &str = "statements.json";

/// What is owed.
#[derive(Debug)]
pub struct Statements {
    path: PathBuf,
    owed: Mutex<Vec<Owed>>,
    changed: watch::Sender<()>,
    /// The InfluxDBs, by name.
    backends: Mutex<Vec<(String, Influx, Arc<Health>)>>,
}

/// A statement that one backend is owed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Owed {
    backend: String,
    statement: String,
}

/// Who wants a statement to be run.
#[derive(Clone, Debug)]
pub enum Asker {
    /// Somebody who may administer here: the backends' own credentials are used.
    Administrator,
    /// Somebody whom a backend must know: with these credentials, or none.
    Client(Option<HeaderValue>),
}

impl Statements {
    /// Reads what is owed in a data folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(NAME);
        let owed = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(%error, file = %path.display(), "cannot read the statements that are owed: none are");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, owed: Mutex::new(owed), changed: watch::Sender::new(()), backends: Mutex::default() })
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
            let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
            let first = backends.iter().find(|(_, _, health)| health.state() == State::Up);
            let first = first.map(|(name, influx, _)| (name.clone(), influx.another()));
            (backends.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>(), first)
        };
        let mut done = None;
        if let Some((name, mut influx)) = first {
            let ran = match asker {
                Asker::Administrator => influx.run(statement).await,
                Asker::Client(authorization) => influx.run_as(statement, authorization.as_ref()).await,
            };
            match ran {
                Ran::Done => done = Some(name),
                Ran::Refused(error) => return Err(error),
                // Nothing was said against it.
                Ran::Later(error) => tracing::debug!(backend = name, error, "cannot run a statement now"),
            }
        }
        let others = names.into_iter().filter(|name| Some(name) != done.as_ref());
        self.owe(others.map(|backend| Owed { backend, statement: statement.to_owned() }))
            .map_err(|error| format!("cannot remember the statement: {error}"))
    }

    /// Runs what this backend is owed, until the relay is to end.
    pub(super) async fn serve(
        self: Arc<Self>,
        name: String,
        mut influx: Influx,
        health: Arc<Health>,
        mut closing: watch::Receiver<bool>,
        longest_pause: Duration,
    ) {
        let shown = (name.clone(), influx.another(), health);
        self.backends.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        let mut changed = self.changed.subscribe();
        let mut backoff = Backoff::default();
        while !*closing.borrow() {
            changed.mark_unchanged();
            let next = self.owed().iter().find(|owed| owed.backend == name).cloned();
            let Some(owed) = next else {
                backoff.reset();
                tokio::select! {
                    _ = closing.changed() => return,
                    _ = changed.changed() => continue,
                }
            };
            match influx.run(&owed.statement).await {
                Ran::Later(_) => {
                    drop(tokio::time::timeout(backoff.next_pause(longest_pause), closing.changed()).await);
                    continue;
                }
                Ran::Done => tracing::info!(backend = name, statement = owed.statement, "ran a statement"),
                Ran::Refused(error) => {
                    tracing::warn!(
                        backend = name,
                        statement = owed.statement,
                        error,
                        "refused a statement: it is not tried again"
                    );
                }
            }
            backoff.reset();
            if let Err(error) = self.settle(&owed) {
                tracing::error!(%error, "cannot forget a statement that was run: it will be run again");
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(backend: &str, statement: &str) -> Owed {
        Owed { backend: backend.to_owned(), statement: statement.to_owned() }
    }

    #[test]
    fn what_is_owed_is_there_after_a_restart_once() {
        let folder = tempfile::tempdir().expect("folder");
        let statements = Statements::open(folder.path()).expect("open");
        statements.owe([owed("a", "x"), owed("b", "x")].into_iter()).expect("owe");
        statements.owe([owed("a", "x"), owed("a", "y")].into_iter()).expect("owe");
        statements.settle(&owed("b", "x")).expect("settle");
        drop(statements);
        let statements = Statements::open(folder.path()).expect("open");
        assert_eq!((statements.pending("a"), statements.pending("b")), (2, 0));
        assert_eq!(*statements.owed(), [owed("a", "x"), owed("a", "y")]);
    }

    #[test]
    fn they_are_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let statements = Statements::open(folder.path()).expect("open");
        let many = |from: usize, to| (from..to).map(|number: usize| owed("a", &number.to_string()));
        statements.owe(many(0, MOST_OWED)).expect("owe");
        statements.owe(many(MOST_OWED, MOST_OWED + 1)).expect_err("one more");
        assert_eq!(statements.pending("a"), MOST_OWED as u64);
    }

    #[test]
    fn a_file_that_cannot_be_read_owes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(NAME), "nonsense").expect("write");
        assert_eq!(Statements::open(folder.path()).expect("open").pending("a"), 0);
    }
}
