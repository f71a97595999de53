//! Whether the other relay is there: a pure function of what was heard of it, and when.

use std::time::{Duration, Instant, SystemTime};

use crate::pair::report::Report;

/// A relay that was silent for so long is gone: a restart takes less.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(5);
/// One lost answer is no sign.
const LEAST_FAILURES: u32 = 3;

/// Whether the other relay is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// It was not heard of yet.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It was heard of, and is gone.
    Gone,
}

impl LinkState {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Gone => "gone",
        }
    }
}

/// What was heard last.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) report: Report,
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
}

/// What a try changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that anybody must be told.
    Nothing,
    /// It answers for the first time.
    Reached,
    /// It answers again, after so long.
    Back(Duration),
    /// It is gone.
    Gone,
}

/// What is known of the other relay.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: LinkState,
    /// Since when that is so.
    pub(super) since: SystemTime,
    pub(super) heard: Option<Heard>,
    /// Why the last try failed; none if it did not.
    pub(super) error: Option<String>,
    failures: u32,
}

impl Link {
    pub(super) fn new(now: SystemTime) -> Self {
        Self { state: LinkState::default(), since: now, heard: None, error: None, failures: 0 }
    }

    /// It answered.
    pub(super) fn note_heard(&mut self, heard: Heard) -> Change {
        let before = std::mem::replace(&mut self.state, LinkState::Up);
        (self.failures, self.error) = (0, None);
        let silent = self.heard.as_ref().map_or(Duration::ZERO, |last| heard.at.saturating_duration_since(last.at));
        if before != LinkState::Up {
            self.since = heard.wall;
        }
        self.heard = Some(heard);
        match before {
            LinkState::Unknown => Change::Reached,
            LinkState::Up => Change::Nothing,
            LinkState::Gone => Change::Back(silent),
        }
    }

    /// It did not answer.
    pub(super) fn note_failure(&mut self, error: String, now: Instant) -> Change {
        self.failures += 1;
        self.error = Some(error);
        let Some(heard) = self.heard.as_ref().filter(|_| self.state == LinkState::Up) else { return Change::Nothing };
        if self.failures < LEAST_FAILURES || now.saturating_duration_since(heard.at) < GONE_AFTER {
            return Change::Nothing;
        }
        (self.state, self.since) = (LinkState::Gone, heard.wall);
        Change::Gone
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
            assert_eq!(fail(&mut link, seconds), Change::Nothing, "nobody was there");
        }
        assert_eq!(
            (link.state, link.note_heard(heard(20)), link.note_heard(heard(21))),
            (LinkState::Unknown, Change::Reached, Change::Nothing)
        );
        // One try that takes long is no sign, and neither are many within a moment.
        assert_eq!((fail(&mut link, 40), fail(&mut link, 40)), (Change::Nothing, Change::Nothing));
        assert_eq!((link.note_heard(heard(41)), link.error.is_none()), (Change::Nothing, true));
        for _ in 0..9 {
            assert_eq!(fail(&mut link, 45), Change::Nothing);
        }
        assert_eq!((fail(&mut link, 46), fail(&mut link, 47)), (Change::Gone, Change::Nothing));
        assert_eq!((link.state.name(), link.since), ("gone", wall));
        assert_eq!(link.note_heard(heard(101)), Change::Back(Duration::from_secs(60)));
    }
}
