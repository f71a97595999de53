//! What an HTTP listener logs: each event once a minute, with the number of times that it was not told.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::StatusCode;

use crate::sys::{Leave, Throttle};

/// One throttle for each event, so that none hides another.
#[derive(Debug)]
pub(super) struct Logs {
    listen: SocketAddr,
    accept_error: Throttle,
    displaced: Throttle,
    turned_away: Throttle,
    timed_out: Throttle,
    handshake: Throttle,
    other_protocol: Throttle,
    unfinished: Throttle,
    refused: Throttle,
    full: Throttle,
}

impl Logs {
    pub(super) fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            accept_error: Throttle::default(),
            displaced: Throttle::default(),
            turned_away: Throttle::default(),
            timed_out: Throttle::default(),
            handshake: Throttle::default(),
            other_protocol: Throttle::default(),
            unfinished: Throttle::default(),
            refused: Throttle::default(),
            full: Throttle::default(),
        }
    }

    pub(super) fn accept_error(&self, error: &io::Error) {
        let Some(Leave { untold }) = self.accept_error.pass() else { return };
        tracing::warn!(listen = %self.listen, %error, untold, "cannot accept a connection; is the limit of open files too low?");
    }

    /// A connection gave way to a new one.
    pub(super) fn displaced(&self, max_connections: usize) {
        let Some(Leave { untold }) = self.displaced.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            max_connections,
            untold,
            "too many connections: ended the idlest one of the source with most, to make room for a new one"
        );
    }

    /// A new connection found no room; its source has this many.
    pub(super) fn turned_away(&self, source: IpAddr, of_source: usize) {
        let Some(Leave { untold }) = self.turned_away.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            %source,
            of_source,
            untold,
            "too many connections: turned one away; max_connections and max_connections_per_source bound them"
        );
    }

    /// A request's head did not come in time.
    pub(super) fn timed_out(&self, source: IpAddr) {
        let Some(Leave { untold }) = self.timed_out.pass() else { return };
        tracing::info!(listen = %self.listen, %source, untold, "ended a connection whose request did not come in time");
    }

    /// A TLS handshake failed.
    pub(super) fn handshake(&self, source: IpAddr, error: &io::Error) {
        let Some(Leave { untold }) = self.handshake.pass() else { return };
        tracing::warn!(listen = %self.listen, %source, %error, untold, "a TLS handshake failed");
    }

    /// A sender speaks another protocol.
    pub(super) fn other_protocol(&self, source: IpAddr, speaks: &str) {
        let Some(Leave { untold }) = self.other_protocol.pass() else { return };
        tracing::warn!(listen = %self.listen, %source, untold, "a sender speaks {speaks}");
    }

    /// A request's head has come only in part, and all of them together are too large.
    pub(super) fn unfinished(&self, source: IpAddr) {
        let Some(Leave { untold }) = self.unfinished.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            %source,
            untold,
            "ended a connection: unfinished requests take too much memory, and its one takes more than its share"
        );
    }

    /// A request was answered. The address of one that was refused is worth a line; the lines that were bad have their own.
    pub(super) fn answered(&self, source: IpAddr, status: StatusCode) {
        let throttle = if status.is_server_error() { &self.full } else { &self.refused };
        if !(status.is_client_error() || status.is_server_error()) {
            return;
        }
        let Some(Leave { untold }) = throttle.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            %source,
            status = status.as_u16(),
            untold,
            "did not take a request; at most one is shown in a minute, /metrics counts all"
        );
    }
}
