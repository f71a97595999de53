//! The relay's own watch over its figures: it fills the history, and tells the log what stays wrong and what is over.
//!
//! Never does: anything about it. Bounds: one look each [`STEP`]; one line for each problem in [`REMINDER`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::observe::findings::{Finding, Severity};
use crate::observe::history::STEP;
use crate::observe::status::{Backend, Status};
use crate::observe::text::whole_seconds;
use crate::observe::view::View;

/// A problem that stays is told again after this time.
const REMINDER: Duration = Duration::from_secs(15 * 60);
/// A backend that lags less has caught up, in seconds.
const NEAR_SECONDS: f64 = 10.0;
/// The part of its disk that a journal may fill before that is told, in percent; it is told again after it fell below.
const FULL_PERCENT: u64 = 80;

/// Watches a relay until the runtime ends.
pub async fn run(view: View) {
    let mut watch = Watch::default();
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        view.history.note(view.sample());
        watch.look(&view.status(), Instant::now());
    }
}

/// What was seen and told.
#[derive(Debug, Default)]
struct Watch {
    /// When each problem is to be told again.
    due: HashMap<(String, String), Instant>,
    /// Since when a backend is behind, and the most lines that waited for it.
    behind: HashMap<String, (Instant, u64)>,
    is_nearly_full: bool,
}

impl Watch {
    fn look(&mut self, status: &Status, now: Instant) {
        self.remind(&status.findings, now);
        for backend in &status.backends {
            self.follow(backend, now);
        }
        let journal = &status.journal;
        let percent = (journal.disk_bytes * 100).checked_div(journal.disk_bound_bytes).unwrap_or(0);
        let was_nearly_full = std::mem::replace(&mut self.is_nearly_full, percent >= FULL_PERCENT);
        if self.is_nearly_full && !was_nearly_full {
            let full_in = journal.full_in_seconds.map(whole_seconds);
            tracing::warn!(percent, full_in, "the journal's disk is nearly full: then its oldest lines are given up");
        }
    }

    /// Tells problems that stay. The first time each is told by whoever finds it.
    fn remind(&mut self, findings: &[Finding], now: Instant) {
        let problems = findings.iter().filter(|finding| finding.severity == Severity::Problem);
        let mut due = HashMap::new();
        for Finding { about, what, since, to_do, .. } in problems {
            let key = (about.clone(), to_do.clone());
            let mut at = self.due.get(&key).copied().unwrap_or(now + REMINDER);
            if at <= now {
                tracing::warn!(since, to_do, "still so: {what}");
                at = now + REMINDER;
            }
            due.insert(key, at);
        }
        self.due = due;
    }

    fn follow(&mut self, backend: &Backend, now: Instant) {
        let name = &backend.name;
        let is_near = backend.state == "up" && backend.lag_seconds < NEAR_SECONDS;
        if !is_near && backend.state != "unknown" {
            let (_, most) = self.behind.entry(name.clone()).or_insert((now, 0));
            *most = (*most).max(backend.pending_lines);
        } else if let Some((since, lines)) = self.behind.remove(name) {
            let lasted = whole_seconds(now.saturating_duration_since(since).as_secs_f64());
            tracing::info!(backend = name, lasted, lines, "caught up: the backend has what waited for it");
        }
    }
}
