//! The writer: records from memory into segments, cursors into their slots, and eviction to make
//! room.
//!
//! Never does: syncing (the [`super::Syncer`] does), so that a slow sync delays no write. What
//! cannot be written stays in memory and is retried each second.

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

/// Bytes per write, approximately.
const WRITE_BYTES: u64 = 1 << 20;

/// Most segments waiting for a sync; each keeps a file open.
pub(super) const MAX_UNSYNCED: usize = 64;

/// Writes the log. One exists per journal with a disk.
#[derive(Debug)]
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    options: DiskOptions,
    active: Option<Active>,
    /// The bytes of the next write.
    buffer: Vec<u8>,
    compressor: Compressor,
    /// Whether some backend needs records that are only on disk.
    is_behind: bool,
    /// When to check the volume's free space and the oldest segment's age next.
    check_next: Instant,
    /// When to retry a failed write.
    retry_at: Option<Instant>,
    /// When to retry saving the cursors.
    save_at: Option<Instant>,
    /// The volume has less free space than the floor.
    below_floor: bool,
    /// The size at which a segment ends.
    segment_bytes: u64,
    renewal: Renewal,
    throttle_step: Throttle,
    throttle_doubt: Throttle,
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
    /// Call again at once.
    Now,
    /// Call again when something is new, or after a second.
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
            check_next: Instant::now(),
            retry_at: None,
            save_at: None,
            below_floor: false,
            segment_bytes,
            renewal,
            throttle_step: Throttle::default(),
            throttle_doubt: Throttle::default(),
        }
    }

    /// Sets the guard for new folders.
    pub(super) fn guarded(self, guard: Guard) -> Self {
        Self { renewal: self.renewal.guarded(guard), ..self }
    }

    /// Writes what is due: at most about 1 MiB of records, and the cursors if they have moved.
    pub fn step(&mut self) -> Next {
        if self.check_next <= Instant::now() {
            self.check_next = Instant::now() + self.options.retry_after;
            if self.check_folder() {
                self.check_volume();
            }
        }
        if !self.renewal.is_kept() {
            return Next::Later;
        }
        let is_due = self.retry_at.is_none_or(|time| time <= Instant::now());
        let (jobs, epoch) = if is_due { self.next_jobs() } else { (Vec::new(), 0) };
        // Between choosing and writing: a repeating segment lacks what every backend has acked, and
        // the cursors must say so before it exists.
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

    /// Makes the next step retry what failed, and checks the folder now.
    pub(super) fn retry_now(&mut self) {
        (self.retry_at, self.save_at) = (None, None);
        // It takes two checks to decide that something is gone.
        if !self.check_folder() {
            self.check_folder();
        }
    }

    /// Checks whether there is still a folder to write to.
    fn check_folder(&mut self) -> bool {
        let found = self.renewal.check();
        if found == Found::Renewed {
            self.active = None;
        }
        found != Found::Nowhere
    }

    /// Makes room, by age, floor and quota, before it is needed.
    fn check_volume(&mut self) {
        if let Ok(space) = self.files().storage.space() {
            self.below_floor = space.free < self.options.floor(space);
            self.segment_bytes = self.options.segment_bytes(space);
        }
        let now = (self.options.clock)();
        self.check_clock(now);
        while let Some(aged) = self.evict_with(|state| state.evict_aged(now.monotonic)) {
            tracing::warn!(segment = %aged, "dropped lines older than journal.max_age");
        }
        // The quota may have been lowered, and a power cut may bring back removed files.
        let is_over = {
            let mut state = self.shared.lock();
            state.disk().exceeds_quota(0)
        };
        if is_over {
            self.make_room(0);
        }
        // Age evicts whole segments, so no segment may grow for long.
        if self.options.max_age.is_some_and(|max_age| self.shared.lock().is_segment_older(max_age / 8, now.monotonic)) {
            self.shared.lock().disk().request_roll();
        }
    }

    /// Checks whether ages can be trusted, and logs what prevents it.
    fn check_clock(&mut self, now: Received) {
        let patience = humantime::format_duration(PATIENCE);
        let (step, doubt) = {
            let mut state = self.shared.lock();
            (state.disk().check_clock(now), state.disk().doubt(now))
        };
        if let Some(step) = step
            && let Some(leave) = self.throttle_step.pass_at(now.monotonic)
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
            && let Some(leave) = self.throttle_doubt.pass_at(now.monotonic)
        {
            tracing::warn!(
                untold = leave.untold,
                "{what}: nothing is given up for its age before the clock has run evenly for {patience}; set the clock, if it \
                 is wrong"
            );
        }
    }

    /// Writes as many of the records as fit the segment. Returns `false` if there is no room. If a
    /// sync has failed since they were chosen (when `epoch` syncs had failed), other records are
    /// next.
    fn write(&mut self, jobs: &[Job], epoch: u64) -> io::Result<bool> {
        if self.must_roll(jobs[0].bytes()) && !self.roll(epoch)? {
            // If a failed sync intervened, there is something else to write, and at once.
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
            // Undo a failed write. If that fails too, continue in a new segment.
            if active.file.truncate(offset).is_err() || !is_full(&error) {
                self.shared.lock().disk().request_roll();
            }
            return Err(error);
        }
        active.offset += bytes;
        self.shared.lock().note_written(jobs, bytes, epoch);
        Ok(true)
    }

    fn must_roll(&self, bytes: u64) -> bool {
        let is_asked = self.shared.lock().disk().is_roll_requested();
        let is_full = |active: &Active| active.offset + bytes > self.segment_bytes;
        is_asked || self.active.as_ref().is_none_or(is_full)
    }

    fn encode(&mut self, key: &Key, offset: u64, job: &Job) {
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
        frame.encode(key, offset, stored, &mut self.buffer);
    }

    /// Begins a new segment. Returns `false` if there is no room, or if a sync has failed since
    /// `epoch`.
    fn roll(&mut self, epoch: u64) -> io::Result<bool> {
        let created = (self.options.clock)().wall;
        let (begun, bytes) = {
            let mut state = self.shared.lock();
            let disk = state.disk();
            if disk.epoch() != epoch {
                return Ok(false);
            }
            if disk.unsynced_files() >= MAX_UNSYNCED {
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
            // The segment is empty, as if it had never been. If it cannot be removed, the next
            // start finds it empty.
            drop(storage.remove(&name.to_string()));
            return Err(error);
        }
        file.reserve(self.segment_bytes);
        self.active = Some(Active { file: Arc::clone(&file), key: Key::new(name), offset: begun.bytes });
        self.shared.lock().begin_segment(begun, epoch, file);
        Ok(true)
    }

    /// Makes room for this many bytes by evicting the oldest segments, if the policy allows.
    /// Returns `false` if there is no room.
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

    /// Takes a segment out of the disk index, saves the cursors that moved, and removes the file.
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
        // Save gaps first: cursors that have passed a loss are never found without its gap.
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
        // Records that are only in memory are about to be lost; evict the oldest on disk instead.
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
