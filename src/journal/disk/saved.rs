//! The bodies of the slots: where each backend is, and what was given up.
//!
//! Numbers are little-endian. Counts of bytes stand in parentheses.
//!
//! * A name is its length (1) and its bytes.
//! * A destination is its precision (1), database and retention policy (names).
//! * A position is lines (8) and bytes (8).
//! * Totals are a count (4), and for each destination its position and itself: the first part of a
//!   totals frame.
//!
//! **Cursors**: next sequence (8); the lowest number of a segment that may be written to and synced
//! (8); the version of the gap ledger (8); the totals written; the totals below which the quota,
//! the age limit or the floor evicted everything; count of backends (4).
//!
//! Each backend: name; address (2 bytes of length, and its bytes); 1 if lines that it is owed
//! cannot be written, else 0 (1); 1 if its address has changed, else 0 (1), and only if so the next
//! sequence (8) and the totals at that time; count of destinations (4).
//!
//! Each of its destinations: destination; count of lanes (4). Each lane: from (8); position (16);
//! wall time of its oldest line (8); 1 if it ends, else 0 (1), and only if so its end (8) and the
//! position there (16).
//!
//! **Gaps**: version (8); the next gap's number (8); count (4).
//!
//! Each gap: number (8); backend's name; destination; wall times from and until (8 each); lines
//! (8); the earliest and the latest time of its points (8 each); 1 if the backend may have some of
//! them, else 0 (1); the reason's name.

use crate::batch::{Destination, Span, WallTime};
use crate::journal::segment::format::{nanoseconds, precision_code, precision_of};
use crate::journal::segment::frame::MAX_COUNT;
use crate::journal::segment::{Position, Sequence};
use crate::journal::state::gaps::{Gap, GapReason, Gaps};
use crate::journal::state::lane::SavedLane;
use crate::journal::state::saved::{Cursors, MovedAt, SavedBackend};

impl Cursors {
    pub(in crate::journal) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u64(&mut out, self.next_sequence.get());
        put_u64(&mut out, self.abandoned_below);
        put_u64(&mut out, self.gaps_version);
        for totals in [&self.written, &self.kept_from] {
            put_totals(&mut out, totals.iter().map(|(destination, at)| (destination, *at)));
        }
        put_count(&mut out, self.backends.len());
        for backend in &self.backends {
            put_name(&mut out, &backend.name);
            put_address(&mut out, &backend.address);
            out.push(u8::from(backend.is_unkept));
            out.push(u8::from(backend.moved_at.is_some()));
            if let Some(MovedAt { sequence, written }) = &backend.moved_at {
                put_u64(&mut out, sequence.get());
                put_totals(&mut out, written.iter().map(|(destination, at)| (destination, *at)));
            }
            put_count(&mut out, backend.destinations.len());
            for (destination, lanes) in &backend.destinations {
                put_destination(&mut out, destination);
                put_count(&mut out, lanes.len());
                for lane in lanes {
                    put_u64(&mut out, lane.from.get());
                    put_position(&mut out, lane.at);
                    put_u64(&mut out, nanoseconds(lane.since));
                    out.push(u8::from(lane.end.is_some()));
                    if let Some((end, at)) = lane.end {
                        put_u64(&mut out, end.get());
                        put_position(&mut out, at);
                    }
                }
            }
        }
        out
    }

    /// Returns `None` if the bytes are not what [`Self::encode`] produces.
    pub(in crate::journal) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let (next_sequence, abandoned_below, gaps_version) = (rest.sequence()?, rest.count()?, rest.count()?);
        let (written, kept_from) = (rest.totals()?, rest.totals()?);
        let backends = rest.several(|rest| {
            let (name, address, is_unkept) = (rest.name()?, rest.address()?, rest.u8()? != 0);
            let moved_at = match rest.u8()? {
                0 => None,
                _ => Some(MovedAt { sequence: rest.sequence()?, written: rest.totals()? }),
            };
            let destinations = rest.several(|rest| {
                let destination = rest.destination()?;
                let lanes = rest.several(|rest| {
                    let (from, at, since) = (rest.sequence()?, rest.position()?, rest.time()?);
                    let end = if rest.u8()? == 0 { None } else { Some((rest.sequence()?, rest.position()?)) };
                    Some(SavedLane { from, at, since, end })
                })?;
                Some((destination, lanes))
            })?;
            Some(SavedBackend { name, address, is_unkept, moved_at, destinations })
        })?;
        rest.0.is_empty().then_some(Self { next_sequence, abandoned_below, gaps_version, written, kept_from, backends })
    }
}

