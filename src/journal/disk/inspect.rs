//! Inspects the log of a stopped relay, and removes a backend that is gone for good.
//!
//! Surveys change nothing: no file is written, truncated or moved.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::credible;
use super::error::OpenError;
use super::saved::decode_gaps;
use crate::batch::{Destination, WallTime};
use crate::journal::segment::Position;
use crate::journal::segment::format::{BadHeader, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName};
use crate::journal::segment::frame::{Frame, Kind};
use crate::journal::segment::frames::{Frames, Item, unpack};
use crate::journal::segment::slots::{self, Newer, Slots};
use crate::journal::segment::storage::Storage;
use crate::journal::state::gaps::Gap;
use crate::journal::state::lane::{End, cut_saved};
use crate::journal::state::saved::Cursors;

const CHUNK_BYTES: usize = 1 << 20;

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Survey {
    /// Segments, oldest first.
    pub segments: Vec<SegmentSurvey>,
    /// Each destination with its lines and bytes.
    pub destinations: Vec<(Destination, u64, u64)>,
    /// Lines that were written, are still needed, and can no longer be read: the difference between
    /// what the positions and cursors say and what is there.
    pub missing_lines: u64,
    /// Segments missing between others.
    pub missing_segments: u64,
    /// Each backend with its address and the lines that it has not acknowledged. `None` if no slot
    /// is sound.
    pub backends: Option<Vec<(String, String, u64)>>,
    /// The gap ledger.
    pub gaps: Vec<Gap>,
}

/// What a segment holds.
#[derive(Debug)]
pub struct SegmentSurvey {
    /// Its file name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whole records.
    pub records: u64,
    /// Their lines.
    pub lines: u64,
    /// When the first line was received.
    pub from: Option<WallTime>,
    /// When the first line of the last record was received.
    pub until: Option<WallTime>,
    /// What is wrong with it, as sentences.
    pub damage: Vec<String>,
}

impl Survey {
    /// Whether everything that was written is there. A write that was cut off at the end does not
    /// count as written.
    pub fn is_sound(&self) -> bool {
        self.missing_lines == 0 && self.missing_segments == 0 && self.segments.iter().all(|one| one.damage.is_empty())
    }
}

/// Reads everything. `lines` is called with each record's destination and lines.
///
/// # Errors
/// The disk fails, a newer version wrote the files, or `lines` fails.
pub fn survey(
    storage: &dyn Storage,
    mut lines: impl FnMut(&Destination, &Bytes) -> io::Result<()>,
) -> Result<Survey, OpenError> {
    let mut names: Vec<SegmentName> = storage.list()?.iter().filter_map(|name| SegmentName::parse(name)).collect();
    names.sort_unstable();
    let mut survey = Survey {
        missing_segments: names.windows(2).map(|two| (two[1].number - two[0].number).saturating_sub(1)).sum(),
        ..Survey::default()
    };
    let mut ends: HashMap<Destination, (Position, Position)> = HashMap::new();
    let last = names.last().copied();
    for name in names {
        let is_last = Some(name) == last;
        let segment = read_segment(storage, name, is_last, &mut survey, &mut ends, &mut lines)?;
        survey.segments.push(segment);
    }
    let newer = |Newer| OpenError::Newer("a slot".to_owned());
    let cursors = slots::load(storage, slots::Kind::Cursors).map_err(newer)?;
    if let Some(cursors) = cursors.and_then(|found| Cursors::decode(&found.body)) {
        survey.compare(cursors, &ends);
    }
    let gaps = slots::load(storage, slots::Kind::Gaps).map_err(newer)?;
    let gaps = gaps.and_then(|found| decode_gaps(&found.body)).unwrap_or_default();
    survey.gaps = gaps.iter().cloned().collect();
    Ok(survey)
}

fn read_segment(
    storage: &dyn Storage,
    name: SegmentName,
    is_last: bool,
    survey: &mut Survey,
    ends: &mut HashMap<Destination, (Position, Position)>,
    lines: &mut impl FnMut(&Destination, &Bytes) -> io::Result<()>,
) -> Result<SegmentSurvey, OpenError> {
    let file = storage.open(&name.to_string())?;
    let bytes = file.bytes()?;
    let mut seen = SegmentSurvey {
        name: name.to_string(),
        bytes,
        records: 0,
        lines: 0,
        from: None,
        until: None,
        damage: Vec::new(),
    };
    let mut head = [0; SEGMENT_HEADER_BYTES];
    let read = file.read_at(&mut head, 0).unwrap_or(0);
    match SegmentHeader::decode(&head[..read]) {
        Ok(_) => {}
        Err(BadHeader::Newer) => return Err(OpenError::Newer(seen.name)),
        Err(BadHeader::Damaged) => seen.damage.push("its header is damaged".to_owned()),
    }
    let mut frames = Frames::new(Arc::clone(&file), name, SEGMENT_HEADER_BYTES as u64, CHUNK_BYTES);
    frames.tolerate();
    while let Some(item) = frames.next()? {
        let (frame, stored) = match item {
            Item::Hole { at, bytes: hole } => {
                // A write under way when the process ended is not damage.
                if !is_last || at + hole < bytes {
                    seen.damage.push(format!("{hole} bytes at {at} are no record"));
                }
                continue;
            }
            Item::BadPayload(frame) => (frame, None),
            Item::Frame(frame, stored) => (frame, Some(stored)),
        };
        if frame.kind != Kind::Record {
            continue;
        }
        let payload = stored.and_then(|stored| unpack(&frame, &stored));
        let Some(payload) = payload else {
            let Frame { sequence, lines, .. } = frame;
            seen.damage.push(format!("record {sequence} with {lines} lines is damaged"));
            continue;
        };
        seen.records += 1;
        seen.lines += frame.lines;
        seen.from = seen.from.or(frame.received);
        seen.until = frame.received;
        if survey.count(&frame, ends) {
            lines(&frame.destination, &payload)?;
        }
    }
    Ok(seen)
}

