//! What a destination rejected recently: later requests send lines that look alike apart from the
//! start.
//!
//! Never does: decide anything. A rule only saves requests: the lines it names are still sent, and
//! only the answer counts. Bounds: [`MAX_CONFLICTS`] conflicts, [`HOLDS`] since the last rejection.

use std::time::{Duration, Instant};

use super::Refused;
use super::blame::Conflict;
use crate::journal::Rejection;
use crate::protocol::line::anatomy;
use crate::sys::monotonic;

/// How long a rule holds after the last rejection that it explains.
const HOLDS: Duration = Duration::from_secs(60);
const MAX_CONFLICTS: usize = 16;

/// What one destination rejected recently.
#[derive(Debug)]
pub(in crate::deliver) struct Rule {
    /// Types in conflict.
    conflicts: Vec<Conflict>,
    /// Newest timestamp beyond retention, in the destination's precision. Older ones are beyond it,
    /// too.
    beyond: Option<i64>,
    until: Instant,
}

impl Rule {
    /// Derives the rule that explains rejected lines, if there is one.
    pub(in crate::deliver) fn of(refused: &[Refused]) -> Option<Self> {
        let mut rule = Self { conflicts: Vec::new(), beyond: None, until: monotonic::now() + HOLDS };
        for Refused { line, class, answer, .. } in refused {
            match class {
                Rejection::FieldType => {
                    let fits = |conflict: &Conflict| conflict.fits(line);
                    if !rule.conflicts.iter().any(fits) && rule.conflicts.len() < MAX_CONFLICTS {
                        rule.conflicts.extend(Conflict::all(answer).filter(fits).take(1));
                    }
                }
                Rejection::Retention => rule.beyond = rule.beyond.max(anatomy::timestamp(line)),
                _ => {}
            }
        }
        (!rule.conflicts.is_empty() || rule.beyond.is_some()).then_some(rule)
    }

    /// Whether the rule still holds.
    pub(in crate::deliver) fn holds(&self) -> bool {
        self.until > monotonic::now()
    }

    /// Whether the rule names this line.
    pub(super) fn names(&self, line: &[u8]) -> bool {
        self.conflicts.iter().any(|conflict| conflict.fits(line))
            || self.beyond.is_some_and(|beyond| anatomy::timestamp(line).is_some_and(|time| time <= beyond))
    }
}
