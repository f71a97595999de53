//! `twinflux dead-letters`: lists, shows, resends and discards lines that backends will never take.
//!
//! `list` and `show` read the folder, whether or not its relay runs. `resend` and `discard` ask the
//! running relay.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cli::Letters;
use crate::cli::maintenance::ChangeError;
use crate::cli::socket::{Action, Answer, Request, ask};
use crate::deliver::dead_letters::{self, Filter, Letter};
use crate::sys::text::write_line;

/// Characters of a line that a list shows.
const SHOWN_CHARS: usize = 100;
/// The most letters that a list shows: the newest.
const MAX_LISTED: usize = 1000;

impl Letters {
    /// Returns the filter that the options describe.
    fn filter(&self) -> Filter {
        let Self { ids, backend, database, class, since, .. } = self;
        let since = since.map(|since| since.0);
        Filter {
            ids: ids.iter().copied().collect(),
            backend: backend.clone(),
            database: database.clone(),
            class: class.clone(),
            since,
        }
    }
}

/// Text that is neither a duration nor a date.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no time: write \"2h\" for two hours ago, or \"2026-11-27T03:00:00Z\"")]
pub struct InvalidTime(String);

/// Why dead letters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The data folder does not exist.
    #[error("there is no folder {}: give the data folder of a relay (--data-dir)", .0.display())]
    Missing(PathBuf),
    /// The folder of the dead letters cannot be read.
    #[error("cannot read {}: {}", .0.display(), .1)]
    Unreadable(PathBuf, #[source] io::Error),
}

/// A time, given as an age or as a date.
#[derive(Clone, Copy, Debug)]
pub struct Since(SystemTime);

impl std::str::FromStr for Since {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
        let time = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok());
        time.map(Self).ok_or_else(|| InvalidTime(text.to_owned()))
    }
}

/// Lists the letters, one a line, the newest last.
///
/// # Errors
/// The folder cannot be read.
pub fn list(data_dir: &Path, letters: &Letters) -> Result<String, ReadError> {
    let found = read(data_dir, &letters.filter())?;
    let mut text = String::new();
    if found.is_empty() {
        write_line(&mut text, format_args!("no dead letters in {}", data_dir.display()));
        return Ok(text);
    }
    let left_out = found.len().saturating_sub(MAX_LISTED);
    if left_out > 0 {
        write_line(&mut text, format_args!("{left_out} older ones are left out"));
    }
    for letter in &found[left_out..] {
        let Letter { id, backend, database, class, line, .. } = letter;
        let (at, line) = (time(letter), shown(line));
        write_line(&mut text, format_args!("{id} {at} {backend} {database} {class} {line}"));
    }
    Ok(text)
}

/// Shows the letters with everything known about them.
///
/// # Errors
/// As [`list`].
pub fn show(data_dir: &Path, letters: &Letters) -> Result<String, ReadError> {
    let found = read(data_dir, &letters.filter())?;
    let mut text = String::new();
    let left_out = found.len().saturating_sub(MAX_LISTED);
    if left_out > 0 {
        write_line(&mut text, format_args!("{left_out} older ones are left out"));
    }
    for letter in &found[left_out..] {
        let Letter { id, backend, database, retention_policy, precision, class, status, answer, line, .. } = letter;
        write_line(&mut text, format_args!("letter     {id}"));
        write_line(&mut text, format_args!("refused    {} by {backend}, as {class}", time(letter)));
        write_line(&mut text, format_args!("database   {database} {retention_policy} ({precision})"));
        let status = status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        write_line(&mut text, format_args!("answer     {status} {}", answer.trim_end()));
        write_line(&mut text, format_args!("line       {line}"));
        write_line(&mut text, format_args!(""));
    }
    if found.is_empty() {
        write_line(&mut text, format_args!("no dead letters in {}", data_dir.display()));
    }
    Ok(text)
}

/// Asks the running relay to act on the letters; returns a sentence that says what it did.
///
/// # Errors
/// No relay answers, or it refuses.
pub fn change(data_dir: &Path, letters: &Letters, action: Action) -> Result<String, ChangeError> {
    let request = Request::DeadLetters { action, filter: letters.filter() };
    let (lines, is_all) = match ask(data_dir, &request)? {
        Answer::Failed { error } => return Err(ChangeError::Failed(error)),
        Answer::Done { lines, is_all } => (lines, is_all),
        _ => return Err(ChangeError::OtherVersion),
    };
    let more = if is_all { "" } else { "There are more: run this again when these are delivered.\n" };
    Ok(match action {
        Action::Discard => format!("{lines} dead letters are discarded\n{more}"),
        Action::Resend => {
            format!(
                "{lines} lines are owed to their backends again; they stay dead letters until these have them\n{more}"
            )
        }
    })
}

fn read(data_dir: &Path, filter: &Filter) -> Result<Vec<Letter>, ReadError> {
    let mut letters = Vec::new();
    let folder = data_dir.join("dead-letters");
    if !data_dir.is_dir() {
        return Err(ReadError::Missing(data_dir.to_owned()));
    }
    dead_letters::each(&folder, filter, |letter| letters.push(letter))
        .map_err(|error| ReadError::Unreadable(folder, error))?;
    Ok(letters)
}

fn time(letter: &Letter) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(letter.at)
}

/// Returns the beginning of a line.
fn shown(line: &str) -> String {
    let mut shown: String = line.chars().take(SHOWN_CHARS).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
}
