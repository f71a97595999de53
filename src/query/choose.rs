//! Chooses the copy that answers: one that has everything in the range, or else the one that lacks
//! least. A pure function.
//!
//! Never does: I/O, or keep state. Bounds: one entry per copy.

use std::time::Duration;

use crate::journal::Completeness;

/// State of one copy for one question.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidate {
    /// What it lacks, for each database of the question.
    pub(super) lacks: Vec<Completeness>,
    /// How long its oldest pending line in the range has waited.
    pub(super) lag: Duration,
    /// Whether it can be asked: it answers, and did not fail recently.
    pub(super) is_well: bool,
    /// Whether an operator has closed it.
    pub(super) is_closed: bool,
    /// Whether it was too far behind, and has not caught up yet.
    pub(super) is_away: bool,
    /// Whether it came back recently, and a trial question is in flight. Others go elsewhere
    /// meanwhile.
    pub(super) is_on_trial: bool,
    /// Number of its questions in flight and in the queue.
    pub(super) load: usize,
}

/// Quality of a copy's answer, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// It has everything that any other copy has.
    Complete,
    /// It may lack the last moments.
    Edge,
    /// It lacks something.
    Incomplete,
    /// It does not answer as far as is known, or is on trial.
    Unwell,
}

impl Candidate {
    /// Returns the quality of its answer.
    pub(super) fn grade(&self, max_lag: Duration) -> Grade {
        let is_near = self.lag < max_lag && !self.is_away;
        if !self.is_well || self.is_on_trial {
            Grade::Unwell
        } else if self.lacks.iter().all(|one| one.is_complete() || (is_near && one.is_current())) {
            Grade::Complete
        } else if is_near && self.lacks.iter().all(|one| one.gap_count == 0 && !one.has_statement) {
            Grade::Edge
        } else {
            Grade::Incomplete
        }
    }

    /// Whether its answer would have everything.
    pub(super) fn has_all(&self, max_lag: Duration) -> bool {
        let as_if_well = Self { is_well: true, is_on_trial: false, ..self.clone() };
        as_if_well.grade(max_lag) == Grade::Complete
    }

    /// Returns how much it lacks. Gaps count more than pending lines.
    fn missing(&self) -> (bool, u64, Duration) {
        let statement = self.lacks.iter().any(|one| one.has_statement);
        (statement, self.lacks.iter().map(|one| one.gap_count).sum(), self.lag)
    }
}

/// Returns the copies' indices in the order in which to ask them. `start` is where the order of
/// equal copies begins, so that a reader stays with one copy, whose cache knows its questions. With
/// `is_sticky` the reader stays even if that copy has more load.
pub(super) fn order(copies: &[Candidate], max_lag: Duration, start: usize, is_sticky: bool) -> Vec<usize> {
    let count = copies.len().max(1);
    let mut indices: Vec<usize> = (0..copies.len()).filter(|index| !copies[*index].is_closed).collect();
    indices.sort_by_key(|index| {
        let copy = &copies[*index];
        let grade = copy.grade(max_lag);
        // Among complete copies, the one with the least load comes first.
        let missing = if grade <= Grade::Edge { Default::default() } else { copy.missing() };
        let lag = if grade == Grade::Edge { copy.lag } else { Duration::ZERO };
        (grade, missing, lag, if is_sticky { 0 } else { copy.load }, (index + count - start % count) % count)
    });
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LAG: Duration = Duration::from_secs(10);

    fn whole() -> Candidate {
        Candidate { lacks: vec![Completeness::default()], is_well: true, ..Candidate::default() }
    }

    fn pending(is_behind: bool, lag: u64) -> Candidate {
        let lacks = Completeness { pending_from: Some(1), is_behind, ..Completeness::default() };
        Candidate { lacks: vec![lacks], lag: Duration::from_secs(lag), ..whole() }
    }

    fn with_gap() -> Candidate {
        Candidate { lacks: vec![Completeness { gap_count: 1, ..Completeness::default() }], ..whole() }
    }

    #[test]
    fn the_copy_that_has_most_is_asked_first() {
        let (down, closed) = (Candidate { is_well: false, ..whole() }, Candidate { is_closed: true, ..whole() });
        for (copies, expected) in [
            (vec![whole(), whole()], vec![0, 1]),
            (vec![pending(true, 1), pending(false, 1)], vec![1, 0]),
            (vec![pending(true, 1), whole()], vec![1, 0]),
            (vec![pending(true, 9), pending(true, 2)], vec![1, 0]),
            (vec![with_gap(), pending(true, 600)], vec![1, 0]),
            (vec![with_gap(), pending(true, 5)], vec![1, 0]),
            (vec![down.clone(), with_gap()], vec![1, 0]),
            (vec![down.clone(), down], vec![0, 1]),
            (vec![Candidate { is_on_trial: true, ..whole() }, with_gap()], vec![1, 0]),
            (vec![closed.clone(), with_gap()], vec![1]),
            (vec![closed.clone(), closed], vec![]),
            (vec![Candidate { is_away: true, ..pending(false, 1) }, pending(true, 9)], vec![1, 0]),
            (vec![Candidate { load: 2, ..whole() }, Candidate { load: 1, ..whole() }], vec![1, 0]),
        ] {
            assert_eq!(order(&copies, MAX_LAG, 0, false), expected, "{copies:?}");
        }
        assert_eq!(order(&[whole(), whole()], MAX_LAG, 1, false), [1, 0], "a reader has a copy of its own");
        let busy = [Candidate { load: 1, ..whole() }, whole()];
        assert_eq!((order(&busy, MAX_LAG, 0, false), order(&busy, MAX_LAG, 0, true)), (vec![1, 0], vec![0, 1]));
    }

    #[test]
    fn what_both_lack_makes_neither_worse_and_long_lags_do() {
        assert_eq!(pending(false, 1).grade(MAX_LAG), Grade::Complete);
        assert_eq!(pending(false, 11).grade(MAX_LAG), Grade::Incomplete);
        assert_eq!(pending(true, 1).grade(MAX_LAG), Grade::Edge);
        assert_eq!(with_gap().grade(MAX_LAG), Grade::Incomplete);
        assert!(Candidate { is_well: false, ..whole() }.has_all(MAX_LAG) && !with_gap().has_all(MAX_LAG));
    }
}
