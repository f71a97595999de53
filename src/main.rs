//! The program: command line, start, signals, and exit codes (0 success, 1 failure at run time, 2
//! bad usage or configuration, 3 unreachable).
//!
//! A closed output (`twinflux journal dump DIR | head`) is no failure, because its reader has read
//! what it wanted. Output that cannot be written for another reason, such as a full disk, is a
//! failure.
mod run;
mod signals;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use run::{drain, run};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use twinflux::cli::dead_letters;
use twinflux::cli::generate::generate;
use twinflux::cli::journal::Stopped;
use twinflux::cli::maintenance;
use twinflux::cli::outcome::{Ended, Failure, print};
use twinflux::cli::socket::{Action, BackendAction};
use twinflux::cli::{Cli, Command, DeadLettersCommand, JournalCommand, OneBackend, Restore};
use twinflux::config::{Config, relay_toml};
use twinflux::deliver::Backend;
use twinflux::deliver::restore::RestoreError;
use twinflux::relay::CHANGEABLE;
use twinflux::sys::dumps;
use twinflux::sys::log::Log;
use twinflux::sys::log_format::{self, LogFormat};
use twinflux::sys::text::printable_lines;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the process waits at its end until its last log lines are written.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (level, format) = match &cli.command {
        None => (LevelFilter::INFO, cli.run.log_format),
        // The demo's screen shows what the log would.
        #[cfg(feature = "demo")]
        Some(Command::Demo) => (LevelFilter::OFF, LogFormat::Text),
        Some(_) => (LevelFilter::INFO, LogFormat::Text),
    };
    with_log(level, format, |log| match cli.command {
        None => run(&cli.run, log),
        Some(command) => perform(command, log),
    })
}

/// Runs `work` with a log that has its own thread, so that a slow reader of the log blocks nothing.
fn with_log(level: LevelFilter, format: LogFormat, work: impl FnOnce(&Arc<Log>) -> Ended) -> ExitCode {
    let log = match Log::start(io::stderr()) {
        Ok(log) => Arc::new(log),
        Err(error) => {
            let ended = Err(Failure::Failed(format!("cannot start a thread: {error}")));
            return conclude(ended, |error| drop(io::stderr().write_all(error)));
        }
    };
    log_format::start(level, format, BoxMakeWriter::new(Arc::clone(&log)));
    log_panics(&log);
    // The exit code reports the error even if nobody reads the log.
    let code = conclude(work(&log), |error| log.line(error));
    log.flush(LAST_LINES);
    code
}

fn perform(command: Command, log: &Arc<Log>) -> Ended {
    match command {
        Command::Backend { name, action, of } => backend(&of.folder()?, &name, action),
        Command::ForgetHost { address, of } => print(&maintenance::forget_host(&of.folder()?, address)?),
        Command::Check { config } => check(&config),
        Command::Status(options) => options.run(),
        Command::Tail(options) => options.run(),
        Command::Journal(command) => journal(command),
        Command::DeadLetters(command) => dead_letters(&command),
        Command::Restore(command) => restore(&command),
        Command::Convert { file } => convert(&file),
        Command::Doctor(doctor) => doctor.run(),
        Command::Reload(of) => print(&maintenance::reload(&of.folder()?)?),
        Command::Drain(options) => drain(&options, log),
        Command::Generate { kind, folder } => {
            let files = generate(kind, &folder).map_err(Failure::failed)?;
            print(&files.iter().map(|file| format!("{}\n", file.display())).collect::<String>())
        }
        #[cfg(feature = "demo")]
        Command::Demo => demo(),
    }
}

/// Writes panics to the log. Standard error itself could block a thread for ever.
fn log_panics(log: &Arc<Log>) {
    let log = Arc::clone(log);
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let name = thread.name().unwrap_or("without a name");
        log.line(format!("twinflux: BUG: the thread {name} {panic}\n{backtrace}\n").as_bytes());
        log.flush(LAST_LINES);
    }));
}

