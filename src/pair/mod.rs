//! The other relay of a pair: whether it is up, what is pending there, and what may be lost once it
//! is gone.
//!
//! Each relay has its own journal, and each line reaches one of them. A backend therefore has
//! everything only if *both* relays have delivered to it. This relay polls the other each second
//! ([`Report`]):
//!
//! | the other relay | effect here |
//! |---|---|
//! | answers, and nothing is pending there for longer than `NEAR_SECONDS` | none |
//! | answers, and more is pending, or it knows of a gap | readers go elsewhere, or are told ([`Pair::lacks`]) |
//! | is gone, with pending lines in its last report | the same, as a gap of the reason `peer` (`suspicions.rs`) |
//! | is back with the same journal, and has delivered those lines | the gap is closed |
//! | is back with another journal | the gap stays until the copy is repaired and vouched for |
//!
//! Not known here: lines that the other relay received within the last second before a question;
//! and lines that it accepts while only the connection between the relays is cut.
//!
//! Owns: the polling, and the suspicions. Never does: change the other relay; move the address
//! (keepalived does). Bounds: one request a second, with time limits, and 64 KiB of an answer.

mod ask;
mod holder;
mod link;
mod report;
mod suspicions;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::journal::{BackendId, Completeness, Journal, WallTime};
use crate::protocol::Span;
use crate::sys::replace;
use ask::{Missed, ask, client};
use link::{Change, Heard, Link};
use suspicions::Suspicions;

pub use ask::{PairConfig, PairError, check, look};
pub use link::LinkState;
pub use report::{Owed, Report, are_far_apart};

/// Interval of the polling.
const INTERVAL: Duration = Duration::from_secs(1);
/// Lines pending at the other relay for longer than this count for readers. Shorter ones are in
/// transit, as there always are some.
const NEAR_SECONDS: f64 = 2.0;

/// State of the other relay, as known here.
#[derive(Debug)]
pub struct Pair {
    config: PairConfig,
    journal: Journal,
    /// Names of the backends, in the journal's order.
    backends: Vec<String>,
    /// Random number that identifies this process.
    process: u64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    link: Link,
    /// Whether this machine holds the address.
    holds_address: Option<bool>,
    /// Since when both relays hold the address, or neither does.
    odd_since: Option<Instant>,
    suspicions: Suspicions,
    /// Whether it was logged that polling fails.
    is_logged: bool,
}

/// State of a pair as shown to operators.
#[derive(Clone, Debug)]
pub struct Seen {
    /// URL of the other relay.
    pub peer: String,
    /// State of the other relay.
    pub state: LinkState,
    /// Since when.
    pub since: SystemTime,
    /// Why the last poll failed, or `None` if it succeeded.
    pub error: Option<String>,
    /// The last report.
    pub report: Option<Report>,
    /// Whether it answers without a report.
    pub is_mute: bool,
    /// The address that one of the relays holds.
    pub address: Option<IpAddr>,
    /// Whether this machine holds the address.
    pub holds_address: Option<bool>,
    /// Whether both relays hold the address, or neither, for longer than a switch takes.
    pub is_odd: bool,
    /// Whether the other relay is this one.
    pub is_self: bool,
    /// Backends that only one of the relays has.
    pub strangers: Vec<String>,
}

impl Pair {
    /// Creates the state for a relay with these backends, in the journal's order.
    pub fn new(config: PairConfig, journal: Journal, backends: Vec<String>, data_dir: &Path) -> Self {
        let now = SystemTime::now();
        let suspicions = Suspicions::open(data_dir, now);
        let known = Known { link: Link::new(now), holds_address: None, odd_since: None, suspicions, is_logged: false };
        for (index, name) in backends.iter().enumerate() {
            journal.replace_suspicion(BackendId::new(index), known.suspicions.of(name));
        }
        Self { config, journal, backends, process: fastrand::u64(..), known: Mutex::new(known) }
    }

