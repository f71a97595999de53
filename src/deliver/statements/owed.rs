//! The list of pending statements: its order, and its file.
//!
//! The file is replaced and synced with each change. Never does: run a statement. Bounds:
//! [`MAX_OWED`] statements.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::journal::Sequence;
use crate::protocol::influxql::Create;
use crate::sys::replace;

/// Maximum number of pending statements, of all backends together.
pub(super) const MAX_OWED: usize = 1000;
/// The file in the data folder. Statements may hold passwords, so only the owner may read it.
pub(super) const NAME: &str = "statements.json";

/// The lines that a statement is ordered against.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All lines.
    Everything,
    /// The lines of one database.
    Database(String),
    /// None: the statement changes no points, and is ordered only against statements of this scope.
    NoPoints,
}

/// Progress of a barrier statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// No backend was asked yet.
    Asked,
    /// One backend was asked, and may have run it.
    Sent,
    /// One backend has run it, or may have: all others must run it.
    Sure,
}

/// A statement that is pending for one backend.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Owed {
    pub(super) backend: String,
    pub(super) statement: String,
    /// The database for a statement that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) default: Option<String>,
    /// Position among the lines. `None` for a statement that creates something, which runs ahead of
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) barrier: Option<Barrier>,
}

/// A position among the lines.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Barrier {
    pub(super) sequence: Sequence,
    pub(super) scope: Scope,
    pub(super) stage: Stage,
}

/// All pending statements, in the order of their arrival.
#[derive(Debug)]
pub(super) struct List {
    path: PathBuf,
    owed: Vec<Owed>,
}

impl Scope {
    /// Returns the database whose lines wait for the statement: `Some(None)` for all lines, `None`
    /// if no lines wait.
    pub(super) fn lines(&self) -> Option<Option<&str>> {
        match self {
            Self::Everything => Some(None),
            Self::Database(database) => Some(Some(database)),
            Self::NoPoints => None,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NoPoints, other) | (other, Self::NoPoints) => *other == Self::NoPoints,
            (Self::Everything, _) | (_, Self::Everything) => true,
            (Self::Database(own), Self::Database(other)) => own == other,
        }
    }
}

impl Owed {
    fn is_of(&self, sequence: Sequence) -> bool {
        self.barrier.as_ref().is_some_and(|barrier| barrier.sequence == sequence)
    }

    fn scope(&self) -> Scope {
        match &self.barrier {
            Some(barrier) => barrier.scope.clone(),
            None => creates(&self.statement),
        }
    }

    /// Whether `later`, a later statement of the same backend, must run after this one.
    fn holds_up(&self, later: &Self) -> bool {
        (self.barrier.is_some() || later.barrier.is_some()) && self.scope().meets(&later.scope())
    }
}

/// Returns the scope of a statement that creates something.
pub(super) fn creates(statement: &str) -> Scope {
    Create::parse(statement).map_or(Scope::Everything, |create| Scope::Database(create.database))
}

impl List {
    /// Reads the list in a data folder. Drops statements that no backend was asked to run: their
    /// senders were not told that they ran.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(NAME);
        let mut owed: Vec<Owed> = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(%error, file = %path.display(), "cannot read the pending statements: none are kept");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        owed.retain_mut(|one| {
            let Some(barrier) = &mut one.barrier else { return true };
            let (backend, statement) = (&one.backend, shown(&one.statement));
            match barrier.stage {
                Stage::Asked => {
                    tracing::warn!(
                        backend,
                        statement,
                        "no backend had run a statement when the relay ended: it is not run"
                    );
                }
                Stage::Sent => {
                    tracing::warn!(
                        backend,
                        statement,
                        "a statement was under way when the relay ended: every backend runs it"
                    );
                    barrier.stage = Stage::Sure;
                }
                Stage::Sure => {}
            }
            barrier.stage == Stage::Sure
        });
        Ok(Self { path, owed })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Owed> {
        self.owed.iter()
    }

    /// Whether a backend has a pending barrier that precedes a new statement of this scope.
    pub(super) fn owes_before(&self, backend: &str, scope: &Scope) -> bool {
        let own = self.owed.iter().filter(|one| one.backend == backend);
        own.filter(|one| one.barrier.is_some()).any(|one| one.scope().meets(scope))
    }