/// The gap ledger's bytes.
pub(in crate::journal) fn encode_gaps(gaps: &Gaps) -> Vec<u8> {
    let mut out = Vec::new();
    put_u64(&mut out, gaps.version());
    put_u64(&mut out, gaps.next_id());
    let gaps = gaps.iter();
    put_count(&mut out, gaps.len());
    for gap in gaps {
        put_u64(&mut out, gap.id);
        put_name(&mut out, &gap.backend);
        put_destination(&mut out, &gap.destination);
        for number in [nanoseconds(gap.from), gap.until.nanoseconds(), gap.lines] {
            put_u64(&mut out, number);
        }
        put_span(&mut out, gap.points);
        out.push(u8::from(gap.is_unsure));
        put_name(&mut out, gap.reason.name());
    }
    out
}

/// Returns `None` if the bytes are not what [`encode_gaps`] produces.
pub(in crate::journal) fn decode_gaps(bytes: &[u8]) -> Option<Gaps> {
    let mut rest = Rest(bytes);
    let (version, next_id) = (rest.count()?, rest.count()?);
    let gaps = rest.several(|rest| {
        let id = rest.count()?;
        let (backend, destination) = (rest.name()?, rest.destination()?);
        let (from, until, lines) = (rest.time()?, rest.time()?.unwrap_or(WallTime::MIN), rest.u64()?);
        let (points, is_unsure) = (rest.span()?, rest.u8()? != 0);
        let reason = GapReason::of_name(&rest.name()?)?;
        Some(Gap { id, backend, destination, from, until, points, is_unsure, lines, reason })
    })?;
    rest.0.is_empty().then(|| Gaps::new(version, next_id, gaps))
}

/// A totals frame's payload: what was written of each destination before the segment, and the point
/// times in the segment before.
pub(in crate::journal) fn encode_totals<'a>(
    totals: impl ExactSizeIterator<Item = (&'a Destination, Position, Span)> + Clone,
) -> Vec<u8> {
    let mut out = Vec::new();
    put_totals(&mut out, totals.clone().map(|(destination, at, _)| (destination, at)));
    for (_, _, points) in totals {
        put_span(&mut out, points);
    }
    out
}

/// Returns `None` if the bytes are not what [`encode_totals`] produces.
pub(in crate::journal) fn decode_totals(bytes: &[u8]) -> Option<Vec<(Destination, Position, Span)>> {
    let mut rest = Rest(bytes);
    let totals = rest.totals()?.into_iter();
    let totals = totals.map(|(destination, at)| Some((destination, at, rest.span()?))).collect::<Option<_>>()?;
    rest.0.is_empty().then_some(totals)
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).expect("BUG: names have at most 255 bytes"));
    out.extend_from_slice(name.as_bytes());
}

fn put_address(out: &mut Vec<u8>, address: &str) {
    let length = u16::try_from(address.len()).expect("BUG: addresses have at most 65,535 bytes");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(address.as_bytes());
}

fn put_destination(out: &mut Vec<u8>, destination: &Destination) {
    out.push(precision_code(destination.precision()));
    put_name(out, destination.database());
    put_name(out, destination.retention_policy());
}

fn put_span(out: &mut Vec<u8>, span: Span) {
    out.extend_from_slice(&span.from.to_le_bytes());
    out.extend_from_slice(&span.until.to_le_bytes());
}

fn put_position(out: &mut Vec<u8>, at: Position) {
    put_u64(out, at.lines);
    put_u64(out, at.bytes);
}

fn put_totals<'a>(out: &mut Vec<u8>, totals: impl ExactSizeIterator<Item = (&'a Destination, Position)>) {
    put_count(out, totals.len());
    for (destination, at) in totals {
        put_position(out, at);
        put_destination(out, destination);
    }
}

