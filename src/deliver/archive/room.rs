//! The space of an archive: its bounds, what is removed to keep them, and how long the space lasts.
//!
//! Owns: the removal of files. Removed files held lines that count as delivered, so no ledger
//! changes; the log reports their number. Never does: remove an open segment, or any file if there
//! are no bounds; writing then ends at the volume's floor. Bounds: those of [`Bounds`]; memory for
//! one entry per file while it lists the files.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::batch::Received;
use crate::journal::disk::{Space, floor};
use crate::sys::SteadyClock;

/// Size at which a segment is closed and compressed. A small archive uses an eighth of its size
/// instead.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Period that the present rate is derived from.
const RECENT: Duration = Duration::from_secs(24 * 3600);
/// Shortest period that gives a rate.
const MIN_SPAN: Duration = Duration::from_secs(600);

/// Bounds of an archive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Maximum size of all files, in bytes.
    pub disk: Option<u64>,
    /// Files last written longer ago than this are removed.
    pub max_age: Option<Duration>,
    /// Space to leave free on the volume, in bytes. `None`: 5 %, at most 1 GiB.
    pub min_free: Option<u64>,
}

impl Bounds {
    /// Returns the size at which a segment is full.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.disk.map_or(SEGMENT_BYTES, |disk| (disk / 8).min(SEGMENT_BYTES))
    }
}

/// A file of the archive. The order is from old to new.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stored {
    /// Time of its creation, from its name.
    stamp: String,
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
}

/// Why nothing can be written.
#[derive(Debug, thiserror::Error)]
pub(in crate::deliver) enum Full {
    /// The volume's floor is reached.
    #[error(
        "its volume has {free} bytes free and min_free keeps {floor}: make room there, or set disk or max_age for this \
         backend"
    )]
    Volume { free: u64, floor: u64 },
    /// Only open segments are left.
    #[error("all of its {disk} bytes (disk) are in files that are written to: set a larger disk for this backend")]
    Disk { disk: u64 },
    /// The system reported an error.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The space of one archive.
#[derive(Debug)]
pub(super) struct Room {
    root: PathBuf,
    pub(super) bounds: Bounds,
    /// Size of all files in bytes, or `None` if they have to be counted.
    used: Option<u64>,
    /// Files and bytes removed since the last report.
    removed: (u64, u64),
    clock: SteadyClock,
}

impl Room {
    pub(super) fn new(root: PathBuf, bounds: Bounds) -> Self {
        Self { root, bounds, used: None, removed: (0, 0), clock: SteadyClock::default() }
    }

    /// Makes space for so many more bytes. `open` are the open segments.
    ///
    /// # Errors
    /// There is not enough space.
    pub(super) fn make(&mut self, bytes: u64, open: &HashSet<PathBuf>) -> Result<(), Full> {
        if let Some(disk) = self.bounds.disk {
            // Compressing a segment needs space before it frees any.
            let max = disk.saturating_sub(bytes + 2 * self.bounds.segment_bytes());
            if self.used()? > max {
                // Removes a little more, so that not every write has to list all files.
                let goal = max - max / 16;
                self.remove_oldest(open, |used, _| used > goal)?;
                if self.used()? > max {
                    return Err(Full::Disk { disk });
                }
            }
        }
        let space = self.space()?;
        let floor = floor(self.bounds.min_free, space);
        let wanted = floor.saturating_add(bytes);
        let mut free = space.free;
        if free < wanted && self.bounds.disk.is_some() {
            let before = self.used()?;
            let goal = before.saturating_sub(wanted - free);
            self.remove_oldest(open, |used, _| used > goal)?;
            free = self.space()?.free;
        }
        // With a floor of zero, the system's own error reports a full volume.
        if free < wanted && floor > 0 { Err(Full::Volume { free, floor }) } else { Ok(()) }
    }

    /// Records a change of the files' size.
    pub(super) fn note(&mut self, before: u64, after: u64) {
        self.used = self.used.map(|used| (used + after).saturating_sub(before));
    }

    /// Counts all files again before the next write.
    pub(super) fn recount(&mut self) {
        self.used = None;
    }

    /// Removes files that are too old, if the clock can be trusted (see [`crate::sys::clock`]).
    ///
    /// # Errors
    /// The files cannot be listed or removed.
    pub(super) fn expire(&mut self, open: &HashSet<PathBuf>, now: Received) -> io::Result<()> {
        let Some(max_age) = self.bounds.max_age else { return Ok(()) };
        let newest = self.list()?.iter().map(|stored| stored.modified).max();
        let newest = newest.and_then(|newest| newest.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        self.clock.look(now.monotonic, now.wall.nanoseconds(), u64::try_from(newest.as_nanos()).unwrap_or(u64::MAX));
        let Some(wall) = self.clock.now(now.monotonic) else { return Ok(()) };
        let end = (SystemTime::UNIX_EPOCH + Duration::from_nanos(wall)).checked_sub(max_age);
        end.map_or(Ok(()), |end| self.remove_oldest(open, |_, stored| stored.modified < end))
    }

    /// Returns the files and bytes removed since the last call.
    pub(super) fn take_removed(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.removed)
    }

