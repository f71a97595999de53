//! What a listener received and refused, as `/api/status` shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::intake::tap::Sample;
use crate::intake::{ANSWERS, Tally, each_counter};
use crate::protocol::Refusal;
use crate::receive::Listener;

macro_rules! define {
    ($($(#[$doc:meta])* $field:ident: $metric:literal, $help:literal, $kinds:tt;)*) => {
        /// A listener's figures. Figures that its kind does not have are 0.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
        #[serde(default)]
        pub struct Receive {
            /// `udp`, `tcp` or `http`
            pub kind: String,
            /// The address it listens on.
            pub listen: String,
            /// The database its lines go to.
            pub database: String,
            $($(#[$doc])* pub $field: u64,)*
            /// Datagrams that the kernel dropped because the receive buffer was full.
            pub kernel_dropped: u64,
            /// The last denied address; `None` if there was none.
            pub denied_address: Option<String>,
            /// Open connections.
            pub open_connections: u64,
            /// Lines refused in the last five minutes or so, by reason.
            pub recent_refused: BTreeMap<String, u64>,
            /// Datagrams that the kernel dropped in the last five minutes or so.
            pub recent_kernel_dropped: u64,
            /// Answers by their status.
            pub answers: BTreeMap<String, u64>,
            /// Lines seen: accepted and refused.
            pub lines: u64,
            /// Lines refused, by reason.
            pub refused: BTreeMap<String, u64>,
            /// The last refused line of each reason.
            pub refused_samples: BTreeMap<String, RefusedSample>,
            /// Bytes waiting in the receive buffers, as the kernel charges them.
            pub receive_queue: u64,
            /// The requested receive buffer, in bytes.
            pub receive_buffer_wanted: u64,
            /// The receive buffer that each worker got, in bytes.
            pub receive_buffer: u64,
        }

        impl Receive {
            /// Copies the plain counters.
            fn counted(tally: &Tally) -> Self {
                Self { $($field: tally.$field,)* ..Self::default() }
            }
        }

        /// The plain counters as metrics.
        pub(super) const COUNTERS: &[Counter] = &[$(Counter {
            metric: $metric,
            #[cfg(test)]
            field: stringify!($field),
            help: $help,
            kinds: &$kinds,
            value: |receive| receive.$field,
        },)*];
    };
}
each_counter!(define);

/// A listener's counter as a metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    /// The metric's name.
    pub(super) metric: &'static str,
    /// The name in `/api/status`.
    #[cfg(test)]
    pub(super) field: &'static str,
    /// What it counts.
    pub(super) help: &'static str,
    /// The kinds of listeners that have it.
    pub(super) kinds: &'static [&'static str],
    /// Its value.
    pub(super) value: fn(&Receive) -> u64,
}

/// A refused line.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RefusedSample {
    /// Beginning of the line; bytes that are not text are escaped.
    pub line: String,
    /// Address of the sender; empty if unknown.
    pub source: String,
    /// What would correct the sender, if the line tells.
    #[serde(default)]
    pub cure: Option<String>,
}

impl Receive {
    pub(super) fn new(listener: &Listener, tally: &Tally) -> Self {
        let shown = Self {
            kind: listener.kind().to_owned(),
            listen: listener.address().to_string(),
            database: listener.destination().database().to_owned(),
            denied_address: denied_address(listener),
            lines: tally.lines(),
            refused_samples: refused_samples(listener),
            refused: Refusal::ALL.map(|reason| (reason.name().to_owned(), tally.refused[reason.index()])).into(),
            ..Self::counted(tally)
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

/// Returns the last refused line of each reason, over all workers.
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

/// Returns the last denied address, over all workers.
fn denied_address(listener: &Listener) -> Option<String> {
    let mut last = None;
    listener.each_tap(|tap| last = last.max(tap.denied()));
    last.map(|(_, address)| address.to_canonical().to_string())
}
