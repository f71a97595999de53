//! Watches the relay's own figures: fills the history, and logs lasting problems and their end.
//!
//! Never acts on a problem. Bounds: one look each [`STEP`]; one log line for each problem in
//! `REMINDER`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::observe::findings::{Finding, Severity};
use crate::observe::history::STEP;
use crate::observe::status::{Backend, Status};
use crate::observe::text::whole_seconds;
use crate::observe::view::View;

/// Interval between log lines about a lasting problem.
const REMINDER: Duration = Duration::from_secs(15 * 60);
/// A backend with less lag has caught up, in seconds.
const NEAR_SECONDS: f64 = 10.0;

/// Watches a relay until the runtime ends.
pub async fn run(view: View) {
    let mut watch = Watch::default();
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        view.history.note(view.sample());
        watch.check(&view.status(), Instant::now());
    }
}

/// What was seen and logged.
#[derive(Debug, Default)]
struct Watch {
    /// When to log each problem again.
    due: HashMap<(String, String), Instant>,
    /// Since when a backend is behind, and its greatest backlog in lines.
    behind: HashMap<String, (Instant, u64)>,
    /// Whether a nearly full disk was logged; reset once the journal is below the threshold.
    is_nearly_full: bool,
}

impl Watch {
    fn check(&mut self, status: &Status, now: Instant) {
        self.remind(&status.findings, now);
        for backend in &status.backends {
            self.follow(backend, now);
        }
        let journal = &status.journal;
        let nearly_full = journal.nearly_full();
        let was_nearly_full = std::mem::replace(&mut self.is_nearly_full, nearly_full.is_some());
        if let Some(percent) = nearly_full.filter(|_| !was_nearly_full) {
            let full_in = journal.full_in_seconds.map(whole_seconds);
            tracing::warn!(percent, full_in, "the journal's disk is nearly full: then its oldest lines are given up");
        }
    }

    /// Logs lasting problems. The part that finds a problem logs it the first time.
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::{Arc, PoisonError};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::observe::findings::tests::status;

    /// A log that a test can read.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// Returns what is logged during `work`.
    fn logged(work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let log = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(log, work);
        let bytes = lines.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("text")
    }

    fn finding(severity: Severity, what: &str) -> Finding {
        let (about, to_do) = ("b".to_owned(), "start it".to_owned());
        Finding { severity, about, what: what.to_owned(), since: Some("2026-11-27T03:00:00Z".to_owned()), to_do }
    }

    #[test]
    fn a_problem_that_stays_is_told_each_quarter_of_an_hour() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |watch: &mut Watch, minutes: u64, findings: &[Finding]| {
            logged(|| watch.remind(findings, start + Duration::from_secs(minutes * 60)))
        };
        let down = |lines: u64| {
            [finding(Severity::Problem, &format!("b is down; {lines} lines wait")), finding(Severity::Note, "quiet")]
        };
        assert_eq!(at(&mut watch, 0, &down(1)), "", "whoever found it has told it");
        assert_eq!(at(&mut watch, 14, &down(2)), "");
        let told = at(&mut watch, 15, &down(3));
        assert!(
            told.contains("still so: b is down; 3 lines wait") && told.contains("start it") && !told.contains("quiet")
        );
        assert_eq!(at(&mut watch, 29, &down(4)), "");
        assert!(at(&mut watch, 31, &down(5)).contains("5 lines"));
        // A problem that ended and returns starts a new interval.
        assert_eq!(at(&mut watch, 32, &[]) + &at(&mut watch, 47, &down(6)), "");
    }

    #[test]
    fn a_backend_that_has_caught_up_is_told_once_with_how_much_that_was() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut follow = |state: &str, lag: f64, pending: u64, seconds: u64| {
            let backend = Backend { pending_lines: pending, lag_seconds: lag, ..backend(state) };
            logged(|| watch.follow(&backend, start + Duration::from_secs(seconds)))
        };
        assert_eq!(follow("unknown", 0.0, 0, 0) + &follow("up", 1.0, 7, 10), "");
        assert_eq!(follow("down", 60.0, 5000, 20) + &follow("up", 300.0, 9000, 320) + &follow("up", 30.0, 10, 330), "");
        let told = follow("up", 0.5, 3, 380);
        assert!(told.contains("caught up") && told.contains("lasted=\"6m\"") && told.contains("lines=9000"), "{told}");
        assert_eq!(follow("up", 0.5, 3, 390), "");
    }

    fn backend(state: &str) -> Backend {
        status(|json| json["backends"][0]["state"] = state.into()).backends.remove(0)
    }
}
