//! The command line, and the commands that read a relay's files or ask a running relay.
//!
//! Owns the arguments and the commands. May use every other module; only the wiring uses this one,
//! to answer on the control socket.

pub mod dead_letters;
mod doctor;
pub mod generate;
pub mod journal;
pub mod maintenance;
pub mod outcome;
mod restore;
pub mod socket;
mod status;
mod tail;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::cli::dead_letters::Since;
use crate::cli::outcome::Failure;
use crate::cli::socket::BackendAction;
use crate::config::listen::{parse_admin, parse_data};
use crate::config::url::{BackendUrl, InvalidUrl};
use crate::config::{Config, Overrides};
use crate::sys::log_format::LogFormat;
pub use doctor::Doctor;
pub use status::StatusOptions;
pub use tail::Tail;

/// A `--backend` option names an invalid URL.
#[derive(Debug, thiserror::Error)]
#[error("--backend: {0}")]
pub struct InvalidBackend(#[from] InvalidUrl);

/// Keeps two or more InfluxDB servers holding the same data: receives line protocol, Graphite,
/// OpenTSDB and Netdata's JSON over UDP and TCP, writes every line to every backend, and accounts
/// for each of them. TCP listeners are set up in the configuration file.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command; without one, the relay runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The relay's options.
    #[command(flatten)]
    pub run: Run,
}

/// The relay's command-line options; they override the configuration file.
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run influxdb-relay's configuration file as it is
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub relay_config: Option<PathBuf>,
    /// Listen for UDP here instead of the file's listeners: host and port, or a port only [default:
    /// 0.0.0.0:8089]
    #[arg(long, value_name = "ADDR", value_parser = parse_data)]
    pub udp: Option<SocketAddr>,
    /// Listen for InfluxDB's HTTP writes here: host and port, or a port only
    #[arg(long, value_name = "ADDR", value_parser = parse_data)]
    pub http: Option<SocketAddr>,
    /// Show the status here: host and port, or a port of 127.0.0.1 [default: 127.0.0.1:9097]
    #[arg(long, value_name = "ADDR", value_parser = parse_admin)]
    pub admin: Option<SocketAddr>,
    /// Keep data here [default: ./twinflux-data without a configuration file, else
    /// /var/lib/twinflux]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Write to this backend, instead of the file's; repeat it for each [default: an archive in the
    /// data folder]
    #[arg(long = "backend", value_name = "URL")]
    pub backends: Vec<String>,
    /// The user of all HTTP backends (1.x API)
    #[arg(long, value_name = "NAME", requires = "backend_password_file")]
    pub backend_username: Option<String>,
    /// The file with that user's password
    #[arg(long, value_name = "FILE", requires = "backend_username")]
    pub backend_password_file: Option<PathBuf>,
    /// Write the log as text, or as JSON
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// The database that lines go to [default: telegraf]
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
}

impl Run {
    /// Returns the options that override the file.
    ///
    /// # Errors
    /// A `--backend` URL is invalid. The URLs are parsed here and not with the other options,
    /// because an error of the option parser would repeat the text, and with it a password written
    /// there.
    pub fn overrides(&self) -> Result<Overrides, InvalidBackend> {
        let backends = self.backends.iter().map(|url| url.parse::<BackendUrl>());
        Ok(Overrides {
            udp: self.udp,
            http: self.http,
            admin: self.admin,
            data_dir: self.data_dir.clone(),
            backends: backends.collect::<Result<_, _>>()?,
            database: self.database.clone(),
            credentials: self.backend_username.clone().zip(self.backend_password_file.clone()),
        })
    }
}

