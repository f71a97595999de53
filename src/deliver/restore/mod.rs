//! An archive, or a journal's dump, back into an InfluxDB: every point as it was.
//!
//! Lines of one destination go in requests of at most 5,000 lines or 1 MiB, oldest file first. What a server cannot take
//! now is tried again for a bounded time; what it refuses is tried in halves, down to the line, and counted. Points that
//! are there already are stored once: whatever ends a run, the same command goes on.
//!
//! Never creates a database unless told to. Bounds: one request at a time, one piece of one text (`text.rs`), and so many
//! lines in a row that are refused.

mod source;
mod text;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::health::Backoff;
use super::influx::Influx;
use super::outcome::Fate;
use super::{BackendError, InfluxConfig};
use crate::protocol::influxql::quoted;
use text::{Batch, Found, Text};

/// The longest pause between two tries of a request.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Lines that may be refused one after the other before nothing more is sent.
const MOST_REFUSED_IN_A_ROW: u64 = 1000;
/// Files that cannot be read to their end are named up to this number.
const MOST_NAMED: usize = 10;

/// How lines are put back.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// Where.
    pub influx: InfluxConfig,
    /// Whether a missing database is made.
    pub creates_database: bool,
    /// How long a request is tried again, where the server cannot take it now.
    pub patience: Duration,
}

/// What became of the lines so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Files found.
    pub files: usize,
    /// Files read to their end.
    pub files_read: usize,
    /// Lines read.
    pub lines: u64,
    /// Lines that the server took.
    pub taken: u64,
    /// Lines that the server refused.
    pub rejected: u64,
    /// Lines that are none, and were not sent.
    pub unreadable: u64,
    /// The server's first refusal.
    pub first_rejection: Option<String>,
    /// The first line that is none, and where it is.
    pub first_unreadable: Option<String>,
    /// Files that could not be read to their end, and why; the first of them.
    pub broken: Vec<String>,
    /// Databases that were made.
    pub created: Vec<String>,
}

impl Figures {
    /// Whether there were lines, and the server took all of them.
    pub fn is_complete(&self) -> bool {
        self.lines > 0 && self.taken == self.lines && self.unreadable == 0 && self.files_read == self.files
    }
}

/// Why nothing more was sent.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// What was asked for cannot be done: what is wrong and what would be right.
    #[error("{0}")]
    Usage(String),
    /// The server does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The server takes nothing more, and somebody must act.
    #[error("{0}")]
    Failed(String),
}

impl From<BackendError> for RestoreError {
    fn from(error: BackendError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Sends everything that these files and folders hold; `-` is the standard input. `figures` always says what became of
/// the lines; `progress` is called with it after each request.
///
/// # Errors
/// Why not everything was sent.
pub async fn restore(
    inputs: &[PathBuf],
    setup: RestoreConfig,
    figures: &mut Figures,
    progress: impl FnMut(&Figures),
) -> Result<(), RestoreError> {
    let files = source::files(inputs).map_err(RestoreError::Usage)?;
    figures.files = files.len();
    let influx = Influx::new(setup.influx.clone())?;
    let mut restore = Restore { setup, influx, figures, progress, refused_in_a_row: 0 };
    restore.reach().await?;
    for file in files {
        restore.file(&file).await?;
    }
    Ok(())
}

/// One run.
struct Restore<'a, P> {
    setup: RestoreConfig,
    influx: Influx,
    figures: &'a mut Figures,
    progress: P,
    refused_in_a_row: u64,
}

impl<P: FnMut(&Figures)> Restore<'_, P> {
    /// Makes sure that something answers: who mistyped the address is not to wait.
    async fn reach(&mut self) -> Result<(), RestoreError> {
        match self.influx.ping().await {
            Err(missed) if matches!(missed.fate, Fate::Down | Fate::Stalled | Fate::Failed) => {
                Err(RestoreError::Unreachable(missed.text))
            }
            // Whether what answers is an InfluxDB is told by how it takes lines: a proxy may keep the ping away.
            _ => Ok(()),
        }
    }

    /// Sends a file's lines. One that cannot be read ends only itself.
    async fn file(&mut self, file: &source::File) -> Result<(), RestoreError> {
        let mut text = match file.open() {
            Ok(input) => Text::new(input),
            Err(error) => {
                self.note_broken(file, &error.to_string());
                return Ok(());
            }
        };
        loop {
            match text.next() {
                Ok(Some(Found::Batch(batch))) => {
                    self.figures.lines += batch.lines();
                    self.send(batch).await?;
                }
                Ok(Some(Found::Unreadable(why))) => {
                    self.figures.unreadable += 1;
                    self.figures.first_unreadable.get_or_insert_with(|| format!("{file}: {why}"));
                }
                Ok(None) => break,
                Err(error) => {
                    self.note_broken(file, &error);
                    return Ok(());
                }
            }
        }
        self.figures.files_read += 1;
        (self.progress)(self.figures);
        Ok(())
    }