    /// Returns the next statement of a backend: one that creates something, or else the oldest.
    pub(super) fn next(&self, backend: &str) -> Option<Owed> {
        let own: Vec<&Owed> = self.owed.iter().filter(|one| one.backend == backend).collect();
        let is_free = |index: usize| !own[..index].iter().any(|earlier| earlier.holds_up(own[index]));
        let is_sure = |one: &Owed| one.barrier.as_ref().is_none_or(|barrier| barrier.stage == Stage::Sure);
        let mut free = (0..own.len()).filter(|index| is_sure(own[*index]) && is_free(*index));
        let first = free.clone().find(|index| own[*index].barrier.is_none());
        first.or_else(|| free.next()).map(|index| own[index].clone())
    }

    /// Whether a backend must run another statement before this one.
    pub(super) fn is_held_up(&self, backend: &str, sequence: Sequence) -> bool {
        let own: Vec<&Owed> = self.owed.iter().filter(|one| one.backend == backend).collect();
        let index = own.iter().position(|one| one.is_of(sequence));
        index.is_some_and(|index| own[..index].iter().any(|earlier| earlier.holds_up(own[index])))
    }

    /// Adds statements. Skips one that is pending already, unless a later statement may undo it.
    ///
    /// # Errors
    /// There are too many, or the list cannot be saved. Then nothing is added.
    pub(super) fn owe(&mut self, more: impl Iterator<Item = Owed>) -> io::Result<()> {
        let known = self.owed.len();
        for one in more {
            let index = self.owed.iter().position(|other| *other == one);
            let is_there = index.is_some_and(|index| {
                !self.owed[index + 1..].iter().any(|later| later.backend == one.backend && later.holds_up(&one))
            });
            if !is_there {
                self.owed.push(one);
            }
        }
        if self.owed.len() == known {
            return Ok(());
        }
        let saved = if self.owed.len() > MAX_OWED {
            Err(io::Error::other("too many statements wait for backends that are down"))
        } else {
            self.save()
        };
        if saved.is_err() {
            self.owed.truncate(known);
        }
        saved
    }

    /// Records a statement's progress. `done` is the backend that has run it.
    ///
    /// # Errors
    /// The list cannot be saved.
    pub(super) fn note(&mut self, sequence: Sequence, stage: Stage, done: Option<&str>) -> io::Result<()> {
        self.owed.retain(|one| !(one.is_of(sequence) && Some(one.backend.as_str()) == done));
        for barrier in self.owed.iter_mut().filter(|one| one.is_of(sequence)).filter_map(|one| one.barrier.as_mut()) {
            barrier.stage = stage;
        }
        self.save()
    }

    /// Removes a statement for all backends.
    ///
    /// # Errors
    /// The list cannot be saved.
    pub(super) fn forget(&mut self, sequence: Sequence) -> io::Result<()> {
        self.owed.retain(|one| !one.is_of(sequence));
        self.save()
    }

    /// Removes a backend's statement.
    ///
    /// # Errors
    /// The list cannot be saved. The statement stays pending.
    pub(super) fn ack(&mut self, done: &Owed) -> io::Result<()> {
        let Some(index) = self.owed.iter().position(|one| one == done) else { return Ok(()) };
        let one = self.owed.remove(index);
        let saved = self.save();
        if saved.is_err() {
            self.owed.insert(index, one);
        }
        saved
    }

    fn save(&self) -> io::Result<()> {
        replace(&self.path, &serde_json::to_vec(&self.owed)?)
    }
}

