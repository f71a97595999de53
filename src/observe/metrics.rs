//! `/metrics`: the status and the process's own cost, in Prometheus' text formats.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::deliver::State;
use crate::journal::disk::Condition;
use crate::observe::findings::Severity;
use crate::observe::reading::Read;
use crate::observe::receiving::{COUNTERS, Counter};
use crate::observe::status::Status;

/// The content type of [`render`].
pub(super) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of [`to_classic`].
pub(super) const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders all metrics of a status.
///
/// # Errors
/// Only those of writing to memory, which does not fail.
pub(super) fn render(status: Arc<Status>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { status, process: Process::read() }));
    let mut output = String::new();
    text::encode(&mut output, &registry)?;
    Ok(output)
}

/// Converts to the classic text format, for readers that do not ask for OpenMetrics. In it, a
/// counter's description has the counter's full name.
pub(super) fn to_classic(openmetrics: &str) -> String {
    let types = openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: HashSet<&str> = types.collect();
    let mut classic = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines().filter(|line| *line != "# EOF") {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if counters.contains(name) => {
                classic.extend([&line[..7], name, "_total ", rest]);
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

#[derive(Debug)]
struct Metrics {
    status: Arc<Status>,
    process: Process,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_receive(&mut encoder)?;
        self.encode_backends(&mut encoder)?;
        self.encode_journal(&mut encoder)?;
        self.encode_reading(&mut encoder)?;
        self.encode_pair(&mut encoder)?;
        self.encode_process(&mut encoder)
    }
}

impl Metrics {
    fn encode_receive(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let listeners = || {
            self.status
                .receive
                .iter()
                .map(|receive| (vec![("kind", receive.kind.as_str()), ("listen", receive.listen.as_str())], receive))
        };
        let one = |name, help, value: fn(&crate::observe::status::Receive) -> u64| {
            (name, help, listeners().map(|(labels, receive)| (labels, value(receive))).collect::<Vec<_>>())
        };
        for Counter { metric, help, kinds, value, .. } in COUNTERS {
            let having = listeners().filter(|(_, receive)| kinds.contains(&receive.kind.as_str()));
            counter(out, metric, help, having.map(|(labels, receive)| (labels, value(receive))).collect())?;
        }
        for (name, help, values) in [
            one("kernel_dropped_datagrams", "Datagrams the kernel dropped: the receive buffer was full", |receive| {
                receive.kernel_dropped
            }),
            one("lines", "Lines seen: accepted and refused", |receive| receive.lines),
        ] {
            counter(out, name, help, values)?;
        }
        let refused = listeners().flat_map(|(labels, receive)| by(labels, "reason", &receive.refused));
        counter(out, "refused_lines", "Lines refused, by reason", refused.collect())?;
        let answers = listeners().flat_map(|(labels, receive)| by(labels, "status", &receive.answers));
        counter(out, "http_answers", "Answers to senders, by status", answers.collect())?;
        for (name, help, values) in [
            one("receive_queue_bytes", "What waits in the receive buffers, as the kernel charges it", |receive| {
                receive.receive_queue
            }),
            one("open_connections", "Connections that are open", |receive| receive.open_connections),
            one("receive_buffer_bytes", "Receive buffer that each worker got", |receive| receive.receive_buffer),
            one("receive_buffer_wanted_bytes", "Receive buffer that was asked for", |receive| {
                receive.receive_buffer_wanted
            }),
        ] {
            gauge(out, name, help, values)?;
        }
        let plain = |value| vec![(Vec::new(), value)];
        gauge(out, "sources", "Addresses that send", plain(self.status.sources.known))?;
        gauge(out, "silent_sources", "Those silent for three of their intervals", plain(self.status.sources.silent))?;
        counter(out, "accepted_lines", "Lines accepted", plain(self.status.accepted_lines))
    }

    fn encode_backends(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let backends =
            || self.status.backends.iter().map(|backend| (vec![("backend", backend.name.as_str())], backend));
        let one = |name, help, value: fn(&crate::observe::status::Backend) -> u64| {
            (name, help, backends().map(|(labels, backend)| (labels, value(backend))).collect::<Vec<_>>())
        };
        for (name, help, values) in [
            one("recovered_lines", "Lines found in the journal at start", |backend| backend.recovered_lines),
            one("resent_lines", "Refused lines that are owed once more", |backend| backend.resent_lines),
            one("delivered_lines", "Lines acknowledged", |backend| backend.delivered_lines),
            one("delivered_bytes", "Bytes of the lines acknowledged", |backend| backend.delivered_bytes),
            one("requests", "Requests made", |backend| backend.requests),
            one("retries", "Requests made again", |backend| backend.retries),
            one("dead_letters_resent_lines", "Refused lines that were sent again", |one| one.dead_letters.resent),
            one("dead_letters_discarded_lines", "Refused lines that were discarded", |one| one.dead_letters.discarded),
            one("dead_letters_evicted_lines", "Refused lines given up for want of room", |one| {
                one.dead_letters.evicted
            }),
        ] {
            counter(out, name, help, values)?;
        }
        let rejected = backends().flat_map(|(labels, backend)| by(labels, "class", &backend.rejected_lines));
        counter(out, "rejected_lines", "Lines the backend will never take, by class", rejected.collect())?;
        let dropped = backends().flat_map(|(labels, backend)| by(labels, "reason", &backend.dropped_lines));
        counter(out, "dropped_lines", "Lines given up, by reason", dropped.collect())?;
        for (name, help, values) in [
            one("statements_pending", "Statements that it is owed", |backend| backend.statements_pending),
            one("pending_lines", "Lines not yet acknowledged", |backend| backend.pending_lines),
            one("pending_bytes", "Bytes of those in the journal", |backend| backend.pending_bytes),
            one("dead_letters_lines", "Refused lines that are kept", |one| one.dead_letters.kept),
            one("dead_letters_bytes", "Bytes of those", |one| one.dead_letters.bytes),
            one("in_flight_requests", "Requests under way", |backend| backend.in_flight),
            one("max_batch_bytes", "Bytes of a request, at most, as it is now", |backend| backend.max_batch_bytes),
            one("pending_on_disk_lines", "Those of the pending lines that are on the disk", |backend| {
                backend.pending_on_disk_lines
            }),
        ] {
            gauge(out, name, help, values)?;
        }
        let difference = backends().map(|(labels, backend)| {
            let lines = backend.difference(self.status.accepted_lines);
            (labels, i64::try_from(lines).unwrap_or(if lines < 0 { i64::MIN } else { i64::MAX }))
        });
        let help = "Lines accepted or recovered that are counted nowhere else: 0 unless lines were lost";
        gauge(out, "ledger_difference_lines", help, difference.collect())?;
        let states = backends().flat_map(|(labels, backend)| {
            State::ALL.map(|state| (with(&labels, "state", state.name()), u64::from(backend.state == state.name())))
        });
        gauge(out, "backend_state", "1 for the state the backend is in", states.collect())?;
        let oldest = backends().map(|(labels, backend)| (labels, backend.oldest_pending_seconds));
        gauge(out, "oldest_pending_seconds", "How long the oldest pending line has waited", oldest.collect())?;
        let lag = backends().map(|(labels, backend)| (labels, backend.lag_seconds));
        gauge(out, "lag_seconds", "How far the backend is behind", lag.collect())?;
        let rate = backends().map(|(labels, backend)| (labels, backend.delivered_per_second));
        gauge(out, "delivered_lines_per_second", "Lines acknowledged a second, over a minute", rate.collect())?;
        let eta = backends().filter_map(|(labels, backend)| Some((labels, backend.eta_seconds?)));
        gauge(out, "catch_up_seconds", "When the backend will have caught up, where it does", eta.collect())?;
        let held = backends().map(|(labels, backend)| (labels, backend.held.len() as u64));
        gauge(out, "held_destinations", "Destinations that wait until an operator acts", held.collect())?;
        let complete = backends().map(|(labels, backend)| (labels, u64::from(backend.complete)));
        gauge(out, "backend_complete", "1 if the backend has whatever any other has", complete.collect())?;
        let latency = backends().flat_map(|(labels, backend)| {
            let latency = backend.latency_ms;
            [("50", latency.p50), ("99", latency.p99), ("100", latency.max)]
                .map(|(percentile, milliseconds)| (with(&labels, "percentile", percentile), milliseconds / 1000.0))
        });
        gauge(out, "latency_seconds", "Receive to acknowledged, since the start", latency.collect())?;
        let recent = backends().filter_map(|(labels, backend)| Some((labels, backend.recent_latency_ms?)));
        let recent = recent.map(|(labels, recent)| (with(&labels, "percentile", "99"), recent.p99 / 1000.0));
        gauge(out, "recent_latency_seconds", "The same over the last five minutes", recent.collect())
    }

    fn encode_journal(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let journal = &self.status.journal;
        let plain = |value| vec![(Vec::new(), value)];
        gauge(out, "journal_memory_bytes", "Memory held by records", plain(journal.memory_bytes))?;
        gauge(out, "journal_memory_bound_bytes", "The bound of that", plain(journal.memory_bound_bytes))?;
        gauge(out, "journal_disk_bytes", "Disk held by segments", plain(journal.disk_bytes))?;
        gauge(out, "journal_disk_bound_bytes", "The bound of that", plain(journal.disk_bound_bytes))?;
        gauge(out, "journal_segments", "Segments on disk", plain(journal.segments))?;
        let states = Condition::ALL.map(|state| (vec![("state", state.name())], u64::from(journal.state == state)));
        gauge(out, "journal_state", "1 for the state the journal's disk is in", states.into())?;
        counter(out, "journal_syncs", "Times that files were synced", plain(journal.syncs))?;
        counter(out, "journal_sync_errors", "Syncs that failed", plain(journal.sync_errors))?;
        counter(out, "journal_write_errors", "Writes that failed", plain(journal.write_errors))?;
        counter(out, "journal_read_errors", "Reads that failed", plain(journal.read_errors))?;
        let orphans = journal.orphans.iter().map(|(name, lines)| (vec![("backend", name.as_str())], *lines));
        gauge(out, "journal_orphan_lines", "Lines kept for a backend that is not configured", orphans.collect())?;
        let full_in = journal.full_in_seconds.map(|seconds| (Vec::new(), seconds));
        gauge(
            out,
            "journal_full_in_seconds",
            "When the disk will be full, if it fills",
            full_in.into_iter().collect(),
        )?;
        gauge(out, "journal_gaps", "Entries of the gap ledger", plain(journal.gaps.len() as u64))?;
        let left = self.status.certificates.iter().map(|one| (vec![("file", one.file.as_str())], one.days_left));
        gauge(out, "certificate_days_left", "Days until a listener's certificate expires", left.collect())
    }

    fn encode_reading(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let asked = || {
            let read = self.status.backends.iter().filter_map(|one| Some((one.name.as_str(), one.read.as_ref()?)));
            read.map(|(name, read)| (vec![("backend", name)], read))
        };
        let each = |value: fn(&Read) -> u64| asked().map(|(labels, read)| (labels, value(read))).collect();
        counter(out, "read_queries", "Readers' questions sent to the backend", each(|read| read.queries))?;
        counter(out, "read_failovers", "Questions that it could not answer", each(|read| read.failovers))?;
        counter(out, "read_incomplete", "Answers that may lack something, and say so", each(|read| read.incomplete))?;
        counter(out, "read_cut", "Answers that ended before they were whole", each(|read| read.cut))?;
        let states = asked().flat_map(|(labels, read)| {
            ["yes", "edge", "no"].map(|word| (with(&labels, "serves", word), u64::from(read.serves == word)))
        });
        gauge(out, "read_serves", "1 for whether the backend's copy answers readers", states.collect())
    }

    fn encode_pair(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(pair) = &self.status.pair else { return Ok(()) };
        let peer = |value| vec![(vec![("peer", pair.peer.as_str())], value)];
        gauge(
            out,
            "peer_up",
            "1 if the pair's other relay answers",
            peer(u64::from(pair.state == "up" && !pair.is_mute)),
        )?;
        let held = pair.role.as_ref().map(|role| (Vec::new(), u64::from(role == "active")));
        gauge(out, "pair_address_held", "1 if this machine holds the pair's address", held.into_iter().collect())?;
        let odd = vec![(Vec::new(), u64::from(pair.is_odd))];
        gauge(out, "pair_address_odd", "1 if both relays hold the pair's address, or none", odd)?;
        let owed = pair.backends.iter().map(|one| (vec![("backend", one.name.as_str())], one));
        let lines = owed.clone().map(|(labels, one)| (labels, one.pending_lines)).collect();
        gauge(out, "peer_pending_lines", "Lines that the other relay owes the backend", lines)?;
        let lag = owed.map(|(labels, one)| (labels, one.lag_seconds)).collect();
        gauge(out, "peer_lag_seconds", "How long the oldest of them has waited", lag)
    }

    fn encode_process(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let plain = |value| vec![(Vec::new(), value)];
        let dropped = plain(self.status.log_lines_dropped);
        counter(
            out,
            "log_lines_dropped",
            "Lines of the log that nobody read in time, or that could not be written",
            dropped,
        )?;
        let count = |severity| self.status.findings.iter().filter(|one| one.severity == severity).count() as u64;
        let findings = [("problem", Severity::Problem), ("warning", Severity::Warning), ("note", Severity::Note)];
        let findings = findings.map(|(name, severity)| (vec![("severity", name)], count(severity)));
        gauge(out, "findings", "Things to know, by how much they matter: /api/status has them", findings.into())?;
        gauge(out, "uptime_seconds", "Since the start", vec![(Vec::new(), self.status.uptime_seconds)])?;
        gauge(out, "process_resident_bytes", "Resident memory", plain(self.process.resident_bytes))?;
        gauge(out, "process_resident_peak_bytes", "Most resident memory", plain(self.process.resident_peak_bytes))?;
        let cpu = vec![(Vec::new(), self.process.cpu_seconds)];
        counter(out, "process_cpu_seconds", "Processor time, user and system", cpu)
    }
}

/// Returns a value for each entry, labelled with the entry's name.
fn by<'a>(
    labels: Labels<'a>,
    key: &'static str,
    lines: &'a BTreeMap<String, u64>,
) -> impl Iterator<Item = (Labels<'a>, u64)> {
    lines.iter().map(move |(name, lines)| (with(&labels, key, name), *lines))
}

fn with<'a>(labels: &Labels<'a>, key: &'static str, value: &'a str) -> Labels<'a> {
    let mut labels = labels.clone();
    labels.push((key, value));
    labels
}

