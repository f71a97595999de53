//! A folder as a backend: line protocol in files, one folder per destination.
//!
//! ```text
//! archive/telegraf.ns/20261123T034500Z.lp       the open segment
//! archive/telegraf.ns/20261123T024500Z.lp.gz    a full one
//! ```
//!
//! Each segment begins with comments that name its destination ([`super::header`]). `twinflux
//! restore` writes an archive back to an InfluxDB.
//!
//! Lines count as delivered once they are on disk (`fdatasync`). A failed write is rolled back, so
//! a full disk leaves no partial line. After a crash, reopening a segment truncates a torn last
//! line, which was not acknowledged. No file is ever overwritten.
//!
//! Owns: the folder and its lock file, which keeps other relays out. Never does: remove a file
//! without bounds; lines then wait in the journal once the volume's floor is reached. Bounds: a
//! segment's size and age, one open file per destination. The bounds of the folder ([`Bounds`]) are
//! the operator's: the oldest files are removed to keep them. A destination whose folder cannot be
//! created, for example because its name is too long for the file system, is held; the others go
//! on.

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
use tokio::task::JoinError;

use super::Outcome;
use super::outcome::Fate;
use crate::batch::{Destination, Received};
use room::{Full, Room};
use segment::{Segment, compress, create_folder, folder_name, is_in_place};

pub use room::Bounds;

/// Maximum length of a destination's folder name on a usual file system, in bytes.
pub const MAX_FOLDER_BYTES: usize = 255;

/// Returns the length of a destination's folder name, in bytes.
pub fn folder_bytes(destination: &Destination) -> usize {
    folder_name(destination).len()
}

/// Age at which a segment is closed and compressed.
const SEGMENT_AGE: Duration = Duration::from_secs(3600);
/// How often old segments are closed, old files removed, and removals logged.
const KEEPING_INTERVAL: Duration = Duration::from_secs(60);
/// How often to log that the space will run out.
const ROOM_LOG_INTERVAL: Duration = Duration::from_secs(3600);
/// The log warns if the space lasts for less than this.
const LITTLE_ROOM: Duration = Duration::from_secs(14 * 24 * 3600);

/// A backend that keeps lines in files. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    root: PathBuf,
    folders: Arc<Mutex<Folders>>,
}

impl Archive {
    /// Creates an archive in this folder. The folder is created at the first write.
    pub(super) fn new(folder: PathBuf, bounds: Bounds) -> Self {
        let (root, room) = (folder.clone(), Room::new(folder.clone(), bounds));
        let folders = Folders { room, root: folder, lock: None, open: HashMap::new() };
        Self { root, folders: Arc::new(Mutex::new(folders)) }
    }

    /// Returns the folder, which may not exist yet.
    pub(super) fn folder(&self) -> &Path {
        &self.root
    }

    /// Appends lines, and waits until they are on disk. Each part holds whole lines.
    pub(super) async fn write(&mut self, destination: Arc<Destination>, parts: Vec<Bytes>) -> Outcome {
        match self.work(move |folders| folders.append(&destination, &parts)).await {
            Ok(Ok(())) => Outcome::new(Fate::Delivered, String::new()),
            Ok(Err(error)) | Err(error) => Outcome::new(error.fate(), error.to_string()),
        }
    }

    /// Checks that the folder is writable and has space. Returns a description of it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) async fn check(&self) -> Result<String, ArchiveError> {
        self.work(Folders::check).await?
    }

    /// Closes old segments, removes old files, and logs how long the space lasts, until the relay
    /// shuts down.
    pub(super) async fn keep(self, name: String, mut closing: watch::Receiver<bool>) {
        let mut log_next = Instant::now();
        while !*closing.borrow() {
            let is_due = log_next <= Instant::now();
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
                        log_next = Instant::now() + ROOM_LOG_INTERVAL;
                    }
                    if let Some(lasts) = lasts {
                        log_space(&name, lasts);
                    }
                }
                Err(error) => tracing::debug!(backend = name, %error, "cannot look after the archive"),
            }
            drop(tokio::time::timeout(KEEPING_INTERVAL, closing.changed()).await);
        }
    }

    /// Works on the folders, on a thread that may block on the disk.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Folders) -> T + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let folders = Arc::clone(&self.folders);
        let worked = tokio::task::spawn_blocking(move || {
            let mut folders = folders.lock().map_err(|_| ArchiveError::Poisoned)?;
            Ok(work(&mut folders))
        });
        worked.await?
    }
}

