//! Whether the other relay is up: a pure function of its reports and failures, and their times.
//!
//! Owns: the state of the link. Never does: I/O, or read a clock. Bounds: one report.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::journal::WallTime;
use crate::pair::report::{Owed, Report};

/// A relay silent for this long is gone: a restart takes less.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(5);
/// Minimum number of failed polls before a relay is gone: one may be chance.
const MIN_FAILURES: u32 = 3;

/// State of the other relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// It has not answered yet.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It answered once, and is gone.
    Gone,
}

impl LinkState {
    /// Returns the state's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Gone => "gone",
        }
    }
}

/// The last report.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) report: Report,
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
}

impl Heard {
    /// Returns when the oldest pending line was received, by this machine's clock.
    pub(super) fn oldest(&self, owed: &Owed) -> WallTime {
        let age = Duration::try_from_secs_f64(owed.oldest_seconds).unwrap_or_default();
        self.wall.checked_sub(age).unwrap_or(UNIX_EPOCH).into()
    }
}

/// What a poll changed.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Nothing to report.
    Nothing,
    /// It answers for the first time.
    Reached,
    /// It answers again, after so long.
    Back(Duration),
    /// Another relay with another journal answers in its place. Holds the last report of the
    /// previous one.
    Replaced(Box<Heard>),
    /// It is gone. Holds its last report.
    Gone(Box<Heard>),
}

/// State of the link to the other relay.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: LinkState,
    /// Since when.
    pub(super) since: SystemTime,
    pub(super) heard: Option<Heard>,
    /// Why the last poll failed, or `None` if it succeeded.
    pub(super) error: Option<String>,
    /// Since when it answers without a report. `None` if it does not.
    pub(super) refused_since: Option<SystemTime>,
    failures: u32,
}

impl Link {
    pub(super) fn new(now: SystemTime) -> Self {
        Self { state: LinkState::default(), since: now, heard: None, error: None, refused_since: None, failures: 0 }
    }

    /// Records a report.
    pub(super) fn note_heard(&mut self, heard: Heard) -> Change {
        let before = std::mem::replace(&mut self.state, LinkState::Up);
        (self.failures, self.error, self.refused_since) = (0, None, None);
        let silent = self.heard.as_ref().map_or(Duration::ZERO, |last| heard.at.saturating_duration_since(last.at));
        if before != LinkState::Up {
            self.since = heard.wall;
        }
        let new = heard.report.clone();
        let last = self.heard.replace(heard);
        let is_other = |last: &Heard| {
            let has_journal = new.identity.is_some() && new.identity == last.report.identity;
            last.report.process != new.process && !has_journal
        };
        match (before, last) {
            (LinkState::Unknown, _) => Change::Reached,
            (LinkState::Up, Some(last)) if is_other(&last) => Change::Replaced(Box::new(last)),
            (LinkState::Up, _) => Change::Nothing,
            (LinkState::Gone, _) => Change::Back(silent),
        }
    }

    /// Records an answer without a report.
    pub(super) fn note_refusal(&mut self, error: String, now: SystemTime) {
        self.failures = 0;
        self.error = Some(error);
        self.refused_since.get_or_insert(now);
    }

    /// Returns since when its pending lines are unknown although it is or was up. `None` if they
    /// are known.
    pub(super) fn blind_since(&self) -> Option<SystemTime> {
        let since = self.refused_since?;
        Some(self.heard.as_ref().map_or(since, |heard| heard.wall))
    }

    /// Records a poll without an answer.
    pub(super) fn note_failure(&mut self, error: String, now: Instant) -> Change {
        self.failures += 1;
        self.error = Some(error);
        let Some(heard) = self.heard.as_ref().filter(|_| self.state == LinkState::Up) else { return Change::Nothing };
        if self.failures < MIN_FAILURES || now.saturating_duration_since(heard.at) < GONE_AFTER {
            return Change::Nothing;
        }
        (self.state, self.since) = (LinkState::Gone, heard.wall);
        Change::Gone(Box::new(heard.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_gone_after_some_seconds_and_some_tries_and_comes_back() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let heard = |seconds| Heard { report: Report::default(), at: at(seconds), wall };
        let mut link = Link::new(wall);
        let fail = |link: &mut Link, seconds| link.note_failure("refused".to_owned(), at(seconds));
        for seconds in 0..20 {
            assert!(matches!(fail(&mut link, seconds), Change::Nothing), "nobody was there");
        }
        assert_eq!(link.state, LinkState::Unknown);
        assert!(matches!(link.note_heard(heard(20)), Change::Reached));
        assert!(matches!(link.note_heard(heard(21)), Change::Nothing));
        // Neither one slow poll nor many within a moment mean that it is gone.
        assert!(matches!(fail(&mut link, 40), Change::Nothing) && matches!(fail(&mut link, 40), Change::Nothing));
        assert!(matches!(link.note_heard(heard(41)), Change::Nothing) && link.error.is_none());
        for _ in 0..9 {
            assert!(matches!(fail(&mut link, 45), Change::Nothing));
        }
        // A relay that refuses is up.
        link.note_refusal("403".to_owned(), wall);
        assert_eq!(link.blind_since(), Some(wall));
        assert!(matches!(fail(&mut link, 46), Change::Nothing) && matches!(fail(&mut link, 46), Change::Nothing));
        assert!(matches!(fail(&mut link, 46), Change::Gone(_)) && matches!(fail(&mut link, 47), Change::Nothing));
        assert_eq!((link.state.name(), link.since), ("gone", wall));
        assert!(matches!(link.note_heard(heard(101)), Change::Back(time) if time == Duration::from_secs(60)));
    }

    #[test]
    fn a_relay_that_comes_back_at_once_with_another_journal_is_another_one() {
        let says = |process: u64, identity: Option<&str>| {
            let report = Report { process, identity: identity.map(str::to_owned), ..Report::default() };
            Heard { report, at: Instant::now(), wall: SystemTime::now() }
        };
        let mut link = Link::new(SystemTime::now());
        link.note_heard(says(1, Some("x")));
        assert!(matches!(link.note_heard(says(2, Some("x"))), Change::Nothing), "a restart");
        assert!(matches!(link.note_heard(says(3, Some("y"))), Change::Replaced(last) if last.report.process == 2));
        assert!(matches!(link.note_heard(says(4, None)), Change::Replaced(_)));
        assert!(matches!(link.note_heard(says(5, None)), Change::Replaced(_)), "what memory held is gone");
    }
}
