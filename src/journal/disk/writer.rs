//! The writing end of the log: records from memory into segments, cursors into their slots, and room for both.
//!
//! It never syncs (the [`super::Syncer`] does), so that a slow sync delays no write. What cannot be written stays in memory and
//! is tried again each second.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::lock;
use super::renewal::{Found, Guard, Renewal};
use super::saved::{encode_gaps, encode_totals};
use crate::batch::{Destination, Received, Span};
use crate::journal::segment::Position;
use crate::journal::segment::codec::Compressor;
use crate::journal::segment::format::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName};
use crate::journal::segment::frame::{Codec, FRAME_HEADER_BYTES, Frame, Key, Kind};
use crate::journal::segment::slots::Slots;
use crate::journal::segment::storage::{Space, StoredFile};
use crate::journal::shared::{Files, Shared};
use crate::journal::state::State;
use crate::journal::state::ledger::DropReason;
use crate::journal::state::options::DiskOptions;
use crate::journal::state::writing::{Begun, Job};
use crate::protocol::Precision;
use crate::sys::Throttle;
use crate::sys::clock::{PATIENCE, Step};

/// Bytes written at once, about.
const WRITE_BYTES: u64 = 1 << 20;

/// Segments that wait for a sync, at most: each keeps a file open.
pub(super) const MOST_UNSYNCED: usize = 64;

/// Writes the log. There is one for each journal with a disk.
#[derive(Debug)]
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    options: DiskOptions,
    active: Option<Active>,
    /// The bytes of the next write.
    buffer: Vec<u8>,
    compressor: Compressor,
    /// Somebody needs what is on the disk only.
    is_behind: bool,
    /// When the volume's free space and the oldest segment's age are looked at next.
    look_next: Instant,
    /// Writing failed, and is tried again then.
    retry_at: Option<Instant>,
    /// Saving the cursors failed, and is tried again then.
    save_at: Option<Instant>,
    /// The volume has less free than it must.
    below_floor: bool,
    /// The size at which a segment ends.
    segment_bytes: u64,
    renewal: Renewal,
    told_step: Throttle,
    told_doubt: Throttle,
}

#[derive(Debug)]
struct Active {
    file: Arc<dyn StoredFile>,
    key: Key,
    offset: u64,
}

/// Whether the writer has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once.
    Now,
    /// When there is something new, or a second has passed.
    Later,
}

impl Writer {
    pub(in crate::journal) fn new(shared: Arc<Shared>) -> Self {
        let (options, active) = {
            let mut state = shared.lock();
            let disk = state.disk();
            let active = disk.active().map(|(file, name, offset)| Active { file, key: Key::new(name), offset });
            (disk.options().clone(), active)
        };
        let compressor = Compressor::new(options.compression);
        let renewal = Renewal::new(Arc::clone(&shared));
        let segment_bytes = options.segment_bytes(Space { free: u64::MAX, total: u64::MAX });
        Self {
            shared,
            options,
            active,
            buffer: Vec::new(),
            compressor,
            is_behind: false,
            look_next: Instant::now(),
            retry_at: None,
            save_at: None,
            below_floor: false,
            segment_bytes,
            renewal,
            told_step: Throttle::default(),
            told_doubt: Throttle::default(),
        }
    }

    /// With what makes sure that a new folder is nobody else's.
    pub(super) fn guarded(self, guard: Guard) -> Self {
        Self { renewal: self.renewal.guarded(guard), ..self }
    }