fn log_space(backend: &str, lasts: Duration) {
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

/// The file whose lock keeps other relays out of the folder.
const LOCK: &str = "lock";

/// The archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// The system reported this error for this path.
    #[error("archive {0}: {1}")]
    Io(PathBuf, io::Error),
    /// There is no space.
    #[error("archive {0} is full: {1}")]
    Full(PathBuf, Full),
    /// Only this destination cannot be stored.
    #[error("archive {0} cannot be a destination's folder: {1}; {advice}", advice = advice(.1))]
    Destination(PathBuf, io::Error),
    /// An earlier write panicked.
    #[error("the archive's writer ended; restart to go on")]
    Poisoned,
    /// The write panicked, or the runtime ended.
    #[error("{0}")]
    Join(#[from] JoinError),
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
            Self::Full(..) | Self::Poisoned | Self::Join(_) => Fate::HoldBackend,
            Self::Destination(..) => Fate::HoldDestination,
        }
    }

    /// Classifies a failure to open a destination's folder.
    fn of_folder(folder: PathBuf, error: io::Error) -> Self {
        let is_its_own = match error.kind() {
            // The name is too long for this file system, or a file has it.
            io::ErrorKind::InvalidFilename | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => true,
            io::ErrorKind::PermissionDenied => folder.exists(),
            _ => false,
        };
        if is_its_own { Self::Destination(folder, error) } else { Self::Io(folder, error) }
    }
}

/// Result of a maintenance run.
struct Kept {
    /// Removed files and bytes.
    removed: (u64, u64),
    /// How long the space lasts, if requested and known.
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
    /// Creates the folder, takes its lock, and writes a file there.
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

    /// Takes the folder's lock if it is not held. Detects a folder that was removed or replaced.
    fn take_lock(&mut self) -> Result<(), ArchiveError> {
        let path = self.root.join(LOCK);
        if self.lock.as_ref().is_some_and(|lock| !is_in_place(lock, &path)) {
            tracing::warn!(folder = %self.root.display(), "the archive's folder was removed or replaced: starting over there");
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
        let max = self.room.bounds.segment_bytes();
        // Lines written to a file that was removed or renamed are not in the archive.
        if self.open.get(destination).is_some_and(|segment| !segment.is_in_place()) {
            self.open.remove(destination);
            self.room.recount();
        }
        if !self.open.contains_key(destination) {
            let folder = self.root.join(folder_name(destination));
            let opened = Segment::open(&folder, destination, max);
            let segment = opened.map_err(|error| ArchiveError::of_folder(folder, error))?;
            self.open.insert(Arc::clone(destination), segment);
            self.room.recount();
        }
        let Some(segment) = self.open.get_mut(destination) else { return Ok(()) };
        if let Err(error) = segment.append(parts) {
            let path = segment.path.clone();
            if segment.roll_back().is_err() {
                // The next write reopens the segment, and checks its content.
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
        if segment.bytes >= max || segment.opened.elapsed() >= SEGMENT_AGE {
            self.close(destination);
        }
        Ok(())
    }

    /// Makes space for so many bytes. If all files are open segments, closes these.
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
            // The lines are on disk in any case: an uncompressed segment is no loss.
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot compress an archive segment"),
        }
    }

    /// Closes old segments, removes files that are too old, and estimates how long the space lasts.
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
            // The archive's own folder is not writable.
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
