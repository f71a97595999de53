//! Opening the log, whatever happened to it: content never keeps the journal from opening.
//!
//! Read at the start are every segment's head, and the last few whole, which a crash may have left unsynced. What is
//! damaged elsewhere is found when it is read for a backend.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::super::BackendSetup;
use super::super::cursor::{Cursor, End, Lane, SavedLane};
use super::super::gaps::Gaps;
use super::super::ledger::DropReason;
use super::super::record::Position;
use super::super::state::{Backend, Log, State};
use super::book::cut_saved;
use super::format::SegmentName;
use super::heads::{Found, Scan, UNSYNCED_SEGMENTS, pass_settled, raise, read_folder, scan_end};
use super::saved::{Cursors, SavedBackend, decode_gaps};
use super::slots::{self, Newer, Slots};
use super::storage::{Storage, StoredFile};
use super::{Condition, Disk, DiskOptions, Files, Segment};
use crate::batch::{Destination, Received};

/// The longest sync that is told from longer ones: one minute, in microseconds.
const MAX_SYNC_MICROSECONDS: u64 = 60_000_000;

/// Why the journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk does not let it.
    #[error("{0}")]
    Disk(#[from] io::Error),
    /// A newer version wrote there.
    #[error("{0} was written by a newer version of Twinflux: start that version, or move the folder away")]
    Newer(String),
}

/// What was found when the journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// Segments found.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes cut from the log's end: a write that was under way.
    pub truncated_bytes: u64,
    /// Bytes passed over in the last segments: damage.
    pub skipped_bytes: u64,
    /// Records in the last segments that are not what was written.
    pub damaged_records: u64,
    /// Segments that are missing between others.
    pub missing_segments: u64,
    /// Files that were set aside.
    pub set_aside: Vec<String>,
    /// There were segments, but no cursors: every backend gets what they hold once more.
    pub cursors_lost: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Opens the log in a folder for these backends.
pub(in super::super) fn open(
    storage: Arc<dyn Storage>,
    options: &DiskOptions,
    memory: u64,
    backends: &[BackendSetup],
) -> Result<(State, Files), OpenError> {
    let begun = Instant::now();
    let mut report = Report::default();
    let (mut segments, found_cursors) = read_folder(&*storage, &mut report)?;
    let journal = segments.iter().rev().find_map(|segment| Some(segment.header?.journal));
    let journal =
        journal.or_else(|| found_cursors.as_ref().map(|found| found.journal)).unwrap_or_else(|| fastrand::u64(..));
    // Cursors of another journal, copied here by whoever, say nothing about this one.
    let ours = found_cursors.as_ref().filter(|found| found.journal == journal);
    let mut saved = ours.and_then(|found| Cursors::decode(&found.body));
    report.cursors_lost = saved.is_none() && !segments.is_empty();
    report.segments = segments.len() as u64;
    report.missing_segments =
        segments.windows(2).map(|two| (two[1].name.number - two[0].name.number).saturating_sub(1)).sum();

    let scan = scan_end(&*storage, &mut segments, &mut report)?;
    if let Some(saved) = &mut saved {
        pass_settled(&*storage, &segments, &scan, saved)?;
    }
    let mut state = State::new(memory, backends.iter().map(Backend::new).collect());
    fill_logs(&mut state, &segments, saved.as_ref(), &scan);
    let kept = keep_segments(&state, &segments);
    report.bytes = kept.iter().map(|segment| segment.bytes).sum();
    let found_gaps = slots::load(&*storage, slots::Kind::Gaps).map_err(|Newer| OpenError::Newer("gaps".to_owned()))?;
    state.gaps = Gaps::new(found_gaps.as_ref().and_then(|found| decode_gaps(&found.body)).unwrap_or_default());
    let abandoned_below = saved.as_ref().map_or(0, |saved| saved.abandoned_below);
    place_backends(&mut state, saved, &kept);

    let files = Files {
        journal,
        cursors: Mutex::new(Slots::open(&*storage, slots::Kind::Cursors, journal, found_cursors.as_ref())?),
        gaps: Mutex::new(Slots::open(&*storage, slots::Kind::Gaps, journal, found_gaps.as_ref())?),
        storage,
    };
    files.storage.sync_folder()?;
    report.seconds = begun.elapsed().as_secs_f64();
    let last = segments.last().filter(|found| found.header.is_some()).map(|found| found.name);
    let unsynced = open_last(&*files.storage, &kept, abandoned_below)?;
    state.disk = Some(disk(options, kept, (last, unsynced), state.next_sequence, abandoned_below, report));
    Ok((state, files))
}

