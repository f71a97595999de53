//! The syncer: syncs files, and removes segments that every cursor has passed.
//!
//! It holds no lock while it waits for the disk: a sync of five seconds delays nothing but the next
//! sync.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::lock;
use super::saved::encode_gaps;
use crate::journal::segment::Sequence;
use crate::journal::segment::slots::Slots;
use crate::journal::shared::{Files, Shared};

/// Syncs the log. One exists per journal with a disk.
#[derive(Debug)]
pub struct Syncer {
    shared: Arc<Shared>,
}

impl Syncer {
    pub(in crate::journal) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Syncs what was written so far, first records, then gaps and cursors; then removes segments
    /// that nobody needs. Returns `false` if the disk failed.
    pub fn step(&mut self) -> bool {
        self.remove_superseded();
        if !self.sync_records() {
            return false;
        }
        self.save_gaps();
        let Some(saved_need) = self.sync_cursors() else { return false };
        self.remove_passed(saved_need);
        true
    }

    /// Returns `false` if something could not be synced.
    fn sync_records(&self) -> bool {
        let (files, epoch, folder_changed) = {
            let mut state = self.shared.lock();
            (state.take_unsynced(), state.disk().epoch(), state.disk().take_folder_change())
        };
        if folder_changed && let Err(error) = self.files().storage.sync_folder() {
            self.shared.lock().disk().note_folder_change();
            self.fail(&error, epoch);
            return false;
        }
        for (file, below) in files {
            let begun = Instant::now();
            if let Err(error) = file.sync() {
                self.fail(&error, epoch);
                return false;
            }
            self.shared.lock().note_synced(below, begun.elapsed(), epoch);
        }
        true
    }

    pub(super) fn save_gaps(&self) {
        let body = {
            let mut state = self.shared.lock();
            if !state.gaps.take_change() {
                return;
            }
            encode_gaps(&state.gaps)
        };
        let written = lock(&self.files().gaps).write(&body);
        if let Err(error) = written.and_then(|()| sync_slot(&self.files().gaps)) {
            tracing::warn!(%error, "cannot save the gap ledger");
        }
    }

    /// Syncs the cursors. Returns the sequence from which they need the log, or `None` on failure.
    fn sync_cursors(&self) -> Option<Sequence> {
        let saved_need = self.shared.lock().disk().saved_need();
        if let Err(error) = sync_slot(&self.files().cursors) {
            // The next state goes to another slot, so that the failed sync is not repeated for the
            // same bytes.
            self.shared.lock().disk().slot_sync_failed();
            tracing::warn!(%error, "cannot sync the journal's cursors");
            return None;
        }
        Some(saved_need)
    }

    fn remove_superseded(&self) {
        let superseded = self.shared.lock().take_superseded();
        if let Some(name) = superseded
            && let Err(error) = self.files().storage.remove(&name.to_string())
        {
            tracing::warn!(segment = %name, %error, "cannot remove a segment that a later one repeats");
        }
    }

    fn remove_passed(&self, saved_need: Sequence) {
        let passed = self.shared.lock().take_passed(saved_need);
        for name in passed {
            if let Err(error) = self.files().storage.remove(&name.to_string()) {
                tracing::warn!(segment = %name, %error, "cannot remove a segment that every backend has");
            }
        }
    }

    fn fail(&self, error: &io::Error, epoch: u64) {
        let mut state = self.shared.lock();
        // A different epoch means that the writer has a new folder since; the failure was in the
        // old one.
        if state.disk().epoch() == epoch {
            state.note_sync_failure(error.to_string());
            drop(state);
            tracing::error!(%error, "the journal's disk does not sync: writing again what was not synced, to a new file");
        }
    }

    fn files(&self) -> &Files {
        self.shared.disk.as_ref().expect("BUG: only a journal with a disk has a syncer")
    }
}

/// Syncs what was written to the slots, without holding their lock.
fn sync_slot(slots: &Mutex<Slots>) -> io::Result<()> {
    let unsynced = lock(slots).take_unsynced();
    if let Some(unsynced) = unsynced {
        unsynced.file.sync()?;
        lock(slots).note_synced(&unsynced);
    }
    Ok(())
}
