//! Log messages of an HTTP listener. Each event is logged at most once a minute, with the number of
//! events suppressed since.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;

use crate::receive::crowd_logs::CrowdLogs;
use crate::sys::{Leave, Throttle};

/// One throttle per event, so that no event suppresses another.
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

    /// A request's head did not arrive in time.
    pub(super) fn timed_out(&self, source: IpAddr) {
        let Some(Leave { untold }) = self.timed_out.pass() else { return };
        tracing::info!(listen = %self.listen, %source, untold, "ended a connection whose request did not come in time");
    }

    /// A client speaks another protocol.
    pub(super) fn other_protocol(&self, source: IpAddr, speaks: &str) {
        let Some(Leave { untold }) = self.other_protocol.pass() else { return };
        tracing::warn!(listen = %self.listen, %source, untold, "a sender speaks {speaks}");
    }

    /// A request's head is incomplete, and all unfinished heads together are too large.
    pub(super) fn unfinished(&self, source: IpAddr) {
        let Some(Leave { untold }) = self.unfinished.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            %source,
            untold,
            "ended a connection: unfinished requests take too much memory, and its one takes more than its share"
        );
    }

    /// A request was answered. The source of a refused request is logged; refused lines are logged
    /// elsewhere.
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
