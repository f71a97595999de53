//! Findings: what is wrong and what to do about it. The page, `twinflux status` and `--check` show
//! them first.
//!
//! A pure function of one [`Status`]. Bounds: one finding for each backend, listener, destination
//! and reason; at most `MAX_NAMED` names in one.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::journal::DropReason;
use crate::journal::disk::Condition;
use crate::observe::gap::Gap;
use crate::observe::pair::PairStatus;
use crate::observe::status::{Backend, JournalStatus, Receive, Status};
use crate::observe::text::{counted, sum, whole_seconds};

/// The most host names in one finding.
const MAX_NAMED: usize = 5;
/// A certificate that expires within this many days is reported. Automatic renewal happens 30 days
/// before.
pub const CERTIFICATE_SOON_DAYS: u64 = 14;
/// A backend that lags longer is reported although it is up.
const LAG_SECONDS: f64 = 60.0;

/// How severe a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Lines are lost, or will be if nobody acts.
    Problem,
    /// An operator has something to do.
    Warning,
    /// Nothing to do, but good to know.
    Note,
}

/// A fact that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The subject: the name of a backend, a listener or another part.
    pub about: String,
    /// The fact, as a sentence.
    pub what: String,
    /// The time it began, in RFC 3339; `None` if unknown.
    pub since: Option<String>,
    /// What to do: a command or a sentence. Empty if there is nothing to do.
    pub to_do: String,
}

