//! Reads what the segments of a folder say of themselves: all headers, and the last few segments
//! whole.

use std::io;
use std::sync::Arc;

use super::error::OpenError;
use super::saved::decode_totals;
use crate::batch::{Destination, Span, WallTime};
use crate::journal::segment::format::{BadHeader, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName};
use crate::journal::segment::frame::{Frame, Kind};
use crate::journal::segment::frames::{Frames, Item};
use crate::journal::segment::slots::{self, Newer};
use crate::journal::segment::storage::Storage;
use crate::journal::segment::{Position, Sequence};
use crate::journal::state::figures::Report;
use crate::journal::state::saved::Cursors;

/// Bytes of a segment read for its header and totals.
const HEADER_CHUNK_BYTES: usize = 4096;
/// Bytes of a segment read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Segments that a crash may leave unsynced: more than are written during one sync.
pub(super) const UNSYNCED_SEGMENTS: usize = 4;
/// How often an unreadable header is tried before it counts as damaged.
const READ_TRIES: u32 = 3;

/// A segment's file, and what its header and totals say.
pub(super) struct Found {
    pub(super) name: SegmentName,
    pub(super) bytes: u64,
    pub(super) header: Option<SegmentHeader>,
    pub(super) first_sequence: Option<Sequence>,
    pub(super) totals: Option<Vec<(Destination, Position)>>,
    /// The point times in the segment before, for each destination seen by then.
    pub(super) points_before: Option<Vec<(Destination, Span)>>,
    /// The point times in it, if it was read whole.
    pub(super) points: Option<Vec<(Destination, Span)>>,
    /// It is known to have every record from its first up to this sequence. `None` if unknown or
    /// not so.
    pub(super) whole_below: Option<Sequence>,
}

/// What the records of a scanned segment say.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) ends: Vec<(Destination, Position)>,
    points: Vec<(Destination, Span)>,
    /// Where each destination's first record is.
    firsts: Vec<(Destination, Position)>,
    /// Something is missing between two records of a destination.
    has_hole: bool,
    pub(super) next_sequence: Sequence,
    /// The latest wall time at which a record was received.
    pub(super) newest: Option<WallTime>,
    damaged: u64,
    /// Bytes between records.
    skipped: u64,
    /// Blocks that could not be read.
    unreadable: u64,
    /// Where the whole records end.
    end: u64,
}

impl Scan {
    /// Whether everything after these totals was read.
    fn is_whole_behind(&self, totals: Option<&[(Destination, Position)]>) -> bool {
        let follows = |(destination, at): &(Destination, Position)| {
            let before = totals.and_then(|totals| totals.iter().find(|(known, _)| known == destination));
            at.lines <= before.map_or(0, |(_, before)| before.lines)
        };
        self.unreadable + self.damaged + self.skipped == 0 && !self.has_hole && self.firsts.iter().all(follows)
    }
}

/// Reads all segments' headers, ordered by number, and the cursors.
pub(super) fn read_folder(
    storage: &dyn Storage,
    report: &mut Report,
) -> Result<(Vec<Found>, Option<slots::Found>), OpenError> {
    let cursors = slots::load(storage, slots::Kind::Cursors).map_err(|Newer| OpenError::Newer("cursors".to_owned()))?;
    let mut names: Vec<SegmentName> = storage.list()?.iter().filter_map(|name| SegmentName::parse(name)).collect();
    names.sort_unstable();
    let mut segments = Vec::with_capacity(names.len());
    for name in names {
        match read_header(storage, name)? {
            // Created at the moment of a crash: it is empty.
            Some(found) if found.bytes == 0 => storage.remove(&name.to_string())?,
            Some(found) => segments.push(found),
            None => quarantine(storage, name, report),
        }
    }
    Ok((segments, cursors))
}

