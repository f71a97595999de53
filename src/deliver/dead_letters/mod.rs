//! Dead letters: lines that a backend will never accept, each with the answer that rejected it.
//!
//! Owns the folder `dead-letters` of `data_dir`: append-only files (`file.rs`), evicted oldest
//! first. A letter is on disk before its line is acked in the journal, so a crash leaves the line
//! there, here, or in both.
//!
//! For each backend, in lines: `found + rejected = kept + resent + discarded + evicted`. A line
//! that cannot be written counts as evicted.
//!
//! Never does: decide which lines are rejected. Bounds: the folder's size in bytes, of which each
//! file has an eighth. In memory: one count per file and backend, and one number per letter that
//! was removed from an existing file.

mod file;
mod sample;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::division::Refused;
use crate::batch::{Destination, Received};
use file::{Entry, Refusal};
use sample::Samples;

pub use sample::Sample;

/// Number of files in the folder.
const FILES: u64 = 8;
/// Approximate size of the letters being resent at a time, in bytes: they are held in memory.
const MAX_RESENT_BYTES: u64 = 4 << 20;
/// Extension of a file's name.
const EXTENSION: &str = "letters";

/// A line that a backend rejected for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Number that identifies the letter.
    pub id: u64,
    /// The backend that rejected it.
    pub backend: String,
    /// The database it was for.
    pub database: String,
    /// The retention policy. Empty for the database's default.
    pub retention_policy: String,
    /// The unit of its timestamp: `ns`, `us` and so on.
    pub precision: String,
    /// The class of the rejection, as in the ledger.
    pub class: String,
    /// Status of the answer, or `None` if there was no answer.
    pub status: Option<u16>,
    /// First 4 KiB of the answer.
    pub answer: String,
    /// When it was rejected.
    pub at: SystemTime,
    /// The line.
    pub line: String,
}

/// Selects the letters that match every given condition.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Filter {
    /// These numbers. Empty: all numbers.
    pub ids: HashSet<u64>,
    /// Of this backend.
    pub backend: Option<String>,
    /// For this database.
    pub database: Option<String>,
    /// Of this class.
    pub class: Option<String>,
    /// Rejected at this time or later.
    pub since: Option<SystemTime>,
}

/// Counts of one backend, in lines: `found + rejected = kept + resent + discarded + evicted`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Found at the start.
    pub found: u64,
    /// Kept now.
    pub kept: u64,
    /// Resent since the start.
    pub resent: u64,
    /// Discarded since the start.
    pub discarded: u64,
    /// Evicted for lack of space since the start.
    pub evicted: u64,
    /// Bytes of the kept letters.
    pub bytes: u64,
}

/// Why letters are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The backend has them after all, or they are pending for it again.
    Resent,
    /// An operator discarded them.
    Discarded,
}

/// All dead letters of a relay.
#[derive(Debug)]
pub struct DeadLetters {
    folder: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first. The last one is appended to.
    files: VecDeque<Kept>,
    active: Option<File>,
    /// Number of the next letter.
    next: u64,
    /// Removed letters of files that still exist.
    gone: HashSet<u64>,
    /// Letters being resent to their backends, and their sizes in bytes.
    resending: HashMap<u64, u64>,
    figures: BTreeMap<String, Figures>,
    samples: Samples,
}

/// A file.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    first: u64,
    bytes: u64,
    /// Lines and bytes per backend.
    of_backends: BTreeMap<String, (u64, u64)>,
}

