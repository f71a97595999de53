//! The pair's other relay, as `/api/status` shows it, and the report that this relay gives to it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::batch::WallTime;
use crate::journal::BackendId;
use crate::observe::findings::{Finding, Severity, finding};
use crate::observe::text::whole_seconds;
use crate::observe::view::{BackendView, View};
use crate::pair::{LinkState, Owed, Report, Seen, are_far_apart};
use crate::protocol::Span;
use crate::sys::text::write_line;

/// State of the pair's other relay.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PairStatus {
    /// Its URL.
    pub peer: String,
    /// `unknown` (not heard from yet), `up` or `gone`.
    pub state: String,
    /// When the state began, in RFC 3339.
    pub since: String,
    /// Error of the last request; `None` if it was answered.
    pub last_error: Option<String>,
    /// The address that exactly one relay holds; `None` if not configured.
    pub address: Option<String>,
    /// Role of this relay: `active` (holds the address) or `standby`; `None` if unknown.
    pub role: Option<String>,
    /// Role of the other relay, from its last report.
    pub peer_role: Option<String>,
    /// Whether it answers, but has given no report for some seconds.
    #[serde(default)]
    pub is_mute: bool,
    /// Whether both relays or none hold the address, for longer than a switch takes.
    pub is_odd: bool,
    /// Whether the peer is this relay itself.
    pub is_self: bool,
    /// Version of its program.
    pub version: Option<String>,
    /// Whether the versions differ by more than one upgrade.
    pub is_far_apart: bool,
    /// Number of its journal.
    pub journal: Option<String>,
    /// Seconds since its start.
    pub uptime_seconds: Option<f64>,
    /// Backends that only one of the relays has.
    pub strangers: Vec<String>,
    /// What it owes its backends, from its last report.
    pub backends: Vec<PeerBackend>,
}

/// What the other relay owes a backend.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PeerBackend {
    /// Its name.
    pub name: String,
    /// Its state there.
    pub state: String,
    /// Lines that the backend has not acknowledged to the other relay.
    pub pending_lines: u64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// Whether the copy has everything that the other relay received, as far as that relay knows.
    pub complete: bool,
}

impl PairStatus {
    pub(super) fn new(seen: Seen) -> Self {
        let Seen { report, is_odd, is_self, strangers, .. } = seen;
        let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
        let role = |holds: Option<bool>| holds.map(|holds| if holds { "active" } else { "standby" }.to_owned());
        let is_up = seen.state == LinkState::Up;
        let version = report.as_ref().map(|report| report.version.clone());
        Self {
            peer: seen.peer,
            state: seen.state.name().to_owned(),
            since: time(seen.since),
            last_error: seen.error,
            address: seen.address.map(|address| address.to_string()),
            role: role(seen.holds_address),
            peer_role: role(report.as_ref().and_then(|report| report.holds_address).filter(|_| is_up)),
            is_mute: seen.is_mute,
            is_odd,
            is_self,
            is_far_apart: version.as_ref().is_some_and(|version| are_far_apart(version, env!("CARGO_PKG_VERSION"))),
            version,
            journal: report.as_ref().and_then(|report| report.identity.clone()),
            uptime_seconds: report.as_ref().map(|report| report.uptime_seconds),
            strangers,
            backends: report.into_iter().flat_map(|report| report.backends).map(PeerBackend::new).collect(),
        }
    }
}

