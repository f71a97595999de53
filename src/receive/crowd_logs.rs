//! Log messages about a listener's connections. Each event is logged at most once a minute, with
//! the number of events suppressed since.
//!
//! Never does: counting. The tally has every number.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::sys::{Leave, Throttle};

/// One throttle per event, so that no event suppresses another.
#[derive(Debug)]
pub(super) struct CrowdLogs {
    listen: SocketAddr,
    accept_error: Throttle,
    displaced: Throttle,
    turned_away: Throttle,
    no_header: Throttle,
    handshake: Throttle,
}

impl CrowdLogs {
    pub(super) fn new(listen: SocketAddr) -> Self {
        let (accept_error, displaced, turned_away, no_header, handshake) = Default::default();
        Self { listen, accept_error, displaced, turned_away, no_header, handshake }
    }

    pub(super) fn accept_error(&self, error: &io::Error) {
        let Some(Leave { untold }) = self.accept_error.pass() else { return };
        tracing::warn!(listen = %self.listen, %error, untold, "cannot accept a connection; is the limit of open files too low?");
    }

    /// A connection was evicted for a new one.
    pub(super) fn displaced(&self, max_connections: usize) {
        let Some(Leave { untold }) = self.displaced.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            max_connections,
            untold,
            "too many connections: ended the idlest one of the source with most, to make room for a new one"
        );
    }

    /// A new connection was turned away; its source has this many.
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

    /// A trusted proxy did not send a header that names the source.
    pub(super) fn no_header(&self, proxy: IpAddr) {
        let Some(Leave { untold }) = self.no_header.pass() else { return };
        tracing::warn!(
            listen = %self.listen,
            %proxy,
            untold,
            "a proxy begins a connection without a header of PROXY protocol 2: set send-proxy-v2 there"
        );
    }

    /// A TLS handshake failed.
    pub(super) fn handshake(&self, source: IpAddr, error: &io::Error) {
        let Some(Leave { untold }) = self.handshake.pass() else { return };
        tracing::warn!(listen = %self.listen, %source, %error, untold, "a TLS handshake failed");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::sys::throttle::INTERVAL;

    #[test]
    fn each_event_is_told_once_a_minute_and_hides_no_other() {
        let logs = CrowdLogs::new(SocketAddr::from(([127, 0, 0, 1], 1)));
        let source = IpAddr::from([10, 0, 0, 1]);
        let broken = io::Error::from(io::ErrorKind::InvalidData);
        let events: [(&Throttle, &dyn Fn()); 5] = [
            (&logs.accept_error, &|| logs.accept_error(&io::ErrorKind::OutOfMemory.into())),
            (&logs.displaced, &|| logs.displaced(5)),
            (&logs.turned_away, &|| logs.turned_away(source, 5)),
            (&logs.no_header, &|| logs.no_header(source)),
            (&logs.handshake, &|| logs.handshake(source, &broken)),
        ];
        for (index, (throttle, tell)) in events.iter().enumerate() {
            assert!(events[index..].iter().all(|(throttle, _)| throttle.is_due()));
            (0..3).for_each(|_| tell());
            let later = throttle.pass_at(Instant::now() + INTERVAL * 2).expect("it is due");
            assert_eq!(later.untold, Some(2), "event {index}");
        }
    }
}
