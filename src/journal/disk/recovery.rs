//! Opens the log after any crash. No content keeps the journal from opening, except files of a
//! newer version.
//!
//! The start reads every segment's header, and the newest segments whole: at least four, and all
//! that repeat. Damage elsewhere shows when a backend's reader reaches it.
//!
//! | what the crash left | what opens | what is counted |
//! |---|---|---|
//! | an empty segment file | the file is removed | nothing: it held no record |
//! | a segment that ends within a frame | the segment, truncated after the last whole frame | `truncated_bytes`; the lines were never promised |
//! | a damaged frame among whole ones | the frames after it, found by their markers and checksums | its lines, as `corrupt`, when a reader meets the gap in the positions |
//! | a segment with a damaged header | its frames; number and key come from its name, totals from the segment before | nothing |
//! | a file with nothing readable in it | the file is moved to `quarantine/` | its lines as `corrupt`, by the positions of what follows |
//! | a missing segment | the others | `missing_segments`; its lines as `corrupt` |
//! | repeats that end before an earlier segment does | they are removed; the earlier segments hold all of it | nothing |
//! | complete repeats | they are read instead of what they repeat | nothing |
//! | slots, one of them torn | the newest sound slot of the three | at most the requests since then are sent again |
//! | no sound cursors | every backend begins at the log's beginning | everything is `recovered` and sent again |
//! | cursors of another journal | as without cursors | as without cursors |
//! | cursors before the log's beginning, within what was saved as given up | they move to the beginning | the difference as `quota` |
//! | cursors before the log's beginning, outside of that | they move to the beginning | the difference as `corrupt` |
//! | cursors that claim more written than there is (a power cut) | they stay | the difference as `corrupt`, when a reader reaches it |
//! | cursors that claim more than a power cut can take, or the same lines twice | they are cut off ([`super::credible`]) | nothing |
//! | records that were delivered before they were written | cursors pass them | nothing |
//! | a backend that the cursors do not know | it begins at the log's end | nothing |
//! | a backend that is no longer configured | its cursors are kept | its lines, beside the ledgers (`orphans`) |
//! | a file of a newer version | nothing: the start fails and names the file | |

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::credible;
use super::error::OpenError;
use super::saved::decode_gaps;
use super::scan::{Found, Scan, UNSYNCED_SEGMENTS, pass_acked, raise, read_folder, scan_end};
use crate::batch::{Destination, Span, WallTime};
use crate::journal::segment::slots::{self, Newer, Slots};
use crate::journal::segment::storage::Storage;
use crate::journal::segment::{Position, Sequence};
use crate::journal::shared::Files;
use crate::journal::state::cursor::Cursor;
use crate::journal::state::figures::Report;
use crate::journal::state::gaps::Loss;
use crate::journal::state::id::LogId;
use crate::journal::state::index::{DiskIndex, Opened, Segment, UnsyncedFile, When};
use crate::journal::state::lane::{End, Lane, SavedLane, cut_saved};
use crate::journal::state::ledger::DropReason;
use crate::journal::state::options::DiskOptions;
use crate::journal::state::saved::{Cursors, SavedBackend};
use crate::journal::state::{Backend, BackendConfig, Log, State};

/// Opens the log in a folder for these backends.
pub(in crate::journal) fn open(
    storage: Arc<dyn Storage>,
    options: &DiskOptions,
    memory: u64,
    backends: &[BackendConfig],
) -> Result<(State, Files), OpenError> {
    let begun = Instant::now();
    let mut report = Report::default();
    let (mut segments, found_cursors) = read_folder(&*storage, &mut report)?;
    let journal = segments.iter().rev().find_map(|segment| Some(segment.header?.journal));
    let journal =
        journal.or_else(|| found_cursors.as_ref().map(|found| found.journal)).unwrap_or_else(|| fastrand::u64(..));
    // Cursors of another journal, copied here, say nothing about this one.
    let ours = found_cursors.as_ref().filter(|found| found.journal == journal);
    let mut saved = ours.and_then(|found| Cursors::decode(&found.body));
    report.cursors_lost = saved.is_none() && !segments.is_empty();
    report.segments = segments.len() as u64;
    report.missing_segments =
        segments.windows(2).map(|two| (two[1].name.number - two[0].name.number).saturating_sub(1)).sum();

    let scan = scan_end(&*storage, &mut segments, &mut report)?;
    let ends = log_ends(&segments, &scan);
    if let Some(saved) = &mut saved {
        let lines = credible::bound(saved, &ends);
        if lines > 0 {
            tracing::warn!(lines, "the journal's cursors claim lines that its log cannot have held: not believed");
        }
        pass_acked(&*storage, &segments, &scan, saved)?;
    }
    let mut state = State::new(memory, backends.iter().map(Backend::new).collect());
    fill_logs(&mut state, ends.clone(), &segments, saved.as_ref(), &scan);
    let kept = keep_segments(&state, &segments, &ends, scan.newest, begun);
    report.bytes = kept.iter().map(|segment| segment.bytes).sum();
    let found_gaps = slots::load(&*storage, slots::Kind::Gaps).map_err(|Newer| OpenError::Newer("gaps".to_owned()))?;
    state.gaps = found_gaps.as_ref().and_then(|found| decode_gaps(&found.body)).unwrap_or_default();
    let abandoned_below = saved.as_ref().map_or(0, |saved| saved.abandoned_below);
    let now = (options.clock)().wall;
    // A power cut may take the gap ledger and leave the cursors.
    if saved.as_ref().is_some_and(|saved| saved.gaps_version > state.gaps.version()) {
        for backend in &state.backends {
            state.gaps.note_unknown(&backend.name, now);
        }
    }
    place_backends(&mut state, saved, &kept, now);

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
    let newest = kept.iter().map(|segment| segment.created).fold(scan.newest, Option::max);
    let next_sequence = state.next_sequence;
    let opened = Opened { segments: kept, last, unsynced, next_sequence, abandoned_below, report, newest };
    state.disk = Some(DiskIndex::new(options, opened));
    Ok((state, files))
}

