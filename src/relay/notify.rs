//! Notifies a service manager (`sd_notify(3)`): ready, stopping, reloading, and that the relay
//! makes progress.
//!
//! Sends nothing without `NOTIFY_SOCKET`. The socket's address may be a path or an abstract one
//! (`@name`). Errors are only logged, because a relay also works without a service manager.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, sleep_until};

use crate::receive::Pulse;

/// How long sending a message may block.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Notifies that the relay has started: it listens, and its threads run.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Notifies that the relay is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Notifies that the relay is reloading its configuration. [`ready`] must follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager about the reload: no monotonic clock"),
    }
}

/// How long the service manager waits for a keep-alive before it ends the process. `None` if it
/// does not.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
}

/// Sends a keep-alive twice per period as long as every thread answers. Runs until it is dropped.
/// The runtime that polls this future is thereby monitored as well.
///
/// The disk's threads are not monitored: a hung disk is no reason to lose what memory holds.
pub async fn watchdog(pulses: Vec<Arc<Pulse>>, period: Duration) {
    watch(&pulses, period, || tell(&[NotifyState::Watchdog])).await;
}

async fn watch(pulses: &[Arc<Pulse>], period: Duration, give_sign: impl Fn()) {
    loop {
        give_sign();
        let next = Instant::now() + period / 2;
        for pulse in pulses {
            pulse.ask();
        }
        sleep_until(next).await;
        let mut is_logged = false;
        while let Some(silent) = pulses.iter().find(|pulse| !pulse.is_answered()) {
            if !is_logged {
                tracing::error!(
                    thread = silent.name(),
                    "BUG: a thread stands still; the watchdog gets no sign of life"
                );
                is_logged = true;
            }
            sleep(period / 20).await;
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else { return };
    let mut message = String::new();
    for state in states {
        writeln!(message, "{state}").expect("BUG: writing to memory does not fail");
    }
    if let Err(error) = send(&address, message.as_bytes()) {
        tracing::warn!(?address, %error, "cannot tell the service manager (NOTIFY_SOCKET)");
    }
}

fn send(address: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.send_to_addr(message, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_thread_that_stands_still_ends_the_signs_of_life_until_it_goes_on() {
        let pulses = ["lively", "silent"].map(|name| Arc::new(Pulse::new(name)));
        let signs = AtomicU64::new(0);
        let watching = watch(&pulses, Duration::from_millis(10), || {
            signs.fetch_add(1, Ordering::Relaxed);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        runtime.block_on(async {
            let turns = async {
                while signs.load(Ordering::Relaxed) == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
                // Several periods in which only the other thread's answer is missing.
                pulses[0].beat();
                sleep(Duration::from_millis(100)).await;
                assert_eq!((signs.load(Ordering::Relaxed), pulses[0].is_answered()), (1, true));
                while signs.load(Ordering::Relaxed) < 3 {
                    pulses.iter().for_each(|pulse| pulse.beat());
                    sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! { () = watching => {} () = turns => {} }
        });
    }

    #[test]
    fn addresses_are_paths_or_abstract() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bind");
        let name = format!("twinflux-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("bind");
        for (socket, address) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            send(&address, b"READY=1\n").expect("sent");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("a message");
            assert_eq!(&buffer[..length], b"READY=1\n");
        }
        send(OsStr::new("/nowhere/notify"), b"READY=1\n").expect_err("nobody is there");
    }
}
