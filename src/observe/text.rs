//! The status as text for a terminal.

use std::time::Duration;

use bytesize::ByteSize;

use crate::deliver::dead_letters::Sample;
use crate::journal::Durability;
use crate::observe::findings::{Finding, Severity};
use crate::observe::pair::PairStatus;
use crate::observe::sources::SourcesStatus;
use crate::observe::status::{Backend, JournalStatus, Receive, RefusedSample, Status};
use crate::sys::text::{cut, write_line};

/// Explains the ledger's columns.
const COLUMNS: &str = "\
accepted + recovered (found at start) + resent = delivered (confirmed) + rejected (dead letters) + dropped (gaps) + pending;
p99: receive to confirmed, last 5 minutes; differ: lines not counted anywhere, 0 if all is well
";
/// Bytes shown of a refused line.
const SAMPLE_BYTES: usize = 120;
/// The least width of the column of names.
const MIN_NAME_WIDTH: usize = 8;
/// The greatest width of that column: the longest name that a configuration may have.
const MAX_NAME_WIDTH: usize = 255;

impl Status {
    /// Renders the status as a few lines of text, with the ledger of each backend as a row.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let uptime = whole_seconds(self.uptime_seconds);
        write_line(&mut text, format_args!("Twinflux {}, up {uptime}: {}", self.version, self.summary()));
        for finding in &self.findings {
            write_finding(&mut text, finding);
        }
        for receive in &self.receive {
            write_receive(&mut text, receive);
        }
        write_line(&mut text, format_args!("accepted {} lines", self.accepted_lines));
        write_sources(&mut text, &self.sources);
        write_journal(&mut text, &self.journal);
        text.extend(self.pair.iter().map(PairStatus::to_text));
        write_line(&mut text, format_args!(""));
        text.push_str(&self.ledger());
        for backend in self.backends.iter().filter(|backend| backend.pending_lines > 0) {
            write_backlog(&mut text, backend);
        }
        for backend in &self.backends {
            for (reason, lines) in backend.dropped_lines.iter().filter(|(_, lines)| **lines > 0) {
                write_line(&mut text, format_args!("{} dropped {lines} lines: {reason}", backend.name));
            }
        }
        for backend in &self.backends {
            backend
                .rejected_samples
                .iter()
                .for_each(|(class, sample)| write_rejected(&mut text, &backend.name, class, sample));
        }
        for backend in self.backends.iter().filter(|backend| backend.statements_pending > 0) {
            let (name, count) = (&backend.name, backend.statements_pending);
            write_line(&mut text, format_args!("{name} is owed {count} statements, which it gets once it is up"));
        }
        for backend in &self.backends {
            let Some(read) = backend.read.as_ref().filter(|read| read.serves == "no") else { continue };
            let (name, since) = (&backend.name, &read.since);
            let reason = read.reason.as_deref().unwrap_or("not told");
            write_line(&mut text, format_args!("{name} answers no readers since {since}: {reason}"));
        }
        text
    }

    /// Summarizes the findings in a few words.
    pub fn summary(&self) -> String {
        let count = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        match (count(Severity::Problem), count(Severity::Warning)) {
            (0, 0) => "all is well".to_owned(),
            (0, warnings) => format!("{warnings} to do"),
            (problems, 0) => format!("{problems} wrong"),
            (problems, warnings) => format!("{problems} wrong, {warnings} more to do"),
        }
    }

    /// Renders the ledger as a table, a row for each backend. Fits 80 columns with short names. The
    /// last column is 0 if the ledger balances.
    pub fn ledger(&self) -> String {
        let mut text = String::new();
        let width = self.backends.iter().map(|backend| backend.name.len()).fold(MIN_NAME_WIDTH, usize::max);
        let width = width.min(MAX_NAME_WIDTH);
        write_line(
            &mut text,
            format_args!(
                "{:<width$} {:<8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7} {:>6}",
                "backend", "state", "delivered", "recovered", "rejected", "dropped", "pending", "p99 ms", "differ"
            ),
        );
        for backend in &self.backends {
            write_backend(&mut text, backend, width, self.accepted_lines);
        }
        text.push_str(COLUMNS);
        text
    }
}

fn write_finding(text: &mut String, finding: &Finding) {
    let Finding { severity, what, since, to_do, .. } = finding;
    let word = match severity {
        Severity::Problem => "WRONG",
        Severity::Warning => "to do",
        Severity::Note => "note",
    };
    let since = since.as_ref().map_or_else(String::new, |since| format!(" (since {since})"));
    write_line(text, format_args!("{word:<7}{what}{since}"));
    if !to_do.is_empty() {
        write_line(text, format_args!("       do: {to_do}"));
    }
}

/// Writes a rejected line.
fn write_rejected(text: &mut String, name: &str, class: &str, sample: &Sample) {
    let Sample { id, database, line, answer, at, hosts } = sample;
    let line = cut(line, SAMPLE_BYTES);
    write_line(text, format_args!("{name} refused as {class} at {at}, for {database}: {line}"));
    if !hosts.is_empty() {
        write_line(text, format_args!("    from {}", hosts.join(", ")));
    }
    write_line(text, format_args!("    it said: {}; twinflux dead-letters show {id}", answer.trim_end()));
}