/// Reads a segment's header and totals. `None` if nothing in the file is readable.
fn read_header(storage: &dyn Storage, name: SegmentName) -> Result<Option<Found>, OpenError> {
    let opened = storage.open(&name.to_string()).and_then(|file| Ok((file.bytes()?, file)));
    let (bytes, file) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(segment = %name, %error, "cannot open a segment");
            return Ok(None);
        }
    };
    let mut head = [0; SEGMENT_HEADER_BYTES];
    let read = (0..READ_TRIES).find_map(|_| file.read_at(&mut head, 0).ok()).unwrap_or(0);
    let header = match SegmentHeader::decode(&head[..read]) {
        // A number that differs from the name's means that this is not the segment's header.
        Ok(header) => Some(header).filter(|header| header.number == name.number),
        Err(BadHeader::Newer) => return Err(OpenError::Newer(name.to_string())),
        Err(BadHeader::Damaged) => None,
    };
    let mut frames = Frames::new(Arc::clone(&file), name, SEGMENT_HEADER_BYTES as u64, HEADER_CHUNK_BYTES);
    let (totals, first_sequence) = match frames.next() {
        Ok(Some(Item::Frame(frame, payload))) if frame.kind == Kind::Totals => {
            (decode_totals(&payload), Some(frame.sequence))
        }
        _ => (None, None),
    };
    let first_sequence = header.map(|header| header.first_sequence).or(first_sequence);
    let (totals, points_before) = match totals {
        Some(totals) => {
            let split =
                totals.into_iter().map(|(destination, at, points)| ((destination.clone(), at), (destination, points)));
            let (totals, points): (Vec<_>, Vec<_>) = split.unzip();
            (Some(totals), Some(points))
        }
        None => (None, None),
    };
    let is_unreadable = || {
        Ok::<_, io::Error>(
            header.is_none() && totals.is_none() && scan(storage, name, |_| {})?.next_sequence == Sequence::FIRST,
        )
    };
    if bytes > 0 && is_unreadable()? {
        return Ok(None);
    }
    Ok(Some(Found { name, bytes, header, first_sequence, totals, points_before, points: None, whole_below: None }))
}

fn quarantine(storage: &dyn Storage, name: SegmentName, report: &mut Report) {
    match storage.quarantine(&name.to_string()) {
        Ok(()) => report.quarantined.push(name.to_string()),
        Err(error) => tracing::warn!(segment = %name, %error, "cannot move a segment to quarantine"),
    }
}

/// Reads a segment whole, and calls `each` with each record's header.
fn scan(storage: &dyn Storage, name: SegmentName, mut each: impl FnMut(&Frame)) -> io::Result<Scan> {
    let mut frames = Frames::new(storage.open(&name.to_string())?, name, SEGMENT_HEADER_BYTES as u64, CHUNK_BYTES);
    let mut seen = Scan { end: SEGMENT_HEADER_BYTES as u64, ..Scan::default() };
    let (mut hole, mut failures) = (0, 0);
    loop {
        let item = match frames.next() {
            Ok(Some(item)) => item,
            Ok(None) => break,
            Err(error) if failures > READ_TRIES => return Err(error),
            Err(_) => {
                failures += 1;
                if failures == READ_TRIES {
                    frames.tolerate();
                }
                continue;
            }
        };
        let frame = match item {
            Item::Hole { bytes, .. } => {
                hole += bytes;
                continue;
            }
            Item::BadPayload(frame) => {
                seen.damaged += 1;
                frame
            }
            Item::Frame(frame, _) => frame,
        };
        seen.end = frames.offset();
        seen.skipped += std::mem::take(&mut hole);
        if frame.kind == Kind::Record {
            seen.next_sequence = seen.next_sequence.max(frame.sequence.next());
            seen.newest = seen.newest.max(frame.received);
            match seen.ends.iter().find(|(known, _)| *known == frame.destination) {
                Some((_, end)) => seen.has_hole |= frame.at.lines > end.lines,
                None => seen.firsts.push((frame.destination.clone(), frame.at)),
            }
            raise(&mut seen.ends, &frame.destination, frame.end());
            match seen.points.iter_mut().find(|(known, _)| *known == frame.destination) {
                Some((_, points)) => *points = points.and(frame.points),
                None => seen.points.push((frame.destination.clone(), frame.points)),
            }
            each(&frame);
        }
    }
    seen.unreadable = frames.unreadable();
    Ok(seen)
}

