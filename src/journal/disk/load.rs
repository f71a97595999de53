//! Reading a backlog: the next records of one cursor's lane, from where it was read last.
//!
//! It runs beside everything else, and looks at the book only to find the next segment. Damage costs what is
//! damaged: what is missing shows in the positions of what follows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use super::super::Shared;
use super::super::cursor::{End, Limits, Read};
use super::super::record::{Position, Record};
use super::Segment;
use super::format::{SEGMENT_HEADER_BYTES, SegmentName};
use super::frame::{Frame, Kind};
use super::storage::StoredFile;
use super::walk::{Item, Walk, unpack};
use crate::batch::{Batch, Destination, Received};

/// Bytes read at once beside what a lease may hold: frame headers, and the frame that it ends in.
const SPARE_BYTES: u64 = 64 << 10;
/// How often a place that the disk does not give is tried before it counts as damage.
const READ_TRIES: u32 = 3;

/// A place in a segment: where a lane's next record is, or something before it.
#[derive(Clone, Debug)]
pub(in super::super) struct Place {
    name: SegmentName,
    file: Arc<dyn StoredFile>,
    offset: u64,
}

/// What is to be read for a lease.
#[derive(Clone, Debug)]
pub(in super::super) struct Request {
    pub(in super::super) log: usize,
    pub(in super::super) destination: Arc<Destination>,
    /// The lane's next sequence and position.
    pub(in super::super) from: u64,
    pub(in super::super) at: Position,
    /// Where the lane ends.
    pub(in super::super) end: End,
    pub(in super::super) place: Option<Place>,
    pub(in super::super) limits: Limits,
}

/// Reads records for a lease; blocks on the disk.
pub(in super::super) fn load(shared: &Shared, request: Request) -> Read {
    let (from, at, end) = (request.from, request.at, request.end);
    let memory = Arc::clone(&shared.lock().memory);
    let mut reading = Reading { shared, memory, request, records: Vec::new(), lines: 0, bytes: 0, next: from, at };
    let (place, is_finished) = reading.run().map_or((None, true), |(place, is_finished)| (Some(place), is_finished));
    Read { from, records: reading.records, place, finished: is_finished.then_some(end) }
}

struct Reading<'a> {
    shared: &'a Shared,
    /// What records count in.
    memory: Arc<AtomicU64>,
    request: Request,
    records: Vec<Arc<Record>>,
    lines: u64,
    bytes: u64,
    /// The next sequence, and its position.
    next: u64,
    at: Position,
}

enum Taken {
    More,
    /// The lease is full, and this frame is the next one's.
    Full,
    /// It is the lane's last one.
    Last,
    /// It is beyond the lane's end.
    Beyond,
}