/// Returns all findings about a status, the most severe first.
pub fn findings(status: &Status) -> Vec<Finding> {
    let mut found = Vec::new();
    for backend in &status.backends {
        of_backend(&mut found, backend, status);
    }
    of_gaps(&mut found, status);
    of_what_nobody_has(&mut found, status);
    of_journal(&mut found, &status.journal);
    for receive in &status.receive {
        of_listener(&mut found, receive);
    }
    of_sources(&mut found, status);
    found.extend(status.pair.iter().flat_map(PairStatus::findings));
    for certificate in status.certificates.iter().filter(|one| one.days_left < CERTIFICATE_SOON_DAYS.cast_signed()) {
        let (file, days) = (&certificate.file, certificate.days_left);
        let (severity, what) = match days {
            ..0 => (Severity::Problem, format!("the certificate {file} has expired")),
            _ => (Severity::Warning, format!("the certificate {file} expires in {days} days")),
        };
        found.push(finding(severity, "tls", what, "renew it; it is read again within a minute"));
    }
    if status.log_lines_dropped > 0 {
        let what = format!("{} lines of the log were dropped: its reader does not keep up", status.log_lines_dropped);
        found.push(finding(Severity::Note, "log", what, ""));
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

pub(super) fn finding(severity: Severity, about: &str, what: String, to_do: &str) -> Finding {
    Finding { severity, about: about.to_owned(), what, since: None, to_do: to_do.to_owned() }
}

fn of_backend(found: &mut Vec<Finding>, backend: &Backend, status: &Status) {
    let name = &backend.name;
    let difference = backend.difference(status.accepted_lines);
    if difference != 0 {
        let how = if difference > 0 { "lost without being counted" } else { "counted more than once" };
        let lines = difference.unsigned_abs();
        let what = format!("the ledger of {name} does not balance: {lines} lines were {how}");
        found.push(finding(Severity::Problem, name, what, "please report this, with /api/status"));
    }
    let waits = match backend.pending_lines {
        0 => String::new(),
        lines => {
            let (bytes, lines) = (ByteSize::b(backend.pending_bytes), counted(lines, "line"));
            format!("; {lines} ({bytes}) wait, {} of them on disk", backend.pending_on_disk_lines)
        }
    };
    of_state(found, backend, &waits);
    if backend.recent_lost > 0 {
        let what = format!("{} for {name} were lost in the last 5 minutes", counted(backend.recent_lost, "line"));
        let to_do = "look at the log: the machine is too slow for the journal, or dead_letters.disk too small";
        found.push(finding(Severity::Problem, name, what, to_do));
    }
    let letters = &backend.dead_letters;
    if letters.kept > 0 {
        let what = format!("{name} refused {} for good, kept as dead letters", counted(letters.kept, "line"));
        let to_do = format!("twinflux dead-letters list --backend {name}; then resend or discard");
        found.push(finding(Severity::Warning, name, what, &to_do));
    }
    if backend.statements_differed > 0 {
        let what = format!("{name} refused {} statements that another backend ran", backend.statements_differed);
        found.push(finding(Severity::Note, name, what, ""));
    }
}

/// Reports what keeps lines from a backend; `waits` describes its backlog.
fn of_state(found: &mut Vec<Finding>, backend: &Backend, waits: &str) {
    let name = &backend.name;
    let since = backend.down_since.clone();
    for held in &backend.held {
        let what = match held.database.as_str() {
            "" => format!("{name} is held: {}{waits}", held.answer),
            database => format!("{name} takes no lines of the database {database}: {}{waits}", held.answer),
        };
        let one = finding(Severity::Problem, name, what, &held.what_to_do);
        found.push(Finding { since: Some(held.since.clone()), ..one });
    }
    let error = backend.last_error.as_deref().unwrap_or("no error told");
    match backend.state.as_str() {
        "down" => {
            let to_do = if error.contains("no space left") {
                format!(
                    "make room on the server and restart InfluxDB, which says so until then; then: twinflux backend {name} try"
                )
            } else {
                format!("start or mend the server; then: twinflux backend {name} try")
            };
            let what = format!("{name} is down: {error}{waits}");
            found.push(Finding { since, ..finding(Severity::Problem, name, what, &to_do) });
        }
        "unknown" if backend.last_error.is_some() => {
            let what = format!("{name} was not reached yet: {error}{waits}");
            found.push(finding(Severity::Warning, name, what, "start the server, or correct its url"));
        }
        "retrying" => {
            let what = format!("{name} answers, but does not take lines now: {error}{waits}");
            let to_do = if error.contains("no space left") {
                "make room on the server and restart InfluxDB, which says so until then"
            } else {
                "look at the server's log; Twinflux tries again by itself"
            };
            found.push(Finding { since, ..finding(Severity::Warning, name, what, to_do) });
        }
        "held" if backend.held.is_empty() => {
            let what = format!("{name} is held: {error}{waits}");
            found.push(Finding { since, ..finding(Severity::Problem, name, what, "do what the error says") });
        }
        "up" if backend.lag_seconds > LAG_SECONDS => {
            let lag = whole_seconds(backend.lag_seconds);
            let eta = match backend.eta_seconds {
                Some(seconds) => format!("caught up in about {}", whole_seconds(seconds)),
                None => "it does not catch up at the present rate".to_owned(),
            };
            let severity = if backend.eta_seconds.is_some() { Severity::Note } else { Severity::Warning };
            found.push(finding(severity, name, format!("{name} lags {lag}{waits}; {eta}"), ""));
        }
        _ => {}
    }
}

fn of_gaps(found: &mut Vec<Finding>, status: &Status) {
    for backend in &status.backends {
        // No other backend can supply lines that no backend has.
        let is_own = |gap: &&Gap| gap.backend == backend.name && gap.reason != DropReason::RingFull.name();
        let gaps: Vec<_> = status.journal.gaps.iter().filter(is_own).collect();
        let Some(first) = gaps.first() else { continue };
        let (name, lines) = (&backend.name, sum(gaps.iter().map(|gap| &gap.lines)));
        let until = gaps.iter().map(|gap| gap.until.as_str()).max().unwrap_or_default();
        let reasons: std::collections::BTreeSet<&str> = gaps.iter().map(|gap| gap.reason.as_str()).collect();
        let reasons = reasons.into_iter().collect::<Vec<_>>().join(", ");
        let what = if reasons == "peer" {
            match lines {
                0 => format!("{name} may lack lines: the other relay knew of a gap when it went"),
                lines => {
                    format!("{name} may lack {}, which the other relay owed it when it went", counted(lines, "line"))
                }
            }
        } else if lines == 0 && reasons == "joined" {
            format!("{name} came later than the journal: what was written before it came is not in its copy")
        } else {
            format!(
                "{name} lacks {} in {} ({reasons}), received from {} to {until}",
                counted(lines, "line"),
                counted(gaps.len() as u64, "gap"),
                first.from
            )
        };
        let to_do = if reasons == "peer" {
            format!(
                "start the other relay, and this ends by itself; if its machine is lost, drain its data folder, or copy from \
                 the other backend, and then: twinflux backend {name} vouch"
            )
        } else {
            format!("copy what is missing from the other backend; then: twinflux backend {name} vouch")
        };
        // A gap of a backend that joined later reaches back to the beginning of time, which tells
        // nothing.
        let since = Some(first.from.clone()).filter(|_| reasons != "joined");
        found.push(Finding { since, ..finding(Severity::Warning, name, what, &to_do) });
    }
}

/// Lines that found the ring before the journal full are a gap of every backend.
fn of_what_nobody_has(found: &mut Vec<Finding>, status: &Status) {
    let gaps = &status.journal.gaps;
    let Some(first) = gaps.iter().find(|gap| gap.reason == DropReason::RingFull.name()) else { return };
    let same = gaps.iter().filter(|gap| gap.reason == first.reason && gap.backend == first.backend);
    let (mut lines, mut until) = (0, first.until.as_str());
    for gap in same {
        (lines, until) = (lines + gap.lines, until.max(gap.until.as_str()));
    }
    let what = format!(
        "{} found no room in front of the journal, received from {} to {until}: no backend has them",
        counted(lines, "line"),
        first.from
    );
    let to_do = "give the machine more CPU; twinflux backend NAME vouch, for each backend, takes this off the list";
    found.push(finding(Severity::Note, "journal", what, to_do));
}

fn of_journal(found: &mut Vec<Finding>, journal: &JournalStatus) {
    let error = journal.last_error.as_deref().unwrap_or("no error told");
    match journal.state {
        Condition::Ok => {}
        Condition::Full => {
            let what = format!("the journal's disk is full: {error}; lines are in memory only");
            found.push(finding(
                Severity::Problem,
                "journal",
                what,
                "make room in data_dir, or mend the backend that lines wait for",
            ));
        }
        Condition::Failing => {
            let what =
                format!("the journal's disk fails: {error}; lines are in memory only, or not safe from a power cut");
            found.push(finding(
                Severity::Problem,
                "journal",
                what,
                "look at the disk (dmesg); lines are written once it works",
            ));
        }
    }
    if let Some(percent) = journal.nearly_full().filter(|_| journal.state == Condition::Ok) {
        let full_in = journal.full_in_seconds.map_or_else(String::new, |seconds| {
            format!(", full in about {} at the present rate", whole_seconds(seconds))
        });
        let what = format!("the journal's disk is {percent} % full{full_in}: then its oldest lines are given up");
        found.push(finding(
            Severity::Problem,
            "journal",
            what,
            "mend the backend that lines wait for, or raise [journal] disk",
        ));
    }
    for (name, lines) in &journal.orphans {
        let what = format!("the journal keeps {lines} lines for {name}, which is not configured");
        let to_do = format!("configure it again, or stop the relay and: twinflux journal forget {name}");
        found.push(finding(Severity::Warning, "journal", what, &to_do));
    }
}

fn of_listener(found: &mut Vec<Finding>, receive: &Receive) {
    let about = format!("{} {}", receive.kind, receive.listen);
    let Receive { recent_kernel_dropped: dropped, receive_buffer_wanted: wanted, .. } = *receive;
    let is_small = receive.receive_buffer < wanted;
    let sysctl = format!("sysctl -w net.core.rmem_max={wanted}; then restart");
    if dropped > 0 {
        let what = format!(
            "the kernel dropped {} of {about} in the last 5 minutes: its receive buffer was full",
            counted(dropped, "datagram")
        );
        let to_do =
            if is_small { sysctl } else { "give the machine more CPU, or the listener more workers".to_owned() };
        found.push(finding(Severity::Problem, &about, what, &to_do));
    } else if is_small {
        let got = receive.receive_buffer;
        let what = format!("the receive buffer of {about} has {got} bytes instead of {wanted}: a burst may be dropped");
        found.push(finding(Severity::Note, &about, what, &sysctl));
    }
    let refused = sum(receive.recent_refused.values());
    if refused > 0 {
        let reasons = receive.recent_refused.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let what = format!("{about} refused {} in the last 5 minutes ({reasons})", counted(refused, "line"));
        found.push(finding(
            Severity::Warning,
            &about,
            what,
            "twinflux tail --refused shows the lines and who sends them",
        ));
    }
    if receive.denied > 0 {
        let last = receive.denied_address.as_deref().unwrap_or("unknown");
        let what = format!(
            "{} datagrams or connections of {about} came from addresses that are not allowed, the last from {last}",
            receive.denied
        );
        found.push(finding(Severity::Note, &about, what, "add the network to allow, if it is yours"));
    }
}

fn of_sources(found: &mut Vec<Finding>, status: &Status) {
    let sources = &status.sources;
    if sources.silent > 0 {
        let silent = sources.top.iter().filter(|source| source.silent).take(MAX_NAMED);
        let mut names: Vec<String> = silent.map(super::sources::SourceStatus::describe_silence).collect();
        if sources.silent > names.len() as u64 {
            names.push("…".to_owned());
        }
        let what = format!("{} of {} silent: {}", sources.silent, counted(sources.known, "host"), names.join(", "));
        let to_do = "look at them; twinflux forget-host ADDRESS, if one is gone for good";
        found.push(finding(Severity::Note, "sources", what, to_do));
    }
    let implausible: Vec<_> = sources.top.iter().filter(|source| source.implausible_recently).collect();
    if let Some(first) = implausible.first() {
        let unit = first.likely_unit.as_deref().unwrap_or_default();
        let likely = match unit {
            "" => "its clock is off".to_owned(),
            unit => format!("it sends {unit}"),
        };
        let who = if first.host.is_empty() { &first.address } else { &first.host };
        let what = format!("{} far from now, {who} among them: probably {likely}", points_of(implausible.len() as u64));
        let to_do = "set the listener's precision, or the host's clock; twinflux tail --source ADDRESS shows its lines";
        found.push(finding(Severity::Warning, "sources", what, to_do));
    }
}

fn points_of(hosts: u64) -> String {
    if hosts == 1 { "a host sends points".to_owned() } else { format!("{hosts} hosts send points") }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A healthy relay's status, except for what is changed.
    pub(in crate::observe) fn status(change: impl FnOnce(&mut serde_json::Value)) -> Status {
        let mut json = serde_json::json!({
            "version": "0.1.0", "uptime_seconds": 1.0, "accepted_lines": 9, "certificates": [],
            "receive": [{
                "kind": "udp", "listen": "0.0.0.0:8089", "database": "telegraf", "datagrams": 9, "bytes": 9, "kernel_dropped": 0,
                "truncated": 0, "denied": 0, "empty": 0, "connections": 0, "open_connections": 0, "limited": 0, "displaced": 0,
                "timed_out": 0, "converted": 0, "skipped": 0, "ignored_tags": 0, "lines": 9, "refused": {}, "receive_queue": 0,
                "receive_buffer_wanted": 8, "receive_buffer": 8
            }],
            "backends": [{
                "name": "b", "url": "", "state": "up", "recovered_lines": 0, "delivered_lines": 9, "delivered_bytes": 0,
                "rejected_lines": {}, "dropped_lines": {}, "pending_lines": 0, "pending_bytes": 0, "pending_on_disk_lines": 0,
                "oldest_pending_seconds": 0.0, "requests": 0, "retries": 0, "last_error": null,
                "latency_ms": { "p50": 0.0, "p99": 0.0, "max": 0.0 }
            }],
            "journal": {
                "durability": "written", "memory_bytes": 0, "memory_bound_bytes": 9, "disk_bytes": 0, "disk_bound_bytes": 100,
                "segments": 0, "state": "ok", "last_error": null, "syncs": 0, "sync_errors": 0, "write_errors": 0,
                "read_errors": 0, "sync_ms": { "p50": 0.0, "p99": 0.0, "max": 0.0 }, "orphans": {}, "gaps": [],
                "recovery": serde_json::to_value(crate::journal::disk::Report::default()).expect("JSON")
            },
            "sources": { "known": 0, "silent": 0, "top": [], "rest": serde_json::to_value(
                crate::observe::sources::RestStatus::default()).expect("JSON") }
        });
        change(&mut json);
        serde_json::from_value(json).expect("a status")
    }

    /// The findings after one change.
    fn found(pointer: &str, value: serde_json::Value) -> Vec<(Severity, String)> {
        let status = status(|json| {
            let (table, key) = pointer.rsplit_once('/').expect("a key");
            json.pointer_mut(table).expect("a table")[key] = value;
        });
        findings(&status).into_iter().map(|one| (one.severity, one.what + "; " + &one.to_do)).collect()
    }

    #[test]
    fn health_finds_nothing_and_each_trouble_says_itself() {
        use Severity::{Note, Problem, Warning};
        assert_eq!(findings(&status(|_| ())), []);
        let gap = serde_json::json!([{
            "backend": "b", "database": "db", "retention_policy": "", "from": "2026-11-27T03:00:00Z",
            "until": "2026-11-27T04:00:00Z", "points_from": null, "points_until": null, "lines": 7, "reason": "quota"
        }]);
        for (pointer, value, severity, says) in [
            ("/backends/0/state", "down".into(), Problem, "twinflux backend b try"),
            ("/backends/0/state", "retrying".into(), Warning, "does not take lines now"),
            ("/backends/0/delivered_lines", 8.into(), Problem, "1 lines were lost without being counted"),
            ("/backends/0/recent_lost", 3.into(), Problem, "3 lines for b were lost"),
            ("/backends/0/lag_seconds", 90.0.into(), Warning, "does not catch up"),
            ("/journal/gaps", gap, Warning, "b lacks 7 lines in 1 gap (quota)"),
            ("/journal/state", "full".into(), Problem, "the journal's disk is full"),
            ("/journal/disk_bytes", 81.into(), Problem, "81 % full"),
            ("/journal/orphans", serde_json::json!({ "old": 4 }), Warning, "twinflux journal forget old"),
            ("/receive/0/recent_kernel_dropped", 2.into(), Problem, "the kernel dropped 2 datagrams"),
            (
                "/receive/0/recent_refused",
                serde_json::json!({ "too_long": 2 }),
                Warning,
                "refused 2 lines in the last 5 minutes (too_long)",
            ),
            ("/receive/0/receive_buffer", 4.into(), Note, "sysctl -w net.core.rmem_max=8"),
            ("/sources/silent", 1.into(), Note, "silent"),
            (
                "/certificates",
                serde_json::json!([{ "file": "/a", "expires": "", "days_left": -1 }]),
                Problem,
                "has expired",
            ),
            (
                "/certificates",
                serde_json::json!([{ "file": "/a", "expires": "", "days_left": 5 }]),
                Warning,
                "in 5 days",
            ),
            ("/log_lines_dropped", 5.into(), Note, "5 lines of the log"),
        ] {
            let found = found(pointer, value);
            assert!(found.len() == 1 && found[0].0 == severity && found[0].1.contains(says), "{pointer}: {found:?}");
        }
        // Past trouble is not reported.
        for (pointer, value) in
            [("/receive/0/refused", serde_json::json!({ "too_long": 2 })), ("/receive/0/kernel_dropped", 5.into())]
        {
            assert_eq!(found(pointer, value), []);
        }
    }
}
