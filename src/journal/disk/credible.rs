//! Bounds the saved cursors by what the log holds. A checksum proves that a slot is whole, not that
//! it is true: anybody who can write to the folder can craft one.
//!
//! Cursors may point to lines beyond the log's end that a power cut took; these are owed, and
//! counted as `corrupt`. Claims of more than a power cut can take are not believed. Lines before
//! the log's end are, or were, there to read.

use std::collections::HashMap;

use super::writer::MAX_UNSYNCED;
use crate::batch::Destination;
use crate::journal::segment::Position;
use crate::journal::state::options::SEGMENT_BYTES;
use crate::journal::state::saved::Cursors;

/// Bytes of lines beyond the log's end that are believed, per destination.
const MAX_LOST_BYTES: u64 = 4 << 30;

// A power cut can take what was not synced, counted before compression.
const _: () = assert!(MAX_LOST_BYTES >= 4 * MAX_UNSYNCED as u64 * SEGMENT_BYTES);

/// What the cursors claim about a destination.
struct Claim {
    /// The first position that some backend still needs.
    low: Position,
    /// The end of what was written.
    high: Position,
}

/// Cuts off positions at the last credible one, and lanes where they overlap, so that nothing is
/// pending twice. `ends` is what the log holds of each destination. Returns the lines that are not
/// believed.
pub(super) fn bound(saved: &mut Cursors, ends: &[(Destination, Position)]) -> u64 {
    let limits: HashMap<Destination, (Position, u64)> = claims(saved)
        .into_iter()
        .map(|(destination, claim)| {
            let held = ends.iter().find(|(known, _)| known == destination).map(|(_, at)| *at).unwrap_or_default();
            let sure = held.max(claim.low);
            let beyond = claim.high.since(sure);
            // A line has at least one byte.
            let is_credible = beyond.lines <= beyond.bytes && beyond.bytes <= MAX_LOST_BYTES;
            let limit = if is_credible { (claim.high, 0) } else { (sure, beyond.lines) };
            (destination.clone(), limit)
        })
        .collect();
    let cut = |destination: &Destination, at: Position| limits.get(destination).map_or(at, |(limit, _)| at.min(*limit));
    for (destination, at) in &mut saved.written {
        *at = cut(destination, *at);
    }
    for (destination, lanes) in saved.backends.iter_mut().flat_map(|backend| &mut backend.destinations) {
        let mut before = Position::default();
        for lane in lanes {
            lane.at = cut(destination, lane.at).max(before);
            if let Some((_, end)) = &mut lane.end {
                *end = cut(destination, *end).max(lane.at);
                before = *end;
            }
        }
    }
    limits.values().map(|(_, lines)| *lines).fold(0, u64::saturating_add)
}

fn claims(saved: &Cursors) -> HashMap<&Destination, Claim> {
    let mut claims: HashMap<&Destination, Claim> = HashMap::new();
    for (destination, lanes) in saved.backends.iter().flat_map(|backend| &backend.destinations) {
        for lane in lanes {
            let high = lane.end.map_or(lane.at, |(_, end)| end);
            let claim = claims.entry(destination).or_insert(Claim { low: lane.at, high });
            (claim.low, claim.high) = (claim.low.min(lane.at), claim.high.max(high));
        }
    }
    for (destination, written) in &saved.written {
        let claim = claims.entry(destination).or_insert(Claim { low: *written, high: *written });
        claim.high = claim.high.max(*written);
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::segment::Sequence;
    use crate::journal::state::lane::SavedLane;
    use crate::journal::state::saved::SavedBackend;
    use crate::protocol::Precision;

    fn destination() -> Destination {
        Destination::new("db", "", Precision::Nanoseconds)
    }

    fn at(lines: u64, bytes: u64) -> Position {
        Position { lines, bytes }
    }

    /// Cursors with `written`, and one backend with a lane per pair of positions; the last lane is
    /// open.
    fn cursors(written: Position, lanes: &[(Position, Option<Position>)]) -> Cursors {
        let lanes = lanes.iter().zip(0_u64..).map(|((at, end), from)| SavedLane {
            from: Sequence::new(from),
            at: *at,
            since: None,
            end: end.map(|end| (Sequence::new(from + 1), end)),
        });
        let destinations = vec![(destination(), lanes.collect())];
        let backends = vec![SavedBackend { name: "a".into(), destinations, ..SavedBackend::default() }];
        Cursors { written: vec![(destination(), written)], backends, ..Cursors::default() }
    }

    /// The lines pending after bounding by a log that ends at `end`, and the lines not believed.
    fn pending(mut saved: Cursors, end: Position) -> (u64, u64) {
        let unbelieved = bound(&mut saved, &[(destination(), end)]);
        let written = saved.written[0].1;
        let lanes = &saved.backends[0].destinations[0].1;
        (lanes.iter().map(|lane| lane.pending(written)).sum(), unbelieved)
    }

    #[test]
    fn what_the_log_cannot_have_held_is_not_pending() {
        let (end, far) = (at(100, 9_000), at(1_000_000_000_000, 1 << 50));
        // Lines that a power cut took are owed, however high the journal has counted.
        assert_eq!(pending(cursors(at(150, 13_000), &[(at(40, 4_000), None)]), end), (110, 0));
        let near = at(far.lines - 7, far.bytes - 700);
        assert_eq!(pending(cursors(far, &[(near, None)]), at(0, 0)), (7, 0));
        // Written, or ending, beyond what is credible.
        assert_eq!(pending(cursors(far, &[(at(40, 4_000), None)]), end), (60, far.lines - 100));
        let lanes = [(at(40, 4_000), Some(far)), (far, None)];
        assert_eq!(pending(cursors(end, &lanes), end), (60, far.lines - 100));
        // More lines than bytes.
        assert_eq!(pending(cursors(at(1 << 31, 10_000), &[(at(40, 4_000), None)]), end).0, 60);
        // The same lines several times.
        let lanes = [(at(40, 4_000), Some(end)), (at(0, 0), Some(end)), (at(50, 5_000), Some(end)), (end, None)];
        assert_eq!(pending(cursors(end, &lanes), end), (60, 0));
    }
}