/// Every destination that anything tells of, with what was written of it, and the next sequence.
fn fill_logs(state: &mut State, segments: &[Found], saved: Option<&Cursors>, scan: &Scan) {
    let mut ends = scan.ends.clone();
    for (destination, at) in segments.iter().filter_map(|segment| segment.totals.as_ref()).flatten() {
        raise(&mut ends, destination, *at);
    }
    let firsts = segments.iter().filter_map(|segment| segment.first_sequence);
    let mut next_sequence = firsts.fold(scan.next_sequence, u64::max);
    next_sequence = next_sequence.max(saved.map_or(0, |saved| saved.next_sequence));
    // What was written and is not found is known to be missing.
    for (destination, at) in saved.iter().flat_map(|saved| &saved.written) {
        raise(&mut ends, destination, *at);
    }
    let lanes = saved.iter().flat_map(|saved| &saved.backends).flat_map(|backend| &backend.destinations);
    for (destination, lanes) in lanes {
        for lane in lanes {
            let (sequence, at) = lane.end.unwrap_or((lane.from, lane.at));
            raise(&mut ends, destination, at);
            next_sequence = next_sequence.max(sequence);
        }
    }
    state.next_sequence = next_sequence;
    state.logs = ends.into_iter().map(|(destination, at)| Log::new(Arc::new(destination), at)).collect();
}

fn keep_segments(state: &State, segments: &[Found]) -> VecDeque<Segment> {
    let now = Received::now();
    let kept = segments.iter().enumerate().map(|(place, found)| {
        let totals = found.totals.as_deref().unwrap_or_default();
        let at = |log: &Log| totals.iter().find(|(known, _)| *known == *log.destination).map(|(_, at)| *at);
        let created = found.header.map_or(0, |header| header.created);
        let until = segments.get(place + 1).and_then(|next| next.header).map_or(created, |header| header.created);
        let ago = |wall: u64| {
            let age = if wall == 0 { 0 } else { now.wall.saturating_sub(wall) };
            now.monotonic.checked_sub(Duration::from_nanos(age)).unwrap_or(now.monotonic)
        };
        let end_sequence = segments[place + 1..]
            .iter()
            .find(|later| !later.header.is_some_and(|header| header.repeats))
            .map_or(state.next_sequence, |later| later.first_sequence.unwrap_or(0));
        let follows = segments.get(place + 1).map_or(Some(end_sequence), |next| next.first_sequence);
        Segment {
            name: found.name,
            first_sequence: found.first_sequence.unwrap_or(0),
            end_sequence,
            repeats: found.header.is_some_and(|header| header.repeats),
            has_gaps: found.whole_below.is_none() || found.whole_below != follows,
            totals: state.logs.iter().map(|log| at(log).unwrap_or_default()).collect(),
            bytes: found.bytes,
            created,
            begun: ago(created),
            newest: ago(until),
        }
    });
    kept.collect()
}