/// Options of `drain`: which journal to deliver, and to which backends.
#[derive(Args, Debug)]
pub struct Drain {
    /// The configuration file, whose listeners are left out
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder [default: ./twinflux-data without a configuration file, else
    /// /var/lib/twinflux]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Deliver to this backend, instead of the file's; repeat it for each
    #[arg(long = "backend", value_name = "URL")]
    pub backends: Vec<String>,
    /// Show the status here meanwhile: host and port, or a port of 127.0.0.1 [default: a free port
    /// of 127.0.0.1]
    #[arg(long, value_name = "ADDR", value_parser = parse_admin)]
    pub admin: Option<SocketAddr>,
}

impl Drain {
    /// Returns the options that override the file.
    ///
    /// # Errors
    /// A `--backend` URL is invalid.
    pub fn overrides(&self) -> Result<Overrides, InvalidBackend> {
        let backends = self.backends.iter().map(|url| url.parse::<BackendUrl>());
        Ok(Overrides {
            admin: Some(self.admin.unwrap_or_else(|| ([127, 0, 0, 1], 0).into())),
            data_dir: self.data_dir.clone(),
            backends: backends.collect::<Result<_, _>>()?,
            ..Overrides::default()
        })
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Have a running relay do something with a backend
    Backend {
        /// The backend's name
        #[arg(value_name = "NAME")]
        name: String,
        /// What to do
        #[arg(value_name = "ACTION")]
        action: BackendAction,
        /// The relay
        #[command(flatten)]
        of: OfDataDir,
    },
    /// Check a configuration and print it with all defaults
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print influxdb-relay's configuration as ours, with what differs as comments
    Convert {
        /// influxdb-relay's file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Deliver what a stopped relay's journal keeps, without listening, and end when nothing is
    /// pending; exit code 1 if something stays
    Drain(Drain),
    /// Examine the machine and each backend; say what is wrong and which command corrects it; exit
    /// code 1 if something is wrong
    Doctor(Doctor),
    #[cfg(feature = "demo")]
    /// Show the whole story in half a minute: 500 simulated hosts, two stores, one of them killed
    /// and revived
    Demo,
    /// Have a running relay forget a host that is gone for good: it is shown again once it sends
    ForgetHost {
        /// The host's address
        #[arg(value_name = "ADDRESS")]
        address: std::net::IpAddr,
        /// The relay
        #[command(flatten)]
        of: OfDataDir,
    },
    /// Look at lines that a backend will never take, send them again, or discard them
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Have a running relay read its configuration again, as SIGHUP does; says what that changed,
    /// and what needs a restart
    Reload(OfDataDir),
    /// Write man pages or completions into a folder
    Generate {
        /// What to write
        #[arg(value_name = "KIND")]
        kind: generate::Kind,
        /// The folder, which is made if it is missing
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Look at the journal of a stopped relay, or forget a backend
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Put an archive, or a journal's dump, back into an InfluxDB: every point as it was. Exit code
    /// 0 where it took every line, 1 where it did not, 2 for bad usage, 3 where it does not answer
    Restore(Restore),
    /// Show a running relay's state: what is wrong and what to do, and the ledger
    Status(StatusOptions),
    /// Show lines as they pass through a running relay
    Tail(Tail),
}

/// Options that name a relay by its data folder.
#[derive(Args, Clone, Debug)]
pub struct OfDataDir {
    /// The configuration file that names the data folder
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
}

impl OfDataDir {
    /// Returns the data folder.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn folder(&self) -> Result<PathBuf, Failure> {
        let overrides = Overrides { data_dir: self.data_dir.clone(), ..Overrides::default() };
        Ok(Config::load(self.config.as_deref(), overrides)?.data_dir)
    }
}

/// Options of `restore`: what to put back, and where.
#[derive(Args, Debug)]
pub struct Restore {
    /// An archive's folder, files of one, or a journal's dump; `-` reads a dump from standard input
    #[arg(value_name = "FOLDER", required = true)]
    pub inputs: Vec<PathBuf>,
    /// The InfluxDB
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Make databases that are missing
    #[arg(long)]
    pub create_database: bool,
    /// The user of the 1.x API
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// The file with that user's password
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The file with a token; with it the v2 API is used
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The organisation of the v2 API
    #[arg(long, value_name = "NAME")]
    pub org: Option<String>,
    /// The bucket of the v2 API [default: DATABASE/RETENTION_POLICY]
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,
    /// Certificates (PEM) to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Try a request again for so long, where the server cannot take it now
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub retry_for: humantime::Duration,
}

/// Actions on dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List them, a line for each
    List(Letters),
    /// Show them with the backend's answer
    Show(Letters),
    /// Have a running relay owe them to their backends again
    Resend(Letters),
    /// Have a running relay remove them
    Discard(Letters),
}

/// Selects dead letters: those that match all given options.
#[derive(Args, Debug)]
pub struct Letters {
    /// Letters by their number
    #[arg(value_name = "NUMBER")]
    pub ids: Vec<u64>,
    /// Letters of this backend
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Letters for this database
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Letters of this class: unparsable, field_type, retention, series_limit, too_large, poison or
    /// other
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// Letters since this time: "2h" for two hours ago, or "2026-11-27T03:00:00Z"
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,
    /// The relay
    #[command(flatten)]
    pub of: OfDataDir,
}

/// Actions on a stopped relay's journal.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Read everything and say what is damaged or missing; exit code 1 where something is
    Verify {
        /// The data folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Print every line, in the form that `restore` reads
    Dump {
        /// The data folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Show segments, destinations, what each backend has still to get, and the gaps
    Stats {
        /// The data folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Give up what is kept for a backend that is gone for good, or whose name is another server's
    /// now
    Forget(OneBackend),
    /// Say that a backend whose URL changed is the same server at a new address: it gets what is
    /// kept for it
    Moved(OneBackend),
}

/// A backend in a stopped relay's journal.
#[derive(Args, Debug)]
pub struct OneBackend {
    /// The backend's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The relay
    #[command(flatten)]
    pub of: OfDataDir,
}
