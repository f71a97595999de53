//! Restores an archive, or a journal's dump, to an InfluxDB: every point as it was.
//!
//! Sends lines in requests of at most 5,000 lines or 1 MiB for one destination, oldest file first.
//! Retries for a bounded time while the server cannot accept lines. Halves a rejected request down
//! to the single line, and counts the rejected lines. A point that is already there is stored once,
//! so repeating an interrupted run continues it.
//!
//! Owns: the counts of a run. Never does: create a database unless asked to. Bounds: one request at
//! a time, one piece of one text (`text.rs`), and a number of lines rejected in a row.

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

/// Longest pause between two tries of a request.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Maximum number of lines rejected in a row before the restore stops.
const MAX_REJECTED_IN_A_ROW: u64 = 1000;
/// Maximum number of incompletely read files that are listed.
const MAX_LISTED: usize = 10;

/// Configuration of a restore.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// The server to restore to.
    pub influx: InfluxConfig,
    /// Whether to create a missing database.
    pub creates_database: bool,
    /// How long to retry a request while the server cannot accept it.
    pub patience: Duration,
}

/// Counts of the lines so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Files found.
    pub files: usize,
    /// Files read to their end.
    pub files_read: usize,
    /// Lines read.
    pub lines: u64,
    /// Lines that the server accepted.
    pub taken: u64,
    /// Lines that the server rejected.
    pub rejected: u64,
    /// Unreadable lines, which were not sent.
    pub unreadable: u64,
    /// The server's first rejection.
    pub first_rejection: Option<String>,
    /// The first unreadable line, and its position.
    pub first_unreadable: Option<String>,
    /// The first files that could not be read to their end, and why.
    pub broken: Vec<String>,
    /// Databases that were created.
    pub created: Vec<String>,
}

impl Figures {
    /// Whether there were lines, and the server accepted all of them.
    pub fn is_complete(&self) -> bool {
        self.lines > 0 && self.taken == self.lines && self.unreadable == 0 && self.files_read == self.files
    }
}

/// Why a restore stopped.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The arguments cannot be used. The message says what is wrong and what would be right.
    #[error("{0}")]
    Usage(String),
    /// The server is unreachable.
    #[error("{0}")]
    Unreachable(String),
    /// The server accepts no lines until somebody acts.
    #[error("{0}")]
    Failed(String),
}

impl From<BackendError> for RestoreError {
    fn from(error: BackendError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Restores everything in these files and folders; `-` is the standard input. `figures` always
/// holds the counts so far; `progress` is called with it after each request.
///
/// # Errors
/// Not everything was sent.
pub async fn restore(
    inputs: &[PathBuf],
    config: RestoreConfig,
    figures: &mut Figures,
    progress: impl FnMut(&Figures),
) -> Result<(), RestoreError> {
    let files = source::files(inputs).map_err(|error| RestoreError::Usage(error.to_string()))?;
    figures.files = files.len();
    let influx = Influx::new(config.influx.clone())?;
    let mut restore = Restore { config, influx, figures, progress, rejected_in_a_row: 0 };
    restore.reach().await?;
    for file in files {
        restore.file(&file).await?;
    }
    Ok(())
}

/// One run of a restore.
struct Restore<'a, P> {
    config: RestoreConfig,
    influx: Influx,
    figures: &'a mut Figures,
    progress: P,
    rejected_in_a_row: u64,
}

impl<P: FnMut(&Figures)> Restore<'_, P> {
    /// Checks that the server answers, so that a mistyped address fails at once.
    async fn reach(&mut self) -> Result<(), RestoreError> {
        match self.influx.ping().await {
            Err(missed) if matches!(missed.fate, Fate::Down | Fate::Stalled | Fate::Failed) => {
                Err(RestoreError::Unreachable(missed.text))
            }
            // Only a write shows whether it is an InfluxDB: a proxy may not pass the ping.
            _ => Ok(()),
        }
    }

    /// Sends a file's lines. A file that cannot be read does not stop the restore.
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
                    self.note_broken(file, &error.to_string());
                    return Ok(());
                }
            }
        }
        self.figures.files_read += 1;
        (self.progress)(self.figures);
        Ok(())
    }

    fn note_broken(&mut self, file: &source::File, error: &str) {
        if self.figures.broken.len() < MAX_LISTED {
            self.figures.broken.push(format!("{file}: {error}"));
        }
    }

    /// Sends a batch. Halves it if the server rejects it as a whole.
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
            self.rejected_in_a_row = if rejected == lines { self.rejected_in_a_row + lines } else { 0 };
            if self.rejected_in_a_row >= MAX_REJECTED_IN_A_ROW && matches!(fate, Fate::Rejected { lines: None, .. }) {
                return Err(RestoreError::Failed(format!(
                    "{} lines in a row were refused, the last with: {text}",
                    self.rejected_in_a_row
                )));
            }
            (self.progress)(self.figures);
        }
        Ok(())
    }

    /// Sends a batch until the server has accepted or rejected its lines.
    async fn attempt(&mut self, batch: &Batch) -> Result<(Fate, String), RestoreError> {
        let end = Instant::now() + self.config.patience;
        let mut backoff = Backoff::default();
        loop {
            let outcome = self.influx.send(&batch.destination, vec![batch.bytes.clone()]).await;
            let pause = match outcome.fate {
                fate @ (Fate::Delivered | Fate::Rejected { .. } | Fate::TooLarge) => return Ok((fate, outcome.text)),
                Fate::HoldDestination => {
                    self.create_missing(batch, &outcome.text).await?;
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
                let text = format!("gave up after {:?}: {}", self.config.patience, outcome.text);
                return Err(match outcome.fate {
                    Fate::Down | Fate::Stalled => RestoreError::Unreachable(text),
                    _ => RestoreError::Failed(text),
                });
            }
            tokio::time::sleep(pause.min(left)).await;
        }
    }

    /// Creates the missing database if allowed. Otherwise says what to do.
    async fn create_missing(&mut self, batch: &Batch, answer: &str) -> Result<(), RestoreError> {
        let (database, policy) = (batch.destination.database(), batch.destination.retention_policy());
        let statement = format!("CREATE DATABASE {}", quoted(database));
        if answer.contains("database not found") {
            if !self.config.creates_database {
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