/// The end of each destination, by the records and totals found in the segments.
fn log_ends(segments: &[Found], scan: &Scan) -> Vec<(Destination, Position)> {
    let mut ends = scan.ends.clone();
    for (destination, at) in segments.iter().filter_map(|segment| segment.totals.as_ref()).flatten() {
        raise(&mut ends, destination, *at);
    }
    ends
}

/// Creates a log for every destination known from anywhere, with what was written of it, and sets
/// the next sequence. `ends` is what the segments say.
fn fill_logs(
    state: &mut State,
    mut ends: Vec<(Destination, Position)>,
    segments: &[Found],
    saved: Option<&Cursors>,
    scan: &Scan,
) {
    let firsts = segments.iter().filter_map(|segment| segment.first_sequence);
    let mut next_sequence = firsts.fold(scan.next_sequence, Sequence::max);
    next_sequence = next_sequence.max(saved.map_or(Sequence::FIRST, |saved| saved.next_sequence));
    // Records that were written and are not found are known to be missing.
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
    (state.next_sequence, state.found_below) = (next_sequence, next_sequence);
    state.logs = ends.into_iter().map(|(destination, at)| Log::new(Arc::new(destination), at)).collect();
}

/// Builds the disk index's segments. `ends` is what the segments say of their destinations;
/// `newest` is the latest receive time among the last segments' records.
fn keep_segments(
    state: &State,
    segments: &[Found],
    ends: &[(Destination, Position)],
    newest: Option<WallTime>,
    now: Instant,
) -> VecDeque<Segment> {
    let kept = segments.iter().enumerate().map(|(index, found)| {
        let totals = found.totals.as_deref().unwrap_or_default();
        let at = |log: &Log| totals.iter().find(|(known, _)| *known == *log.destination).map(|(_, at)| *at);
        let created = found.header.and_then(|header| header.created);
        let until = match segments.get(index + 1) {
            Some(next) => next.header.map_or(created, |header| header.created),
            None => created.max(newest),
        };
        let when = |wall: Option<WallTime>| wall.map_or(When::Seen(now), When::Told);
        let end_sequence = segments[index + 1..]
            .iter()
            .find(|later| !later.header.is_some_and(|header| header.repeats))
            .map_or(state.next_sequence, |later| later.first_sequence.unwrap_or_default());
        let follows = segments.get(index + 1).map_or(Some(end_sequence), |next| next.first_sequence);
        Segment {
            name: found.name,
            first_sequence: found.first_sequence.unwrap_or_default(),
            end_sequence,
            repeats: found.header.is_some_and(|header| header.repeats),
            has_gaps: found.whole_below.is_none() || found.whole_below != follows,
            totals: state.logs.iter().map(|log| at(log).unwrap_or_default()).collect(),
            points: state.logs.iter().map(|log| points_of(segments, index, log, ends)).collect(),
            bytes: found.bytes,
            created,
            begun: when(created),
            newest: when(until),
        }
    });
    kept.collect()
}

