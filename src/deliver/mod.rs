//! From the journal to the backends: one flusher for each, wholly independent.
//!
//! Owns: the endpoints (InfluxDB over HTTP, an archive folder, another relay), the meaning of answers
//! ([`outcome`]), each backend's [`Health`], the probe that begins it; the way back from an archive ([`restore`]).
//!
//! Never does: deciding what is kept or dropped (the journal does), joining or changing lines.
//! Bounds: one request at a time to each backend (and at the start a probe), with time limits; 64 KiB of any answer, and
//! 500 bytes of what is shown of it.

mod addresses;
mod archive;
mod client;
mod flusher;
pub mod header;
mod health;
mod influx;
mod opening;
pub mod outcome;
mod probe;
mod relay;
pub mod restore;
mod secret;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::journal::{Lease, Limits, Reader};
use crate::sys::text::cut;
use archive::Archive;
use flusher::Flusher;
use influx::Influx;
use outcome::Fate;
use probe::Probe;
use relay::Relay;

pub use archive::{Bounds, MAX_FOLDER_BYTES, folder_bytes};
pub use health::{Health, State};
pub use influx::{Api, Setup as InfluxSetup};
pub use relay::MAX_DATAGRAM_BYTES;
pub use secret::{Secret, SecretFile};

/// How much of what a backend or the system said is kept, in bytes.
const TEXT_BYTES: usize = 500;

/// How a backend is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its identity in the journal, in logs and metrics.
    pub name: String,
    /// What it is.
    pub target: Target,
    /// When and how much is sent.
    pub limits: Limits,
}

/// What a backend is.
#[derive(Clone, Debug)]
pub enum Target {
    /// An InfluxDB.
    Influx(InfluxSetup),
    /// A folder of line-protocol files, and what it may hold.
    Archive(PathBuf, Bounds),
    /// Another relay.
    Relay {
        /// `name:port`
        host: String,
        /// The largest datagram, in bytes.
        mtu: usize,
    },
}

/// A setup that cannot work: what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub(crate) String);

/// A backend ready to be started: its secrets and certificates are read.
#[derive(Debug)]
pub struct Backend {
    setup: Setup,
    endpoint: Endpoint,
}

impl Backend {
    /// Reads what the setup names; makes no connection.
    ///
    /// # Errors
    /// What is wrong with a secret or certificate file.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let named = |error: SetupError| SetupError(format!("backend {:?}: {error}", setup.name));
        let endpoint = match setup.target.clone() {
            Target::Influx(influx) => Endpoint::Influx(Box::new(Influx::new(influx).map_err(named)?)),
            Target::Archive(folder, bounds) => Endpoint::Archive(Archive::new(folder, bounds)),
            Target::Relay { host, mtu } => Endpoint::Relay(Box::new(Relay::new(host, mtu))),
        };
        Ok(Self { setup, endpoint })
    }

    /// Starts the flusher, and a probe that tells whether the backend can be reached. It ends once the journal is closed and what can be delivered is; `closing` becomes
    /// true at that time and ends its pauses.
    pub fn start(
        self,
        runtime: &Handle,
        reader: Reader,
        health: Arc<Health>,
        closing: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let Setup { name, limits, .. } = self.setup;
        if let Endpoint::Archive(archive) = &self.endpoint {
            drop(runtime.spawn(archive.clone().keep(name.clone(), closing.clone())));
        }
        let probe = self.endpoint.probe();
        drop(runtime.spawn(probe.run(name.clone(), Arc::clone(&health), closing.clone())));
        let flusher = Flusher::new(name, self.endpoint, reader, limits, health, closing);
        runtime.spawn(flusher.run())
    }
}

/// Where a lease is written to.
#[derive(Debug)]
enum Endpoint {
    Influx(Box<Influx>),
    Archive(Archive),
    Relay(Box<Relay>),
}

impl Endpoint {
    /// What tells whether it can be reached.
    fn probe(&self) -> Probe {
        match self {
            Self::Influx(influx) => Probe::Influx(Box::new(influx.another())),
            Self::Archive(archive) => Probe::Archive(archive.clone()),
            Self::Relay(relay) => Probe::Relay(relay.host().to_owned()),
        }
    }

    async fn write(&mut self, lease: &Lease) -> Outcome {
        match self {
            Self::Influx(influx) => influx.write(lease).await,
            Self::Archive(archive) => archive.write(lease).await,
            Self::Relay(relay) => relay.write(lease).await,
        }
    }
}

/// How a try to write ended.
#[derive(Debug)]
struct Outcome {
    fate: Fate,
    /// What the backend or the system said, for people; empty after a success.
    text: String,
}

impl Outcome {
    /// With the text's beginning: an answer repeats as much as its server likes.
    fn new(fate: Fate, mut text: String) -> Self {
        text.truncate(cut(&text, TEXT_BYTES).len());
        Self { fate, text }
    }
}