    /// Writes what there is: at most about 1 MiB of records, and the cursors where they have moved.
    pub fn step(&mut self) -> Next {
        if self.look_next <= Instant::now() {
            self.look_next = Instant::now() + self.options.retry_after;
            if self.keep_place() {
                self.look_around();
            }
        }
        if !self.renewal.is_kept() {
            return Next::Later;
        }
        let is_due = self.retry_at.is_none_or(|time| time <= Instant::now());
        let (jobs, epoch) = if is_due { self.next_jobs() } else { (Vec::new(), 0) };
        // Between choosing and writing: a segment that repeats lacks what everybody has acked, which must be known then.
        self.save_cursors();
        if jobs.is_empty() {
            return Next::Later;
        }
        let written = self.write(&jobs, epoch);
        self.shared.lock().end_writing();
        match written {
            Ok(true) => return Next::Now,
            Ok(false) => self.retry_at = Some(Instant::now() + self.options.retry_after),
            Err(error) => self.note_failure(&error),
        }
        Next::Later
    }

    fn next_jobs(&mut self) -> (Vec<Job>, u64) {
        self.retry_at = None;
        let mut state = self.shared.lock();
        self.is_behind = state.is_disk_needed();
        (state.next_to_write(WRITE_BYTES), state.disk().epoch())
    }

    /// What failed is tried again by the next step, and whether there is still a folder is known by then.
    pub(super) fn retry_now(&mut self) {
        (self.retry_at, self.save_at) = (None, None);
        // What is not in its place is looked at twice.
        if !self.keep_place() {
            self.keep_place();
        }
    }

    /// Looks whether there is still a folder to write to.
    fn keep_place(&mut self) -> bool {
        let found = self.renewal.look();
        if found == Found::Renewed {
            self.active = None;
        }
        found != Found::Nowhere
    }

    /// Makes room by what the age, the floor and the quota say, before it is needed.
    fn look_around(&mut self) {
        if let Ok(space) = self.files().storage.space() {
            self.below_floor = space.free < self.options.floor(space);
            self.segment_bytes = self.options.segment_bytes(space);
        }
        let now = (self.options.clock)();
        self.look_at_clock(now);
        while let Some(aged) = self.evict_with(|state| state.evict_aged(now.monotonic)) {
            tracing::warn!(segment = %aged, "dropped lines older than journal.max_age");
        }
        // The quota may be smaller than it was, and a power cut may bring back what was removed.
        let is_over = {
            let mut state = self.shared.lock();
            state.disk().exceeds_quota(0)
        };
        if is_over {
            self.make_room(0);
        }
        // What is to be dropped by its age is dropped by the segment: so none may grow for long.
        if self.options.max_age.is_some_and(|max_age| self.shared.lock().is_segment_older(max_age / 8, now.monotonic)) {
            self.shared.lock().disk().ask_roll();
        }
    }

    /// Sees whether ages can be told, and tells what keeps them from it.
    fn look_at_clock(&mut self, now: Received) {
        let patience = humantime::format_duration(PATIENCE);
        let (step, doubt) = {
            let mut state = self.shared.lock();
            (state.disk().look_at_clock(now), state.disk().doubt(now))
        };
        if let Some(step) = step
            && let Some(leave) = self.told_step.pass_at(now.monotonic)
        {
            let (by, direction) = match step {
                Step::Forward(by) => (by, "forward"),
                Step::Back(by) => (by, "back"),
            };
            tracing::warn!(
                untold = leave.untold,
                "the clock was set {direction} by {}",
                humantime::format_duration(by)
            );
        }
        if let Some(what) = doubt
            && let Some(leave) = self.told_doubt.pass_at(now.monotonic)
        {
            tracing::warn!(
                untold = leave.untold,
                "{what}: nothing is given up for its age before the clock has run evenly for {patience}; set the clock, if it \
                 is wrong"
            );
        }
    }

