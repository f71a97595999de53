//! A folder as a backend: line protocol in files, one folder for each destination.
//!
//! ```text
//! archive/telegraf.ns/20261123T034500Z.lp       the open segment
//! archive/telegraf.ns/20261123T024500Z.lp.gz    a full one
//! ```
//!
//! Each segment begins with comments that tell its destination ([`super::header`]); `twinflux restore` puts it back.
//!
//! Lines count as delivered once they are on disk (`fdatasync`). A write that fails half-way is taken back, so
//! that a full disk leaves no half a line. The last line of a segment that a crash tore is cut off when the
//! segment is opened again: it was not acknowledged. No file is ever overwritten.
//!
//! Bounds: a segment's size and age, one open file for each destination. The folder's own bounds ([`Bounds`]) are the
//! operator's: the oldest files make room; without any nothing is removed, and lines wait in the journal once the volume's
//! floor is reached. A lock file keeps two relays out of one folder. A destination whose folder cannot be made, because its name
//! is too long for the file system, say, is held; the others go on.

mod room;
mod segment;

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::Outcome;
use super::outcome::Fate;
use crate::batch::{Destination, Received};
use room::{Full, Room};
use segment::{Segment, compress, create_folder, folder_name, is_in_place};

pub use room::Bounds;

/// The longest name of a destination's folder, in bytes, on a usual file system.
pub const MAX_FOLDER_BYTES: usize = 255;

/// Bytes of the name of a destination's folder.
pub fn folder_bytes(destination: &Destination) -> usize {
    folder_name(destination).len()
}

/// A segment is closed and compressed when it is this old.
const SEGMENT_AGE: Duration = Duration::from_secs(3600);
/// How often old segments are closed and old files removed, and how often removals are told.
const KEEPING_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is told that the room will not last.
const ROOM_LOG_INTERVAL: Duration = Duration::from_secs(3600);
/// Room for less than this is worth a warning.
const LITTLE_ROOM: Duration = Duration::from_secs(14 * 24 * 3600);

/// A backend that keeps lines in files. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    root: PathBuf,
    folders: Arc<Mutex<Folders>>,
}

impl Archive {
    /// An archive in this folder, which is made at the first write.
    pub(super) fn new(folder: PathBuf, bounds: Bounds) -> Self {
        let (root, room) = (folder.clone(), Room::new(folder.clone(), bounds));
        let folders = Folders { room, root: folder, lock: None, open: HashMap::new() };
        Self { root, folders: Arc::new(Mutex::new(folders)) }
    }

    /// Its folder, which may not be there yet.
    pub(super) fn folder(&self) -> &Path {
        &self.root
    }

    /// Appends lines, in parts that hold whole ones, and waits until they are on disk.
    pub(super) async fn write(&mut self, destination: Arc<Destination>, parts: Vec<Bytes>) -> Outcome {
        match self.work(move |folders| folders.append(&destination, &parts)).await {
            Ok(Ok(())) => Outcome::new(Fate::Delivered, String::new()),
            Ok(Err(error)) => Outcome::new(error.fate(), error.to_string()),
            Err(error) => Outcome::new(Fate::HoldBackend, error),
        }
    }

    /// Makes sure that the folder can be written, and that there is room.
    ///
    /// # Errors
    /// What keeps it from being written.
    pub(super) async fn check(&self) -> Result<String, String> {
        let checked = self.work(Folders::check).await?;
        checked.map_err(|error| error.to_string())
    }

    /// Closes old segments, removes old files, and says what became of the room, until the relay is to end.
    pub(super) async fn keep(self, name: String, mut closing: watch::Receiver<bool>) {
        let mut told_next = Instant::now();
        while !*closing.borrow() {
            let is_due = told_next <= Instant::now();
            let kept = self.work(move |folders| folders.keep(is_due)).await;
            match kept.map_err(io::Error::other).and_then(|kept| kept) {
                Ok(Kept { removed: (files, bytes), lasts }) => {
                    if files > 0 {
                        tracing::info!(
                            backend = name,
                            files,
                            bytes,
                            "archive removed its oldest files (disk, max_age)"
                        );
                    }
                    if is_due {
                        told_next = Instant::now() + ROOM_LOG_INTERVAL;
                    }
                    if let Some(lasts) = lasts {
                        tell_room(&name, lasts);
                    }
                }
                Err(error) => tracing::debug!(backend = name, %error, "cannot look after the archive"),
            }
            drop(tokio::time::timeout(KEEPING_INTERVAL, closing.changed()).await);
        }
    }

