//! What an HTTP listener logs: each event once a minute, with the number of times that it was not told.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;

use crate::receive::crowd_logs::CrowdLogs;
use crate::sys::{Leave, Throttle};

/// One throttle for each event, so that none hides another.
#[derive(Debug)]
pub(super) struct Logs {
    listen: SocketAddr,
    pub(super) crowd: CrowdLogs,
    timed_out: Throttle,
    other_protocol: Throttle,
    unfinished: Throttle,
    refused: Throttle,
    full: Throttle,
}

impl Logs {
    pub(super) fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            crowd: CrowdLogs::new(listen),
            timed_out: Throttle::default(),
            other_protocol: Throttle::default(),
            unfinished: Throttle::default(),
            refused: Throttle::default(),
            full: Throttle::default(),
        }
    }

    /// A request's head did not come in time.
    pub(super) fn timed_out(&self, source: IpAddr) {
        let Some(Leave { untold }) = self.timed_out.pass() else { return };
        tracing::info!(listen = %self.listen, %source, untold, "ended a connection whose request did not come in time");
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
