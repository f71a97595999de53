//! `twinflux journal`: prints, checks and changes a stopped relay's journal.
//!
//! Owns the journal's lock while a command runs. Never changes records; `forget` and `moved` change
//! cursors only.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::batch::{Destination, WallTime};
use crate::config::data_dir::{self, LockError};
use crate::deliver::header;
use crate::journal::disk::inspect::{self, Survey};
use crate::journal::disk::{Folder, OpenError};
use crate::sys::text::printable_lines;
use crate::sys::text::write_line;

/// Why a stopped relay's journal cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The data folder holds no journal.
    #[error("there is no journal in {}: give the data folder of a relay (data_dir)", .0.display())]
    Missing(PathBuf),
    /// A running relay holds the data folder's lock.
    #[error("a relay works on {}: stop it first", .0.display())]
    InUse(PathBuf),
    /// The data folder cannot be locked.
    #[error("cannot lock {}: {}", .0.display(), .1)]
    Lock(PathBuf, #[source] io::Error),
    /// The journal's folder cannot be opened.
    #[error("cannot open {}: {}", .0.display(), .1)]
    Open(PathBuf, #[source] io::Error),
    /// The journal cannot be read or written.
    #[error("{0}")]
    Disk(#[from] OpenError),
    /// The journal has no cursor for a backend of this name.
    #[error("the journal knows no backend {name:?}, but {known}")]
    UnknownBackend {
        /// The name asked for.
        name: String,
        /// The names in the journal, joined.
        known: String,
    },
}

/// A stopped relay's journal, locked while a command reads it.
#[derive(Debug)]
pub struct Stopped {
    storage: Folder,
    /// `None` on a read-only volume, where no relay can run.
    _lock: Option<File>,
}

impl Stopped {
    /// Opens the journal in a data folder.
    ///
    /// # Errors
    /// The folder holds no journal, a relay is running on it, or the system refuses access.
    pub fn open(data_dir: &Path) -> Result<Self, JournalError> {
        let folder = data_dir.join("journal");
        if !folder.is_dir() {
            return Err(JournalError::Missing(data_dir.to_owned()));
        }
        let lock = match data_dir::lock(data_dir) {
            Ok(lock) => Some(lock),
            Err(LockError::Held) => return Err(JournalError::InUse(data_dir.to_owned())),
            Err(LockError::Io(error)) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
            Err(LockError::Io(error)) => return Err(JournalError::Lock(data_dir.to_owned(), error)),
        };
        let storage = Folder::open(&folder).map_err(|error| JournalError::Open(folder, error))?;
        Ok(Self { storage, _lock: lock })
    }

    /// Checks the journal. Returns a report, and true if nothing is damaged or missing.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn verify(&self) -> Result<(bool, String), JournalError> {
        let survey = self.survey()?;
        let mut text = String::new();
        for segment in &survey.segments {
            for damage in &segment.damage {
                write_line(&mut text, format_args!("{}: {damage}", segment.name));
            }
        }
        let (records, lines) = totals(&survey);
        let segments = survey.segments.len();
        write_line(&mut text, format_args!("{segments} segments, {records} whole records, {lines} lines"));
        let Survey { missing_lines, missing_segments, .. } = survey;
        if missing_segments > 0 {
            write_line(&mut text, format_args!("{missing_segments} missing between the segments that are there"));
        }
        if missing_lines > 0 {
            write_line(&mut text, format_args!("{missing_lines} lines are missing"));
        }
        if survey.backends.is_none() {
            write_line(
                &mut text,
                format_args!("no cursors: at the next start every backend gets everything once more"),
            );
        }
        write_line(&mut text, format_args!("{}", if survey.is_sound() { "sound" } else { "DAMAGED" }));
        Ok((survey.is_sound(), text))
    }

    /// Describes segments, destinations, backends and gaps as text.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn stats(&self) -> Result<String, JournalError> {
        let survey = self.survey()?;
        let mut text = String::new();
        for segment in &survey.segments {
            let (from, until) = (time(segment.from), time(segment.until));
            let inspect::SegmentSurvey { name, bytes, records, lines, .. } = segment;
            write_line(
                &mut text,
                format_args!("{name}  {bytes} bytes, {records} records, {lines} lines, {from} to {until}"),
            );
        }
        for (destination, lines, bytes) in &survey.destinations {
            write_line(&mut text, format_args!("{}: {lines} lines, {bytes} bytes", describe(destination)));
        }
        for (name, address, pending) in survey.backends.iter().flatten() {
            let address = if address.is_empty() { "wherever the next start finds it" } else { address };
            write_line(&mut text, format_args!("backend {name} ({address}): {pending} lines to deliver"));
        }
        for gap in &survey.gaps {
            let (from, until, reason) =
                (time(gap.from), time(Some(gap.until).filter(|until| *until > WallTime::MIN)), gap.reason.name());
            let destination = describe(&gap.destination);
            let (backend, lines) = (&gap.backend, gap.lines);
            write_line(
                &mut text,
                format_args!("gap of {backend}: {destination}, {from} to {until}, {lines} lines, {reason}"),
            );
        }
        Ok(text)
    }

    /// Writes every line, with comments that name its destination. On a terminal, escapes
    /// characters that the terminal would obey. A closed pipe is not an error: the reader has read
    /// what it wanted.
    ///
    /// # Errors
    /// The journal cannot be read, or the output cannot be written.
    pub fn dump(&self, output: impl Write, is_terminal: bool) -> Result<(), JournalError> {
        match self.dump_all(output, is_terminal) {
            Err(OpenError::Disk(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            ended => Ok(ended?),
        }
    }

    fn dump_all(&self, output: impl Write, is_terminal: bool) -> Result<(), OpenError> {
        let mut output = BufWriter::new(output);
        let mut current: Option<Destination> = None;
        let mut write = |destination: &Destination, lines: &bytes::Bytes| -> io::Result<()> {
            if current.as_ref() != Some(destination) {
                let header = header::write(destination);
                output.write_all(&if is_terminal {
                    printable_lines(header.as_bytes())
                } else {
                    header.as_bytes().into()
                })?;
                current = Some(destination.clone());
            }
            // Whole lines, so no character is cut.
            output.write_all(&if is_terminal { printable_lines(lines) } else { Cow::Borrowed(&lines[..]) })
        };
        inspect::survey(&self.storage, &mut write)?;
        Ok(output.flush()?)
    }

    /// Gives up the lines kept for a backend; returns their number. Lines received after its
    /// address changed stay.
    ///
    /// # Errors
    /// The journal has no such backend (the error names those it has), or the system refuses
    /// access.
    pub fn forget(&self, name: &str) -> Result<u64, JournalError> {
        match inspect::forget(&self.storage, name)? {
            Some(lines) => Ok(lines),
            None => Err(self.unknown(name)?),
        }
    }

    /// Records that a backend is the same server at a new address; returns the old address.
    ///
    /// # Errors
    /// The journal has no such backend (the error names those it has), or the system refuses
    /// access.
    pub fn moved(&self, name: &str) -> Result<String, JournalError> {
        match inspect::moved(&self.storage, name)? {
            Some(was) => Ok(was),
            None => Err(self.unknown(name)?),
        }
    }

    /// Returns the error that the journal has no backend of this name.
    fn unknown(&self, name: &str) -> Result<JournalError, JournalError> {
        let known = self.survey()?.backends.unwrap_or_default();
        let known: Vec<String> = known.into_iter().map(|(name, ..)| name).collect();
        let known = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
        Ok(JournalError::UnknownBackend { name: name.to_owned(), known })
    }

    fn survey(&self) -> Result<Survey, JournalError> {
        Ok(inspect::survey(&self.storage, |_, _| Ok(()))?)
    }
}

fn totals(survey: &Survey) -> (u64, u64) {
    survey.segments.iter().fold((0, 0), |(records, lines), one| (records + one.records, lines + one.lines))
}

fn describe(destination: &Destination) -> String {
    let policy = match destination.retention_policy() {
        "" => String::new(),
        name => format!("/{name}"),
    };
    format!("{}{policy} ({})", destination.database(), destination.precision().v1_name())
}

fn time(time: Option<WallTime>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| humantime::format_rfc3339_seconds(time.into()).to_string())
}
