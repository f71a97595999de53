//! Delivers batches from the journal to the backends: one independent flusher per backend.
//!
//! Owns: the endpoints (InfluxDB over HTTP, an archive folder, another relay), the meaning of
//! answers ([`outcome`]), each backend's [`Health`], the probe that queries a backend while it
//! receives no lines, and the restore of an archive ([`restore`]).
//!
//! Never does: decide what is kept or dropped (the journal does); join or change lines.
//!
//! Bounds: `concurrency` requests in flight per backend, plus a probe, each with time limits; 64
//! KiB read of any answer, and 500 bytes of it shown.

mod archive;
pub mod dead_letters;
mod division;
pub mod examination;
mod flusher;
pub mod header;
mod health;
mod influx;
pub mod outcome;
mod probe;
mod reading;
mod relay;
pub mod resend;
pub mod restore;
pub mod statements;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::batch::Destination;
use crate::journal::{BackendId, Limits, Reader, Rejection};
use crate::net::ClientTlsError;
use crate::sys::text::cut;
use archive::Archive;
use dead_letters::DeadLetters;
use examination::Sign;
use flusher::Flusher;
use influx::Influx;
use outcome::Fate;
use probe::{Probe, Probed};
use relay::Relay;
use statements::Statements;

pub use archive::{Bounds, MAX_FOLDER_BYTES, folder_bytes};
pub use health::{Health, Held, State};
pub use influx::{Api, CredentialError, InfluxConfig};
pub use reading::{Link, LinkError, Reads, Upstream};
pub use relay::MAX_DATAGRAM_BYTES;

/// Maximum length of a kept error text or answer, in bytes.
const TEXT_BYTES: usize = 500;

/// Configuration of a backend.
#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    /// Name of the backend in the journal, in logs and in metrics.
    pub name: String,
    /// Kind of the backend.
    pub target: Target,
    /// When to send, and how much at once.
    pub limits: Limits,
    /// Maximum number of requests in flight, to an InfluxDB.
    pub concurrency: usize,
    /// Longest back-off between two tries.
    pub retry_max: Duration,
    /// How often to probe an idle backend. Zero: only at the start.
    pub probe_interval: Duration,
}

/// Kind of a backend.
#[derive(Clone, Debug)]
pub enum Target {
    /// An InfluxDB.
    Influx(Box<InfluxConfig>),
    /// A folder of line-protocol files, and its bounds.
    Archive(PathBuf, Bounds),
    /// Another relay.
    Relay {
        /// `name:port`
        host: String,
        /// Maximum size of a datagram, in bytes.
        mtu: usize,
    },
}