    /// Returns how long the space lasts at the rate of the last day. `None` if old files are
    /// removed to make space, or no rate is known.
    ///
    /// # Errors
    /// The files cannot be listed.
    pub(super) fn lasts(&self) -> io::Result<Option<Duration>> {
        if self.bounds.disk.is_some() {
            return Ok(None);
        }
        let space = self.space()?;
        let room = space.free.saturating_sub(floor(self.bounds.min_free, space));
        let lasts = lasts(&self.list()?, room, SystemTime::now());
        // Removal by age makes space, too.
        Ok(lasts.filter(|lasts| self.bounds.max_age.is_none_or(|age| *lasts < age)))
    }

    /// Removes files, oldest first, while `is_due` holds for the bytes in use and the file.
    fn remove_oldest(&mut self, open: &HashSet<PathBuf>, is_due: impl Fn(u64, &Stored) -> bool) -> io::Result<()> {
        let files = self.list()?;
        let mut used = files.iter().map(|stored| stored.bytes).sum();
        for stored in files.iter().filter(|stored| !open.contains(&stored.path)) {
            if is_due(used, stored) {
                std::fs::remove_file(&stored.path)?;
                used -= stored.bytes;
                self.removed = (self.removed.0 + 1, self.removed.1 + stored.bytes);
            }
        }
        self.used = Some(used);
        Ok(())
    }

    fn used(&mut self) -> io::Result<u64> {
        let used = match self.used {
            Some(used) => used,
            None => self.list()?.iter().map(|stored| stored.bytes).sum(),
        };
        self.used = Some(used);
        Ok(used)
    }

    fn space(&self) -> io::Result<Space> {
        let volume = rustix::fs::statvfs(&self.root)?;
        Ok(Space { free: volume.f_bavail * volume.f_frsize, total: volume.f_blocks * volume.f_frsize })
    }

    /// Lists all files, oldest first.
    fn list(&self) -> io::Result<Vec<Stored>> {
        let mut files = Vec::new();
        for folder in std::fs::read_dir(&self.root)? {
            let folder = folder?;
            if folder.file_type()?.is_dir() {
                list_folder(&folder.path(), &mut files)?;
            }
        }
        files.sort_unstable();
        Ok(files)
    }
}

fn list_folder(folder: &Path, files: &mut Vec<Stored>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let metadata = entry.metadata()?;
        if let Some(stamp) = name.strip_suffix(".lp").or_else(|| name.strip_suffix(".lp.gz"))
            && metadata.is_file()
        {
            let (bytes, modified) = (metadata.len(), metadata.modified()?);
            files.push(Stored { stamp: stamp.to_owned(), path: entry.path(), bytes, modified });
        }
    }
    Ok(())
}

/// Returns how long this space lasts at the rate at which these files grew recently.
fn lasts(files: &[Stored], room: u64, now: SystemTime) -> Option<Duration> {
    let from = now.checked_sub(RECENT)?.max(begun(&files.first()?.stamp)?);
    let span = now.duration_since(from).ok().filter(|span| *span >= MIN_SPAN)?;
    let recent = files.iter().filter(|stored| begun(&stored.stamp).is_some_and(|begun| begun >= from));
    let bytes: u64 = recent.map(|stored| stored.bytes).sum();
    let seconds = u128::from(room) * u128::from(span.as_secs()) / u128::from(bytes.max(1));
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
}

