//! `twinflux journal`: a stopped relay's journal, for people and for `twinflux restore`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::batch::{Destination, WallTime};
use crate::config::data_dir::{self, LockError};
use crate::deliver::header;
use crate::journal::disk::inspect::{self, Survey};
use crate::journal::disk::{Folder, OpenError};
use crate::sys::text::printable_lines;
use crate::sys::text::write_line;

/// A stopped relay's journal, locked while it is looked at.
#[derive(Debug)]
pub struct Stopped {
    storage: Folder,
    /// None on a volume for reading only, where no relay can work.
    _lock: Option<File>,
}

impl Stopped {
    /// Opens the journal in a data folder.
    ///
    /// # Errors
    /// There is none, a relay is running, or the system does not let it; as a sentence.
    pub fn open(data_dir: &Path) -> Result<Self, String> {
        let folder = data_dir.join("journal");
        let shown = data_dir.display();
        if !folder.is_dir() {
            return Err(format!("there is no journal in {shown}: give the data folder of a relay (data_dir)"));
        }
        let lock = match data_dir::lock(data_dir) {
            Ok(lock) => Some(lock),
            Err(LockError::Held) => return Err(format!("a relay works on {shown}: stop it first")),
            Err(LockError::Io(error)) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
            Err(LockError::Io(error)) => return Err(format!("cannot lock {shown}: {error}")),
        };
        let storage = Folder::open(&folder).map_err(|error| format!("cannot open {}: {error}", folder.display()))?;
        Ok(Self { storage, _lock: lock })
    }

    /// What there is, as text; true where nothing is damaged or missing.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn verify(&self) -> Result<(bool, String), String> {
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

    /// Segments, destinations, backends and gaps as text.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn stats(&self) -> Result<String, String> {
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
            let (from, until, reason) = (time(gap.from), time(Some(gap.until)), gap.reason.name());
            let destination = describe(&gap.destination);
            let (backend, lines) = (&gap.backend, gap.lines);
            write_line(
                &mut text,
                format_args!("gap of {backend}: {destination}, {from} to {until}, {lines} lines, {reason}"),
            );
        }
        Ok(text)
    }

    /// Writes every line, with comments that tell its destination; for a terminal, with escapes for what it would obey. A
    /// reader that goes away has read what it wanted.
    ///
    /// # Errors
    /// What keeps it from being read or written.
    pub fn dump(&self, output: impl Write, is_terminal: bool) -> Result<(), String> {
        match self.dump_all(output, is_terminal) {
            Err(OpenError::Disk(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            ended => ended.map_err(|error| error.to_string()),
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
            // Whole lines: no character is cut.
            output.write_all(&if is_terminal { printable_lines(lines) } else { Cow::Borrowed(&lines[..]) })
        };
        inspect::survey(&self.storage, &mut write)?;
        Ok(output.flush()?)
    }

    /// Gives up what is kept for a backend; returns its lines. What came after its address changed stays.
    ///
    /// # Errors
    /// There are none of this name (those that there are, are named), or the system does not let it.
    pub fn forget(&self, name: &str) -> Result<u64, String> {
        match inspect::forget(&self.storage, name).map_err(|error| error.to_string())? {
            Some(lines) => Ok(lines),
            None => Err(self.unknown(name)?),
        }
    }

    /// Notes that a backend is the same server at another address; returns where it was.
    ///
    /// # Errors
    /// There is none of this name (those that there are, are named), or the system does not let it.
    pub fn moved(&self, name: &str) -> Result<String, String> {
        match inspect::moved(&self.storage, name).map_err(|error| error.to_string())? {
            Some(was) => Ok(was),
            None => Err(self.unknown(name)?),
        }
    }

    /// That there is no backend of this name.
    fn unknown(&self, name: &str) -> Result<String, String> {
        let known = self.survey()?.backends.unwrap_or_default();
        let known: Vec<String> = known.into_iter().map(|(name, ..)| name).collect();
        let known = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
        Ok(format!("the journal knows no backend {name:?}, but {known}"))
    }

    fn survey(&self) -> Result<Survey, String> {
        inspect::survey(&self.storage, |_, _| Ok(())).map_err(|error| error.to_string())
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