impl DeadLetters {
    /// Opens the folder, which may hold `max_bytes`. The folder is created with the first letter.
    ///
    /// # Errors
    /// The folder, or a file in it, cannot be read or repaired.
    pub fn open(folder: &Path, max_bytes: u64) -> io::Result<Self> {
        let mut state = State { next: 1, ..State::default() };
        for path in paths(folder)? {
            match state.open(path.clone()) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Keeps the name of the unreadable file from being used again.
                    state.next = state.next.max(number(&path).unwrap_or(0).saturating_add(1));
                    tracing::warn!(file = %path.display(), "ignored: not a file of dead letters that this version reads");
                }
                opened => opened?,
            }
        }
        for figures in state.figures.values_mut() {
            figures.found = figures.kept;
        }
        let letters = Self { folder: folder.to_owned(), max_bytes, state: Mutex::new(state) };
        letters.lock().evict(max_bytes);
        Ok(letters)
    }

    /// Writes rejected lines to disk. Returns once they are synced.
    ///
    /// # Errors
    /// The lines cannot be written. They count as evicted.
    pub(super) fn keep(&self, backend: &str, destination: &Destination, refused: &[Refused]) -> io::Result<()> {
        let mut state = self.lock();
        let mut result = Ok(());
        for alike in refused
            .chunk_by(|one, other| (one.class, one.status) == (other.class, other.status) && one.answer == other.answer)
        {
            let kept =
                result.is_ok().then(|| state.keep(&self.folder, self.max_bytes, refusal(backend, destination, alike)));
            if let Some(Err(error)) = kept {
                result = Err(error);
            }
            if result.is_err() {
                state.figures.entry(backend.to_owned()).or_default().evicted += alike.len() as u64;
            }
        }
        state.evict(self.max_bytes);
        result
    }

    /// Returns the counts of a backend.
    pub fn figures(&self, backend: &str) -> Figures {
        self.lock().figures.get(backend).copied().unwrap_or_default()
    }

    /// Returns the last rejected line of each class for a backend.
    pub fn samples(&self, backend: &str) -> BTreeMap<String, Sample> {
        self.lock().samples.of(backend)
    }

    /// Takes the matching letters of these backends for resending, as many as may be held in
    /// memory; skips letters that are being resent already. Letters are kept until they are
    /// removed. Returns the letters, and whether they are all.
    ///
    /// # Errors
    /// The letters cannot be read.
    pub(super) fn take(&self, filter: &Filter, backends: &[&str]) -> io::Result<(Vec<Letter>, bool)> {
        // Releases the lock while reading, so that readers of the counts do not wait.
        let resending = self.lock().resending.clone();
        let (mut taken, mut bytes, mut is_all) = (Vec::new(), resending.values().sum::<u64>(), true);
        each(&self.folder, filter, |letter| {
            if resending.contains_key(&letter.id) || !backends.contains(&letter.backend.as_str()) {
                return;
            }
            if bytes > MAX_RESENT_BYTES {
                is_all = false;
                return;
            }
            bytes += letter.line.len() as u64;
            taken.push(letter);
        })?;
        let mut state = self.lock();
        taken.retain(|letter: &Letter| {
            state.has(letter.id) && state.resending.insert(letter.id, letter.line.len() as u64).is_none()
        });
        Ok((taken, is_all))
    }

    /// Removes the matching letters. Returns how many there were.
    ///
    /// # Errors
    /// The removal cannot be written.
    pub fn remove(&self, filter: &Filter, why: Why) -> io::Result<u64> {
        let mut letters = Vec::new();
        each(&self.folder, filter, |letter| letters.push((letter.id, letter.backend, letter.line.len() as u64)))?;
        let mut state = self.lock();
        // A letter that was removed since it was read is not counted twice.
        letters.retain(|(id, ..)| state.has(*id));
        if letters.is_empty() {
            return Ok(0);
        }
        state.append(&self.folder, self.max_bytes, &Entry::Gone(letters.iter().map(|(id, ..)| *id).collect()))?;
        for (id, backend, bytes) in &letters {
            state.forget(*id, backend, *bytes);
            state.resending.remove(id);
            let figures = state.figures.entry(backend.clone()).or_default();
            match why {
                Why::Resent => figures.resent += 1,
                Why::Discarded => figures.discarded += 1,
            }
        }
        Ok(letters.len() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls `found` with each matching letter in the folder, oldest first. The folder's relay may be
/// running.
///
/// # Errors
/// The folder cannot be read.
pub fn each(folder: &Path, filter: &Filter, mut found: impl FnMut(Letter)) -> io::Result<()> {
    let paths = paths(folder)?;
    let mut gone = HashSet::new();
    for path in &paths {
        let read = file::read(path, |entry, _| {
            if let Entry::Gone(ids) = entry {
                gone.extend(ids);
            }
        });
        ignore_unreadable(read)?;
    }
    for path in &paths {
        let read = file::read(path, |entry, _| {
            let Entry::Refused(refusal) = entry else { return };
            letters(refusal).filter(|letter| !gone.contains(&letter.id) && filter.fits(letter)).for_each(&mut found);
        });
        ignore_unreadable(read)?;
    }
    Ok(())
}

impl Filter {
    fn fits(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && is(&self.backend, &letter.backend)
            && is(&self.database, &letter.database)
            && is(&self.class, &letter.class)
            && self.since.is_none_or(|since| letter.at >= since)
    }
}

impl State {
    /// Reads a file, and truncates it after the last whole entry.
    fn open(&mut self, path: PathBuf) -> io::Result<()> {
        let first = number(&path).unwrap_or(self.next);
        let mut kept = Kept { path, first, bytes: 0, of_backends: BTreeMap::new() };
        let mut gone = Vec::new();
        let whole = file::read(&kept.path, |entry, _| match entry {
            Entry::Refused(refusal) => {
                self.next = self.next.max(refusal.first + refusal.lines.len() as u64);
                note(&mut kept.of_backends, &mut self.figures, &refusal);
                self.samples.note(&refusal);
            }
            Entry::Gone(ids) => gone.extend(ids),
        })?;
        kept.bytes = whole.max(file::MAGIC.len() as u64);
        let written = File::options().append(true).open(&kept.path)?;
        written.set_len(whole)?;
        if whole == 0 {
            (&written).write_all(file::MAGIC)?;
        }
        self.files.push_back(kept);
        self.active = Some(written);
        if !gone.is_empty() {
            let gone: HashSet<u64> = gone.into_iter().collect();
            let paths: Vec<PathBuf> = self.files.iter().map(|kept| kept.path.clone()).collect();
            for path in paths {
                let mut found = Vec::new();
                file::read(&path, |entry, _| {
                    let Entry::Refused(refusal) = entry else { return };
                    found.extend(letters(refusal).filter(|letter| gone.contains(&letter.id)));
                })?;
                for letter in found {
                    self.forget(letter.id, &letter.backend, letter.line.len() as u64);
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, folder: &Path, max_bytes: u64, mut refusal: Refusal) -> io::Result<()> {
        refusal.first = self.next;
        let entry = Entry::Refused(refusal);
        self.append(folder, max_bytes, &entry)?;
        if let (Entry::Refused(refusal), Some(kept)) = (&entry, self.files.back_mut()) {
            self.next += refusal.lines.len() as u64;
            note(&mut kept.of_backends, &mut self.figures, refusal);
            self.samples.note(refusal);
        }
        Ok(())
    }

    /// Appends an entry to the last file, or to a new one, and syncs it.
    fn append(&mut self, folder: &Path, max_bytes: u64, entry: &Entry) -> io::Result<()> {
        let bytes = entry.encode()?;
        let is_full = self.files.back().is_none_or(|kept| kept.bytes + bytes.len() as u64 > max_bytes / FILES);
        if is_full || self.active.is_none() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            // Several files may begin with the same number: all but one hold only removals.
            let of_last = self.files.back().filter(|kept| kept.first == self.next);
            let turn = of_last.and_then(|kept| turn(&kept.path)).map_or(0, |turn| turn + 1);
            let path = folder.join(format!("{:020}-{turn:06}.{EXTENSION}", self.next));
            self.active = Some(file::create(&path)?);
            File::open(folder)?.sync_all()?;
            let bytes = file::MAGIC.len() as u64;
            self.files.push_back(Kept { path, first: self.next, bytes, of_backends: BTreeMap::new() });
        }
        let (Some(active), Some(kept)) = (&mut self.active, self.files.back_mut()) else { return Ok(()) };
        let written = active.write_all(&bytes).and_then(|()| active.sync_data());
        if written.is_ok() {
            kept.bytes += bytes.len() as u64;
        } else {
            // A partial entry would hide later ones, so these go to a new file.
            drop(active.set_len(kept.bytes));
            self.active = None;
        }
        written
    }

    /// Removes the oldest files until the others fit.
    fn evict(&mut self, max_bytes: u64) {
        while self.files.len() > 1 && self.files.iter().map(|kept| kept.bytes).sum::<u64>() > max_bytes {
            let Some(oldest) = self.files.pop_front() else { return };
            if let Err(error) = std::fs::remove_file(&oldest.path) {
                tracing::warn!(file = %oldest.path.display(), %error, "cannot remove the oldest dead letters");
            }
            let end = self.files.front().map_or(self.next, |kept| kept.first);
            self.gone.retain(|id| !(oldest.first..end).contains(id));
            self.resending.retain(|id, _| !(oldest.first..end).contains(id));
            self.samples.forget_below(end);
            for (backend, (lines, bytes)) in oldest.of_backends {
                let figures = self.figures.entry(backend).or_default();
                figures.kept -= lines;
                figures.bytes -= bytes;
                figures.evicted += lines;
            }
        }
    }

    /// Whether a letter is kept.
    fn has(&self, id: u64) -> bool {
        self.files.front().is_some_and(|kept| kept.first <= id) && id < self.next && !self.gone.contains(&id)
    }

    /// Subtracts a removed letter from the counts.
    fn forget(&mut self, id: u64, backend: &str, bytes: u64) {
        if !self.gone.insert(id) {
            return;
        }
        self.samples.forget(id);
        let index = self.files.partition_point(|kept| kept.first <= id);
        let kept = index.checked_sub(1).and_then(|index| self.files.get_mut(index));
        if let Some((lines, sum)) = kept.and_then(|kept| kept.of_backends.get_mut(backend)) {
            (*lines, *sum) = (lines.saturating_sub(1), sum.saturating_sub(bytes));
        }
        let figures = self.figures.entry(backend.to_owned()).or_default();
        (figures.kept, figures.bytes) = (figures.kept.saturating_sub(1), figures.bytes.saturating_sub(bytes));
    }
}

/// Adds lines to the counts.
fn note(of_backends: &mut BTreeMap<String, (u64, u64)>, figures: &mut BTreeMap<String, Figures>, refusal: &Refusal) {
    let (lines, bytes) = (refusal.lines.len() as u64, refusal.lines.iter().map(|line| line.len() as u64).sum::<u64>());
    let of_file = of_backends.entry(refusal.backend.clone()).or_default();
    *of_file = (of_file.0 + lines, of_file.1 + bytes);
    let figures = figures.entry(refusal.backend.clone()).or_default();
    (figures.kept, figures.bytes) = (figures.kept + lines, figures.bytes + bytes);
}

fn refusal(backend: &str, destination: &Destination, alike: &[Refused]) -> Refusal {
    let first = &alike[0];
    let text = |line: &Refused| String::from_utf8_lossy(&line.line).into_owned();
    Refusal {
        first: 0,
        backend: backend.to_owned(),
        database: destination.database().to_owned(),
        retention_policy: destination.retention_policy().to_owned(),
        precision: destination.precision().to_string(),
        class: first.class.name().to_owned(),
        status: first.status,
        answer: first.answer.to_string(),
        at: Received::now().wall.nanoseconds(),
        lines: alike.iter().map(text).collect(),
    }
}

fn letters(refusal: Refusal) -> impl Iterator<Item = Letter> {
    let Refusal { first, backend, database, retention_policy, precision, class, status, answer, at, lines } = refusal;
    let at = UNIX_EPOCH + Duration::from_nanos(at);
    (first..).zip(lines).map(move |(id, line)| Letter {
        id,
        backend: backend.clone(),
        database: database.clone(),
        retention_policy: retention_policy.clone(),
        precision: precision.clone(),
        class: class.clone(),
        status,
        answer: answer.clone(),
        at,
        line,
    })
}

/// Returns the folder's files, oldest first. Empty if there is no folder.
fn paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == EXTENSION) && number(&path).is_some() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Returns the number of a file's first letter, from its name.
fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.split_once('-')?.0.parse().ok()
}

/// Returns the position of a file among the files that begin with the same number.
fn turn(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.split_once('-')?.1.parse().ok()
}

/// Ignores a file that was evicted before it could be read, and a file that holds no letters.
fn ignore_unreadable(read: io::Result<u64>) -> io::Result<()> {
    match read {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
