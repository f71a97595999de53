//! How the log's lines look: text, JSON, or text with the levels that a journal takes.
//!
//! A journal (`sd-daemon(3)`) takes `<4>` at a line's beginning for its level, and has times of its own.

use std::fmt;
use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, format};
use tracing_subscriber::registry::LookupSpan;

/// What a line of the log is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text; for a journal with its level, and without the time that it knows itself
    #[default]
    Text,
    /// An object of JSON in each line
    Json,
}

/// Starts the log of this process. Lines below `level` are left out, unless `RUST_LOG` says otherwise.
pub fn start(level: &str, format: LogFormat, writer: BoxMakeWriter) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log that cannot be written is no reason to stop relaying.
        .log_internal_errors(false)
        .with_writer(writer);
    match format {
        LogFormat::Json => log.json().flatten_event(true).with_target(false).init(),
        LogFormat::Text if is_for_journal() => {
            let plain = format::format().without_time().with_target(false).with_level(false).with_ansi(false);
            log.with_ansi(false).event_format(Leveled(plain)).init();
        }
        LogFormat::Text => log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

/// Whether standard error is a journal's stream: systemd names its device and inode.
fn is_for_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    named == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Lines with their level before them, as a journal takes it.
struct Leveled<F>(F);

impl<S, N, F> FormatEvent<S, N> for Leveled<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{level}>")?;
        self.0.format_event(context, writer, event)
    }
}
