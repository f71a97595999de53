//! Opens the relay's journal, reports what it found, and runs the thread that numbers batches.
//!
//! Never does: touching the bytes of a line.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::StartError;
use crate::config::Config;
use crate::journal::disk::{Report, Storage};
use crate::journal::ring::Consumer;
use crate::journal::{BackendConfig, Journal, Snapshot};
use crate::observe::view::{BackendView, View};
use crate::pair::Pair;
use crate::sys::throttle;

/// How often to check for dropped lines and log them. The journal's thread wakes at least this
/// often.
const DROPS_INTERVAL: Duration = Duration::from_secs(10);
/// How long the journal's thread sleeps under back-pressure before it polls again.
const BACK_PRESSURE_POLL: Duration = Duration::from_millis(2);

/// Opens the journal and reports what was found.
pub(super) fn open(
    config: &Config,
    open: impl FnOnce(&Path) -> io::Result<Arc<dyn Storage>>,
) -> Result<Journal, StartError> {
    let (memory, backends) = (config.journal.memory.as_u64(), config.journal_backends());
    let folder = config.journal_folder();
    let failed = |error| StartError::Journal(folder.display().to_string(), error);
    let Some(options) = config.disk() else {
        if folder.exists() {
            tracing::warn!(
                folder = %folder.display(),
                "durability is \"memory\": what an earlier run left in the journal stays there, and is not delivered"
            );
        }
        return Ok(Journal::new(memory, &backends));
    };
    let storage = open(&folder).map_err(|error| failed(error.into()))?;
    let journal = Journal::open(storage, &options, memory, &backends).map_err(failed)?;
    report_opening(&journal.snapshot(), &backends);
    Ok(journal)
}

fn report_opening(found: &Snapshot, backends: &[BackendConfig]) {
    let Some(disk) = &found.disk else { return };
    let report = &disk.report;
    if report.segments == 0 {
        return;
    }
    let Report { segments, bytes, truncated_bytes, skipped_bytes, damaged_records, missing_segments, .. } = report;
    tracing::info!(segments, bytes, truncated_bytes, seconds = report.seconds, "opened the journal");
    if skipped_bytes + damaged_records + missing_segments > 0 || !report.quarantined.is_empty() {
        tracing::warn!(
            skipped_bytes,
            damaged_records,
            missing_segments,
            set_aside = ?report.quarantined,
            "the journal is damaged: what is missing is counted as dropped (corrupt) when a backend comes to it"
        );
    }
    if report.cursors_lost {
        tracing::warn!("the journal's cursors are lost: every backend gets all that is in the journal once more");
    }
    for (backend, ledger) in backends.iter().zip(&found.ledgers) {
        if ledger.recovered > 0 {
            tracing::info!(backend = backend.name, lines = ledger.recovered, "found lines to deliver");
        }
    }
    for (backend, lines) in disk.orphans.iter().filter(|(_, lines)| *lines > 0) {
        tracing::warn!(
            backend,
            lines,
            "the journal keeps lines for a backend that is not configured: configure it again, or stop the relay and \
             run: twinflux journal forget {backend}, with the same --config or --data-dir"
        );
    }
}

/// Connects to the other relay of the pair. `None` if the configuration names none.
pub(super) fn pair(config: &Config, journal: &Journal) -> Result<Option<Arc<Pair>>, StartError> {
    let Ok(Some(setup)) = config.pair.setup() else { return Ok(None) };
    config.pair.check().map_err(|error| StartError::Config(error.into()))?;
    let names = config.backend.iter().map(|backend| backend.name.clone()).collect();
    Ok(Some(Arc::new(Pair::new(setup, journal.clone(), names, &config.data_dir))))
}

/// Holds the backends whose address has changed since the journal last saw them, and logs what to
/// do.
pub(super) fn hold_moved(journal: &Journal, view: &View) {
    let ledgers = journal.snapshot().ledgers;
    for ((moved, ledger), backend) in journal.moved_from().into_iter().zip(ledgers).zip(view.backends.iter()) {
        let Some(was) = moved else { continue };
        let (name, lines) = (&backend.name, ledger.pending);
        let why = format!("{name} was {was} when the journal last saw it, and its lines are owed to that server");
        let what_to_do = format!(
            "If it is the same server, stop the relay and run: twinflux journal moved {name}; if it is another one: \
             twinflux journal forget {name} (with the same --config or --data-dir)"
        );
        tracing::warn!(
            backend = name,
            was,
            url = backend.url,
            lines,
            "held: the backend's address has changed; {why}. {what_to_do}"
        );
        backend.health.hold(&format!("{why}. {what_to_do}"), &what_to_do);
    }
}

pub(super) fn start(view: &View, ring: Consumer, stop: &Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    let stop = Arc::clone(stop);
    let View { journal, backends, journal_pulse: pulse, .. } = view.clone();
    std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
        let mut logged = vec![0; backends.len()];
        let mut log_next = Instant::now();
        loop {
            pulse.beat();
            // Read before the ring is emptied, so that nothing submitted before the stop is left
            // behind.
            let stopping = stop.load(Ordering::Acquire);
            while journal.take(&ring) {
                ring.set_pressed(journal.is_pressed());
            }
            journal.note_lost(&ring.take_lost());
            let is_pressed = journal.is_pressed();
            ring.set_pressed(is_pressed);
            ring.set_full(journal.is_full());
            if log_next <= Instant::now() || stopping {
                let is_told = log_drops(&journal.dropped_lines(), &mut logged, &backends);
                log_next = Instant::now() + if is_told { throttle::INTERVAL } else { DROPS_INTERVAL };
            }
            if stopping {
                break;
            }
            ring.wait(if is_pressed { BACK_PRESSURE_POLL } else { DROPS_INTERVAL });
        }
    })
}

/// Logs lines that were dropped since the last call. Returns whether there were any.
fn log_drops(dropped: &[u64], logged: &mut [u64], backends: &[BackendView]) -> bool {
    let mut is_told = false;
    for ((total, logged), backend) in dropped.iter().zip(logged).zip(backends) {
        if total > logged {
            tracing::warn!(
                backend = backend.name,
                lines = *total - *logged,
                total,
                "dropped lines that the backend has not taken; /api/status has the reasons and the gaps"
            );
            *logged = *total;
            is_told = true;
        }
    }
    is_told
}