/// A configuration that cannot work. The message says what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A certificate file cannot be used.
    #[error("{0}")]
    Tls(#[from] ClientTlsError),
    /// A secret cannot be used.
    #[error("{0}")]
    Credentials(#[from] CredentialError),
    /// The error of the backend with this name.
    #[error("backend {0:?}: {1}")]
    Named(String, #[source] Box<Self>),
}

/// A backend ready to start: its secrets and certificates have been read.
#[derive(Debug)]
pub struct Backend {
    config: DeliveryConfig,
    endpoint: Endpoint,
}

impl Backend {
    /// Reads the files that the configuration names. Opens no connection.
    ///
    /// # Errors
    /// A secret or certificate file cannot be used.
    pub fn new(config: DeliveryConfig) -> Result<Self, BackendError> {
        let named = |error| BackendError::Named(config.name.clone(), Box::new(error));
        let endpoint = match config.target.clone() {
            Target::Influx(influx) => Endpoint::Influx(Box::new(Influx::new(*influx).map_err(named)?)),
            Target::Archive(folder, bounds) => Endpoint::Archive(Archive::new(folder, bounds)),
            Target::Relay { host, mtu } => Endpoint::Relay(Box::new(Relay::new(host, mtu))),
        };
        Ok(Self { config, endpoint })
    }

    /// Returns a client for reading from the backend, or `None` for a backend that answers no
    /// queries.
    ///
    /// # Errors
    /// The file of the reader's secret cannot be used.
    pub fn upstream(&self, reads: &Reads) -> Result<Option<Upstream>, BackendError> {
        match &self.endpoint {
            Endpoint::Influx(influx) => {
                let named = |error| BackendError::Named(self.config.name.clone(), Box::new(error));
                Upstream::new(influx, reads).map(Some).map_err(named)
            }
            _ => Ok(None),
        }
    }

    /// Examines the backend for these destinations without changing anything.
    pub async fn examine(&self, destinations: &[Arc<Destination>]) -> Vec<Sign> {
        examination::examine(self.endpoint.probed(), destinations).await
    }

    /// Sends nothing, but keeps statements for the backend until an operator acts.
    pub fn await_operator(self, id: BackendId, statements: &Statements) {
        if matches!(self.endpoint, Endpoint::Influx(_)) {
            statements.note_absent(self.config.name, id);
        }
    }

    /// Starts the flusher, and a probe that finds out whether the backend accepts lines for these
    /// destinations.
    ///
    /// The flusher ends once the journal is closed and everything deliverable is delivered.
    /// `closing` becomes true when the relay shuts down, and ends the flusher's pauses.
    pub fn start(self, runtime: &Handle, reader: Reader, health: Arc<Health>, around: &Around) -> JoinHandle<()> {
        let Around { letters, statements, destinations, closing } = around.clone();
        let DeliveryConfig { name, limits, concurrency, retry_max, probe_interval, .. } = self.config;
        if let Endpoint::Archive(archive) = &self.endpoint {
            drop(runtime.spawn(archive.clone().keep(name.clone(), closing.clone())));
        }
        if let Endpoint::Influx(influx) = &self.endpoint {
            let (shown, closing) = (Arc::clone(&health), closing.clone());
            let known = (name.clone(), reader.backend());
            let serving = statements.serve(known, influx.another(), shown, closing, retry_max);
            drop(runtime.spawn(serving));
        }
        let probe = Probe::new(name.clone(), self.endpoint.probed(), destinations, (probe_interval, retry_max));
        drop(runtime.spawn(probe.run(Arc::clone(&health), closing.clone())));
        let endpoints = self.endpoint.several(concurrency);
        let flusher = Flusher::new(name, endpoints, reader, (limits, retry_max), health, letters, closing);
        runtime.spawn(flusher.run())
    }
}

/// What all backends share.
#[derive(Clone, Debug)]
pub struct Around {
    /// Where rejected lines are kept.
    pub letters: Arc<DeadLetters>,
    /// The statements that every InfluxDB has to run.
    pub statements: Arc<Statements>,
    /// The listeners' destinations, as far as they are known before any line arrives.
    pub destinations: Vec<Arc<Destination>>,
    /// Becomes true once the relay shuts down.
    pub closing: watch::Receiver<bool>,
}

/// Where leases are written to.
#[derive(Debug)]
enum Endpoint {
    Influx(Box<Influx>),
    Archive(Archive),
    Relay(Box<Relay>),
    /// Outcomes that a test chooses.
    #[cfg(test)]
    Scripted(flusher::Script),
}

impl Endpoint {
    /// Returns what a probe needs to check whether the endpoint can be reached.
    fn probed(&self) -> Probed {
        match self {
            Self::Influx(influx) => Probed::Influx(Box::new(influx.another())),
            Self::Archive(archive) => Probed::Archive(archive.clone()),
            Self::Relay(relay) => Probed::Relay(relay.host().to_owned()),
            #[cfg(test)]
            Self::Scripted(_) => Probed::Relay(String::new()),
        }
    }

    /// Returns one endpoint per request in flight. Files and datagrams are written one after
    /// another, so these kinds have one.
    fn several(self, concurrency: usize) -> Vec<Self> {
        let Self::Influx(influx) = self else { return vec![self] };
        let others: Vec<_> = (1..concurrency).map(|_| Self::Influx(Box::new(influx.another()))).collect();
        others.into_iter().chain([Self::Influx(influx)]).collect()
    }

    /// Writes lines. Each part holds whole lines.
    async fn write(&mut self, destination: &Arc<Destination>, parts: Vec<Bytes>) -> Outcome {
        match self {
            Self::Influx(influx) => influx.send(destination, parts).await,
            Self::Archive(archive) => archive.write(Arc::clone(destination), parts).await,
            Self::Relay(relay) => relay.write(destination, &parts).await,
            #[cfg(test)]
            Self::Scripted(script) => script.write(destination, &parts.concat()).await,
        }
    }
}

/// Outcome of one write.
#[derive(Debug)]
struct Outcome {
    fate: Fate,
    /// What the backend or the system said, for people. Empty after a success.
    text: String,
    /// Status of the answer, or `None` if there was no answer.
    status: Option<u16>,
    /// Body of a rejection, which may name lines. Otherwise empty.
    body: String,
}

impl Outcome {
    /// Whether the backend has no such database or bucket.
    fn tells_missing_database(&self) -> bool {
        self.status == Some(404) && ["database not found", "bucket"].iter().any(|what| self.text.contains(what))
    }

    /// Keeps only the beginning of the text, because servers answer with texts of any length.
    fn new(fate: Fate, mut text: String) -> Self {
        text.truncate(cut(&text, TEXT_BYTES).len());
        Self { fate, text, status: None, body: String::new() }
    }

    /// Makes the outcome of an answer.
    fn of_answer(fate: Fate, text: String, status: u16, body: String) -> Self {
        let body = if matches!(fate, Fate::Rejected { .. }) { body } else { String::new() };
        Self { status: Some(status), body, ..Self::new(fate, text) }
    }

    /// What the backend said of the lines, or what went wrong.
    fn answer(&self) -> &str {
        if self.body.is_empty() { &self.text } else { &self.body }
    }

    /// Whether the answer counts all of these lines as rejected for this class. (InfluxDB 1.x does
    /// not count lines that it could not parse.)
    fn counts(&self, class: Rejection, lines: usize) -> bool {
        class != Rejection::Unparsable && outcome::dropped(&self.body) == Some(lines as u64)
    }

    /// Whether one of the lines may be the cause of the failure: the backend failed without giving
    /// a reason, an intermediary refused the request, or there was no answer. (A backend that asks
    /// for fewer requests says so.)
    fn may_be_a_lines_fault(&self) -> bool {
        match self.fate {
            Fate::Failed | Fate::Unexpected | Fate::Stalled => true,
            Fate::Busy { .. } => matches!(self.status, Some(502..=504)),
            _ => false,
        }
    }
}
