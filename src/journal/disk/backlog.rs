//! Reads a backlog: the next records of a cursor's lane, from where the last read stopped.
//!
//! Runs beside everything else, and takes the state's lock only to find the next segment. Damage
//! costs only what is damaged: the loss shows in the positions of the records that follow.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::{Batch, Received, WallTime};
use crate::journal::segment::format::{SEGMENT_HEADER_BYTES, SegmentName};
use crate::journal::segment::frame::{Frame, Kind};
use crate::journal::segment::frames::{Frames, Item, unpack};
use crate::journal::segment::storage::StoredFile;
use crate::journal::segment::{Position, Sequence};
use crate::journal::shared::Shared;
use crate::journal::state::backlog::{Read, Request};
use crate::journal::state::index::Segment;
use crate::journal::state::lane::{End, SegmentOffset};
use crate::journal::state::options::SEGMENT_BYTES;
use crate::journal::state::record::Record;

/// Bytes read beyond what a lease may hold: frame headers, and the frame in which the lease ends.
const SPARE_BYTES: u64 = 64 << 10;
/// How often an unreadable offset is tried, [`super::DiskOptions::retry_after`] apart, before it
/// counts as damage. A disk that is away for a moment then costs nothing.
const READ_TRIES: u32 = 10;
/// Most bytes read for one lease. If a destination's records are far apart, a read may return none.
const MAX_BYTES: u64 = 64 << 20;

/// Reads records for a lease. Blocks on the disk.
pub(in crate::journal) fn load(shared: &Shared, request: Request) -> Read {
    let (from, at, end) = (request.from, request.at, request.end);
    let mut reading = Reading { shared, request, records: Vec::new(), lines: 0, bytes: 0, next: from, at };
    let nothing = Read { from, records: Vec::new(), resume: None, stopped: None, finished: None, failed: false };
    let read = match reading.run() {
        Ok(Stop::Here(resume)) => Read { resume: Some(resume), ..nothing },
        Ok(Stop::Waits(resume, at)) => {
            let stopped = Some(End { sequence: reading.request.before, at });
            Read { resume: Some(resume), stopped, ..nothing }
        }
        Ok(Stop::Ended(resume)) => Read { resume, finished: Some(end), ..nothing },
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

/// Where a read stopped.
enum Stop {
    /// There is more, from this offset on.
    Here(SegmentOffset),
    /// There is more at this offset, with this position, but it must not be read yet.
    Waits(SegmentOffset, Position),
    /// The lane has no more. The offset of what follows, unless the log ends.
    Ended(Option<SegmentOffset>),
}

enum Taken {
    More,
    /// The lease is full; this frame belongs to the next one.
    Full,
    /// This frame, at this position, must not be read yet.
    Waits(Position),
    /// This frame is the lane's last.
    Last,
    /// This frame is beyond the lane's end.
    Beyond,
}

impl Reading<'_> {
    /// Reads until the lease is full or the lane ends.
    fn run(&mut self) -> io::Result<Stop> {
        let begun = match self.request.resume.take() {
            // The file is opened anew each time, so that an offset kept for long does not hold a
            // file that is to be removed.
            Some(resume) => self.open_at(resume.name, resume.offset)?,
            None => self.first_segment()?,
        };
        let Some(mut frames) = begun else { return Ok(Stop::Ended(None)) };
        let mut passed = 0;
        loop {
            let before = frames.offset();
            let here = |frames: &Frames, offset| SegmentOffset { name: frames.segment(), offset };
            match frames.next()? {
                Some(Item::Frame(frame, stored)) => match self.take(&frame, &stored) {
                    Taken::More => {}
                    Taken::Full => return Ok(Stop::Here(here(&frames, before))),
                    Taken::Waits(at) => return Ok(Stop::Waits(here(&frames, before), at)),
                    Taken::Beyond => return Ok(Stop::Ended(Some(here(&frames, before)))),
                    Taken::Last => return Ok(Stop::Ended(Some(here(&frames, frames.offset())))),
                },
                // The next position shows what these cost.
                Some(Item::BadPayload(_) | Item::Hole { .. }) => {}
                None => match self.segment_after(frames.segment())? {
                    Some(next) => frames = next,
                    None => return Ok(Stop::Ended(None)),
                },
            }
            passed += frames.offset().saturating_sub(before);
            if passed > MAX_BYTES {
                return Ok(Stop::Here(here(&frames, frames.offset())));
            }
        }
    }

    fn take(&mut self, frame: &Frame, stored: &Bytes) -> Taken {
        let (from, end) = (self.next, self.request.end);
        if frame.sequence >= end.sequence || self.at.lines >= end.at.lines {
            return Taken::Beyond;
        }
        let is_ours = frame.kind == Kind::Record && frame.destination == *self.request.destination;
        // A position that does not follow belongs to a repeated record, or to a foreign one.
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
        // Copy, so that one record does not keep the whole chunk alive.
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

    /// Opens the segment with the lane's next record.
    fn first_segment(&self) -> io::Result<Option<Frames>> {
        let from = self.next;
        self.open(|segments| {
            // A segment that repeats unsynced records is the better copy once it has all of them.
            // If any repeat has gaps, read all files in order instead.
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

    fn segment_after(&self, name: SegmentName) -> io::Result<Option<Frames>> {
        let number = name.number;
        self.open(|segments| segments.iter().find(|segment| segment.name.number > number).map(|segment| segment.name))
    }

    /// Opens the segment that `which` selects from the disk index. A segment missing there or on
    /// disk is damage.
    fn open(&self, which: impl Fn(&VecDeque<Segment>) -> Option<SegmentName>) -> io::Result<Option<Frames>> {
        let name = self.shared.lock().disk.as_ref().and_then(|disk| which(disk.segments()));
        name.map_or(Ok(None), |name| self.open_at(name, SEGMENT_HEADER_BYTES as u64))
    }

    fn open_at(&self, name: SegmentName, offset: u64) -> io::Result<Option<Frames>> {
        let Some(files) = &self.shared.disk else { return Ok(None) };
        match files.storage.open(&name.to_string()) {
            Ok(file) => Ok(Some(self.frames(file, name, offset))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.segment_after(name),
            Err(error) => Err(error),
        }
    }

    fn frames(&self, file: Arc<dyn StoredFile>, name: SegmentName, offset: u64) -> Frames {
        let chunk = self.request.limits.bytes.saturating_add(SPARE_BYTES).min(SEGMENT_BYTES);
        let mut frames = Frames::new(file, name, offset, usize::try_from(chunk).unwrap_or(usize::MAX));
        if self.request.failures >= READ_TRIES {
            frames.tolerate();
        }
        frames
    }
}

/// Both clocks' readings for a record received at this wall time.
fn received(wall: WallTime) -> Received {
    let now = Received::now();
    let age = now.wall.since(wall);
    Received { monotonic: now.monotonic.checked_sub(age).unwrap_or(now.monotonic), wall }
}