    fn note_broken(&mut self, file: &source::File, error: &str) {
        if self.figures.broken.len() < MOST_NAMED {
            self.figures.broken.push(format!("{file}: {error}"));
        }
    }

    /// Sends a batch; what is refused as a whole goes in halves.
    async fn send(&mut self, batch: Batch) -> Result<(), RestoreError> {
        let mut waiting = vec![batch];
        while let Some(batch) = waiting.pop() {
            let lines = batch.lines();
            let (fate, text) = self.attempt(&batch).await?;
            let rejected = match fate {
                Fate::Rejected { lines: Some(rejected), .. } => rejected.min(lines),
                Fate::Rejected { lines: None, .. } | Fate::TooLarge => match batch.halves() {
                    Some((first, second)) => {
                        waiting.extend([second, first]);
                        continue;
                    }
                    None => lines,
                },
                _ => 0,
            };
            self.figures.taken += lines - rejected;
            self.figures.rejected += rejected;
            if rejected > 0 {
                self.figures.first_rejection.get_or_insert_with(|| text.clone());
            }
            self.refused_in_a_row = if rejected == lines { self.refused_in_a_row + lines } else { 0 };
            if self.refused_in_a_row >= MOST_REFUSED_IN_A_ROW && matches!(fate, Fate::Rejected { lines: None, .. }) {
                return Err(RestoreError::Failed(format!(
                    "{} lines in a row were refused, the last with: {text}",
                    self.refused_in_a_row
                )));
            }
            (self.progress)(self.figures);
        }
        Ok(())
    }

    /// Sends a batch until the server has said what becomes of its lines.
    async fn attempt(&mut self, batch: &Batch) -> Result<(Fate, String), RestoreError> {
        let end = Instant::now() + self.setup.patience;
        let mut backoff = Backoff::default();
        loop {
            let outcome = self.influx.send(&batch.destination, vec![batch.bytes.clone()]).await;
            let pause = match outcome.fate {
                fate @ (Fate::Delivered | Fate::Rejected { .. } | Fate::TooLarge) => return Ok((fate, outcome.text)),
                Fate::HoldDestination => {
                    self.mend(batch, &outcome.text).await?;
                    continue;
                }
                Fate::HoldBackend => return Err(RestoreError::Failed(outcome.text)),
                Fate::Busy { retry_after } => retry_after.unwrap_or_default().max(backoff.next_pause(LONGEST_PAUSE)),
                Fate::Transient | Fate::Failed | Fate::Unexpected | Fate::Down | Fate::Stalled => {
                    backoff.next_pause(LONGEST_PAUSE)
                }
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("gave up after {:?}: {}", self.setup.patience, outcome.text);
                return Err(match outcome.fate {
                    Fate::Down | Fate::Stalled => RestoreError::Unreachable(text),
                    _ => RestoreError::Failed(text),
                });
            }
            tokio::time::sleep(pause.min(left)).await;
        }
    }

    /// Makes the database that is missing, if it may; else says what is to be done.
    async fn mend(&mut self, batch: &Batch, answer: &str) -> Result<(), RestoreError> {
        let (database, policy) = (batch.destination.database(), batch.destination.retention_policy());
        let statement = format!("CREATE DATABASE {}", quoted(database));
        if answer.contains("database not found") {
            if !self.setup.creates_database {
                return Err(RestoreError::Failed(format!(
                    "the database {database:?} does not exist there: create it with {statement}, or run this again with \
                     --create-database"
                )));
            }
            if !self.figures.created.iter().any(|known| known == database) {
                let failed = |error| RestoreError::Failed(format!("{statement}: {error}"));
                self.influx.execute(&statement).await.map_err(failed)?;
                self.figures.created.push(database.to_owned());
                return Ok(());
            }
        }
        if answer.contains("retention policy not found") {
            return Err(RestoreError::Failed(format!(
                "the database {database:?} has no retention policy {policy:?} there: create it with CREATE RETENTION \
                 POLICY {} ON {} DURATION … REPLICATION 1",
                quoted(policy),
                quoted(database)
            )));
        }
        let advice = if answer.starts_with("401") || answer.starts_with("403") {
            "; give --username and --password-file, or --token-file, of a user who may write there"
        } else {
            ""
        };
        Err(RestoreError::Failed(format!("no lines are taken for the database {database:?}: {answer}{advice}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_lines_of_all_files_are_complete() {
        let all = Figures { files: 1, files_read: 1, lines: 2, taken: 2, ..Figures::default() };
        assert!(all.is_complete());
        for wrong in [
            Figures { files_read: 0, ..all.clone() },
            Figures { taken: 1, rejected: 1, ..all.clone() },
            Figures { unreadable: 1, ..all.clone() },
            Figures { lines: 0, taken: 0, ..all },
        ] {
            assert!(!wrong.is_complete(), "{wrong:?}");
        }
    }
}
