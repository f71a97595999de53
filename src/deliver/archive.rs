//! A folder as a backend: line protocol in files, one folder for each destination.
//!
//! ```text
//! archive/telegraf.ns/20261123T034500Z.lp       the open segment
//! archive/telegraf.ns/20261123T024500Z.lp.gz    a full one
//! ```
//!
//! Each segment begins with comments that tell its destination ([`header`]); `twinflux restore` puts it back.
//!
//! Lines count as delivered once they are on disk (`fdatasync`). A write that fails half-way is taken back, so
//! that a full disk leaves no half a line. The last line of a segment that a crash tore is cut off when the
//! segment is opened again: it was not acknowledged. No file is ever overwritten.
//!
//! Bounds: a segment's size and age, one open file for each destination; opening a segment again reads it into
//! memory once. The folder itself grows as its disk allows; a full disk holds lines in the journal. A lock file
//! keeps two relays out of one folder.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::outcome::Fate;
use super::{Outcome, header};
use crate::batch::Destination;
use crate::journal::{Lease, Record};
use crate::protocol::{Precision, Scanner};

/// A segment is closed and compressed when it has grown to this size: opening one again reads it into memory.
const SEGMENT_BYTES: u64 = 16 << 20;
/// A segment is closed and compressed when it is this old.
const SEGMENT_AGE: Duration = Duration::from_secs(3600);
/// Segments that are begun within one second, at most.
const MAX_SEGMENTS_A_SECOND: u32 = 10_000;
/// What cannot stand in a file's name, and the separator of its parts.
const NAME: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b'.').add(b' ').add(b'\\');

/// A backend that keeps lines in files. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    folders: Arc<Mutex<Folders>>,
}

impl Archive {
    /// An archive in this folder, which is made at the first write.
    pub(super) fn new(folder: PathBuf) -> Self {
        let folders = Folders { root: folder, lock: None, open: HashMap::new() };
        Self { folders: Arc::new(Mutex::new(folders)) }
    }

    /// Appends a lease's records and waits until they are on disk.
    pub(super) async fn write(&mut self, lease: &Lease) -> Outcome {
        let destination = Arc::clone(&lease.destination);
        let records = lease.records.clone();
        match self.work(move |folders| folders.append(&destination, &records)).await {
            Ok(Ok(())) => Outcome::new(Fate::Delivered, String::new()),
            Ok(Err(error)) => Outcome::new(Fate::Transient, error.to_string()),
            Err(error) => Outcome::new(Fate::HoldBackend, error),
        }
    }