    /// Writes as many of the records as fit the segment; false where there is no room. A sync that failed since they were
    /// chosen (then there were `epoch` failures) makes others the next ones.
    fn write(&mut self, jobs: &[Job], epoch: u64) -> io::Result<bool> {
        if self.must_roll(jobs[0].bytes()) && !self.roll(epoch)? {
            // Overtaken by a sync that failed, there is something else to write, and at once.
            return Ok(self.shared.lock().disk().epoch() != epoch);
        }
        let Some(active) = &self.active else { return Ok(false) };
        let (key, offset) = (active.key, active.offset);
        let room = self.segment_bytes.saturating_sub(offset).max(jobs[0].bytes());
        let mut sum = 0;
        let fitting = jobs.iter().take_while(|job| {
            sum += job.bytes();
            sum <= room
        });
        let jobs = &jobs[..fitting.count()];
        self.buffer.clear();
        for job in jobs {
            self.encode(&key, offset + self.buffer.len() as u64, job);
        }
        let bytes = self.buffer.len() as u64;
        if !self.make_room(bytes) {
            return Ok(false);
        }
        let Some(active) = &mut self.active else { return Ok(false) };
        if let Err(error) = active.file.write_at(&self.buffer, offset) {
            // What a failed write left is taken back; where even that fails, the next segment is as good.
            if active.file.truncate(offset).is_err() || !is_full(&error) {
                self.shared.lock().disk().ask_roll();
            }
            return Err(error);
        }
        active.offset += bytes;
        self.shared.lock().note_written(jobs, bytes, epoch);
        Ok(true)
    }

    fn must_roll(&self, bytes: u64) -> bool {
        let is_asked = self.shared.lock().disk().is_roll_asked();
        let is_full = |active: &Active| active.offset + bytes > self.segment_bytes;
        is_asked || self.active.as_ref().is_none_or(is_full)
    }

    fn encode(&mut self, key: &Key, place: u64, job: &Job) {
        let batch = &job.record.batch;
        let (codec, stored) = self.compressor.compress(batch.bytes(), self.is_behind);
        let frame = Frame {
            kind: Kind::Record,
            codec,
            destination: Destination::clone(batch.destination()),
            sequence: job.record.sequence,
            at: job.at,
            lines: batch.lines(),
            points: batch.points(),
            received: Some(batch.received().wall),
            stored_bytes: stored.len(),
            payload_bytes: batch.bytes().len(),
            extension_bytes: 0,
        };
        frame.encode(key, place, stored, &mut self.buffer);
    }

    /// Begins a new segment; false where there is no room, or where a sync failed since `epoch`.
    fn roll(&mut self, epoch: u64) -> io::Result<bool> {
        let created = (self.options.clock)().wall;
        let (begun, bytes) = {
            let mut state = self.shared.lock();
            let disk = state.disk();
            if disk.epoch() != epoch {
                return Ok(false);
            }
            if disk.unsynced_files() >= MOST_UNSYNCED {
                disk.note_full("the disk syncs nothing");
                return Ok(false);
            }
            let (number, first_sequence, repeats) = disk.next_segment();
            let name = SegmentName { number, salt: fastrand::u64(..) };
            let totals = state.totals();
            let lines_before = totals.iter().map(|(_, at, _)| at.lines).fold(0, u64::saturating_add);
            let journal = self.files().journal;
            let header =
                SegmentHeader { journal, number, first_sequence, lines_before, created: Some(created), repeats };
            let payload = encode_totals(totals.iter().map(|(log, at, before)| (&*log.destination, *at, *before)));
            let bytes = first_bytes(name, &header, &payload);
            let totals = totals.into_iter().map(|(_, at, _)| at).collect();
            (Begun { name, first_sequence, repeats, totals, created, bytes: bytes.len() as u64 }, bytes)
        };
        let name = begun.name;
        if !self.make_room(bytes.len() as u64) {
            return Ok(false);
        }
        let storage = &self.files().storage;
        let file = storage.create(&name.to_string())?;
        if let Err(error) = file.write_at(&bytes, 0) {
            // Nothing is in it: a segment that never was. Where it cannot be removed, it is found empty at the next start.
            drop(storage.remove(&name.to_string()));
            return Err(error);
        }
        file.reserve(self.segment_bytes);
        self.active = Some(Active { file: Arc::clone(&file), key: Key::new(name), offset: begun.bytes });
        self.shared.lock().begin_segment(begun, epoch, file);
        Ok(true)
    }