    /// Polls the other relay until the runtime ends.
    pub async fn watch(self: Arc<Self>) {
        let Ok(mut client) = client(&self.config) else { return };
        let mut token = self.config.token.as_ref().and_then(|file| file.read().ok());
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked = ask(&self.config, &mut client, token.as_ref()).await;
            if let (Err(Missed::Refused(_)), Some(file)) = (&asked, self.config.token.clone()) {
                // Reads the token again, so that a new one needs no restart. The file may be on a
                // disk that hangs.
                token = tokio::task::spawn_blocking(move || file.read().ok()).await.ok().flatten();
            }
            let holds_address = self.config.address.and_then(holder::holds);
            self.note(asked, holds_address);
            self.save().await;
        }
    }

    /// Returns the state of the pair.
    pub fn seen(&self) -> Seen {
        let known = self.lock();
        let report = known.link.heard.as_ref().map(|heard| heard.report.clone());
        let strangers = report.as_ref().map_or_else(Vec::new, |report| {
            let theirs: Vec<&str> = report.backends.iter().map(|one| one.name.as_str()).collect();
            let ours = self.backends.iter().map(String::as_str);
            let only_ours = ours.clone().filter(|name| !theirs.contains(name)).map(|name| format!("{name} (here)"));
            let only_theirs = theirs.iter().filter(|name| !ours.clone().any(|known| known == **name));
            only_ours.chain(only_theirs.map(|name| format!("{name} (there)"))).collect()
        });
        Seen {
            peer: self.config.peer.to_string().trim_end_matches('/').to_owned(),
            state: known.link.state,
            since: known.link.since,
            error: known.link.error.clone(),
            is_mute: known.link.refused_since.is_some() && known.link.state != LinkState::Gone,
            is_self: report.as_ref().is_some_and(|report| report.process == self.process),
            report,
            address: self.config.address,
            holds_address: known.holds_address,
            is_odd: known.odd_since.is_some_and(|since| since.elapsed() >= link::GONE_AFTER),
            strangers,
        }
    }

    /// Returns the number that identifies this process, for [`Report::process`].
    pub fn process(&self) -> u64 {
        self.process
    }

    /// Whether this machine holds the address. `None` if no address is configured.
    pub fn holds_address(&self) -> Option<bool> {
        self.lock().holds_address
    }

    /// Returns what a backend lacks of a range because it is pending at the other relay. `None` if
    /// that is nothing of note. Once the other relay is gone, the journal's gaps tell.
    pub fn lacks(&self, backend: &str, range: &Span) -> Option<Completeness> {
        let known = self.lock();
        // A relay that answers without a report may hold any line received since the last report.
        if let Some(since) = known.link.blind_since().filter(|_| known.link.state != LinkState::Gone) {
            let since = WallTime::from(since);
            let from = i64::try_from(since.nanoseconds()).unwrap_or(i64::MAX);
            let unknown = Span { from, until: i64::MAX };
            return unknown.meets(range).then(|| Completeness {
                pending_from: Some(from),
                pending_until: Some(i64::MAX),
                pending_since: Some(since),
                is_behind: true,
                ..Completeness::default()
            });
        }
        let heard = known.link.heard.as_ref().filter(|_| known.link.state == LinkState::Up)?;
        let owed = heard.report.backends.iter().find(|one| one.name == backend)?;
        let silent = known.link.error.as_ref().map_or(0.0, |_| heard.at.elapsed().as_secs_f64());
        lacks_of(owed, heard, range, silent)
    }

    /// Records the result of a poll, and updates the backends' copies in one step, so that no
    /// reader sees an intermediate state.
    fn note(&self, asked: Result<Report, Missed>, holds_address: Option<bool>) {
        let mut known = self.lock();
        let is_heard = asked.is_ok();
        let change = match asked {
            Ok(report) => known.link.note_heard(Heard { report, at: Instant::now(), wall: SystemTime::now() }),
            Err(Missed::Silent(error)) => known.link.note_failure(error, Instant::now()),
            Err(Missed::Refused(error)) => {
                known.link.note_refusal(error, SystemTime::now());
                Change::Nothing
            }
        };
        self.log_trouble(&mut known);
        known.holds_address = holds_address;
        let theirs = known.link.heard.clone().filter(|_| known.link.state == LinkState::Up);
        let is_odd =
            theirs.as_ref().is_some_and(|heard| holds_address.is_some() && heard.report.holds_address == holds_address);
        known.odd_since = is_odd.then(|| known.odd_since.unwrap_or_else(Instant::now));
        self.log_change(&change);
        if let Change::Gone(last) | Change::Replaced(last) = &change {
            // Without a recent report, any backend may have pending lines there.
            let is_blind = known.link.blind_since().is_some();
            let owing = last.report.backends.iter().filter(|owed| is_blind || !owed.is_settled());
            for owed in owing.filter(|owed| self.has(&owed.name)) {
                known.suspicions.note_gone(last, owed, SystemTime::now());
                log_owed(owed);
            }
        }
        if let Some(heard) = theirs.filter(|_| is_heard) {
            for owed in heard.report.backends.iter().filter(|owed| self.has(&owed.name)) {
                known.suspicions.note_heard(&heard, owed, is_behind(owed));
            }
        }
        self.apply(&mut known);
    }

    /// Updates the journal's gaps from the suspicions. A backend that an operator has vouched for
    /// gets none.
    fn apply(&self, known: &mut Known) {
        for (index, name) in self.backends.iter().enumerate() {
            let (suspicion, was) = (known.suspicions.of(name), self.journal.suspicion(BackendId::new(index)));
            match (suspicion, was) {
                (one, other) if one == other => {}
                (Some(_), None) if !known.suspicions.has_changed() => known.suspicions.forget(name),
                (suspicion, _) => {
                    if suspicion.is_none() {
                        tracing::info!(backend = name, "the other relay has delivered what it owed: the gap is closed");
                    }
                    self.journal.replace_suspicion(BackendId::new(index), suspicion);
                }
            }
        }
    }

    async fn save(&self) {
        let Some((file, content)) = self.lock().suspicions.take_change() else { return };
        let shown = file.display().to_string();
        let saved = tokio::task::spawn_blocking(move || replace(&file, &content));
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(file = shown, %error, "cannot save what is pending at the other relay");
        }
    }

    /// Logs once that polling fails. The loss of the other relay is logged separately.
    fn log_trouble(&self, known: &mut Known) {
        let is_trouble = known.link.refused_since.is_some() || known.link.state == LinkState::Unknown;
        let Some(error) = known.link.error.as_ref().filter(|_| is_trouble) else {
            known.is_logged = false;
            return;
        };
        if !std::mem::replace(&mut known.is_logged, true) {
            tracing::warn!(peer = %self.config.peer, error, "cannot learn what is pending at the other relay");
        }
    }

    fn log_change(&self, change: &Change) {
        let peer = &self.config.peer;
        match change {
            Change::Nothing => {}
            Change::Reached => tracing::info!(%peer, "reached the other relay"),
            Change::Back(silent) => tracing::info!(%peer, silent_seconds = silent.as_secs(), "the other relay is back"),
            Change::Replaced(_) => {
                tracing::warn!(%peer, "the other relay was restarted with another journal, or with one in memory");
            }
            Change::Gone(_) => tracing::warn!(%peer, "the other relay is gone"),
        }
    }

    fn has(&self, backend: &str) -> bool {
        self.backends.iter().any(|name| name == backend)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether more is pending for the backend than what is in transit.
fn is_behind(owed: &Owed) -> bool {
    is_late(owed, 0.0) || owed.lacks.gap_count > 0
}

/// Whether pending lines wait for longer than in transit. For `silent` see [`lacks_of`].
fn is_late(owed: &Owed, silent: f64) -> bool {
    owed.pending_lines > 0 && owed.oldest_seconds + silent > NEAR_SECONDS
}

fn log_owed(owed: &Owed) {
    let (backend, lines) = (&owed.name, owed.pending_lines);
    tracing::warn!(
        backend,
        lines,
        "the other relay had not delivered everything to this backend: until it is back and has, this copy counts as incomplete; \
         if it will not come back, drain its data folder, or copy from the other backend, and then: twinflux backend {backend} \
         vouch"
    );
}

/// Returns what a backend lacks of the range. `silent` is how long an expected report is overdue,
/// in seconds.
fn lacks_of(owed: &Owed, heard: &Heard, range: &Span, silent: f64) -> Option<Completeness> {
    let Completeness { pending_from, pending_until, gaps, gap_count, has_statement, .. } = &owed.lacks;
    let pending = Span { from: pending_from.unwrap_or(i64::MIN), until: pending_until.unwrap_or(i64::MAX) };
    let is_behind = is_late(owed, silent) && pending.meets(range);
    // The report does not list all gaps.
    let met = gaps.iter().filter(|(from, until)| Span { from: *from, until: *until }.meets(range)).count() as u64;
    let gap_count = met + gap_count.saturating_sub(gaps.len() as u64);
    let found = Completeness {
        pending_from: Some(pending.from).filter(|_| is_behind),
        pending_until: Some(pending.until).filter(|_| is_behind),
        pending_since: Some(heard.oldest(owed)).filter(|_| is_behind),
        is_behind,
        gaps: Vec::new(),
        gap_count,
        has_statement: *has_statement,
    };
    (!found.is_complete()).then_some(found)
}