impl Survey {
    /// Counts a record. Returns `false` if the record was written again after a failed sync. `ends`
    /// holds the first and last position found of each destination.
    fn count(&mut self, frame: &Frame, ends: &mut HashMap<Destination, (Position, Position)>) -> bool {
        let (_, end) = ends.entry(frame.destination.clone()).or_insert((frame.at, frame.at));
        if frame.at.lines < end.lines {
            return false;
        }
        self.missing_lines += frame.at.since(*end).lines;
        *end = frame.end();
        let known = self.destinations.iter_mut().find(|(known, ..)| *known == frame.destination);
        let (lines, bytes) = (frame.lines, frame.payload_bytes as u64);
        match known {
            Some(known) => (known.1, known.2) = (known.1 + lines, known.2 + bytes),
            None => self.destinations.push((frame.destination.clone(), lines, bytes)),
        }
        true
    }

    /// Computes what each backend is still owed, and how much of it lies outside what is there.
    fn compare(&mut self, mut cursors: Cursors, ends: &HashMap<Destination, (Position, Position)>) {
        let held: Vec<_> = ends.iter().map(|(destination, (_, end))| (destination.clone(), *end)).collect();
        credible::bound(&mut cursors, &held);
        let mut backends = Vec::new();
        let mut most_missing = 0;
        for backend in cursors.backends {
            let (mut pending, mut missing) = (0, 0);
            for (destination, lanes) in &backend.destinations {
                let known = cursors.written.iter().find(|(known, _)| known == destination);
                let known = known.map_or_else(Position::default, |(_, at)| *at);
                let (first, end) = ends.get(destination).copied().unwrap_or((known, known));
                let written = known.max(end);
                for lane in lanes {
                    let lane_end = lane.end.map_or(written, |(_, at)| at);
                    pending += lane.pending(written);
                    let there = first.max(lane.at)..end.min(lane_end);
                    missing += lane.pending(written).saturating_sub(there.end.since(there.start).lines);
                }
            }
            most_missing = most_missing.max(missing);
            backends.push((backend.name, backend.address, pending));
        }
        self.missing_lines += most_missing;
        self.backends = Some(backends);
    }
}

/// Gives up what is kept for a backend. Returns the number of lines, or `None` if no backend has
/// this name. If the backend's address has changed since, later lines are kept for the server that
/// has the name now.
///
/// # Errors
/// The disk fails, or a newer version wrote the files.
pub fn forget(storage: &dyn Storage, name: &str) -> Result<Option<u64>, OpenError> {
    let mut given_up = None;
    change(storage, |cursors| {
        let Some(index) = cursors.backends.iter().position(|backend| backend.name == name) else { return false };
        let backend = &mut cursors.backends[index];
        let at = |totals: &[(Destination, Position)], wanted: &Destination| {
            totals.iter().find(|(known, _)| known == wanted).map_or_else(Position::default, |(_, at)| *at)
        };
        let moved_at = backend.moved_at.take();
        let mut lines = 0;
        for (destination, lanes) in &mut backend.destinations {
            let written = at(&cursors.written, destination);
            lines += match &moved_at {
                Some(moved) => {
                    let begin = End { sequence: moved.sequence, at: at(&moved.written, destination) };
                    cut_saved(lanes, begin, written)
                }
                None => lanes.iter().map(|lane| lane.pending(written)).sum(),
            };
        }
        given_up = Some(lines);
        backend.address.clear();
        if moved_at.is_none() {
            cursors.backends.remove(index);
        }
        true
    })?;
    Ok(given_up)
}

/// Notes that a backend is the same server at whatever address the next start finds it. Returns its
/// old address, or `None` if no backend has this name.
///
/// # Errors
/// The disk fails, or a newer version wrote the files.
pub fn moved(storage: &dyn Storage, name: &str) -> Result<Option<String>, OpenError> {
    let mut was = None;
    change(storage, |cursors| {
        let known = cursors.backends.iter_mut().find(|backend| backend.name == name);
        was = known.map(|known| {
            known.moved_at = None;
            std::mem::take(&mut known.address)
        });
        was.is_some()
    })?;
    Ok(was)
}

/// Changes the cursors, and saves them if `change` returns `true`.
fn change(storage: &dyn Storage, change: impl FnOnce(&mut Cursors) -> bool) -> Result<bool, OpenError> {
    let newer = |Newer| OpenError::Newer("cursors".to_owned());
    let Some(found) = slots::load(storage, slots::Kind::Cursors).map_err(newer)? else { return Ok(false) };
    let Some(mut cursors) = Cursors::decode(&found.body) else { return Ok(false) };
    if !change(&mut cursors) {
        return Ok(false);
    }
    let mut slots = Slots::open(storage, slots::Kind::Cursors, found.journal, Some(&found))?;
    slots.write(&cursors.encode())?;
    slots.take_unsynced().map_or(Ok(()), |slot| slot.file.sync())?;
    Ok(true)
}
