//! From the journal to the backends: one flusher for each, wholly independent.
//!
//! Owns: the endpoints (InfluxDB over HTTP, an archive folder, another relay), the meaning of answers
//! ([`outcome`]), each backend's [`Health`], the probe that asks it while it gets no lines; the way back from an archive ([`restore`]).
//!
//! Never does: deciding what is kept or dropped (the journal does), joining or changing lines.
//! Bounds: `concurrency` requests at a time to each backend (and a probe), with time limits; 64 KiB of any answer, and
//! 500 bytes of what is shown of it.

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
pub use influx::{Api, InfluxConfig};
pub use reading::{Link, Reads, Upstream};
pub use relay::MAX_DATAGRAM_BYTES;

/// How much of what a backend or the system said is kept, in bytes.
const TEXT_BYTES: usize = 500;

/// How a backend is set up.
#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    /// Its identity in the journal, in logs and metrics.
    pub name: String,
    /// What it is.
    pub target: Target,
    /// When and how much is sent.
    pub limits: Limits,
    /// Requests that may be under way at a time, to an InfluxDB.
    pub concurrency: usize,
    /// The longest pause between two tries.
    pub retry_max: Duration,
    /// How often a backend is asked whether it would take lines, while there are none; zero: at the start only.
    pub probe_interval: Duration,
}

/// What a backend is.
#[derive(Clone, Debug)]
pub enum Target {
    /// An InfluxDB.
    Influx(Box<InfluxConfig>),
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
pub struct BackendError(pub(crate) String);

impl From<ClientTlsError> for BackendError {
    fn from(error: ClientTlsError) -> Self {
        Self(error.to_string())
    }
}

/// A backend ready to be started: its secrets and certificates are read.
#[derive(Debug)]
pub struct Backend {
    setup: DeliveryConfig,
    endpoint: Endpoint,
}

impl Backend {
    /// Reads what the setup names; makes no connection.
    ///
    /// # Errors
    /// What is wrong with a secret or certificate file.
    pub fn new(setup: DeliveryConfig) -> Result<Self, BackendError> {
        let named = |error: BackendError| BackendError(format!("backend {:?}: {error}", setup.name));
        let endpoint = match setup.target.clone() {
            Target::Influx(influx) => Endpoint::Influx(Box::new(Influx::new(*influx).map_err(named)?)),
            Target::Archive(folder, bounds) => Endpoint::Archive(Archive::new(folder, bounds)),
            Target::Relay { host, mtu } => Endpoint::Relay(Box::new(Relay::new(host, mtu))),
        };
        Ok(Self { setup, endpoint })
    }

    /// What reads from it; none for one that answers no queries.
    ///
    /// # Errors
    /// What is wrong with the file of the reader's secret.
    pub fn upstream(&self, reads: &Reads) -> Result<Option<Upstream>, BackendError> {
        match &self.endpoint {
            Endpoint::Influx(influx) => {
                let named = |error: BackendError| BackendError(format!("backend {:?}: {error}", self.setup.name));
                Upstream::new(influx, reads).map(Some).map_err(named)
            }
            _ => Ok(None),
        }
    }

    /// Looks at it, for these destinations, without changing anything.
    pub async fn examine(&self, destinations: &[Arc<Destination>]) -> Vec<Sign> {
        examination::examine(self.endpoint.probed(), destinations).await
    }

    /// Sends nothing, but has statements remembered for it.
    pub fn await_operator(self, id: BackendId, statements: &Statements) {
        if matches!(self.endpoint, Endpoint::Influx(_)) {
            statements.note_absent(self.setup.name, id);
        }
    }

    /// Starts the flusher, and a probe that tells whether the backend would take lines for these destinations. The flusher
    /// ends once the journal is closed and what can be delivered is; `closing` becomes true at that time and ends its pauses.
    pub fn start(self, runtime: &Handle, reader: Reader, health: Arc<Health>, around: &Around) -> JoinHandle<()> {
        let Around { letters, statements, destinations, closing } = around.clone();
        let DeliveryConfig { name, limits, concurrency, retry_max, probe_interval, .. } = self.setup;
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

/// What all backends have around them.
#[derive(Clone, Debug)]
pub struct Around {
    /// Where refused lines are kept.
    pub letters: Arc<DeadLetters>,
    /// What every InfluxDB is to run.
    pub statements: Arc<Statements>,
    /// Where the listeners' lines go, as far as that is known before there are lines.
    pub destinations: Vec<Arc<Destination>>,
    /// Becomes true once the relay is to end.
    pub closing: watch::Receiver<bool>,
}

/// Where a lease is written to.
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
    /// What tells whether it can be reached.
    fn probed(&self) -> Probed {
        match self {
            Self::Influx(influx) => Probed::Influx(Box::new(influx.another())),
            Self::Archive(archive) => Probed::Archive(archive.clone()),
            Self::Relay(relay) => Probed::Relay(relay.host().to_owned()),
            #[cfg(test)]
            Self::Scripted(_) => Probed::Relay(String::new()),
        }
    }

    /// As many as there may be requests under way: files and datagrams go one after the other.
    fn several(self, concurrency: usize) -> Vec<Self> {
        let Self::Influx(influx) = self else { return vec![self] };
        let others: Vec<_> = (1..concurrency).map(|_| Self::Influx(Box::new(influx.another()))).collect();
        others.into_iter().chain([Self::Influx(influx)]).collect()
    }

    /// Writes lines, in parts that hold whole ones.
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

/// How a try to write ended.
#[derive(Debug)]
struct Outcome {
    fate: Fate,
    /// What the backend or the system said, for people; empty after a success.
    text: String,
    /// The answer's status; none where there was no answer.
    status: Option<u16>,
    /// The answer's body, where it tells of lines; else empty.
    body: String,
}

impl Outcome {
    /// Whether the backend has no such database, or bucket.
    fn tells_missing_database(&self) -> bool {
        self.status == Some(404) && ["database not found", "bucket"].iter().any(|what| self.text.contains(what))
    }

    /// With the text's beginning: an answer repeats as much as its server likes.
    fn new(fate: Fate, mut text: String) -> Self {
        text.truncate(cut(&text, TEXT_BYTES).len());
        Self { fate, text, status: None, body: String::new() }
    }

    /// Of an answer.
    fn of_answer(fate: Fate, text: String, status: u16, body: String) -> Self {
        let body = if matches!(fate, Fate::Rejected { .. }) { body } else { String::new() };
        Self { status: Some(status), body, ..Self::new(fate, text) }
    }

    /// What the backend said of lines, or what went wrong.
    fn answer(&self) -> &str {
        if self.body.is_empty() { &self.text } else { &self.body }
    }

    /// Whether the answer counts every one of so many lines as refused for this. (InfluxDB 1.x does not count lines that it
    /// could not read.)
    fn counts(&self, class: Rejection, lines: usize) -> bool {
        class != Rejection::Unparsable && outcome::dropped(&self.body) == Some(lines as u64)
    }

    /// Whether one of the lines may be why the request failed: the backend failed without a reason, something between
    /// refused it, or nothing was answered. (A backend that is asked for less says so.)
    fn may_be_a_lines_fault(&self) -> bool {
        match self.fate {
            Fate::Failed | Fate::Unexpected | Fate::Stalled => true,
            Fate::Busy { .. } => matches!(self.status, Some(502..=504)),
            _ => false,
        }
    }
}