/// Passes an error to `write`, and returns the exit code.
fn conclude(ended: Ended, write: impl FnOnce(&[u8])) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // The failure has already been reported.
        Err(failure @ Failure::Reported) => ExitCode::from(failure.exit_code()),
        Err(failure) => {
            // Parts of the error may be untrusted text.
            write(&printable_lines(format!("twinflux: {failure}\n").as_bytes()));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn check(file: &Path) -> Ended {
    let bad = |error: &dyn Display| Failure::BadConfiguration(format!("{}: {error}", file.display()));
    let config = Config::load(Some(file), twinflux::config::Overrides::default())?;
    if config.holds_secrets() {
        dumps::forbid();
    }
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    config.auth()?;
    config.listeners(None)?;
    config.pair.check().map_err(|error| bad(&error))?;
    for setup in config.backends() {
        Backend::new(setup).map_err(|error| bad(&error))?;
    }
    let text = toml::to_string(&config).map_err(Failure::bad_configuration)?;
    print(&format!(
        "# {} is fine; with all defaults it says:\n# {}\n{text}",
        file.display(),
        CHANGEABLE.replace(". ", ".\n# ")
    ))
}

fn convert(file: &Path) -> Ended {
    let converted = relay_toml::convert(file).map_err(Failure::bad_configuration)?;
    print(&converted.commented())
}

#[cfg(feature = "demo")]
fn demo() -> Ended {
    match twinflux::demo::run() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::failed("a store does not hold every line")),
        Err(error) => Err(Failure::failed(error)),
    }
}

fn dead_letters(command: &DeadLettersCommand) -> Ended {
    let (DeadLettersCommand::List(letters)
    | DeadLettersCommand::Show(letters)
    | DeadLettersCommand::Resend(letters)
    | DeadLettersCommand::Discard(letters)) = command;
    let data_dir = letters.of.folder()?;
    let change = |action| dead_letters::change(&data_dir, letters, action).map_err(Failure::from);
    let text = match command {
        DeadLettersCommand::List(_) => dead_letters::list(&data_dir, letters).map_err(Failure::failed),
        DeadLettersCommand::Show(_) => dead_letters::show(&data_dir, letters).map_err(Failure::failed),
        DeadLettersCommand::Resend(_) => change(Action::Resend),
        DeadLettersCommand::Discard(_) => change(Action::Discard),
    };
    print(&text?)
}

fn backend(data_dir: &Path, name: &str, action: BackendAction) -> Ended {
    let (text, is_well) = maintenance::change(data_dir, name, action)?;
    print(&text)?;
    let is_done = is_well || action != BackendAction::Try;
    if is_done { Ok(()) } else { Err(Failure::Failed(format!("{name} does not take lines"))) }
}

fn journal(command: JournalCommand) -> Ended {
    match command {
        JournalCommand::Verify { folder } => {
            let (is_sound, text) =
                Stopped::open(&folder).and_then(|journal| journal.verify()).map_err(Failure::failed)?;
            print(&text)?;
            if !is_sound {
                return Err(Failure::failed("the journal is damaged; a relay that is started on it delivers the rest"));
            }
        }
        JournalCommand::Dump { folder } => {
            Stopped::open(&folder)
                .and_then(|journal| journal.dump(io::stdout().lock(), io::stdout().is_terminal()))
                .map_err(Failure::failed)?;
        }
        JournalCommand::Stats { folder } => {
            let text = Stopped::open(&folder).and_then(|journal| journal.stats()).map_err(Failure::failed)?;
            print(&text)?;
        }
        JournalCommand::Forget(backend) => {
            let lines = open_journal_of(&backend)?.forget(&backend.name).map_err(Failure::failed)?;
            print(&format!("{} is forgotten: {lines} lines that were kept for it are given up\n", backend.name))?;
        }
        JournalCommand::Moved(backend) => {
            let was = open_journal_of(&backend)?.moved(&backend.name).map_err(Failure::failed)?;
            let name = &backend.name;
            print(&format!("{name} was {was}: it gets what is kept for it wherever the next start finds it\n"))?;
        }
    }
    Ok(())
}

fn open_journal_of(backend: &OneBackend) -> Result<Stopped, Failure> {
    Stopped::open(&backend.of.folder()?).map_err(Failure::failed)
}

fn restore(command: &Restore) -> Ended {
    match command.run() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::failed("not every line was put back")),
        Err(error @ RestoreError::Usage(_)) => Err(Failure::bad_configuration(error)),
        Err(error @ RestoreError::Unreachable(_)) => Err(Failure::Unreachable(format!("{error}{AGAIN}"))),
        Err(error @ RestoreError::Failed(_)) => Err(Failure::Failed(format!("{error}{AGAIN}"))),
    }
}

/// Advice for continuing a restore that ended early.
const AGAIN: &str = "; run it again when that is mended: points that are there already are stored once";
