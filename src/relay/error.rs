//! Errors that prevent a relay from starting, with advice.

use std::io;
use std::net::SocketAddr;

use crate::deliver::BackendError;
use crate::journal::disk::OpenError;

/// An error of a part that the relay only passes on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a relay could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration names something that cannot be used.
    #[error("{0}")]
    Setup(#[from] BackendError),
    /// Users, a listener, a certificate or the pair of the configuration cannot be used.
    #[error("{0}")]
    Config(BoxError),
    /// Another process uses the data folder.
    #[error("{0} is in use by another process: give each relay its own data_dir")]
    Locked(String),
    /// The data folder cannot be used.
    #[error("cannot use the data folder {0}: {1}; create it, or give another with --data-dir")]
    DataDir(String, io::Error),
    /// The journal cannot be opened.
    #[error("cannot open the journal in {0}: {1}")]
    Journal(String, OpenError),
    /// A listener's address cannot be used.
    #[error("cannot listen on {kind} {address}: {error}{}", advice(.kind, .error))]
    Listen {
        /// `udp`, `tcp`, `http` or `admin`.
        kind: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A passed socket cannot be used.
    #[error("socket activation: {0}")]
    Inherited(io::Error),
    /// The system cannot start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

fn advice(kind: &str, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program has it, or another listener of this configuration: stop that one, or change"
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address: change",
        _ => return String::new(),
    };
    let option = if kind == "tcp" { String::new() } else { format!(" (--{kind})") };
    format!("; {what} {kind}.listen{option}")
}