/// The bytes not yet read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn sequence(&mut self) -> Option<Sequence> {
        self.count().map(Sequence::new)
    }

    /// A sequence, a segment's number, or a part of a position.
    fn count(&mut self) -> Option<u64> {
        self.u64().filter(|count| *count <= MAX_COUNT)
    }

    fn time(&mut self) -> Option<Option<WallTime>> {
        self.u64().map(WallTime::new)
    }

    fn span(&mut self) -> Option<Span> {
        Some(Span { from: self.u64()?.cast_signed(), until: self.u64()?.cast_signed() })
    }

    fn position(&mut self) -> Option<Position> {
        Some(Position { lines: self.count()?, bytes: self.count()? })
    }

    fn name(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn address(&mut self) -> Option<String> {
        let length = self.take(2)?.try_into().ok().map(u16::from_le_bytes)?;
        String::from_utf8(self.take(usize::from(length))?.to_vec()).ok()
    }

    fn destination(&mut self) -> Option<Destination> {
        let precision = precision_of(self.u8()?)?;
        Some(Destination::new(self.name()?, self.name()?, precision))
    }

    fn totals(&mut self) -> Option<Vec<(Destination, Position)>> {
        self.several(|rest| {
            let at = rest.position()?;
            Some((rest.destination()?, at))
        })
    }

    /// Reads a count and as many items. Memory grows with the items read, not with the count
    /// claimed.
    fn several<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.take(4)?.try_into().ok().map(u32::from_le_bytes)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::state::gaps::Loss;
    use crate::journal::state::ledger::DropReason;
    use crate::protocol::Precision;

    fn destination() -> Destination {
        Destination::new("db", "rp", Precision::Hours)
    }

    #[test]
    fn what_is_saved_is_read_and_a_cut_or_longer_body_is_not() {
        let at = Position { lines: 3, bytes: 99 };
        let lanes = vec![
            SavedLane {
                from: Sequence::new(5),
                at,
                since: WallTime::new(7),
                end: Some((Sequence::new(9), at.plus(1, 1))),
            },
            SavedLane { from: Sequence::new(20), at: at.plus(9, 9), since: WallTime::new(8), end: None },
        ];
        let backend = SavedBackend {
            name: "a".to_owned(),
            address: "http://a".to_owned(),
            is_unkept: true,
            moved_at: Some(MovedAt { sequence: Sequence::new(6), written: vec![(destination(), at)] }),
            destinations: vec![(destination(), lanes)],
        };
        let written = vec![(destination(), at.plus(50, 500))];
        let cursors = Cursors {
            next_sequence: Sequence::new(21),
            abandoned_below: 4,
            gaps_version: 5,
            kept_from: written.clone(),
            written,
            backends: vec![backend, SavedBackend::default()],
        };
        let mut bytes = cursors.encode();
        assert_eq!(Cursors::decode(&bytes), Some(cursors));
        for cut in 0..bytes.len() {
            assert_eq!(Cursors::decode(&bytes[..cut]), None);
        }
        bytes.push(0);
        assert_eq!(Cursors::decode(&bytes), None);

        let mut gaps = Gaps::new(3, 7, Vec::new());
        let (lost, points) = (destination(), Span { from: -1, until: 5 });
        let loss = Loss {
            destination: &lost,
            lines: 3,
            received: (WallTime::new(1), WallTime::at(2)),
            points,
            is_unsure: true,
        };
        gaps.note(Gap::of("b", loss, DropReason::Quota));
        gaps.note_joined("c", WallTime::at(9));
        let bytes = encode_gaps(&gaps);
        let read = decode_gaps(&bytes).expect("gaps");
        assert!((read.version(), read.next_id()) == (5, 9) && read.iter().eq(gaps.iter()), "{read:?}");
        assert!((0..bytes.len()).all(|cut| decode_gaps(&bytes[..cut]).is_none()));
        let points = Span { from: -7, until: 8 };
        let bytes = encode_totals([(&destination(), at, points)].into_iter());
        assert_eq!(decode_totals(&bytes), Some(vec![(destination(), at, points)]));
        assert_eq!(decode_totals(&bytes[..bytes.len() - 1]), None);
    }
}