/// Writes a backend's backlog, and the estimated time of catching up.
fn write_backlog(text: &mut String, backend: &Backend) {
    let Backend { name, pending_lines: lines, pending_on_disk_lines: on_disk, .. } = backend;
    let (bytes, rate) = (ByteSize::b(backend.pending_bytes), backend.delivered_per_second);
    let eta = match backend.eta_seconds {
        Some(seconds) => format!("; {rate:.0} lines/s go there: caught up in about {}", whole_seconds(seconds)),
        None => String::new(),
    };
    let next = backend.next_try.as_ref().map_or_else(String::new, |next| format!("; next try {next}"));
    write_line(
        text,
        format_args!("{name} waits for {lines} lines ({bytes}), {on_disk} of them on the disk{eta}{next}"),
    );
}

fn write_sources(text: &mut String, sources: &SourcesStatus) {
    write_line(text, format_args!("sources  {}, {} of them silent", sources.known, sources.silent));
}

fn write_journal(text: &mut String, journal: &JournalStatus) {
    let (memory, most_memory) = (ByteSize::b(journal.memory_bytes), ByteSize::b(journal.memory_bound_bytes));
    let (disk, most_disk) = (ByteSize::b(journal.disk_bytes), ByteSize::b(journal.disk_bound_bytes));
    let memory = format!("{memory} of {most_memory} in memory");
    match journal.durability {
        Durability::Memory => write_line(text, format_args!("journal  {memory}, nothing on the disk")),
        _ => {
            let segments = journal.segments;
            write_line(text, format_args!("journal  {memory}, {disk} of {most_disk} in {segments} segments"));
            write_line(text, format_args!("    in {}", journal.data_dir));
        }
    }
}

fn write_receive(text: &mut String, receive: &Receive) {
    let Receive { kind, listen, bytes, lines, denied, .. } = receive;
    let database = if receive.database.is_empty() { "what requests name" } else { &receive.database };
    let refused = sum(receive.refused.values());
    let came = match kind.as_str() {
        "tcp" => format!("{} connections, {} open", receive.connections, receive.open_connections),
        "http" => format!("{} requests, {} connections open", receive.requests, receive.open_connections),
        _ => format!("{} datagrams, {} dropped by the kernel", receive.datagrams, receive.kernel_dropped),
    };
    write_line(
        text,
        format_args!(
            "{kind} {listen} -> {database}: {came}, {denied} denied, {bytes} bytes, {lines} lines, {refused} refused"
        ),
    );
    if receive.converted > 0 {
        let (converted, points) = (receive.converted, lines.saturating_sub(refused));
        write_line(text, format_args!("    {converted} values of other formats are among its {points} accepted lines"));
    }
    for (count, what) in [
        (receive.empty, "empty datagrams: from a Netdata, a batch too large for a datagram"),
        (receive.skipped, "lines of other formats held nothing to store"),
        (receive.ignored_tags, "tags had no key or no =: their lines are stored without them"),
        (receive.limited, "connections turned away: too many"),
        (receive.displaced, "connections ended to make room: too many from one source, or unused"),
        (receive.timed_out, "connections timed out"),
    ] {
        if count > 0 {
            write_line(text, format_args!("    {count} {what}"));
        }
    }
    for (status, count) in receive.answers.iter().filter(|(status, count)| **count > 0 && !status.starts_with('2')) {
        write_line(text, format_args!("    answered {status}: {count} requests"));
    }
    for (reason, lines) in receive.refused.iter().filter(|(_, lines)| **lines > 0) {
        write_line(text, format_args!("    refused {reason}: {lines}"));
        if let Some(RefusedSample { line, source, cure }) = receive.refused_samples.get(reason) {
            let cure = cure.as_ref().map_or_else(String::new, |cure| format!(": {cure}"));
            write_line(text, format_args!("        {source} sent {}{cure}", cut(line, SAMPLE_BYTES)));
        }
    }
}

fn write_backend(text: &mut String, backend: &Backend, width: usize, accepted: u64) {
    // The latency of the last minutes; that of an earlier outage would tell nothing.
    let p99 = backend.recent_latency_ms.map_or_else(|| "-".to_owned(), |recent| format!("{:.1}", recent.p99));
    write_line(
        text,
        format_args!(
            "{:<width$} {:<8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7} {:>6}",
            backend.name,
            backend.state,
            backend.delivered_lines,
            backend.recovered_lines,
            backend.rejected(),
            backend.dropped(),
            backend.pending_lines,
            p99,
            backend.difference(accepted)
        ),
    );
}

/// Adds numbers, saturating at the maximum.
pub(super) fn sum<'a>(numbers: impl Iterator<Item = &'a u64>) -> u64 {
    numbers.fold(0, |sum, number| sum.saturating_add(*number))
}

/// Formats seconds as text, without fractions. Accepts any number, because it may come from a
/// stranger.
pub(super) fn whole_seconds(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds.floor()) {
        Ok(time) => humantime::format_duration(time).to_string(),
        Err(_) => format!("{seconds:e}s"),
    }
}

/// Formats a count with its noun, in singular or plural.
pub(super) fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}