    /// Works on the folders, on a thread that may wait for the disk.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Folders) -> T + Send + 'static,
    ) -> Result<T, String> {
        let folders = Arc::clone(&self.folders);
        let worked = tokio::task::spawn_blocking(move || {
            let mut folders = folders.lock().map_err(|_| "the archive's writer ended; restart to go on".to_owned())?;
            Ok(work(&mut folders))
        });
        worked.await.map_err(|error| error.to_string())?
    }
}

fn tell_room(backend: &str, lasts: Duration) {
    let hours = lasts.as_secs() / 3600;
    let about = match hours {
        0 => "less than an hour".to_owned(),
        1..48 => format!("about {hours} hours"),
        _ => format!("about {} days", hours / 24),
    };
    if lasts < LITTLE_ROOM {
        tracing::warn!(
            backend,
            "archive full in {about} at the present rate: set disk or max_age for this backend, or give its volume more room"
        );
    } else {
        tracing::debug!(backend, "archive has room for {about} at the present rate");
    }
}

/// The file that keeps two relays out of one folder.
const LOCK: &str = "lock";

/// What failed.
#[derive(Debug, thiserror::Error)]
enum ArchiveError {
    /// What the system said, and where.
    #[error("archive {0}: {1}")]
    Io(PathBuf, io::Error),
    /// There is no room.
    #[error("archive {0} is full: {1}")]
    Full(PathBuf, Full),
    /// One destination cannot be stored, and the others can.
    #[error("archive {0} cannot be a destination's folder: {1}; {advice}", advice = advice(.1))]
    Destination(PathBuf, io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::InvalidFilename => "shorten the names of its database and retention policy",
        _ => "mend it, or move it away",
    }
}

impl ArchiveError {
    fn fate(&self) -> Fate {
        match self {
            Self::Io(..) => Fate::Transient,
            Self::Full(..) => Fate::HoldBackend,
            Self::Destination(..) => Fate::HoldDestination,
        }
    }

    /// Why a destination's folder cannot be opened.
    fn of_folder(folder: PathBuf, error: io::Error) -> Self {
        let is_its_own = match error.kind() {
            // The name is too long for this file system, or somebody's file has it.
            io::ErrorKind::InvalidFilename | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => true,
            io::ErrorKind::PermissionDenied => folder.exists(),
            _ => false,
        };
        if is_its_own { Self::Destination(folder, error) } else { Self::Io(folder, error) }
    }
}

/// What keeping an archive brought.
struct Kept {
    /// Files and bytes.
    removed: (u64, u64),
    /// How long the room lasts, where that was asked for and is known.
    lasts: Option<Duration>,
}

#[derive(Debug)]
struct Folders {
    root: PathBuf,
    room: Room,
    /// Held from the first write on.
    lock: Option<File>,
    open: HashMap<Arc<Destination>, Segment>,
}

impl Folders {
    /// Makes the folder, takes its lock, and writes a file there.
    fn check(&mut self) -> Result<String, ArchiveError> {
        let probe = self.root.join("probe.tmp");
        self.take_lock()?;
        let written = File::create(&probe)
            .and_then(|mut file| file.write_all(b"writable"))
            .and_then(|()| std::fs::remove_file(&probe));
        written.map_err(|error| ArchiveError::Io(self.root.clone(), error))?;
        self.make_room(0)?;
        Ok(format!("a folder that can be written: {}", self.root.display()))
    }

