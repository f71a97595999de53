//! The disk's two threads: one writes, one syncs.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::renewal::Guard;
use super::syncer::Syncer;
use super::writer::{Next, Writer};
use crate::journal::shared::Shared;
use crate::journal::state::State;
use crate::journal::state::ledger::DropReason;

/// The longest wait of the writer between two checks of the disk.
const WRITER_WAIT: Duration = Duration::from_secs(1);
/// The pause after a failed sync.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// How often writing and syncing the last bytes is tried before the end.
const LAST_TRIES: u32 = 3;

/// The running threads of a journal's disk.
#[derive(Debug)]
pub struct DiskThreads {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Writer>,
    syncer: JoinHandle<Syncer>,
}

impl DiskThreads {
    /// Starts the threads of a journal with a disk.
    pub(in crate::journal) fn start(
        shared: &Arc<Shared>,
        guard: impl Fn() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let writer = Writer::new(Arc::clone(shared)).guarded(Guard::new(guard));
        let syncer = Syncer::new(Arc::clone(shared));
        let shared = Arc::clone(shared);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (ours, stopping) = (Arc::clone(&shared), Arc::clone(&stop));
        let writer = thread("journal-write").spawn(move || write_on(writer, &ours, &stopping))?;
        let (ours, stopping) = (Arc::clone(&shared), Arc::clone(&stop));
        let syncer = thread("journal-sync").spawn(move || sync_on(syncer, &ours, &stopping))?;
        Ok(Self { shared, stop, writer, syncer })
    }

    /// Writes and syncs what is left, gives up what the disk does not take, and ends the threads.
    /// All lease holders must be gone by now.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn stop(self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::Release);
        self.shared.work.notify_all();
        let mut writer = self.writer.join()?;
        // Once this lock has been taken, the syncer either waits or sees the stop before it waits.
        drop(self.shared.lock());
        self.shared.sync.notify_all();
        let mut syncer = self.syncer.join()?;
        // What could not be synced is written and synced once more, elsewhere.
        for _ in 0..LAST_TRIES {
            writer.retry_now();
            while writer.step() == Next::Now {}
            if syncer.step() && !self.shared.lock().has_unwritten() {
                break;
            }
        }
        end(&mut writer, &mut syncer);
        Ok(())
    }
}

/// Gives up what is only in memory once the disk has taken what it can. Saves this for the next
/// start, and whether the last file could not be synced. Leases that are still out are void.
pub fn end(writer: &mut Writer, syncer: &mut Syncer) {
    let given_up = {
        let mut state = writer.shared.lock();
        let reason = if state.disk().is_full() { DropReason::Quota } else { DropReason::MemoryFull };
        state.requeue_leases();
        state.note_progress();
        let given_up = state.give_up_memory_only(reason);
        let names = state.backends.iter().map(|backend| backend.name.clone());
        names.zip(given_up).filter(|(_, lines)| *lines > 0).collect::<Vec<_>>()
    };
    for (backend, lines) in &given_up {
        tracing::error!(backend, lines, "the disk did not take lines that were only in memory: given up; see the gaps");
    }
    writer.retry_now();
    writer.step();
    if !syncer.step() {
        // The next start must know which files could not be synced.
        writer.retry_now();
        writer.step();
    }
    syncer.save_gaps();
}

fn write_on(mut writer: Writer, shared: &Shared, stop: &AtomicBool) -> Writer {
    loop {
        let stopping = stop.load(Ordering::Acquire);
        loop {
            let next = writer.step();
            // The syncer sleeps until something is to be synced, or is due sooner than it expected.
            if shared.lock().take_sync_change() {
                shared.sync.notify_one();
            }
            if next == Next::Later {
                break;
            }
        }
        if stopping {
            return writer;
        }
        let state = shared.lock();
        if !state.has_work() && !stop.load(Ordering::Acquire) {
            drop(shared.work.wait_timeout(state, WRITER_WAIT).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

fn sync_on(mut syncer: Syncer, shared: &Shared, stop: &AtomicBool) -> Syncer {
    loop {
        wait_until(shared, stop, |state| state.sync_due());
        let is_well = syncer.step();
        if stop.load(Ordering::Acquire) {
            return syncer;
        }
        if !is_well {
            let until = Instant::now() + FAILURE_PAUSE;
            wait_until(shared, stop, |_| Some(until));
        }
    }
}

/// Waits until the time that `due` returns, re-evaluated at each wake-up, or until the stop.
fn wait_until(shared: &Shared, stop: &AtomicBool, due: impl Fn(&State) -> Option<Instant>) {
    let mut state = shared.lock();
    while !stop.load(Ordering::Acquire) {
        let left = due(&state).map(|due| due.saturating_duration_since(Instant::now()));
        state = match left {
            Some(Duration::ZERO) => return,
            Some(left) => shared.sync.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            None => shared.sync.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}
