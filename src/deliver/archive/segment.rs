//! One file of an archive: created, appended to, rolled back after a failed write, compressed when
//! full.
//!
//! Owns: the open file. Never does: overwrite a file. Bounds: [`MAX_SEGMENTS_PER_SECOND`];
//! reopening a file reads it into memory once, and truncates a torn last line.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::super::header;
use crate::batch::Destination;
use crate::protocol::{Precision, Scanner};

/// Maximum number of segments created within one second.
const MAX_SEGMENTS_PER_SECOND: u32 = 10_000;
/// Characters that are not allowed in a file's name, and the separator of its parts.
const NAME: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b'.').add(b' ').add(b'\\');

/// A file that is appended to.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    file: File,
    /// Length up to which the file is known to be whole.
    pub(super) bytes: u64,
    pub(super) opened: Instant,
}

impl Segment {
    /// Opens the folder's unfinished segment, or creates a new one. A segment of `max` bytes is
    /// finished.
    pub(super) fn open(folder: &Path, destination: &Destination, max: u64) -> io::Result<Self> {
        create_folder(folder)?;
        let (path, mut file) = match unfinished_segment(folder, max)? {
            Some(path) => (path.clone(), File::options().read(true).write(true).open(path)?),
            None => new_segment(folder, SystemTime::now())?,
        };
        let bytes = whole_bytes(&mut file, destination.precision())?;
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        let mut segment = Self { path, file, bytes, opened: Instant::now() };
        if segment.bytes == 0 {
            segment.write_all(&[header::write(destination).as_bytes()])?;
            File::open(folder)?.sync_all()?;
        }
        Ok(segment)
    }

    /// Whether the path still leads to the open file: the file or its folder may have been removed
    /// or renamed.
    pub(super) fn is_in_place(&self) -> bool {
        is_in_place(&self.file, &self.path)
    }

    /// Appends lines, and syncs them. Each part holds whole lines.
    pub(super) fn append(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        self.write_all(&parts)
    }

    /// Writes all parts and syncs them.
    fn write_all(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        write_synced(&mut self.file, parts)?;
        self.bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }

    /// Removes what a failed write has left.
    pub(super) fn roll_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.seek(SeekFrom::Start(self.bytes))?;
        Ok(())
    }
}

/// Whether a path leads to this open file.
pub(super) fn is_in_place(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (open, there) = (file.metadata().map(identity), std::fs::metadata(path).map(identity));
    open.is_ok_and(|open| there.is_ok_and(|there| there == open))
}

/// A writer that can sync.
trait Durable: Write {
    /// Returns once everything written is safe from a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

impl Durable for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Writes all parts. Returns once they are synced.
fn write_synced(output: &mut impl Durable, parts: &[&[u8]]) -> io::Result<()> {
    parts.iter().try_for_each(|part| output.write_all(part))?;
    output.sync()
}

/// Returns `database[.policy].precision`, with characters that a name cannot hold as `%XX`.
pub(super) fn folder_name(destination: &Destination) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NAME).to_string();
    let policy = match destination.retention_policy() {
        "" => String::new(),
        policy => format!(".{}", encode(policy)),
    };
    format!("{}{policy}.{}", encode(destination.database()), destination.precision())
}

pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Creates a file whose name is not in use, compressed or not: `20261123T034500Z.lp`, or with a
/// number before the extension.
fn new_segment(folder: &Path, now: SystemTime) -> io::Result<(PathBuf, File)> {
    let stamp = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    let names = (0..MAX_SEGMENTS_PER_SECOND).map(|number| match number {
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
    Err(io::Error::other(format!("{MAX_SEGMENTS_PER_SECOND} segments are named {stamp} already: is the clock right?")))
}

/// Returns the newest segment that is neither compressed nor full. A full one could not be
/// compressed when it was closed, and stays as it is. Removes the leftovers of an interrupted
/// compression.
fn unfinished_segment(folder: &Path, max: u64) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("lp") if path.metadata()?.len() < max => newest = newest.max(Some(path)),
            Some("tmp") => std::fs::remove_file(path)?,
            _ => {}
        }
    }
    Ok(newest)
}

/// Returns the length up to the end of the last whole line. Uses the scanner, because a string may
/// hold line feeds.
fn whole_bytes(file: &mut File, precision: Precision) -> io::Result<u64> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let mut end = 0;
    for line in Scanner::of_accepted(precision).lines(&text, true).flatten() {
        end = line.bytes.as_ptr() as usize - text.as_ptr() as usize + line.bytes.len() + 1;
    }
    Ok(end as u64)
}