    /// Makes sure that the folder can be written.
    ///
    /// # Errors
    /// What keeps it from being written.
    pub(super) async fn check(&self) -> Result<String, String> {
        let checked = self.work(Folders::check).await?;
        checked.map_err(|error| error.to_string())
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

/// What failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("archive {path}: {error}")]
struct ArchiveError {
    path: PathBuf,
    error: io::Error,
}

#[derive(Debug)]
struct Folders {
    root: PathBuf,
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
        written.map_err(|error| ArchiveError { path: self.root.clone(), error })?;
        Ok(format!("a folder that can be written: {}", self.root.display()))
    }

    fn take_lock(&mut self) -> Result<(), ArchiveError> {
        if self.lock.is_none() {
            let lock = lock(&self.root).map_err(|error| ArchiveError { path: self.root.clone(), error })?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    fn append(&mut self, destination: &Arc<Destination>, records: &[Arc<Record>]) -> Result<(), ArchiveError> {
        let folder = self.root.join(folder_name(destination));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| ArchiveError { path, error }
        };
        self.take_lock()?;
        if !self.open.contains_key(destination) {
            let segment = Segment::open(&folder, destination).map_err(at(&folder))?;
            self.open.insert(Arc::clone(destination), segment);
        }
        let Some(segment) = self.open.get_mut(destination) else { return Ok(()) };
        if let Err(error) = segment.append(records) {
            let path = segment.path.clone();
            if segment.roll_back().is_err() {
                // The next try opens the segment anew, and looks at what is in it.
                self.open.remove(destination);
            }
            return Err(ArchiveError { path, error });
        }
        if segment.bytes >= SEGMENT_BYTES || segment.opened.elapsed() >= SEGMENT_AGE {
            let path = segment.path.clone();
            self.open.remove(destination);
            // The lines are on disk either way: a segment that stays uncompressed is no loss.
            if let Err(error) = compress(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot compress an archive segment");
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    /// The length up to which everything is whole.
    bytes: u64,
    opened: Instant,
}

impl Segment {
    /// Opens the folder's unfinished segment, or makes a new one.
    fn open(folder: &Path, destination: &Destination) -> io::Result<Self> {
        create_folder(folder)?;
        let (path, mut file) = match unfinished_segment(folder)? {
            Some(path) => (path.clone(), File::options().read(true).write(true).open(path)?),
            None => new_segment(folder, SystemTime::now())?,
        };
        let bytes = whole_bytes(&mut file, destination.precision)?;
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        let mut segment = Self { path, file, bytes, opened: Instant::now() };
        if segment.bytes == 0 {
            segment.write_all(&[header::write(destination).as_bytes()])?;
            File::open(folder)?.sync_all()?;
        }
        Ok(segment)
    }

    fn append(&mut self, records: &[Arc<Record>]) -> io::Result<()> {
        let parts: Vec<&[u8]> = records.iter().map(|record| &record.batch.bytes[..]).collect();
        self.write_all(&parts)
    }

    /// Writes all parts and syncs them.
    fn write_all(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        parts.iter().try_for_each(|part| self.file.write_all(part))?;
        self.file.sync_data()?;
        self.bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }

    /// Takes back what a write that failed has left behind.
    fn roll_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.seek(SeekFrom::Start(self.bytes))?;
        Ok(())
    }
}

/// `database[.policy].precision`, with what a name cannot hold as `%XX`.
fn folder_name(destination: &Destination) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NAME).to_string();
    let policy = match destination.retention_policy.as_str() {
        "" => String::new(),
        policy => format!(".{}", encode(policy)),
    };
    format!("{}{policy}.{}", encode(&destination.database), destination.precision)
}

fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn lock(root: &Path) -> io::Result<File> {
    create_folder(root)?;
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(root.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another relay writes there: give each its own folder")),
    }
}

/// A file that was not there, compressed or not: `20261123T034500Z.lp`, or with a number before the ending.
fn new_segment(folder: &Path, now: SystemTime) -> io::Result<(PathBuf, File)> {
    let stamp = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    let names = (0..MAX_SEGMENTS_A_SECOND).map(|number| match number {
        0 => stamp.clone(),
        number => format!("{stamp}-{number:04}"),
    });
    for name in names {
        let path = folder.join(format!("{name}.lp"));
        if path.with_extension("lp.gz").exists() {
            continue;
        }
        match File::options().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return Ok((path, opened?)),
        }
    }
    Err(io::Error::other(format!("{MAX_SEGMENTS_A_SECOND} segments are named {stamp} already: is the clock right?")))
}

/// The segment to go on with: the newest that is neither compressed nor full. A full one could not be compressed
/// when it was closed, and stays as it is. What an interrupted compression left is removed.
fn unfinished_segment(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("lp") if path.metadata()?.len() < SEGMENT_BYTES => newest = newest.max(Some(path)),
            Some("tmp") => std::fs::remove_file(path)?,
            _ => {}
        }
    }
    Ok(newest)
}

/// The length up to the end of the last whole line. The scanner tells: a string may hold line feeds.
fn whole_bytes(file: &mut File, precision: Precision) -> io::Result<u64> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let mut end = 0;
    for line in Scanner::new(precision).lines(&text, true).flatten() {
        end = line.bytes.as_ptr() as usize - text.as_ptr() as usize + line.bytes.len() + 1;
    }
    Ok(end as u64)
}

