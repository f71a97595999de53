//! Signals: SIGTERM and SIGINT end the program; SIGHUP reloads the configuration.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use twinflux::cli::outcome::FAILED;
use twinflux::relay::{Relay, Reload, notify};
use twinflux::sys::log::Log;

use crate::LAST_LINES;
use crate::run::Request;

/// How long a hurried shutdown may take to write what memory holds. A hung disk is not waited for.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// The relay that signals apply to. `None` until it has started; a successor replaces it.
#[derive(Default)]
pub(crate) struct Current(Mutex<Option<(Arc<Reload>, watch::Sender<bool>)>>);

impl Current {
    /// Makes signals apply to this relay.
    pub(crate) fn set(&self, relay: &Relay) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((relay.reload(), relay.hurry()));
    }

    fn reload(&self) -> Option<Arc<Reload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(reload, _)| Arc::clone(reload))
    }

    fn hurry(&self) {
        if let Some((_, hurry)) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            hurry.send_replace(true);
        }
    }
}

/// Handles signals on a separate thread, so that a second signal is handled whatever blocks the
/// first one's work. The first signal to end is sent to the caller. The second one hurries the
/// shutdown, and ends the process if that takes too long.
pub(crate) fn follow_signals(current: Arc<Current>, requests: SyncSender<Request>, log: Arc<Log>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::new() })?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(signals.next(&current));
        if current.reload().is_none() {
            tracing::info!("stopping as soon as the start is done; a second signal ends it now");
        }
        if requests.send(Request::Stop).is_err() {
            return;
        }
        runtime.block_on(signals.next(&current));
        if current.reload().is_none() {
            // The start hangs: listeners, its last step, have received nothing.
            end_now(&log);
        }
        current.hurry();
        // Wait for a third signal or the end of the time, whichever comes first.
        drop(runtime.block_on(async { timeout(LAST_WRITES, signals.next(&current)).await }));
        end_now(&log);
    })?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "this is the program's main file")]
fn end_now(log: &Log) {
    log.line(b"twinflux: ended at once; what was not yet written to the journal is lost\n");
    log.flush(LAST_LINES);
    std::process::exit(i32::from(FAILED));
}

/// The handled signals: SIGTERM, SIGINT and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to end. SIGHUP reloads instead, so closing a terminal does not end the
    /// relay.
    async fn next(&mut self, current: &Current) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => match current.reload() {
                    Some(reload) => read_again(reload),
                    None => tracing::warn!("SIGHUP: still starting; reload again once the relay is ready"),
                },
            }
        }
    }
}

/// Reloads on a separate thread. A file may be on a hung disk, and signals must still be handled.
fn read_again(reload: Arc<Reload>) {
    static IS_READING: AtomicBool = AtomicBool::new(false);
    if IS_READING.swap(true, Ordering::AcqRel) {
        tracing::warn!("SIGHUP: still reading the configuration that the last one asked for");
        return;
    }
    notify::reloading();
    tracing::info!("SIGHUP: reading the configuration again");
    let reading = std::thread::Builder::new().name("reload".to_owned()).spawn(move || {
        // Errors have been logged.
        let is_read = reload.run().is_ok();
        notify::ready();
        if is_read {
            reload.succeed();
        }
        IS_READING.store(false, Ordering::Release);
    });
    if let Err(error) = reading {
        tracing::error!(%error, "cannot read the configuration again");
        IS_READING.store(false, Ordering::Release);
    }
}
