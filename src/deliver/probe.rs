//! Whether a backend can be reached, told at the start, before there is a line for it.
//!
//! Delays neither the start nor delivery: it has a connection of its own. A backend that was not reached is tried again,
//! at most 30 s later, until it is or until lines tell what its state is. It is told once that it was not.

use std::sync::Arc;

use tokio::sync::watch;

use super::health::{Backoff, Health, State};
use super::{Archive, Influx};

/// What is tried.
#[derive(Debug)]
pub(super) enum Probe {
    /// `GET /ping`.
    Influx(Box<Influx>),
    /// Whether the folder can be written.
    Archive(Archive),
    /// Whether `name:port` has an address: UDP gives no answer.
    Relay(String),
}

/// What was found.
enum Found {
    /// The backend, as it describes itself.
    Reached(String),
    /// A place to send to, where nobody answers.
    Silent(String),
}

impl Probe {
    /// Tries until the backend is reached, until lines tell its state, or until the relay is to end.
    pub(super) async fn run(mut self, name: String, health: Arc<Health>, mut closing: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        let mut is_told = false;
        while !*closing.borrow() {
            match self.find().await {
                Ok(Found::Reached(what)) => {
                    health.reach();
                    tracing::info!(backend = name, found = what, "backend reached");
                    return;
                }
                Ok(Found::Silent(what)) => {
                    tracing::info!(backend = name, sends_to = what, "backend cannot be probed: UDP gives no answer");
                    return;
                }
                Err(error) => {
                    health.miss(&error);
                    if !is_told {
                        tracing::warn!(backend = name, error, "backend not reached; its lines wait");
                    }
                    is_told = true;
                }
            }
            if health.state() != State::Unknown {
                return;
            }
            drop(tokio::time::timeout(backoff.next_pause(), closing.changed()).await);
        }
    }

    async fn find(&mut self) -> Result<Found, String> {
        match self {
            Self::Influx(influx) => influx.ping().await.map(Found::Reached).map_err(|missed| missed.text),
            Self::Archive(archive) => archive.check().await.map(Found::Reached),
            Self::Relay(host) => {
                let mut addresses =
                    tokio::net::lookup_host(&*host).await.map_err(|error| format!("cannot resolve {host}: {error}"))?;
                let address = addresses.next().ok_or_else(|| format!("{host} has no address"))?;
                Ok(Found::Silent(address.to_string()))
            }
        }
    }
}