impl PairStatus {
    /// Returns the findings about the pair.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut add = |severity, what, to_do: &str| found.push(finding(severity, "pair", what, to_do));
        let (peer, error) = (&self.peer, self.last_error.as_deref().unwrap_or("no error told"));
        match self.state.as_str() {
            "gone" => add(
                Severity::Problem,
                format!("the other relay {peer} is gone: {error}"),
                "start it; this one takes what hosts send here",
            ),
            "up" | "unknown" if self.is_mute => add(
                Severity::Warning,
                format!("the other relay {peer} answers, and does not say how it is: {error}"),
                "see [pair] peer and token_file here, and [admin] users and hosts there; until then readers are told that \
                 copies may lack something",
            ),
            "unknown" if self.last_error.is_some() => add(
                Severity::Warning,
                format!("the other relay {peer} was not reached yet: {error}"),
                "start it, or correct [pair] peer; its [admin] listen must be reachable from here",
            ),
            _ => {}
        }
        if self.is_self {
            add(Severity::Problem, format!("[pair] peer {peer} is this relay itself"), "name the other one there");
        } else if self.is_odd && self.state == "up" {
            let address = self.address.as_deref().unwrap_or_default();
            let (what, to_do) = match self.role.as_deref() {
                Some("active") => {
                    ("both relays hold", "see that keepalived of each hears the other (VRRP, protocol 112)")
                }
                _ => ("no relay holds", "start keepalived, or whatever moves the address, on both machines"),
            };
            add(Severity::Problem, format!("{what} the address {address}"), to_do);
        }
        if self.is_far_apart {
            let version = self.version.as_deref().unwrap_or_default();
            add(Severity::Warning, format!("the other relay is of version {version}"), "upgrade the older one");
        }
        if !self.strangers.is_empty() && !self.is_self {
            let what = format!("only one of both relays has the backends {}", self.strangers.join(", "));
            add(Severity::Warning, what, "give both relays the same backends, under the same names");
        }
        if self.state == "gone" {
            found.iter_mut().for_each(|one| one.since = Some(self.since.clone()));
        }
        found
    }

    /// Renders the pair as a few lines of text.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let role = |role: &Option<String>| role.as_ref().map_or_else(String::new, |role| format!(", {role}"));
        let (state, ours, theirs) = (&self.state, role(&self.role), role(&self.peer_role));
        write_line(&mut text, format_args!("pair     this relay is up{ours}; {} is {state}{theirs}", self.peer));
        for owed in self.backends.iter().filter(|owed| owed.pending_lines > 0 || !owed.complete) {
            let PeerBackend { name, pending_lines, lag_seconds, .. } = owed;
            let lag = whole_seconds(*lag_seconds);
            let (owes, when) = if self.state == "gone" { ("owed", " when it was heard last") } else { ("owes", "") };
            write_line(
                &mut text,
                format_args!("    it {owes} {name} {pending_lines} lines, the oldest for {lag}{when}"),
            );
        }
        text
    }
}

impl PeerBackend {
    fn new(owed: Owed) -> Self {
        let Owed { name, state, pending_lines, oldest_seconds: lag_seconds, lacks } = owed;
        Self { name, state, pending_lines, lag_seconds, complete: lacks.is_current() }
    }
}

impl View {
    /// Returns the other backends that readers may be sent to, with which this one is compared.
    fn mirrors_of(&self, backend: BackendId) -> Vec<BackendId> {
        let answers = |view: &BackendView| view.readers.as_ref().is_some_and(|readers| readers.knows(&view.name));
        let all = BackendId::all().zip(self.backends.iter());
        all.filter(|(other, view)| *other != backend && answers(view)).map(|(other, _)| other).collect()
    }

    /// Returns the report for the pair's other relay.
    pub(super) fn report(&self) -> Report {
        let (journal, _, on_the_way) = self.figures();
        let ledgers = journal.ledgers.iter().zip(&journal.oldest_pending_seconds);
        let owed = BackendId::all().zip(self.backends.iter()).zip(ledgers).map(|((id, view), (ledger, oldest))| {
            let others = self.mirrors_of(id);
            Owed {
                name: view.name.clone(),
                state: view.health.state().name().to_owned(),
                pending_lines: u64::try_from(i128::from(ledger.pending) + on_the_way).unwrap_or(0),
                oldest_seconds: *oldest,
                lacks: self.journal.completeness(id, None, &Span::ALWAYS, &others),
            }
        });
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: self.identity(),
            process: self.reports.process,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            wall: Some(WallTime::now()),
            holds_address: self.pair.as_ref().and_then(|pair| pair.holds_address()),
            backends: owed.collect(),
        }
    }
}
