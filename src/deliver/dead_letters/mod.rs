//! Dead letters: lines that a backend will never take, each with the answer that said so.
//!
//! Owns the folder `dead-letters` of `data_dir`: files that are only appended to (`file.rs`), and go oldest first. What is kept
//! here is on the disk before its lines are acked in the journal, so that a crash keeps a line there, or here, or in both.
//!
//! For each backend, in lines: `found + refused = kept + resent + discarded + evicted`. What cannot be written counts as evicted.
//!
//! Bounds: the folder's bytes; a file is an eighth of them. In memory: a number for each file and backend, and one for each
//! letter that is gone from a file that is still there.

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

/// Files that the folder is made of.
const FILES: u64 = 8;
/// Lines that are owed again at a time, about, in bytes: they wait in memory.
const MOST_OWED_BYTES: u64 = 4 << 20;
/// How a file's name ends.
const ENDING: &str = "letters";

/// A line that a backend refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its number, by which it is named.
    pub id: u64,
    /// The backend that refused it.
    pub backend: String,
    /// The database it was for.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// The unit of its timestamp: `ns`, `us` and so on.
    pub precision: String,
    /// Why, as in the ledger.
    pub class: String,
    /// The answer's status; none where there was no answer.
    pub status: Option<u16>,
    /// The answer's first 4 KiB.
    pub answer: String,
    /// When.
    pub at: SystemTime,
    /// The line.
    pub line: String,
}

/// Which letters are meant: all that fit everything that is given.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Filter {
    /// Of these numbers; all where there is none.
    pub ids: HashSet<u64>,
    /// Of this backend.
    pub backend: Option<String>,
    /// For this database.
    pub database: Option<String>,
    /// Of this class.
    pub class: Option<String>,
    /// Refused at this time or later.
    pub since: Option<SystemTime>,
}

/// One backend's figures, in lines: `found + rejected = kept + resent + discarded + evicted`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Kept at start.
    pub found: u64,
    /// Kept now.
    pub kept: u64,
    /// Sent again, since the start.
    pub resent: u64,
    /// Discarded, since the start.
    pub discarded: u64,
    /// Given up for want of room, since the start.
    pub evicted: u64,
    /// Bytes of the kept ones.
    pub bytes: u64,
}

/// Why letters go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The backend has them after all, or they are owed to it again.
    Resent,
    /// An operator has no use for them.
    Discarded,
}

/// All letters of a relay.
#[derive(Debug)]
pub struct DeadLetters {
    folder: PathBuf,
    most_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first; the last one is written to.
    files: VecDeque<Kept>,
    active: Option<File>,
    /// The next letter's number.
    next: u64,
    /// Letters that are gone, of files that are there.
    gone: HashSet<u64>,
    /// Letters that are owed to their backends again, and their bytes.
    owed: HashMap<u64, u64>,
    figures: BTreeMap<String, Figures>,
    samples: Samples,
}

/// A file.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    first: u64,
    bytes: u64,
    /// Lines and bytes of each backend.
    of_backends: BTreeMap<String, (u64, u64)>,
}

