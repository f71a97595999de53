//! `twinflux restore`: its options, its progress, and its final report.
//!
//! Owns what people see of a restore; [`crate::deliver::restore`] does the work. Bounds: a progress
//! line each [`ON_TERMINAL`] or [`ELSEWHERE`].

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::cli::Restore;
use crate::config::Backend;
use crate::config::exposure;
use crate::config::url::{BackendUrl, InvalidUrl};
use crate::config::{check_backend, influx_config};
use crate::deliver::restore::{Figures, RestoreConfig, RestoreError, restore};
use crate::sys::dumps;

/// Intervals of the progress line, on a terminal and elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(500);
const ELSEWHERE: Duration = Duration::from_secs(10);
/// The longest `--retry-for`: longer than anybody waits for a server.
const MAX_RETRY_FOR: Duration = Duration::from_secs(24 * 3600);

/// An option of the command is invalid.
#[derive(Debug, thiserror::Error)]
enum OptionError {
    #[error("--to: {0}")]
    Url(#[from] InvalidUrl),
    #[error("--to: lines go back into an InfluxDB: write http://HOST:8086 or https://HOST:8086")]
    NotInflux,
    #[error("{0}")]
    Backend(String),
    #[error("--create-database is for the 1.x API: with a token, create the bucket first")]
    CreateWithToken,
    #[error("--retry-for must be at most 1day")]
    TooPatient,
}

impl Restore {
    /// Returns the configuration that the options describe.
    ///
    /// # Errors
    /// An option is invalid. The URL is parsed here, because an error of the option parser would
    /// repeat it.
    fn config(&self) -> Result<RestoreConfig, OptionError> {
        let url: BackendUrl = self.to.parse()?;
        let BackendUrl::Influx { base, .. } = &url else {
            return Err(OptionError::NotInflux);
        };
        let base = base.clone();
        let backend = Backend {
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            token_file: self.token_file.clone(),
            org: self.org.clone(),
            bucket: self.bucket.clone(),
            ca_file: self.ca_file.clone(),
            ..Backend::new("restore".to_owned(), url)
        };
        check_backend(&backend).map_err(|error| {
            OptionError::Backend(match error.key {
                "url" => format!("--to: {}", error.what),
                key => format!("--{} {}", key.replace('_', "-"), error.what),
            })
        })?;
        if exposure::holds_secrets(&backend) {
            dumps::forbid();
        }
        for warning in exposure::of_credentials(&backend, "--to") {
            tracing::warn!("{warning}");
        }
        if self.create_database && self.token_file.is_some() {
            return Err(OptionError::CreateWithToken);
        }
        let patience = *self.retry_for;
        if patience > MAX_RETRY_FOR {
            return Err(OptionError::TooPatient);
        }
        Ok(RestoreConfig { influx: influx_config(&backend, &base), creates_database: self.create_database, patience })
    }

    /// Puts everything back; returns true if the server took every line. Reports progress on
    /// standard error and the result on standard output.
    ///
    /// # Errors
    /// Not everything was sent.
    pub fn run(&self) -> Result<bool, RestoreError> {
        let config = self.config().map_err(|error| RestoreError::Usage(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| RestoreError::Failed(format!("cannot start: {error}")))?;
        let mut figures = Figures::default();
        let mut screen = Screen::new();
        let ended = runtime.block_on(restore(&self.inputs, config, &mut figures, |figures| screen.show(figures)));
        screen.clear();
        if figures.lines > 0 || ended.is_ok() {
            // A closed output is not an error.
            drop(self.report(&figures, &mut io::stdout().lock()));
        }
        ended.map(|()| figures.is_complete())
    }

    fn report(&self, figures: &Figures, out: &mut impl Write) -> io::Result<()> {
        let Figures { files, files_read, lines, taken, rejected, unreadable, .. } = figures;
        for database in &figures.created {
            writeln!(out, "created the database {database:?}")?;
        }
        writeln!(out, "{taken} of {lines} lines are in {}, from {files_read} of {files} files", self.to)?;
        if let Some(answer) = &figures.first_rejection {
            // The answer may hold a stranger's text.
            writeln!(out, "{rejected} lines were refused, first with: {}", answer.escape_debug())?;
        }
        if let Some(first) = &figures.first_unreadable {
            writeln!(out, "{unreadable} more are no whole lines with a time, first {first}")?;
        }
        for file in &figures.broken {
            writeln!(out, "not read to its end: {file}")?;
        }
        if *lines == 0 {
            writeln!(out, "there was no line to put back")?;
        }
        Ok(())
    }
}

/// Progress on standard error.
struct Screen {
    is_terminal: bool,
    next: Instant,
}

impl Screen {
    fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { is_terminal, next: Instant::now() + if is_terminal { Duration::ZERO } else { ELSEWHERE } }
    }

    fn show(&mut self, figures: &Figures) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + if self.is_terminal { ON_TERMINAL } else { ELSEWHERE };
        let Figures { files, files_read, taken, rejected, unreadable, .. } = figures;
        let (begin, end) = if self.is_terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        let lost = rejected + unreadable;
        let text = format!("{begin}{taken} lines put back, {lost} not; {files_read} of {files} files{end}");
        drop(io::stderr().write_all(text.as_bytes()));
    }

    fn clear(&self) {
        if self.is_terminal {
            drop(io::stderr().write_all(b"\r\x1b[K"));
        }
    }
}
