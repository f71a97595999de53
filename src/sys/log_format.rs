//! The format of the log's lines: text, JSON, or text with syslog levels for a journal.
//!
//! A journal (`sd-daemon(3)`) reads `<4>` at the beginning of a line as its level, and adds the
//! time itself.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{self, FmtContext, format};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The format of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text; for a journal with its level, and without the time that it knows itself
    #[default]
    Text,
    /// An object of JSON in each line
    Json,
}

/// Starts the log of this process. Omits events below `level`, unless `RUST_LOG` is set, such as
/// `debug` or `info,twinflux=debug`.
pub fn start(level: LevelFilter, format: LogFormat, writer: BoxMakeWriter) {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(level));
    // A failing log must not stop the relay.
    let lines = fmt::layer().log_internal_errors(false).with_target(false).with_writer(writer);
    let log = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text if is_for_journal() => {
            let plain = format::format().without_time().with_target(false).with_level(false).with_ansi(false);
            lines.with_ansi(false).event_format(Leveled(plain)).boxed()
        }
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}

/// Returns whether standard error is a journal's stream: systemd provides its device and inode.
fn is_for_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    named == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Formats lines with a syslog level in front, for a journal.
struct Leveled<F>(F);

impl<S, N, F> FormatEvent<S, N> for Leveled<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
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
