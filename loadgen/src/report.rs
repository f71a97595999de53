//! What came of a run, for programs and for people.

use serde::Serialize;

use crate::answers::Answers;
use crate::hostile::Hostile;
use crate::ledger::Counts;
use crate::send::Sent;

/// What came of it. Figures of a relay that ran before are those of this run only.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was sent, by hosts of both kinds.
    pub sent: Sent,
    /// How long the sending took.
    pub seconds: f64,
    /// What became of the bursts, where there were any.
    pub bursts: Option<BurstReport>,
    /// What writers by HTTP were told, where there were any.
    pub requests: Option<RequestReport>,
    /// What became of hostile clients, where there were any.
    pub hostile: Option<Hostile>,
    /// Datagrams sent in a second.
    pub datagrams_per_second: f64,
    /// Datagrams that neither the relay nor its kernel counted.
    pub lost_on_the_wire: i64,
    /// Datagrams that the relay's kernel dropped for want of room.
    pub kernel_dropped: i64,
    /// Lines the relay refused.
    pub refused_lines: i64,
    /// Each backend.
    pub backends: Vec<BackendReport>,
    /// What the relay cost.
    pub relay: RelayReport,
    /// What the bare loop cost, where it was asked for.
    pub baseline: Option<BaselineReport>,
    /// Whether lines were sent, and every one of them is stored or counted, at each backend.
    pub balanced: bool,
}

/// One backend's lines: as the relay counted them, and as its sink did.
#[derive(Clone, Debug, Serialize)]
pub struct BackendReport {
    /// Its name.
    pub name: String,
    /// Acknowledged, says the relay.
    pub delivered: i64,
    /// Never to be taken, says the relay.
    pub rejected: i64,
    /// Given up, says the relay.
    pub dropped: i64,
    /// Still on the way, says the relay.
    pub pending: i64,
    /// What the sink has.
    pub stored: Counts,
    /// Sent, less stored, less everything the relay counted: 0 where every line is accounted for.
    /// Says nothing where datagrams hold several lines and the kernel dropped some.
    pub difference: i64,
    /// From sending to the sink, in milliseconds: the median, the 99th percentile, the longest.
    pub latency_ms: [f64; 3],
}

/// What became of the bursts of hosts that run Netdata.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BurstReport {
    /// Values sent.
    pub values: u64,
    /// The longest time from a burst's first byte until the hosts' sockets had taken all of it.
    pub sent_seconds: f64,
    /// From the last burst's first byte until the relay had taken all that it did from its sockets.
    pub taken_seconds: f64,
}

/// What became of the batches of hosts that write by HTTP.
#[derive(Clone, Debug, Serialize)]
pub struct RequestReport {
    /// The answers.
    pub answers: Answers,
    /// Lines taken in a second.
    pub lines_per_second: f64,
    /// Lines that the slowest sink stored in a second, until it had all but one in a hundred: the
    /// last ones may linger.
    pub stored_per_second: f64,
}

/// What the relay cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RelayReport {
    /// Processor time of the whole process.
    pub cpu_seconds: f64,
    /// The same for a million lines that were sent.
    pub cpu_seconds_per_million_lines: f64,
    /// The same for each datagram it received.
    pub cpu_microseconds_per_datagram: f64,
    /// Most resident memory since its start.
    pub peak_resident_mib: f64,
}

/// What the bare loop cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BaselineReport {
    /// Processor time for each datagram.
    pub cpu_microseconds_per_datagram: f64,
    /// The relay's cost divided by it.
    pub relay_ratio: f64,
}

pub(crate) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(crate) fn float(count: i64) -> f64 {
    count as f64
}

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!(
            "sent        {} datagrams, {} lines, {:.1} MB in {:.2} s = {:.0} datagrams/s, {} errors",
            self.sent.datagrams,
            self.sent.lines,
            float(signed(self.sent.bytes)) / 1e6,
            self.seconds,
            self.datagrams_per_second,
            self.sent.errors
        )];
        if let Some(bursts) = self.bursts {
            lines.push(format!(
                "bursts      {} values; sent in {:.2} s at most, the last one taken from the sockets in {:.2} s",
                bursts.values, bursts.sent_seconds, bursts.taken_seconds
            ));
        }
        if let Some(RequestReport { answers, lines_per_second, stored_per_second }) = &self.requests {
            lines.push(answers.to_text());
            lines.push(format!("lines       {lines_per_second:.0}/s taken, {stored_per_second:.0}/s stored"));
        }
        if let Some(Hostile { slow_open, slow_ended, bombs }) = &self.hostile {
            lines.push(format!("hostile     {slow_open} slow connections in the end, {slow_ended} ended by the relay"));
            lines.extend(bombs.iter().map(|(name, count)| format!("            {count} bombs answered {name}")));
        }
        lines.push(format!(
            "lost        {} on the wire, {} dropped by the relay's kernel, {} lines refused",
            self.lost_on_the_wire, self.kernel_dropped, self.refused_lines
        ));
        for backend in &self.backends {
            let stored = backend.stored;
            lines.push(format!(
                "{:<11} {} stored in {} lines, {} twice, {} altered; relay: {} delivered, {} rejected, {} dropped, {} pending; difference {}",
                backend.name,
                stored.distinct,
                stored.lines,
                stored.duplicates,
                stored.altered,
                backend.delivered,
                backend.rejected,
                backend.dropped,
                backend.pending,
                backend.difference
            ));
            let [median, high, longest] = backend.latency_ms;
            lines.push(format!("            latency {median:.1} ms median, {high:.1} ms p99, {longest:.1} ms longest"));
        }
        let each = match self.sent.datagrams {
            0 => {
                format!("{:.3} us for each line", self.relay.cpu_seconds_per_million_lines)
            }
            _ => format!("{:.2} us for each datagram", self.relay.cpu_microseconds_per_datagram),
        };
        lines.push(format!(
            "relay       {:.2} s CPU, {each}, {:.1} MiB most resident",
            self.relay.cpu_seconds, self.relay.peak_resident_mib
        ));
        if let Some(baseline) = self.baseline {
            lines.push(format!(
                "bare loop   {:.2} us for each datagram: the relay costs {:.2} times as much",
                baseline.cpu_microseconds_per_datagram, baseline.relay_ratio
            ));
        }
        lines.push(if self.balanced {
            "balanced    every line is stored or counted".to_owned()
        } else {
            "NOT BALANCED".to_owned()
        });
        lines.join("\n") + "\n"
    }
}