/// Puts every backend where it was; a new one starts at the log's end, and all of them at its beginning where it is
/// not known where they were.
fn place_backends(state: &mut State, saved: Option<Cursors>, segments: &VecDeque<Segment>) {
    let begin = |place: usize, log: &Log| match segments.front() {
        Some(first) => End { sequence: first.first_sequence, at: first.totals.get(place).copied().unwrap_or_default() },
        None => End { sequence: state.next_sequence, at: log.written },
    };
    let begins: Vec<End> = state.logs.iter().enumerate().map(|(place, log)| begin(place, log)).collect();
    let is_known = saved.is_some();
    let Cursors { backends: mut saved, kept_from, .. } = saved.unwrap_or_default();
    let kept = |log: &Log| {
        let known = kept_from.iter().find(|(known, _)| *known == *log.destination);
        End { sequence: 0, at: known.map_or_else(Position::default, |(_, at)| *at) }
    };
    for backend in &mut state.backends {
        let place = saved.iter().position(|known| known.name == backend.name);
        let known = place.map(|place| saved.remove(place));
        let address = known.as_ref().map_or("", |known| &known.address);
        backend.moved_from = (!address.is_empty() && address != backend.address).then(|| address.to_owned());
        for (log, begin) in state.logs.iter().zip(&begins) {
            let lanes = known.as_ref().and_then(|known| lanes_of(known, &log.destination));
            let mut cursor = match lanes {
                Some(lanes) => Cursor::with_lanes(lanes),
                // Its first lines came after the cursors were saved.
                None if known.is_some() => Cursor::new(begin.sequence, Position::default()),
                None if is_known => Cursor::new(state.next_sequence, log.written),
                None => Cursor::new(begin.sequence, begin.at),
            };
            let unread = cursor.unread_on_disk(log.written);
            backend.ledger.recover(unread.lines, unread.bytes);
            // What the policy took while the lines were in memory is not damage, although the process ended with them.
            for (begin, reason) in [(kept(log).min(*begin), DropReason::Quota), (*begin, DropReason::Corrupt)] {
                let (lost, since) = cursor.cut(log.tail(state.next_sequence), begin);
                if lost != Position::default() {
                    let until = segments.front().map_or(since, |first| first.created);
                    let gap = (&*log.destination, since, until.max(since));
                    backend.give_up(&mut state.gaps, reason, lost, gap);
                }
            }
            backend.cursors.push(cursor);
        }
    }
    for orphan in &mut saved {
        for (destination, lanes) in &mut orphan.destinations {
            let log = state.logs.iter().position(|log| *log.destination == *destination);
            log.map(|log| cut_saved(lanes, begins[log], state.logs[log].written));
        }
    }
    state.orphans = saved;
}

/// A saved backend's lanes in a destination, where they make sense.
fn lanes_of(saved: &SavedBackend, destination: &Destination) -> Option<VecDeque<Lane>> {
    let (_, lanes) = saved.destinations.iter().find(|(known, _)| known == destination)?;
    let is_sound = lanes
        .split_last()
        .is_some_and(|(open, closed)| open.end.is_none() && closed.iter().all(|lane| lane.end.is_some()));
    let lane = |saved: &SavedLane| Lane {
        from: saved.from,
        at: saved.at,
        end: saved.end.map(|(sequence, at)| End { sequence, at }),
        since: saved.since,
        place: None,
        failures: 0,
    };
    is_sound.then(|| lanes.iter().map(lane).collect())
}

type Opened = (SegmentName, Arc<dyn StoredFile>);

/// The newest segments, which a crash may have left unsynced, but for those that cannot be synced.
fn open_last(storage: &dyn Storage, segments: &VecDeque<Segment>, abandoned_below: u64) -> io::Result<Vec<Opened>> {
    let newest = segments.range(segments.len().saturating_sub(UNSYNCED_SEGMENTS)..);
    let newest = newest.filter(|segment| segment.name.number >= abandoned_below);
    newest.map(|segment| Ok((segment.name, storage.open(&segment.name.to_string())?))).collect()
}

/// The book as it begins. The last segment is written on where its header is sound and it can be synced.
fn disk(
    options: &DiskOptions,
    segments: VecDeque<Segment>,
    (last, mut unsynced): (Option<SegmentName>, Vec<Opened>),
    next_sequence: u64,
    abandoned_below: u64,
    report: Report,
) -> Disk {
    let active = unsynced.pop_if(|(name, _)| Some(*name) == last).map(|(_, file)| file);
    let is_active = active.is_some();
    let latency = Histogram::new_with_bounds(1, MAX_SYNC_MICROSECONDS, 2);
    Disk {
        options: options.clone(),
        abandoned_below,
        least_number: segments.back().map_or(0, |segment| segment.name.number.saturating_add(1)),
        bytes: segments.iter().map(|segment| segment.bytes).sum(),
        segments,
        must_roll: !is_active,
        repeats_below: 0,
        next_write: next_sequence,
        writing: 0..0,
        synced: next_sequence,
        unsynced_since: (is_active || !unsynced.is_empty()).then(Instant::now),
        sync_told: None,
        to_sync: unsynced.into_iter().map(|(_, file)| (file, next_sequence)).collect(),
        // What a crash left unsynced is synced now.
        unsynced_bytes: u64::from(is_active),
        active,
        folder_changed: true,
        cursors_changed: true,
        saved_need: 0,
        writing_is: Condition::Ok,
        sync_fails: false,
        epoch: 0,
        saving_fails: false,
        quota_reached: false,
        has_evicted: false,
        error: None,
        syncs: 0,
        sync_errors: 0,
        write_errors: 0,
        read_errors: 0,
        sync_latency: latency.expect("BUG: constant bounds are valid"),
        report,
    }
}