impl Reading<'_> {
    /// Reads until the lease is full or the lane ends; returns where to go on, and whether the lane ended. None at
    /// the log's end.
    fn run(&mut self) -> Option<(Place, bool)> {
        let mut walk = match self.request.place.take() {
            Some(place) => self.walk(place.file, place.name, place.offset),
            None => self.first_segment()?,
        };
        loop {
            let before = walk.offset();
            let here = |walk: &Walk, offset| Place { name: walk.segment(), file: walk.file(), offset };
            match self.next_item(&mut walk) {
                Some(Item::Frame(frame, stored)) => match self.take(&frame, stored) {
                    Taken::More => {}
                    Taken::Full => return Some((here(&walk, before), false)),
                    Taken::Beyond => return Some((here(&walk, before), true)),
                    Taken::Last => return Some((here(&walk, walk.offset()), true)),
                },
                // What they cost shows in the next position.
                Some(Item::BadPayload(_) | Item::Hole { .. }) => {}
                None => walk = self.segment_after(walk.segment())?,
            }
        }
    }

    fn take(&mut self, frame: &Frame, stored: bytes::Bytes) -> Taken {
        let (from, end) = (self.next, self.request.end);
        if frame.sequence >= end.sequence || self.at.lines >= end.at.lines {
            return Taken::Beyond;
        }
        let is_ours = frame.kind == Kind::Record && frame.destination == *self.request.destination;
        if !is_ours || frame.sequence < from {
            return Taken::More;
        }
        let (lines, bytes) = (self.lines + frame.lines, self.bytes + frame.payload_bytes as u64);
        let limits = self.request.limits;
        if !self.records.is_empty() && (lines > limits.lines || bytes > limits.bytes) {
            return Taken::Full;
        }
        (self.next, self.at) = (frame.sequence + 1, frame.end());
        if let Some(payload) = unpack(frame, stored) {
            (self.lines, self.bytes) = (lines, bytes);
            let batch = Batch {
                destination: Arc::clone(&self.request.destination),
                capacity: payload.len(),
                bytes: payload,
                lines: frame.lines,
                received: received(frame.received),
            };
            self.records.push(Record::new(frame.sequence, batch, Some(frame.at), &self.memory));
        }
        if self.at.lines >= end.at.lines { Taken::Last } else { Taken::More }
    }

    /// What comes next, over whatever the disk does not give.
    fn next_item(&self, walk: &mut Walk) -> Option<Item> {
        for _ in 0..READ_TRIES {
            match walk.next() {
                Ok(item) => return item,
                Err(error) => {
                    std::thread::sleep(self.note_error(&error));
                }
            }
        }
        walk.tolerate();
        walk.next().ok().flatten()
    }

    /// Counts an error; returns how long to wait before the next try.
    fn note_error(&self, error: &io::Error) -> Duration {
        tracing::warn!(%error, "the journal cannot read a backlog");
        let mut state = self.shared.lock();
        let disk = state.disk();
        disk.read_errors += 1;
        disk.error = Some(error.to_string());
        disk.options.retry_after
    }

    /// The segment that has the lane's next record.
    fn first_segment(&self) -> Option<Walk> {
        let from = self.next;
        self.open(|segments| {
            // One that repeats what could not be synced is the better copy, as soon as it has all of it.
            let mut before = 0;
            let whole = segments.iter().filter(|segment| {
                let is_whole = !segment.repeats || segment.end_sequence >= before;
                before = before.max(segment.end_sequence);
                is_whole
            });
            let with_next = whole.filter(|segment| segment.first_sequence <= from).last();
            with_next.or_else(|| segments.front()).map(|segment| segment.name)
        })
    }

    fn segment_after(&self, name: SegmentName) -> Option<Walk> {
        let number = name.number;
        self.open(|segments| segments.iter().find(|segment| segment.name.number > number).map(|segment| segment.name))
    }

    /// Opens the segment that `which` finds in the book; one that is gone or cannot be opened is damage.
    fn open(&self, which: impl Fn(&std::collections::VecDeque<Segment>) -> Option<SegmentName>) -> Option<Walk> {
        let storage = &self.shared.disk.as_ref()?.storage;
        let name = which(&self.shared.lock().disk.as_ref()?.segments)?;
        match storage.open(&name.to_string()) {
            Ok(file) => Some(self.walk(file, name, SEGMENT_HEADER_BYTES as u64)),
            Err(error) => {
                self.note_error(&error);
                self.segment_after(name)
            }
        }
    }

    fn walk(&self, file: Arc<dyn StoredFile>, name: SegmentName, offset: u64) -> Walk {
        let chunk = self.request.limits.bytes.saturating_add(SPARE_BYTES).min(super::SEGMENT_BYTES);
        Walk::new(file, name, offset, usize::try_from(chunk).unwrap_or(usize::MAX))
    }
}

/// When a record was received, by both clocks, where the wall clock says so.
fn received(wall: u64) -> Received {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(Duration::from_nanos(wall));
    Received { monotonic: Instant::now().checked_sub(age).unwrap_or_else(Instant::now), wall }
}