/// Parses the creation time from a file's name: `20261123T034500Z`, followed by a number if there
/// are several.
fn begun(stamp: &str) -> Option<SystemTime> {
    let part = |from, to| stamp.get(from..to);
    let (date, time) = ((part(0, 4)?, part(4, 6)?, part(6, 8)?), (part(9, 11)?, part(11, 13)?, part(13, 15)?));
    let text = format!("{}-{}-{}T{}:{}:{}Z", date.0, date.1, date.2, time.0, time.1, time.2);
    humantime::parse_rfc3339(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// Creates an archive with files of these stamps and sizes in KiB. The first file is open.
    fn archive(files: &[(&str, usize)]) -> (tempfile::TempDir, HashSet<PathBuf>) {
        let folder = tempfile::tempdir().expect("folder");
        for (name, kibibytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("create");
            std::fs::write(&path, vec![b'x'; kibibytes * KIB]).expect("write");
        }
        let open = HashSet::from([folder.path().join(files[0].0)]);
        (folder, open)
    }

    fn names(room: &Room) -> Vec<String> {
        room.list().expect("list").into_iter().map(|stored| stored.stamp).collect()
    }

    const FILES: &[(&str, usize)] = &[
        ("a.ns/20261101T000000Z.lp", 100),
        ("b.ns/20261103T000000Z.lp.gz", 300),
        ("a.ns/20261102T000000Z.lp.gz", 200),
        ("b.ns/20261104T000000Z.lp", 400),
        ("b.ns/20261104T000000Z-0001.lp", 500),
    ];

    #[test]
    fn the_oldest_files_make_room_but_none_that_is_written_to() {
        let (folder, open) = archive(FILES);
        let disk = 1900 * KIB as u64;
        let bounds = Bounds { disk: Some(disk), min_free: Some(0), ..Bounds::default() };
        let mut room = Room::new(folder.path().to_owned(), bounds);
        // The archive holds 1,500 KiB, and a quarter of its space is reserved for compression.
        room.make(0, &open).expect("room");
        assert_eq!(names(&room)[..2], ["20261101T000000Z", "20261103T000000Z"]);
        assert_eq!(room.take_removed(), (1, 200 * KIB as u64));
        room.make(500 * KIB as u64, &open).expect("room");
        assert_eq!(names(&room), ["20261101T000000Z", "20261104T000000Z-0001"]);
        assert_eq!((room.take_removed(), room.take_removed()), ((2, 700 * KIB as u64), (0, 0)));
        // Data written since then counts, and open segments stay.
        room.note(0, 1000 * KIB as u64);
        assert!(matches!(room.make(1500 * KIB as u64, &open), Err(Full::Disk { .. })));
        assert_eq!(names(&room), ["20261101T000000Z"]);
    }

    #[test]
    fn without_bounds_nothing_is_removed_and_the_floor_stops_it() {
        let (folder, open) = archive(FILES);
        let full = Bounds { min_free: Some(u64::MAX), ..Bounds::default() };
        let mut room = Room::new(folder.path().to_owned(), full);
        let error = room.make(1, &open).expect_err("full");
        assert!(matches!(error, Full::Volume { .. }) && error.to_string().contains("min_free"), "{error}");
        room.expire(&open, Received::now()).expect("nothing");
        assert_eq!(names(&room).len(), FILES.len());
        let mut room = Room::new(folder.path().to_owned(), Bounds { min_free: Some(0), ..Bounds::default() });
        room.make(1, &open).expect("room");
        assert_eq!(names(&room).len(), FILES.len());
    }

    #[test]
    fn what_is_too_old_is_removed() {
        let (folder, open) = archive(FILES);
        let old = SystemTime::now() - Duration::from_secs(7200);
        for name in [FILES[0].0, FILES[1].0, FILES[3].0] {
            let file = std::fs::File::options().write(true).open(folder.path().join(name)).expect("open");
            file.set_modified(old).expect("a time");
        }
        let bounds = Bounds { max_age: Some(Duration::from_secs(3600)), min_free: Some(0), ..Bounds::default() };
        let mut room = Room::new(folder.path().to_owned(), bounds);
        let begin = Received::now();
        // A clock that is ahead at first, and then corrected.
        for (minutes, ahead) in [(0, 10_000), (4, 10_000), (5, 0), (9, 0), (11, 0)] {
            assert_eq!(names(&room).len(), FILES.len(), "{minutes} min");
            let passed = Duration::from_secs(60 * minutes);
            let wall = begin.wall.plus(passed + Duration::from_secs(ahead));
            room.expire(&open, Received { monotonic: begin.monotonic + passed, wall }).expect("removed");
        }
        assert_eq!(names(&room), ["20261101T000000Z", "20261102T000000Z", "20261104T000000Z-0001"]);
        assert_eq!(room.take_removed(), (2, 700 * KIB as u64));
    }

    #[test]
    fn the_rate_of_the_last_day_tells_how_long_the_room_lasts() {
        let now = begun("20261123T120000Z").expect("a time");
        let stored =
            |stamp: &str, bytes| Stored { stamp: stamp.to_owned(), path: PathBuf::new(), bytes, modified: now };
        let hour = Duration::from_secs(3600);
        for (files, expected) in [
            (&[][..], None),
            (&[stored("20261123T115500Z", 1000)], None),
            (&[stored("20261123T110000Z", 1000)], Some(hour * 5)),
            (&[stored("20261123T100000Z", 1000), stored("20261123T110000Z-0001", 1000)], Some(hour * 5)),
            // Files older than a day do not affect the present rate.
            (&[stored("20260101T000000Z", 1 << 40), stored("20261123T110000Z", 1000)], Some(hour * 24 * 5)),
        ] {
            assert_eq!(lasts(files, 5000, now), expected, "{files:?}");
        }
    }
}
