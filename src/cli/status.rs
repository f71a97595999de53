//! `twinflux status`: shows a running relay's state once or repeatedly, for people and for
//! monitoring.
//!
//! Asks the admin listener, or the control socket if a data folder is named. Bounds: with
//! `--watch`, one request each [`REDRAW`].

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::OfDataDir;
use crate::cli::outcome::{Ended, Failure, print, print_on};
use crate::cli::socket;
use crate::config::listen::parse_admin;
use crate::observe::findings::Severity;
use crate::observe::{Status, json};

/// Interval between two pictures of `--watch`.
const REDRAW: Duration = Duration::from_secs(2);
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Options of `status`: which relay, and how to show its state.
#[derive(Args, Clone, Debug)]
pub struct StatusOptions {
    /// The relay's admin address, where that asks for no user
    #[arg(long, value_name = "ADDR", value_parser = parse_admin, default_value = "127.0.0.1:9097")]
    pub admin: SocketAddr,
    /// The configuration file that names the data folder: ask the relay through that, as its own
    /// user
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    pub config: Option<PathBuf>,
    /// The data folder: ask the relay through that, as its own user
    #[arg(long, value_name = "FOLDER", conflicts_with = "admin")]
    pub data_dir: Option<PathBuf>,
    /// Draw it again every two seconds, until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "check", "live"])]
    pub watch: bool,
    /// Print what /api/status says
    #[arg(long, conflicts_with_all = ["check", "live"])]
    pub json: bool,
    /// Print one line for monitoring; exit code 0 if all is well, 1 if there is something to do, 3
    /// if nobody answers
    #[arg(long, conflicts_with = "live")]
    pub check: bool,
    /// Print nothing; exit code 0 while the relay answers, whatever its backends do, and 3 if it
    /// does not
    #[arg(long)]
    pub live: bool,
}

impl StatusOptions {
    /// Shows the state.
    ///
    /// # Errors
    /// No relay answers, or with `--check` there is something to do.
    pub fn run(&self) -> Ended {
        if self.watch {
            return self.watch();
        }
        let status = self.ask()?;
        if self.live {
            return Ok(());
        }
        if self.check {
            return check(&status);
        }
        if self.json {
            let text = json::render(&status);
            return print(&format!("{}\n", String::from_utf8_lossy(&text)));
        }
        print(&status.to_text())
    }

    fn ask(&self) -> Result<Status, Failure> {
        if self.config.is_none() && self.data_dir.is_none() {
            let admin = self.admin;
            return Status::fetch(admin).map_err(|error| {
                Failure::Unreachable(format!(
                    "no status from {admin}: {error}; is the relay running, with this --admin?"
                ))
            });
        }
        let of = OfDataDir { config: self.config.clone(), data_dir: self.data_dir.clone() };
        socket::status(&of.folder()?).map_err(Failure::unreachable)
    }

    /// Draws the state again and again until the process is ended or its output is closed.
    fn watch(&self) -> Ended {
        let before = if io::stdout().is_terminal() { CLEAR } else { "\n" };
        loop {
            let text = match self.ask() {
                Ok(status) => status.to_text(),
                Err(error @ Failure::BadConfiguration(_)) => return Err(error),
                Err(error) => format!("{error}\n"),
            };
            if !print_on(&format!("{before}{text}"))? {
                return Ok(());
            }
            std::thread::sleep(REDRAW);
        }
    }
}

/// Prints one line; fails with [`Failure::Reported`] if there is something to do.
fn check(status: &Status) -> Ended {
    let to_do: Vec<_> = status.findings.iter().filter(|finding| finding.severity != Severity::Note).collect();
    let Some(first) = to_do.first() else {
        let (backends, lines) = (status.backends.len(), status.accepted_lines);
        return print(&format!("all is well: {backends} backends, {lines} lines accepted\n"));
    };
    let more = match to_do.len() - 1 {
        0 => String::new(),
        more => format!("; {more} more: twinflux status"),
    };
    let what = crate::sys::text::printable(&first.what);
    print(&format!("{what}{more}\n"))?;
    Err(Failure::Reported)
}