/// Replaces `X.lp` by `X.lp.gz`.
fn compress(path: &Path) -> io::Result<()> {
    let unfinished = path.with_extension("lp.gz.tmp");
    let compressed = write_compressed(path, &unfinished);
    if compressed.is_err() {
        // On a full disk it would keep the last bytes from the lines to come.
        std::fs::remove_file(&unfinished)?;
    }
    compressed?;
    std::fs::rename(&unfinished, path.with_extension("lp.gz"))?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    std::fs::remove_file(path)
}

fn write_compressed(path: &Path, output: &Path) -> io::Result<()> {
    let output = File::options().write(true).create(true).truncate(true).mode(0o600).open(output)?;
    let mut encoder = GzEncoder::new(output, Compression::new(1));
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(database: &str, policy: &str) -> Arc<Destination> {
        Arc::new(Destination {
            database: database.to_owned(),
            retention_policy: policy.to_owned(),
            precision: Precision::Milliseconds,
        })
    }

    #[test]
    fn folders_are_named_by_destination_and_never_lead_elsewhere() {
        assert_eq!(folder_name(&destination("telegraf", "")), "telegraf.ms");
        assert_eq!(folder_name(&destination("a.b/../c", "one week")), "a%2Eb%2F%2E%2E%2Fc.one%20week.ms");
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_segment_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", "rp")).expect("open");
        segment.write_all(&[b"m v=1 1\n", b"m v=2 2\nm s=\"a\nb"]).expect("write");
        let path = segment.path.clone();
        drop(segment);
        let mut segment = Segment::open(folder.path(), &destination("db", "rp")).expect("open again");
        assert_eq!(segment.path, path);
        segment.write_all(&[b"m v=3 3\n"]).expect("write");
        let text = std::fs::read_to_string(path).expect("read");
        let header = header::write(&destination("db", "rp"));
        assert_eq!(text, format!("{header}m v=1 1\nm v=2 2\nm v=3 3\n"));
    }

    #[test]
    fn a_write_that_failed_half_way_leaves_nothing_and_the_next_one_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", "")).expect("open");
        segment.write_all(&[b"m v=1 1\n"]).expect("write");
        // What a full disk would have let through.
        segment.file.write_all(b"m v=2").expect("write");
        segment.roll_back().expect("roll back");
        segment.write_all(&[b"m v=3 3\n"]).expect("write");
        assert!(std::fs::read_to_string(&segment.path).expect("read").ends_with("}\nm v=1 1\nm v=3 3\n"));
    }

    #[test]
    fn a_full_segment_is_replaced_by_a_compressed_one() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", "")).expect("open");
        segment.write_all(&[b"m v=1 1\n"]).expect("write");
        compress(&segment.path).expect("compress");
        assert!(!segment.path.exists());
        let compressed = File::open(segment.path.with_extension("lp.gz")).expect("open");
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(compressed).read_to_string(&mut text).expect("read");
        assert!(text.ends_with("m v=1 1\n"));
        assert_eq!(unfinished_segment(folder.path()).expect("list"), None);
    }

    #[test]
    fn no_segment_ever_takes_the_name_of_another() {
        let folder = tempfile::tempdir().expect("folder");
        let mut names = std::collections::HashSet::new();
        for _ in 0..3 {
            let (path, mut file) = new_segment(folder.path(), SystemTime::UNIX_EPOCH).expect("a new one");
            file.write_all(b"m v=1 1\n").expect("write");
            compress(&path).expect("compress");
            assert!(names.insert(path));
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 3);
    }

    #[test]
    fn a_folder_has_one_writer_and_leftovers_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let held = lock(folder.path()).expect("the first");
        assert!(lock(folder.path()).is_err_and(|error| error.to_string().contains("another relay")));
        drop(held);
        std::fs::write(folder.path().join("x.lp.gz.tmp"), "half").expect("write");
        assert_eq!(unfinished_segment(folder.path()).expect("list"), None);
        assert!(!folder.path().join("x.lp.gz.tmp").exists());
    }
}
