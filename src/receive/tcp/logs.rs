//! Log messages of a TCP listener. Each event is logged at most once a minute, with the number of
//! events suppressed since.
//!
//! Never does: counting. The tally has every number.

use std::net::{IpAddr, SocketAddr};

use crate::receive::crowd_logs::CrowdLogs;
use crate::sys::{Leave, Throttle};

/// One throttle per event, so that no event suppresses another.
#[derive(Debug)]
pub(super) struct Logs {
    listen: SocketAddr,
    pub(super) crowd: CrowdLogs,
    timed_out: Throttle,
    unfinished: Throttle,
    other_protocol: Throttle,
}

impl Logs {
    pub(super) fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            crowd: CrowdLogs::new(listen),
            timed_out: Throttle::default(),
            unfinished: Throttle::default(),
            other_protocol: Throttle::default(),
        }
    }

    pub(super) fn timed_out(&self, source: IpAddr, limit: &str) {
        let Some(Leave { untold }) = self.timed_out.pass() else { return };
        tracing::info!(listen = %self.listen, %source, untold, "a connection timed out: {limit}");
    }

    /// A connection was closed because of its unfinished line.
    pub(super) fn unfinished(&self, source: IpAddr) {
        let Some(Leave { untold }) = self.unfinished.pass() else { return };
        tracing::warn!(listen = %self.listen, %source, untold, "too many unfinished lines: ended a connection");
    }

    /// A sender speaks another protocol.
    pub(super) fn other_protocol(&self, source: IpAddr, speaks: &str, cure: &str) {
        let Some(Leave { untold }) = self.other_protocol.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            %source,
            untold,
            "a sender speaks {speaks}: {cure}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::sys::throttle::INTERVAL;

    #[test]
    fn each_event_is_told_once_a_minute_and_hides_no_other() {
        let logs = Logs::new(SocketAddr::from(([127, 0, 0, 1], 1)));
        let source = IpAddr::from([10, 0, 0, 1]);
        let events: [(&Throttle, &dyn Fn()); 3] = [
            (&logs.timed_out, &|| logs.timed_out(source, "idle_timeout")),
            (&logs.unfinished, &|| logs.unfinished(source)),
            (&logs.other_protocol, &|| logs.other_protocol(source, "TLS", "do not")),
        ];
        for (index, (throttle, tell)) in events.iter().enumerate() {
            assert!(events[index..].iter().all(|(throttle, _)| throttle.is_due()));
            (0..3).for_each(|_| tell());
            let later = throttle.pass_at(Instant::now() + INTERVAL * 2).expect("it is due");
            assert_eq!(later.untold, Some(2), "event {index}");
        }
    }
}
