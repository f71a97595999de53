//! One file of an archive: begun, grown, taken back where a write fails, compressed when it is full.
//!
//! No file is ever overwritten. Opening a file again reads it into memory once, and cuts a torn line off.

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

/// Segments that are begun within one second, at most.
const MAX_SEGMENTS_A_SECOND: u32 = 10_000;
/// What cannot stand in a file's name, and the separator of its parts.
const NAME: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b'.').add(b' ').add(b'\\');

/// A file that grows.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    file: File,
    /// The length up to which everything is whole.
    pub(super) bytes: u64,
    pub(super) opened: Instant,
}

impl Segment {
    /// Opens the folder's unfinished segment, or makes a new one. One with `most` bytes is finished.
    pub(super) fn open(folder: &Path, destination: &Destination, most: u64) -> io::Result<Self> {
        create_folder(folder)?;
        let (path, mut file) = match unfinished_segment(folder, most)? {
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

    /// Whether its path still leads to it: somebody may have removed or renamed it, or its folder.
    pub(super) fn is_in_place(&self) -> bool {
        is_in_place(&self.file, &self.path)
    }

    /// Writes lines, in parts that hold whole ones, and syncs them.
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

    /// Takes back what a write that failed has left behind.
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

/// What keeps bytes once it is told to.
trait Durable: Write {
    /// Returns once all that was written is safe from a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

impl Durable for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Writes all parts, and returns once they are safe.
fn write_synced(output: &mut impl Durable, parts: &[&[u8]]) -> io::Result<()> {
    parts.iter().try_for_each(|part| output.write_all(part))?;
    output.sync()
}

/// `database[.policy].precision`, with what a name cannot hold as `%XX`.
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
fn unfinished_segment(folder: &Path, most: u64) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("lp") if path.metadata()?.len() < most => newest = newest.max(Some(path)),
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
    for line in Scanner::of_accepted(precision).lines(&text, true).flatten() {
        end = line.bytes.as_ptr() as usize - text.as_ptr() as usize + line.bytes.len() + 1;
    }
    Ok(end as u64)
}

/// Replaces `X.lp` by `X.lp.gz`; a crash may leave both, and what is not compressed has all of it. Returns the compressed bytes.
pub(super) fn compress(path: &Path) -> io::Result<u64> {
    let unfinished = path.with_extension("lp.gz.tmp");
    let compressed = write_compressed(path, &unfinished);
    if compressed.is_err() {
        // On a full disk it would keep the last bytes from the lines to come.
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

    const MOST: u64 = 1 << 20;

    fn destination(database: &str, policy: &str) -> Arc<Destination> {
        Arc::new(Destination::new(database.to_owned(), policy.to_owned(), Precision::Milliseconds))
    }

    #[test]
    fn folders_are_named_by_destination_and_never_lead_elsewhere() {
        assert_eq!(folder_name(&destination("telegraf", "")), "telegraf.ms");
        assert_eq!(folder_name(&destination("a.b/../c", "one week")), "a%2Eb%2F%2E%2E%2Fc.one%20week.ms");
    }

    /// Notes what is done, and fails to sync where it is to.
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
        let mut segment = Segment::open(folder.path(), &destination("db", "rp"), MOST).expect("open");
        segment.write_all(&[b"m v=1 1\n", b"m v=2 2\nm s=\"a\nb"]).expect("write");
        let path = segment.path.clone();
        drop(segment);
        let mut segment = Segment::open(folder.path(), &destination("db", "rp"), MOST).expect("open again");
        assert_eq!(segment.path, path);
        segment.write_all(&[b"m v=3 3\n"]).expect("write");
        let text = std::fs::read_to_string(path).expect("read");
        let header = header::write(&destination("db", "rp"));
        assert_eq!(text, format!("{header}m v=1 1\nm v=2 2\nm v=3 3\n"));
    }

    #[test]
    fn a_write_that_failed_half_way_leaves_nothing_and_the_next_one_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let mut segment = Segment::open(folder.path(), &destination("db", ""), MOST).expect("open");
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
        let mut segment = Segment::open(folder.path(), &destination("db", ""), MOST).expect("open");
        segment.write_all(&[b"m v=1 1\n"]).expect("write");
        compress(&segment.path).expect("compress");
        assert!(!segment.path.exists());
        let compressed = File::open(segment.path.with_extension("lp.gz")).expect("open");
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(compressed).read_to_string(&mut text).expect("read");
        assert!(text.ends_with("m v=1 1\n"));
        assert_eq!(unfinished_segment(folder.path(), MOST).expect("list"), None);
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
        assert_eq!(unfinished_segment(folder.path(), MOST).expect("list"), None);
        assert!(!folder.path().join("x.lp.gz.tmp").exists());
    }
}
