//! What a listener has taken, and from whom it took nothing, as `/api/status` shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::protocol::Refusal;
use crate::receive::tap::Sample;
use crate::receive::{ANSWERS, Listener, Tally};

/// A listener's figures. Those of another kind are 0.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Receive {
    /// `udp`, `tcp` or `http`
    pub kind: String,
    /// The address it listens on.
    pub listen: String,
    /// The database its lines go to.
    pub database: String,
    /// Datagrams taken from the socket, whatever became of them.
    pub datagrams: u64,
    /// Bytes taken from the sockets.
    pub bytes: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub kernel_dropped: u64,
    /// Datagrams that were larger than the largest slot.
    pub truncated: u64,
    /// Datagrams, or connections, from addresses that are not allowed.
    pub denied: u64,
    /// The last of these addresses; none if there was none.
    #[serde(default)]
    pub denied_address: Option<String>,
    /// Datagrams without payload.
    pub empty: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open.
    pub open_connections: u64,
    /// Connections turned away because there were too many.
    pub limited: u64,
    /// Connections ended to make room for one of a source with fewer.
    pub displaced: u64,
    /// Connections ended because nothing came, no first line, or no line's end.
    pub timed_out: u64,
    /// Lines of other formats that became line protocol; several may have become one line.
    pub converted: u64,
    /// Lines of other formats that held nothing to store (`null`).
    pub skipped: u64,
    /// Words of converted lines that stood among the tags and were none: without a key, or without `=`.
    pub ignored_tags: u64,
    /// Lines whose points are far from the clock: an hour ahead or behind, or a day behind in streams and requests.
    #[serde(default)]
    pub implausible: u64,
    /// Lines refused in the last five minutes or so, by reason.
    #[serde(default)]
    pub recent_refused: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped in the last five minutes or so.
    #[serde(default)]
    pub recent_kernel_dropped: u64,
    /// Requests answered.
    #[serde(default)]
    pub requests: u64,
    /// Answers by their status.
    #[serde(default)]
    pub answers: BTreeMap<String, u64>,
    /// Requests without the right password or token.
    #[serde(default)]
    pub auth_failures: u64,
    /// Lines seen: accepted and refused.
    pub lines: u64,
    /// Lines refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// The last refused line of each reason.
    #[serde(default)]
    pub refused_samples: BTreeMap<String, RefusedSample>,
    /// What waits in the receive buffers, in bytes as the kernel charges them.
    pub receive_queue: u64,
    /// The receive buffer that was asked for, in bytes.
    pub receive_buffer_wanted: u64,
    /// The receive buffer that each worker got, in bytes.
    pub receive_buffer: u64,
}

/// A line that was refused.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RefusedSample {
    /// Its beginning; bytes that are no text are escaped.
    pub line: String,
    /// The address that it came from; empty where that is not known.
    pub source: String,
    /// What would cure its sender, where the line tells.
    #[serde(default)]
    pub cure: Option<String>,
}

impl Receive {
    pub(super) fn new(listener: &Listener, tally: &Tally) -> Self {
        let shown = Self {
            kind: listener.kind().to_owned(),
            listen: listener.address().to_string(),
            database: listener.destination().database.clone(),
            datagrams: tally.datagrams,
            bytes: tally.bytes,
            truncated: tally.truncated,
            denied: tally.denied,
            denied_address: denied_address(listener),
            empty: tally.empty,
            connections: tally.connections,
            limited: tally.limited,
            displaced: tally.displaced,
            timed_out: tally.timed_out,
            converted: tally.converted,
            skipped: tally.skipped,
            ignored_tags: tally.ignored_tags,
            implausible: tally.implausible,
            requests: tally.requests,
            auth_failures: tally.auth_failures,
            lines: tally.lines(),
            refused_samples: refused_samples(listener),
            refused: Refusal::ALL.map(|reason| (reason.name().to_owned(), tally.refused[reason.index()])).into(),
            ..Self::default()
        };
        match listener {
            Listener::Tcp(listener) => Self { open_connections: listener.door().open_connections(), ..shown },
            Listener::Http(listener) => {
                let name = |status: u16| if status == 0 { "other".to_owned() } else { status.to_string() };
                let answers = ANSWERS.into_iter().zip(tally.answers).map(|(status, count)| (name(status), count));
                Self { open_connections: listener.door().open_connections(), answers: answers.collect(), ..shown }
            }
            Listener::Udp(listener) => {
                let (wanted, got) = listener.receive_buffer();
                Self {
                    kernel_dropped: listener.kernel_drops(),
                    receive_queue: listener.queued_bytes(),
                    receive_buffer_wanted: wanted,
                    receive_buffer: got,
                    ..shown
                }
            }
        }
    }
}

/// The last refused line of each reason, of all workers.
fn refused_samples(listener: &Listener) -> BTreeMap<String, RefusedSample> {
    let mut all = Vec::new();
    listener.each_tap(|tap| all.extend(tap.samples()));
    all.sort_by_key(|(_, at, _)| *at);
    let shown = all.into_iter().map(|(reason, _, Sample { source, line, cure })| {
        let source = source.map_or_else(String::new, |source| source.to_string());
        (reason.name().to_owned(), RefusedSample { line, source, cure: cure.map(str::to_owned) })
    });
    shown.collect()
}

/// The last address that was not allowed, of all workers.
fn denied_address(listener: &Listener) -> Option<String> {
    let mut last = None;
    listener.each_tap(|tap| last = last.max(tap.denied()));
    last.map(|(_, address)| address.to_canonical().to_string())
}
