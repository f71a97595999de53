//! Reading a backlog: the next records of one cursor's lane, from where it was read last.
//!
//! It runs beside everything else, and looks at the book only to find the next segment. Damage costs what is
//! damaged: what is missing shows in the positions of what follows.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::{Batch, Received, WallTime};
use crate::journal::segment::format::{SEGMENT_HEADER_BYTES, SegmentName};
use crate::journal::segment::frame::{Frame, Kind};
use crate::journal::segment::frames::{Item, Walk, unpack};
use crate::journal::segment::storage::StoredFile;
use crate::journal::segment::{Position, Sequence};
use crate::journal::shared::Shared;
use crate::journal::state::backlog::{Read, Request};
use crate::journal::state::index::Segment;
use crate::journal::state::lane::{End, Place};
use crate::journal::state::options::SEGMENT_BYTES;
use crate::journal::state::record::Record;

/// Bytes read at once beside what a lease may hold: frame headers, and the frame that it ends in.
const SPARE_BYTES: u64 = 64 << 10;
/// How often a place that the disk does not give is tried, [`super::DiskOptions::retry_after`] apart, before it counts as
/// damage: a disk that is away for a moment costs nothing.
const READ_TRIES: u32 = 10;
/// Bytes read for one lease, at most: where a destination's records are far between, a lease may come with none.
const MOST_BYTES: u64 = 64 << 20;

/// Reads records for a lease; blocks on the disk.
pub(in crate::journal) fn load(shared: &Shared, request: Request) -> Read {
    let (from, at, end) = (request.from, request.at, request.end);
    let mut reading = Reading { shared, request, records: Vec::new(), lines: 0, bytes: 0, next: from, at };
    let nothing = Read { from, records: Vec::new(), place: None, stopped: None, finished: None, failed: false };
    let read = match reading.run() {
        Ok(Stop::Here(place)) => Read { place: Some(place), ..nothing },
        Ok(Stop::Waits(place, at)) => {
            let stopped = Some(End { sequence: reading.request.before, at });
            Read { place: Some(place), stopped, ..nothing }
        }
        Ok(Stop::Ended(place)) => Read { place, finished: Some(end), ..nothing },
        Err(error) => {
            reading.note_error(&error);
            Read { failed: true, ..nothing }
        }
    };
    Read { records: reading.records, ..read }
}

struct Reading<'a> {
    shared: &'a Shared,
    request: Request,
    records: Vec<Arc<Record>>,
    lines: u64,
    bytes: u64,
    /// The next sequence, and its position.
    next: Sequence,
    at: Position,
}

/// Where a reading stopped.
enum Stop {
    /// There is more, from this place on.
    Here(Place),
    /// The same, and it is not to be read yet; its position.
    Waits(Place, Position),
    /// The lane has no more; the place of what comes behind it, unless the log ends.
    Ended(Option<Place>),
}

enum Taken {
    More,
    /// The lease is full, and this frame is the next one's.
    Full,
    /// This frame, which is at this position, is not to be read yet.
    Waits(Position),
    /// It is the lane's last one.
    Last,
    /// It is beyond the lane's end.
    Beyond,
}