    /// Takes the folder's lock where it has none, or lost it: the folder may have been removed, or be another one now.
    fn take_lock(&mut self) -> Result<(), ArchiveError> {
        let path = self.root.join(LOCK);
        if self.lock.as_ref().is_some_and(|lock| !is_in_place(lock, &path)) {
            tracing::warn!(folder = %self.root.display(), "the archive's folder was removed or replaced: beginning anew there");
            self.lock = None;
            self.open.clear();
            self.room.recount();
        }
        if self.lock.is_none() {
            let lock = lock(&self.root).map_err(|error| ArchiveError::Io(self.root.clone(), error))?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    fn append(&mut self, destination: &Arc<Destination>, parts: &[Bytes]) -> Result<(), ArchiveError> {
        self.take_lock()?;
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        self.make_room(bytes)?;
        let most = self.room.bounds.segment_bytes();
        // What is written to a file that was removed or renamed is not in the archive.
        if self.open.get(destination).is_some_and(|segment| !segment.is_in_place()) {
            self.open.remove(destination);
            self.room.recount();
        }
        if !self.open.contains_key(destination) {
            let folder = self.root.join(folder_name(destination));
            let opened = Segment::open(&folder, destination, most);
            let segment = opened.map_err(|error| ArchiveError::of_folder(folder, error))?;
            self.open.insert(Arc::clone(destination), segment);
            self.room.recount();
        }
        let Some(segment) = self.open.get_mut(destination) else { return Ok(()) };
        if let Err(error) = segment.append(parts) {
            let path = segment.path.clone();
            if segment.roll_back().is_err() {
                // The next try opens the segment anew, and looks at what is in it.
                self.open.remove(destination);
            }
            return Err(ArchiveError::Io(path, error));
        }
        if !segment.is_in_place() {
            let path = segment.path.clone();
            self.open.remove(destination);
            let gone =
                io::Error::new(io::ErrorKind::NotFound, "the file was removed or renamed while it was written to");
            return Err(ArchiveError::Io(path, gone));
        }
        self.room.note(0, bytes);
        if segment.bytes >= most || segment.opened.elapsed() >= SEGMENT_AGE {
            self.close(destination);
        }
        Ok(())
    }

    /// Makes room; where all files are written to, ends those.
    fn make_room(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let mut made = self.room.make(bytes, &self.written_to());
        if matches!(made, Err(Full::Disk { .. })) {
            self.open.clear();
            made = self.room.make(bytes, &HashSet::new());
        }
        made.map_err(|error| match error {
            Full::Io(error) => ArchiveError::Io(self.root.clone(), error),
            full => ArchiveError::Full(self.root.clone(), full),
        })
    }

    fn written_to(&self) -> HashSet<PathBuf> {
        self.open.values().map(|segment| segment.path.clone()).collect()
    }

    /// Closes a destination's segment and compresses it.
    fn close(&mut self, destination: &Arc<Destination>) {
        let Some(Segment { path, bytes, .. }) = self.open.remove(destination) else { return };
        match compress(&path) {
            Ok(compressed) => self.room.note(bytes, compressed),
            // The lines are on disk either way: a segment that stays uncompressed is no loss.
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot compress an archive segment"),
        }
    }

    /// Closes segments that are old, removes files that are too old, and looks how long the room lasts.
    fn keep(&mut self, asks_room: bool) -> io::Result<Kept> {
        self.take_lock().map_err(io::Error::other)?;
        let old = self.open.iter().filter(|(_, segment)| segment.opened.elapsed() >= SEGMENT_AGE);
        let old: Vec<_> = old.map(|(destination, _)| Arc::clone(destination)).collect();
        old.iter().for_each(|destination| self.close(destination));
        self.room.expire(&self.written_to(), Received::now())?;
        let lasts = if asks_room { self.room.lasts()? } else { None };
        Ok(Kept { removed: self.room.take_removed(), lasts })
    }
}

fn lock(root: &Path) -> io::Result<File> {
    create_folder(root)?;
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(root.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another relay writes there: give each its own folder")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_one_folder_holds_one_destination() {
        use io::ErrorKind::{AlreadyExists, InvalidFilename, NotADirectory, PermissionDenied, StorageFull};
        let there = tempfile::tempdir().expect("folder");
        let (there, gone) = (there.path().to_owned(), there.path().join("gone"));
        for (kind, folder, expected) in [
            (InvalidFilename, &gone, Fate::HoldDestination),
            (NotADirectory, &there, Fate::HoldDestination),
            (AlreadyExists, &there, Fate::HoldDestination),
            (PermissionDenied, &there, Fate::HoldDestination),
            // It is the archive's folder that may not be written.
            (PermissionDenied, &gone, Fate::Transient),
            (StorageFull, &there, Fate::Transient),
        ] {
            assert_eq!(ArchiveError::of_folder(folder.clone(), kind.into()).fate(), expected, "{kind} {folder:?}");
        }
    }

    #[test]
    fn a_folder_has_one_writer() {
        let folder = tempfile::tempdir().expect("folder");
        let held = lock(folder.path()).expect("the first");
        assert!(lock(folder.path()).is_err_and(|error| error.to_string().contains("another relay")));
        drop(held);
        lock(folder.path()).expect("the next");
    }
}