/// Reads the segments that a crash may have left unsynced, and truncates an unfinished write at the
/// last one's end.
pub(super) fn scan_end(storage: &dyn Storage, segments: &mut Vec<Found>, report: &mut Report) -> io::Result<Scan> {
    let repeats = |found: &Found| found.header.is_some_and(|header| header.repeats);
    let repeating = segments.iter().rev().take_while(|found| repeats(found)).count();
    let mut scans = Vec::new();
    let first = segments.len().saturating_sub(UNSYNCED_SEGMENTS.max(repeating + 1));
    for found in &mut segments[first..] {
        let mut next = found.first_sequence;
        scans.push(scan(storage, found.name, |frame| {
            next = next.filter(|next| *next == frame.sequence).map(Sequence::next);
        })?);
        found.whole_below = next;
        // What is damaged or missing had points, too.
        let is_sound = |scan: &&Scan| scan.is_whole_behind(found.totals.as_deref()) && scan.end == found.bytes;
        found.points = scans.last().filter(is_sound).map(|scan| scan.points.clone());
    }
    while let [before @ .., last] = &scans[..]
        && segments.last().is_some_and(repeats)
        && before.iter().any(|before| before.next_sequence > last.next_sequence)
    {
        // The crash came before everything was repeated: the segments before hold all of it, and
        // more.
        let Some(repeating) = segments.pop() else { break };
        storage.remove(&repeating.name.to_string())?;
        scans.pop();
    }
    if let (Some(scan), Some(last)) = (scans.last(), segments.last_mut())
        && scan.end < last.bytes
        && scan.unreadable == 0
    {
        report.truncated_bytes = last.bytes - scan.end;
        storage.open(&last.name.to_string())?.truncate(scan.end)?;
        last.bytes = scan.end;
    }
    if scans.last().is_some_and(|scan| scan.unreadable > 0)
        && let Some(last) = segments.last_mut()
    {
        // The unreadable part may be readable another time: truncate nothing, and write nothing
        // after it.
        last.header = None;
    }
    let mut all = Scan::default();
    for scan in scans {
        report.damaged_records += scan.damaged;
        report.skipped_bytes += scan.skipped;
        all.next_sequence = all.next_sequence.max(scan.next_sequence);
        all.newest = all.newest.max(scan.newest);
        for (destination, at) in scan.ends {
            raise(&mut all.ends, &destination, at);
        }
    }
    fill_totals(storage, segments)?;
    Ok(all)
}

/// Fills in what a damaged header or totals frame said, from the segment before it.
fn fill_totals(storage: &dyn Storage, segments: &mut [Found]) -> io::Result<()> {
    for index in 0..segments.len() {
        let Found { totals, first_sequence, .. } = &segments[index];
        if totals.is_some() && first_sequence.is_some() {
            continue;
        }
        let (mut totals, mut first_sequence) = (Vec::new(), Sequence::FIRST);
        if let Some(before) = index.checked_sub(1).map(|before| &segments[before]) {
            let seen = scan(storage, before.name, |_| {})?;
            totals = before.totals.clone().unwrap_or_default();
            first_sequence = seen.next_sequence.max(before.first_sequence.unwrap_or_default());
            for (destination, at) in seen.ends {
                raise(&mut totals, &destination, at);
            }
        }
        segments[index].totals.get_or_insert(totals);
        segments[index].first_sequence.get_or_insert(first_sequence);
    }
    Ok(())
}

pub(super) fn raise(ends: &mut Vec<(Destination, Position)>, destination: &Destination, at: Position) {
    match ends.iter_mut().find(|(known, _)| known == destination) {
        Some((_, known)) => *known = known.max(at),
        None => ends.push((destination.clone(), at)),
    }
}

/// Moves saved cursors past records that were acked before they were written, as happens while the
/// disk is full. The cursors were saved before the records reached the disk, so their positions do
/// not tell.
pub(super) fn pass_acked(storage: &dyn Storage, segments: &[Found], end: &Scan, saved: &mut Cursors) -> io::Result<()> {
    let written = saved.written.clone();
    let is_new = |destination: &Destination, at: Position| {
        let known = written.iter().find(|(known, _)| known == destination);
        known.map_or_else(Position::default, |(_, at)| *at).lines < at.lines
    };
    if !end.ends.iter().any(|(destination, at)| is_new(destination, *at)) {
        return Ok(());
    }
    let is_whole = |found: &Found| !found.totals.iter().flatten().any(|(destination, at)| is_new(destination, *at));
    let first = segments.iter().rposition(is_whole).unwrap_or(0);
    for found in &segments[first..] {
        scan(storage, found.name, |frame| {
            let lanes = saved.backends.iter_mut().flat_map(|backend| &mut backend.destinations);
            let lanes = lanes.filter(|(destination, _)| *destination == frame.destination);
            for lane in lanes.flat_map(|(_, lanes)| lanes) {
                if frame.sequence < lane.from && frame.at == lane.at && is_new(&frame.destination, frame.end()) {
                    lane.at = frame.end();
                }
            }
        })?;
    }
    Ok(())
}