    /// Makes room for this many bytes by giving up the oldest segments, where the policy allows; false where there is none.
    fn make_room(&mut self, bytes: u64) -> bool {
        loop {
            let is_over = {
                let mut state = self.shared.lock();
                state.disk().exceeds_quota(bytes)
            };
            if !is_over && !self.below_floor {
                return true;
            }
            if let Some(name) = self.evict_with(|state| state.evict(DropReason::Quota)) {
                tracing::debug!(segment = %name, "no room on the disk: dropped the oldest lines");
                self.below_floor = false;
                continue;
            }
            let reason = if is_over { "journal.disk is used up" } else { "the volume has too little free space" };
            self.shared.lock().disk().note_full(reason);
            return false;
        }
    }

    /// Takes a segment out of the book, saves the cursors that moved, and removes the file.
    fn evict_with(&mut self, take: impl FnOnce(&mut State) -> Option<SegmentName>) -> Option<SegmentName> {
        let name = take(&mut self.shared.lock())?;
        self.save_cursors();
        if let Err(error) = self.files().storage.remove(&name.to_string()) {
            tracing::warn!(segment = %name, %error, "cannot remove a segment");
        }
        Some(name)
    }

    fn save_cursors(&mut self) {
        let (gaps, body, need) = {
            let mut state = self.shared.lock();
            let is_due = self.save_at.is_some_and(|time| time <= Instant::now());
            let has_changed = state.disk().take_cursors_change();
            if !is_due && (!has_changed || self.save_at.is_some()) {
                return;
            }
            let (cursors, need) = state.cursors();
            let gaps = state.gaps.take_unwritten().then(|| encode_gaps(&state.gaps));
            (gaps, cursors.encode(), need)
        };
        // Cursors that have passed what is lost are never found without its gap.
        let written = |slots: &Mutex<Slots>, body: &[u8]| lock(slots).write(body);
        let noted = gaps.map_or(Ok(()), |gaps| written(&self.files().gaps, &gaps));
        let is_noted = noted.is_ok();
        let saved = noted.and_then(|()| written(&self.files().cursors, &body));
        let mut state = self.shared.lock();
        if !is_noted {
            state.gaps.note_change();
        }
        match &saved {
            Ok(()) => state.disk().note_saved(need),
            Err(error) => state.disk().note_save_error(error),
        }
        self.save_at = saved.is_err().then(|| Instant::now() + self.options.retry_after);
    }

    fn note_failure(&mut self, error: &io::Error) {
        self.retry_at = Some(Instant::now() + self.options.retry_after);
        let is_pressing = {
            let mut state = self.shared.lock();
            if is_full(error) {
                state.disk().note_full("the volume is full");
            } else {
                state.disk().note_write_error(error);
            }
            is_full(error) && state.is_memory_scarce()
        };
        // What is in memory only is about to be lost: then the oldest on the disk is worth less.
        if is_pressing {
            self.evict_with(|state| state.evict(DropReason::Quota));
        }
    }

    fn files(&self) -> &Files {
        self.shared.disk.as_ref().expect("BUG: only a journal with a disk has a writer")
    }
}

/// A segment's header and totals frame.
fn first_bytes(name: SegmentName, header: &SegmentHeader, totals: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + totals.len());
    bytes.extend_from_slice(&header.encode());
    let frame = Frame {
        kind: Kind::Totals,
        codec: Codec::Plain,
        destination: Destination::new("", "", Precision::Nanoseconds),
        sequence: header.first_sequence,
        at: Position::default(),
        lines: 0,
        points: Span::NONE,
        received: header.created,
        stored_bytes: totals.len(),
        payload_bytes: totals.len(),
        extension_bytes: 0,
    };
    frame.encode(&Key::new(name), SEGMENT_HEADER_BYTES as u64, totals, &mut bytes);
    bytes
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