/// The times of a log's points in a segment: from the next segment's totals, or, for the last
/// segment, as read. `ends` is what the segments say of their destinations.
fn points_of(segments: &[Found], index: usize, log: &Log, ends: &[(Destination, Position)]) -> Span {
    let (found, destination) = (&segments[index], &*log.destination);
    let known = match segments.get(index + 1) {
        // Anything missing after a segment counts as part of it. So does anything missing before a
        // segment with an unreadable header: where that one begins is unknown.
        Some(next) => {
            let follows = next.name.number == found.name.number + 1 && found.header.is_some();
            next.points_before.as_ref().filter(|_| follows)
        }
        None => {
            let end = ends.iter().find(|(known, _)| known == destination).map(|(_, end)| *end);
            let is_whole = found.header.is_some() && end.unwrap_or_default() == log.written;
            found.points.as_ref().filter(|_| is_whole)
        }
    };
    let of_destination = |known: &Vec<(Destination, Span)>| {
        known.iter().find(|(known, _)| known == destination).map_or(Span::NONE, |(_, points)| *points)
    };
    known.map_or(Span::ALWAYS, of_destination)
}

/// Restores every backend's cursors. A new backend starts at the log's end. Without saved cursors,
/// all start at the log's beginning. `now` is the wall clock's time.
fn place_backends(state: &mut State, saved: Option<Cursors>, segments: &VecDeque<Segment>, now: WallTime) {
    let begin = |index: usize, log: &Log| match segments.front() {
        Some(first) => End { sequence: first.first_sequence, at: first.totals.get(index).copied().unwrap_or_default() },
        None => End { sequence: state.next_sequence, at: log.written },
    };
    let begins: Vec<End> = state.logs.iter().enumerate().map(|(index, log)| begin(index, log)).collect();
    let is_known = saved.is_some();
    let Cursors { backends: mut saved, kept_from, .. } = saved.unwrap_or_default();
    let kept = |log: &Log| {
        let known = kept_from.iter().find(|(known, _)| *known == *log.destination);
        End { sequence: Sequence::FIRST, at: known.map_or_else(Position::default, |(_, at)| *at) }
    };
    let end_of_log = state.end_of_log();
    for backend in &mut state.backends {
        let index = saved.iter().position(|known| known.name == backend.name);
        let known = index.map(|index| saved.remove(index));
        if is_known && known.is_none() {
            state.gaps.note_joined(&backend.name, now);
        }
        if known.as_ref().is_some_and(|known| known.is_unkept) {
            state.gaps.note_unknown(&backend.name, now);
        }
        let address = known.as_ref().map_or("", |known| &known.address);
        backend.moved_from = (!address.is_empty() && address != backend.address).then(|| address.to_owned());
        let moved_at = known.as_ref().and_then(|known| known.moved_at.clone());
        backend.moved_at = backend.moved_from.as_ref().map(|_| moved_at.unwrap_or_else(|| end_of_log.clone()));
        for (id, (log, begin)) in LogId::all().zip(state.logs.iter().zip(&begins)) {
            let lanes = known.as_ref().and_then(|known| lanes_of(known, &log.destination));
            if lanes.as_ref().and_then(VecDeque::front).is_some_and(|first| first.at.lines > 0) {
                backend.taken.insert(id);
            }
            let mut cursor = match lanes {
                Some(lanes) => Cursor::with_lanes(lanes),
                // Its first lines came after the cursors were saved.
                None if known.is_some() => Cursor::new(begin.sequence, Position::default()),
                None if is_known => Cursor::new(state.next_sequence, log.written),
                None => Cursor::new(begin.sequence, begin.at),
            };
            backend.ledger.recover(cursor.unread_on_disk(log.written).lines);
            // What the policy took while the lines were in memory is not damage, even if the
            // process ended with them.
            for (begin, reason) in [(kept(log).min(*begin), DropReason::Quota), (*begin, DropReason::Corrupt)] {
                let (lost, since) = cursor.cut(log.tail(state.next_sequence), begin);
                if lost != Position::default() {
                    let until = segments.front().and_then(|first| first.created).max(since).unwrap_or(now);
                    let (lines, received) = (lost.lines, (since, until));
                    // Nobody knows the point times of lost lines.
                    let points = Span::ALWAYS;
                    let loss = Loss { destination: &log.destination, lines, received, points, is_unsure: true };
                    backend.give_up(&mut state.gaps, reason, loss);
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

/// A saved backend's lanes in a destination. `None` if there are none or they are inconsistent.
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
        resume: None,
        failures: 0,
    };
    is_sound.then(|| lanes.iter().map(lane).collect())
}

/// Opens the newest segments, which a crash may have left unsynced, except those that cannot be
/// synced.
fn open_last(
    storage: &dyn Storage,
    segments: &VecDeque<Segment>,
    abandoned_below: u64,
) -> io::Result<Vec<UnsyncedFile>> {
    let newest = segments.range(segments.len().saturating_sub(UNSYNCED_SEGMENTS)..);
    let newest = newest.filter(|segment| segment.name.number >= abandoned_below);
    newest.map(|segment| Ok((segment.name, storage.open(&segment.name.to_string())?))).collect()
}