/// Replaces `X.lp` by `X.lp.gz`, and returns the compressed size in bytes. A crash may leave both
/// files; the uncompressed one is always whole.
pub(super) fn compress(path: &Path) -> io::Result<u64> {
    let unfinished = path.with_extension("lp.gz.tmp");
    let compressed = write_compressed(path, &unfinished);
    if compressed.is_err() {
        // On a full disk it would take space from new lines.
        std::fs::remove_file(&unfinished)?;
    }
    let bytes = compressed?;
    std::fs::rename(&unfinished, path.with_extension("lp.gz"))?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    std::fs::remove_file(path)?;
    Ok(bytes)
}

fn write_compressed(path: &Path, output: &Path) -> io::Result<u64> {
    let output = File::options().write(true).create(true).truncate(true).mode(0o600).open(output)?;
    let mut encoder = GzEncoder::new(output, Compression::new(1));
    io::copy(&mut File::open(path)?, &mut encoder)?;
    let output = encoder.finish()?;
    output.sync_all()?;
    Ok(output.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MAX: u64 = 1 << 20;

    fn destination(database: &str, policy: &str) -> Arc<Destination> {
        Arc::new(Destination::new(database.to_owned(), policy.to_owned(), Precision::Milliseconds))
    }

    #[test]
    fn folders_are_named_by_destination_and_never_lead_elsewhere() {
        assert_eq!(folder_name(&destination("telegraf", "")), "telegraf.ms");
        assert_eq!(folder_name(&destination("a.b/../c", "one week")), "a%2Eb%2F%2E%2E%2Fc.one%20week.ms");
    }

    /// Records what is done. Fails to sync if the flag is set.
    #[derive(Default)]
    struct Noted(Vec<String>, bool);

    impl Write for Noted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Durable for Noted {
        fn sync(&mut self) -> io::Result<()> {
            self.0.push("sync".to_owned());
            if self.1 { Err(io::Error::other("broken")) } else { Ok(()) }
        }
    }

    #[test]
    fn lines_are_synced_before_they_count_as_written() {
        let mut output = Noted::default();
        write_synced(&mut output, &[b"a", b"b"]).expect("written");
        assert_eq!(output.0, ["a", "b", "sync"]);
        write_synced(&mut Noted(Vec::new(), true), &[b"a"]).expect_err("a sync that fails is no success");
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_segment_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", "rp"), MAX).expect("open");
        segment.write_all(&[b"m v=1 1\n", b"m v=2 2\nm s=\"a\nb"]).expect("write");
        let path = segment.path.clone();
        drop(segment);
        let mut segment = Segment::open(folder.path(), &destination("db", "rp"), MAX).expect("open again");
        assert_eq!(segment.path, path);
        segment.write_all(&[b"m v=3 3\n"]).expect("write");
        let text = std::fs::read_to_string(path).expect("read");
        let header = header::write(&destination("db", "rp"));
        assert_eq!(text, format!("{header}m v=1 1\nm v=2 2\nm v=3 3\n"));
    }

    #[test]
    fn a_write_that_failed_half_way_leaves_nothing_and_the_next_one_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", ""), MAX).expect("open");
        segment.write_all(&[b"m v=1 1\n"]).expect("write");
        // The part of a write that a full disk has stored.
        segment.file.write_all(b"m v=2").expect("write");
        segment.roll_back().expect("roll back");
        segment.write_all(&[b"m v=3 3\n"]).expect("write");
        assert!(std::fs::read_to_string(&segment.path).expect("read").ends_with("}\nm v=1 1\nm v=3 3\n"));
    }

    #[test]
    fn a_full_segment_is_replaced_by_a_compressed_one() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", ""), MAX).expect("open");
        segment.write_all(&[b"m v=1 1\n"]).expect("write");
        compress(&segment.path).expect("compress");
        assert!(!segment.path.exists());
        let compressed = File::open(segment.path.with_extension("lp.gz")).expect("open");
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(compressed).read_to_string(&mut text).expect("read");
        assert!(text.ends_with("m v=1 1\n"));
        assert_eq!(unfinished_segment(folder.path(), MAX).expect("list"), None);
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
    fn leftovers_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("x.lp.gz.tmp"), "half").expect("write");
        assert_eq!(unfinished_segment(folder.path(), MAX).expect("list"), None);
        assert!(!folder.path().join("x.lp.gz.tmp").exists());
    }
}