impl Reading<'_> {
    /// Reads until the lease is full or the lane ends.
    fn run(&mut self) -> io::Result<Stop> {
        let begun = match self.request.place.take() {
            // Opened anew each time: a place that is kept for long holds no file that is to be removed.
            Some(place) => self.open_at(place.name, place.offset)?,
            None => self.first_segment()?,
        };
        let Some(mut walk) = begun else { return Ok(Stop::Ended(None)) };
        let mut passed = 0;
        loop {
            let before = walk.offset();
            let here = |walk: &Walk, offset| Place { name: walk.segment(), offset };
            match walk.next()? {
                Some(Item::Frame(frame, stored)) => match self.take(&frame, &stored) {
                    Taken::More => {}
                    Taken::Full => return Ok(Stop::Here(here(&walk, before))),
                    Taken::Waits(at) => return Ok(Stop::Waits(here(&walk, before), at)),
                    Taken::Beyond => return Ok(Stop::Ended(Some(here(&walk, before)))),
                    Taken::Last => return Ok(Stop::Ended(Some(here(&walk, walk.offset())))),
                },
                // What they cost shows in the next position.
                Some(Item::BadPayload(_) | Item::Hole { .. }) => {}
                None => match self.segment_after(walk.segment())? {
                    Some(next) => walk = next,
                    None => return Ok(Stop::Ended(None)),
                },
            }
            passed += walk.offset().saturating_sub(before);
            if passed > MOST_BYTES {
                return Ok(Stop::Here(here(&walk, walk.offset())));
            }
        }
    }

    fn take(&mut self, frame: &Frame, stored: &Bytes) -> Taken {
        let (from, end) = (self.next, self.request.end);
        if frame.sequence >= end.sequence || self.at.lines >= end.at.lines {
            return Taken::Beyond;
        }
        let is_ours = frame.kind == Kind::Record && frame.destination == *self.request.destination;
        // A position that does not follow is a repeated record's, or a stranger's.
        let follows = frame.sequence >= from && frame.at.lines >= self.at.lines && frame.end().lines <= end.at.lines;
        if !is_ours || !follows {
            return Taken::More;
        }
        if frame.sequence >= self.request.before {
            return Taken::Waits(frame.at);
        }
        let (lines, bytes) = (self.lines + frame.lines, self.bytes + frame.payload_bytes as u64);
        let Request { limits, reserve, .. } = &self.request;
        let is_enough = lines > limits.lines || bytes > limits.bytes || frame.payload_bytes as u64 > reserve.bytes();
        if is_enough && !self.records.is_empty() {
            return Taken::Full;
        }
        (self.next, self.at) = (frame.sequence.next(), frame.end());
        // A copy, so that one record does not hold on to all that was read with it.
        if let Some(payload) = unpack(frame, stored).map(|payload| Bytes::copy_from_slice(&payload)) {
            (self.lines, self.bytes) = (lines, bytes);
            let batch = Batch::new(
                Arc::clone(&self.request.destination),
                payload,
                frame.lines,
                received(frame.received.unwrap_or(WallTime::MIN)),
            )
            .with_points(frame.points);
            self.records.push(self.request.reserve.spend(frame.sequence, batch, frame.at));
        }
        if self.at.lines >= end.at.lines { Taken::Last } else { Taken::More }
    }

    fn note_error(&self, error: &io::Error) {
        tracing::warn!(%error, "the journal cannot read a backlog; trying again");
        self.shared.lock().disk().note_read_error(error);
    }

    /// The segment that has the lane's next record.
    fn first_segment(&self) -> io::Result<Option<Walk>> {
        let from = self.next;
        self.open(|segments| {
            // One that repeats what could not be synced is the better copy, as soon as it has all of it. Where one of them
            // lacks something, the way is along all files, in their order.
            let is_repeated = !segments.iter().any(|segment| segment.repeats && segment.has_gaps);
            let mut before = Sequence::FIRST;
            let whole = segments.iter().filter(|segment| {
                let is_whole = !segment.repeats || (is_repeated && segment.end_sequence >= before);
                before = before.max(segment.end_sequence);
                is_whole
            });
            let with_next = whole.filter(|segment| segment.first_sequence <= from).last();
            with_next.or_else(|| segments.front()).map(|segment| segment.name)
        })
    }

    fn segment_after(&self, name: SegmentName) -> io::Result<Option<Walk>> {
        let number = name.number;
        self.open(|segments| segments.iter().find(|segment| segment.name.number > number).map(|segment| segment.name))
    }

    /// Opens the segment that `which` finds in the book. (One that is gone, there or here, is damage.)
    fn open(&self, which: impl Fn(&VecDeque<Segment>) -> Option<SegmentName>) -> io::Result<Option<Walk>> {
        let name = self.shared.lock().disk.as_ref().and_then(|disk| which(disk.segments()));
        name.map_or(Ok(None), |name| self.open_at(name, SEGMENT_HEADER_BYTES as u64))
    }

    fn open_at(&self, name: SegmentName, offset: u64) -> io::Result<Option<Walk>> {
        let Some(files) = &self.shared.disk else { return Ok(None) };
        match files.storage.open(&name.to_string()) {
            Ok(file) => Ok(Some(self.walk(file, name, offset))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.segment_after(name),
            Err(error) => Err(error),
        }
    }

    fn walk(&self, file: Arc<dyn StoredFile>, name: SegmentName, offset: u64) -> Walk {
        let chunk = self.request.limits.bytes.saturating_add(SPARE_BYTES).min(SEGMENT_BYTES);
        let mut walk = Walk::new(file, name, offset, usize::try_from(chunk).unwrap_or(usize::MAX));
        if self.request.failures >= READ_TRIES {
            walk.tolerate();
        }
        walk
    }
}

/// When a record was received, by both clocks, where the wall clock says so.
fn received(wall: WallTime) -> Received {
    let now = Received::now();
    let age = now.wall.since(wall);
    Received { monotonic: now.monotonic.checked_sub(age).unwrap_or(now.monotonic), wall }
}