fn counter<N>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(Labels<'_>, N)>,
) -> Result<(), fmt::Error>
where
    ConstCounter<N>: EncodeMetric,
{
    family(
        out,
        name,
        help,
        MetricType::Counter,
        values.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))),
    )
}

fn gauge<N>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(Labels<'_>, N)>,
) -> Result<(), fmt::Error>
where
    ConstGauge<N>: EncodeMetric,
{
    family(
        out,
        name,
        help,
        MetricType::Gauge,
        values.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))),
    )
}

fn family<'a>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    values: impl Iterator<Item = (Labels<'a>, impl EncodeMetric)>,
) -> Result<(), fmt::Error>
where
    Labels<'a>: EncodeLabelSet,
{
    let name = format!("twinflux_{name}");
    let mut metric = out.encode_descriptor(&name, help, None, kind)?;
    for (labels, value) in values {
        if labels.is_empty() {
            return value.encode(metric);
        }
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The process's cost, as the kernel counts it; 0 if unknown.
#[derive(Debug, Default)]
struct Process {
    resident_bytes: u64,
    resident_peak_bytes: u64,
    cpu_seconds: f64,
}

impl Process {
    fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
        };
        Self {
            resident_bytes: kilobytes("VmRSS:"),
            resident_peak_bytes: kilobytes("VmHWM:"),
            cpu_seconds: cpu_seconds().unwrap_or(0.0),
        }
    }
}

/// Returns user and system time of all threads, including ended ones.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold spaces, so fields are counted from its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    // `sysconf(_SC_CLK_TCK)` is 100 on every Linux that user space sees.
    Some(ticks / 100.0)
}