/// Returns the statement for the log, cut before a possible password.
pub(super) fn shown(statement: &str) -> &str {
    let lower = statement.to_ascii_lowercase();
    lower.find("password").map_or(statement, |at| &statement[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(backend: &str, statement: &str) -> Owed {
        Owed { backend: backend.to_owned(), statement: statement.to_owned(), default: None, barrier: None }
    }

    fn at(backend: &str, sequence: u64, scope: Scope, stage: Stage) -> Owed {
        Owed { barrier: Some(Barrier { sequence: Sequence::new(sequence), scope, stage }), ..owed(backend, "DROP") }
    }

    fn db(name: &str) -> Scope {
        Scope::Database(name.to_owned())
    }

    fn list(folder: &tempfile::TempDir, owed: impl IntoIterator<Item = Owed>) -> List {
        let mut list = List::open(folder.path()).expect("open");
        list.owe(owed.into_iter()).expect("owe");
        list
    }

    #[test]
    fn what_is_owed_is_there_after_a_restart_once() {
        let folder = tempfile::tempdir().expect("folder");
        let mut first = list(&folder, [owed("a", "x"), owed("b", "x")]);
        first.owe([owed("a", "x"), owed("a", "y")].into_iter()).expect("owe");
        first.ack(&owed("b", "x")).expect("ack");
        let again = List::open(folder.path()).expect("open");
        assert_eq!(again.owed, [owed("a", "x"), owed("a", "y")]);
        let mode = std::fs::metadata(folder.path().join(NAME)).map(|file| {
            use std::os::unix::fs::PermissionsExt;
            file.permissions().mode() & 0o777
        });
        assert_eq!(mode.expect("a file"), 0o600);
    }

    #[test]
    fn they_are_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let many = |from: usize, to| (from..to).map(|number: usize| owed("a", &number.to_string()));
        let mut list = list(&folder, many(0, MAX_OWED));
        list.owe(many(MAX_OWED, MAX_OWED + 1)).expect_err("one more");
        assert_eq!(list.owed.len(), MAX_OWED);
    }

    #[test]
    fn a_file_that_cannot_be_read_owes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(NAME), "nonsense").expect("write");
        assert_eq!(List::open(folder.path()).expect("open").owed, []);
    }

    #[test]
    fn a_restart_forgets_what_nobody_was_asked_for_and_goes_on_with_what_somebody_may_have_run() {
        let folder = tempfile::tempdir().expect("folder");
        let stages = [(7, Stage::Asked), (8, Stage::Sent), (9, Stage::Sure)];
        drop(list(&folder, stages.map(|(sequence, stage)| at("b", sequence, db("db"), stage))));
        let again = List::open(folder.path()).expect("open");
        assert_eq!(again.owed, [8, 9].map(|sequence| at("b", sequence, db("db"), Stage::Sure)));
    }

    #[test]
    fn statements_of_one_scope_run_in_their_order_and_others_do_not_wait() {
        let folder = tempfile::tempdir().expect("folder");
        let (sure, asked) = (Stage::Sure, Stage::Asked);
        let cases = [
            // An earlier statement is not yet sure: the later one waits, unless its scope is
            // another.
            (vec![at("b", 1, db("x"), asked), at("b", 2, db("x"), sure)], None),
            (vec![at("b", 1, db("x"), asked), at("b", 2, db("y"), sure)], Some(2)),
            (vec![at("b", 1, Scope::Everything, asked), at("b", 2, db("y"), sure)], None),
            (vec![at("b", 1, db("x"), asked), at("b", 2, Scope::NoPoints, sure)], Some(2)),
            (vec![at("b", 1, Scope::NoPoints, asked), at("b", 2, Scope::NoPoints, sure)], None),
            (vec![at("a", 1, db("x"), asked), at("b", 2, db("x"), sure)], Some(2)),
        ];
        for (owed, expected) in cases {
            let mut list = list(&folder, owed.clone());
            let next = list.next("b").and_then(|one| one.barrier).map(|barrier| barrier.sequence.get());
            assert_eq!(next, expected, "{owed:?}");
            assert_eq!(list.is_held_up("b", Sequence::new(2)), expected.is_none());
            for one in owed {
                list.ack(&one).expect("ack");
            }
        }
    }

    #[test]
    fn what_creates_a_database_waits_for_what_removes_it_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let (create, other) = (owed("b", "CREATE DATABASE x"), owed("b", "CREATE DATABASE y"));
        let drop_it = at("b", 1, db("x"), Stage::Sure);
        let mut list = list(&folder, [create.clone(), drop_it.clone(), create.clone(), other.clone()]);
        let mut order = Vec::new();
        while let Some(next) = list.next("b") {
            list.ack(&next).expect("ack");
            order.push(next);
        }
        assert_eq!(order, [create.clone(), other, drop_it, create]);
    }

    #[test]
    fn no_password_is_logged() {
        assert_eq!(shown("CREATE USER me WITH PASSWORD 'x'"), "CREATE USER me WITH ");
        assert_eq!(shown("DROP USER me"), "DROP USER me");
    }
}
