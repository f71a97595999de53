//! What a destination refused, kept for the requests after it: lines that look alike are sent apart from the beginning.
//!
//! A rule saves requests and decides nothing: what it names is sent all the same, and only the answer counts.
//! Bounds: [`MOST_CONFLICTS`] conflicts, [`HOLDS`] since the last refusal.

use std::time::{Duration, Instant};

use super::Refused;
use super::blame::Conflict;
use crate::journal::Rejection;
use crate::protocol::line::anatomy;
use crate::sys::monotonic;

/// How long a rule holds after the last refusal that it explains.
const HOLDS: Duration = Duration::from_secs(60);
const MOST_CONFLICTS: usize = 16;

/// What one destination refused lately.
#[derive(Debug)]
pub(in crate::deliver) struct Rule {
    /// Types in conflict.
    conflicts: Vec<Conflict>,
    /// The newest timestamp beyond retention, in the destination's precision: what is older is beyond it, too.
    beyond: Option<i64>,
    until: Instant,
}

impl Rule {
    /// The rule that explains refused lines; none if there is none.
    pub(in crate::deliver) fn of(refused: &[Refused]) -> Option<Self> {
        let mut rule = Self { conflicts: Vec::new(), beyond: None, until: monotonic::now() + HOLDS };
        for Refused { line, class, answer, .. } in refused {
            match class {
                Rejection::FieldType => {
                    let fits = |conflict: &Conflict| conflict.fits(line);
                    if !rule.conflicts.iter().any(fits) && rule.conflicts.len() < MOST_CONFLICTS {
                        rule.conflicts.extend(Conflict::all(answer).filter(fits).take(1));
                    }
                }
                Rejection::Retention => rule.beyond = rule.beyond.max(anatomy::timestamp(line)),
                _ => {}
            }
        }
        (!rule.conflicts.is_empty() || rule.beyond.is_some()).then_some(rule)
    }

    /// Whether it holds still.
    pub(in crate::deliver) fn holds(&self) -> bool {
        self.until > monotonic::now()
    }

    /// Whether it names this line.
    pub(super) fn names(&self, line: &[u8]) -> bool {
        self.conflicts.iter().any(|conflict| conflict.fits(line))
            || self.beyond.is_some_and(|beyond| anatomy::timestamp(line).is_some_and(|time| time <= beyond))
    }
}