impl DeadLetters {
    /// Those in this folder, which may take so many bytes. It is made at the first letter.
    ///
    /// # Errors
    /// The folder, or a file in it, cannot be read or mended.
    pub fn open(folder: &Path, most_bytes: u64) -> io::Result<Self> {
        let mut state = State { next: 1, ..State::default() };
        for path in paths(folder)? {
            match state.open(path.clone()) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Its name is not given to another file.
                    state.next = state.next.max(number(&path).unwrap_or(0).saturating_add(1));
                    tracing::warn!(file = %path.display(), "left alone: it is no file of dead letters that this version reads");
                }
                opened => opened?,
            }
        }
        for figures in state.figures.values_mut() {
            figures.found = figures.kept;
        }
        let letters = Self { folder: folder.to_owned(), most_bytes, state: Mutex::new(state) };
        letters.lock().make_room(most_bytes);
        Ok(letters)
    }

    /// Keeps lines that a backend refused; returns once they are on the disk.
    ///
    /// # Errors
    /// What the system says. Then they count as evicted.
    pub(super) fn keep(&self, backend: &str, destination: &Destination, refused: &[Refused]) -> io::Result<()> {
        let mut state = self.lock();
        let mut result = Ok(());
        for alike in refused
            .chunk_by(|one, other| (one.class, one.status) == (other.class, other.status) && one.answer == other.answer)
        {
            let kept =
                result.is_ok().then(|| state.keep(&self.folder, self.most_bytes, refusal(backend, destination, alike)));
            if let Some(Err(error)) = kept {
                result = Err(error);
            }
            if result.is_err() {
                state.figures.entry(backend.to_owned()).or_default().evicted += alike.len() as u64;
            }
        }
        state.make_room(self.most_bytes);
        result
    }

    /// A backend's figures.
    pub fn figures(&self, backend: &str) -> Figures {
        self.lock().figures.get(backend).copied().unwrap_or_default()
    }

    /// The last refused line of each class, of one backend.
    pub fn samples(&self, backend: &str) -> BTreeMap<String, Sample> {
        self.lock().samples.of(backend)
    }

    /// Takes letters of these backends that fit and are not owed already, as many as may wait in memory; they are kept until
    /// they are removed. Returns them, and whether they are all.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn take(&self, filter: &Filter, backends: &[&str]) -> io::Result<(Vec<Letter>, bool)> {
        // Whoever looks at the figures does not wait until everything is read.
        let owed = self.lock().owed.clone();
        let (mut taken, mut bytes, mut is_all) = (Vec::new(), owed.values().sum::<u64>(), true);
        each(&self.folder, filter, |letter| {
            if owed.contains_key(&letter.id) || !backends.contains(&letter.backend.as_str()) {
                return;
            }
            if bytes > MOST_OWED_BYTES {
                is_all = false;
                return;
            }
            bytes += letter.line.len() as u64;
            taken.push(letter);
        })?;
        let mut state = self.lock();
        taken.retain(|letter: &Letter| {
            state.has(letter.id) && state.owed.insert(letter.id, letter.line.len() as u64).is_none()
        });
        Ok((taken, is_all))
    }

    /// Removes the letters that fit; returns how many there were.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, filter: &Filter, why: Why) -> io::Result<u64> {
        let mut letters = Vec::new();
        each(&self.folder, filter, |letter| letters.push((letter.id, letter.backend, letter.line.len() as u64)))?;
        let mut state = self.lock();
        // One that went since it was read is not counted twice.
        letters.retain(|(id, ..)| state.has(*id));
        if letters.is_empty() {
            return Ok(0);
        }
        state.append(&self.folder, self.most_bytes, &Entry::Gone(letters.iter().map(|(id, ..)| *id).collect()))?;
        for (id, backend, bytes) in &letters {
            state.forget(*id, backend, *bytes);
            state.owed.remove(id);
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

/// Gives each letter in the folder that fits, oldest first. The folder's relay may be running.
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
    /// Reads a file, and cuts off what a crash tore.
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

    fn keep(&mut self, folder: &Path, most_bytes: u64, mut refusal: Refusal) -> io::Result<()> {
        refusal.first = self.next;
        let entry = Entry::Refused(refusal);
        self.append(folder, most_bytes, &entry)?;
        if let (Entry::Refused(refusal), Some(kept)) = (&entry, self.files.back_mut()) {
            self.next += refusal.lines.len() as u64;
            note(&mut kept.of_backends, &mut self.figures, refusal);
            self.samples.note(refusal);
        }
        Ok(())
    }

    /// Appends an entry to the last file, or to a new one, and syncs it.
    fn append(&mut self, folder: &Path, most_bytes: u64, entry: &Entry) -> io::Result<()> {
        let bytes = entry.encode()?;
        let is_full = self.files.back().is_none_or(|kept| kept.bytes + bytes.len() as u64 > most_bytes / FILES);
        if is_full || self.active.is_none() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            // Several files may begin with the same number: those that hold only what is gone.
            let of_last = self.files.back().filter(|kept| kept.first == self.next);
            let turn = of_last.and_then(|kept| turn(&kept.path)).map_or(0, |turn| turn + 1);
            let path = folder.join(format!("{:020}-{turn:06}.{ENDING}", self.next));
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
            // Half an entry would hide what comes after it: that goes to another file.
            drop(active.set_len(kept.bytes));
            self.active = None;
        }
        written
    }

    /// Removes the oldest files until the others fit.
    fn make_room(&mut self, most_bytes: u64) {
        while self.files.len() > 1 && self.files.iter().map(|kept| kept.bytes).sum::<u64>() > most_bytes {
            let Some(oldest) = self.files.pop_front() else { return };
            if let Err(error) = std::fs::remove_file(&oldest.path) {
                tracing::warn!(file = %oldest.path.display(), %error, "cannot remove the oldest dead letters");
            }
            let end = self.files.front().map_or(self.next, |kept| kept.first);
            self.gone.retain(|id| !(oldest.first..end).contains(id));
            self.owed.retain(|id, _| !(oldest.first..end).contains(id));
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

    /// Counts a letter out.
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

/// Counts lines in.
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

/// The folder's files, oldest first; none where there is no folder.
fn paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) && number(&path).is_some() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The number that letters in a file begin with, which it is named by.
fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.split_once('-')?.0.parse().ok()
}

/// Its turn among the files that are named by the same number.
fn turn(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.split_once('-')?.1.parse().ok()
}

/// A file that was removed while it was to be read held what is gone. What is no file of letters holds none.
fn ignore_unreadable(read: io::Result<u64>) -> io::Result<()> {
    match read {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
