//! Watches the journal's folder for the writer: is it still in place, and what to do if not.
//!
//! The writer checks the folder and the last segment each second, by device and inode. Removed
//! files remain writable, so no write would fail.
//!
//! | observation | consequence |
//! |---|---|
//! | something is out of place | nothing is written; a second check follows after one second |
//! | then everything is in place | writing resumes |
//! | then only the last segment's file is gone | its records that memory still holds are written again |
//! | then the folder is gone, or all of its segments | lines that were only there are given up (`corrupt`), and a new folder is begun |
//!
//! A new folder is begun once the data folder's lock is held there ([`Guard`]). Files of another
//! journal found there are quarantined, never overwritten. Without any folder, lines are kept in
//! memory.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

use crate::batch::Received;
use crate::journal::segment::format::SegmentName;
use crate::journal::segment::slots::{self, Slots};
use crate::journal::segment::storage::Misplaced;
use crate::journal::shared::{Files, Shared};
use crate::sys::Throttle;

/// Ensures that no other process uses a new folder.
pub(super) struct Guard(Box<dyn Fn() -> io::Result<()> + Send>);

impl Guard {
    pub(super) fn new(guard: impl Fn() -> io::Result<()> + Send + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new(|| Ok(()))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Everything is in place.
    Kept,
    /// The segment being written is gone: the next record goes to a new one.
    Renewed,
    /// There is no folder to write to.
    Nowhere,
}

/// Where the folder is, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FolderState {
    #[default]
    Kept,
    /// Something was out of place at the last check.
    Doubtful,
    /// The folder is gone, and there is no new one yet.
    Lost,
}

/// Checks the folder, and begins a new one.
#[derive(Debug)]
pub(super) struct Renewal {
    shared: Arc<Shared>,
    guard: Guard,
    folder: FolderState,
    throttle_doubtful: Throttle,
    throttle_lost: Throttle,
}

impl Renewal {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let (guard, folder) = (Guard::default(), FolderState::default());
        Self { shared, guard, folder, throttle_doubtful: Throttle::default(), throttle_lost: Throttle::default() }
    }

    /// Sets the guard for new folders.
    pub(super) fn guarded(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    /// Whether there is a folder to write to, as far as known.
    pub(super) fn is_kept(&self) -> bool {
        self.folder == FolderState::Kept
    }

    /// Checks the folder and the last segment.
    pub(super) fn check(&mut self) -> Found {
        let misplaced = if self.folder == FolderState::Lost { None } else { self.misplaced() };
        match (self.folder, misplaced) {
            (FolderState::Kept, None) => Found::Kept,
            (FolderState::Kept, Some(Misplaced::Folder(what) | Misplaced::File(what))) => self.doubt(&what),
            (FolderState::Doubtful, None) => {
                self.folder = FolderState::Kept;
                self.shared.lock().disk().note_in_place();
                tracing::info!("the journal's folder is where it was: writing goes on");
                Found::Kept
            }
            (FolderState::Doubtful, Some(Misplaced::File(what))) if self.has_older_segment() => {
                self.lose_last_segment(&what)
            }
            (FolderState::Doubtful, Some(Misplaced::Folder(what) | Misplaced::File(what))) => self.lose_folder(&what),
            (FolderState::Lost, _) => self.begin_anew("the journal's folder is gone"),
        }
    }

    fn doubt(&mut self, what: &str) -> Found {
        self.folder = FolderState::Doubtful;
        self.shared.lock().disk().note_misplaced(format!("{what} while the relay runs"));
        if let Some(leave) = self.throttle_doubtful.pass() {
            tracing::error!(untold = leave.untold, "{what} while the relay runs: lines are kept in memory");
        }
        Found::Nowhere
    }

    fn lose_last_segment(&mut self, what: &str) -> Found {
        self.folder = FolderState::Kept;
        {
            let mut state = self.shared.lock();
            state.lose_last_segment();
            state.disk().note_in_place();
        }
        tracing::error!("{what} while the relay runs: writing again what memory holds of it");
        Found::Renewed
    }

    fn lose_folder(&mut self, what: &str) -> Found {
        let lines = self.shared.lock().lose_disk(Received::now().wall);
        tracing::error!(
            lines,
            "{what} while the relay runs: lines that were only there are given up (corrupt); what memory holds is written \
             to a new folder"
        );
        self.begin_anew(what)
    }

    /// What is out of place. An error from the system counts as in place.
    fn misplaced(&self) -> Option<Misplaced> {
        let (active, last) = {
            let mut state = self.shared.lock();
            (state.disk().active(), state.disk().segments().back().map(|last| last.name.to_string()))
        };
        let storage = &self.files().storage;
        let open = active.as_ref().map(|(file, ..)| &**file);
        let misplaced = storage.misplaced(last.as_deref().zip(open)).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot look for the journal's folder");
            None
        });
        // Without an open file, at least the last segment's name can be checked.
        let last = last.filter(|_| misplaced.is_none() && active.is_none());
        let is_gone = |name: &String| storage.open(name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        misplaced.or_else(|| last.filter(is_gone).map(|name| Misplaced::File(format!("{name} was removed"))))
    }

    /// Whether a segment before the last one still exists.
    fn has_older_segment(&self) -> bool {
        let older: Vec<SegmentName> = {
            let mut state = self.shared.lock();
            state.disk().segments().iter().rev().skip(1).map(|segment| segment.name).collect()
        };
        older.iter().any(|name| self.files().storage.open(&name.to_string()).is_ok())
    }

    fn begin_anew(&mut self, what: &str) -> Found {
        let Err(error) = self.renew() else {
            self.folder = FolderState::Kept;
            self.shared.lock().begin_anew();
            tracing::warn!("the journal begins anew in its folder");
            return Found::Renewed;
        };
        self.folder = FolderState::Lost;
        self.shared.lock().disk().note_misplaced(format!("{what}, and there is no new folder: {error}"));
        if let Some(leave) = self.throttle_lost.pass() {
            tracing::error!(%error, untold = leave.untold, "the journal has no folder: lines are kept in memory");
        }
        Found::Nowhere
    }

    /// Creates the folder with new slots, and nothing else of a journal.
    fn renew(&self) -> io::Result<()> {
        (self.guard.0)()?;
        let Files { storage, journal, cursors, gaps } = self.files();
        storage.renew()?;
        for name in storage.list()?.iter().filter(|name| SegmentName::parse(name).is_some() || slots::is_slot(name)) {
            storage.quarantine(name)?;
            tracing::warn!(file = name, "moved a file of another journal to quarantine");
        }
        for (kind, slots) in [(slots::Kind::Cursors, cursors), (slots::Kind::Gaps, gaps)] {
            let opened = Slots::open(&**storage, kind, *journal, None)?;
            *slots.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        }
        storage.sync_folder()
    }

    fn files(&self) -> &Files {
        self.shared.disk.as_ref().expect("BUG: only a journal with a disk has a folder")
    }
}
