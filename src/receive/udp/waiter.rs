//! Waits for a datagram, a deadline, or the order to stop.
//!
//! A waiting worker costs nothing: it is woken only for what it waits for.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Tells a worker to stop, or to run its loop once.
#[derive(Debug)]
pub(super) struct Stop {
    is_set: AtomicBool,
    /// Readable once the worker must wake.
    event: OwnedFd,
}

impl Stop {
    /// Creates a flag that is not set.
    ///
    /// # Errors
    /// The system has no file descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { is_set: AtomicBool::new(false), event })
    }

    /// Sets the flag, and wakes the worker.
    pub(super) fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Wakes the worker from its current or next wait.
    pub(super) fn wake(&self) {
        if let Err(error) = rustix::io::write(&self.event, &1_u64.to_ne_bytes()) {
            // The write fails only if the counter would overflow; then the event is readable
            // already.
            tracing::debug!(%error, "cannot wake a worker");
        }
    }

    /// Waits until the socket is readable, the worker is woken, or `limit` has passed.
    ///
    /// # Errors
    /// The system's error, except an interruption by a signal.
    pub(super) fn wait_readable(&self, socket: &UdpSocket, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut both = [PollFd::new(socket, PollFlags::IN), PollFd::new(&self.event, PollFlags::IN)];
        match poll(&mut both, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        if both[1].revents().contains(PollFlags::IN) {
            // Reset the event, so that the next wait blocks.
            rustix::io::read(&self.event, &mut [0; 8])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_a_datagram_with_the_time_and_with_a_stop() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let stop = Stop::new().expect("an event");
        stop.wait_readable(&receiver, Some(Duration::from_millis(1))).expect("poll");
        assert!(!stop.is_set());
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        sender.send_to(b"x", receiver.local_addr().expect("address")).expect("send");
        stop.wait_readable(&receiver, None).expect("poll");
        receiver.recv(&mut [0]).expect("a datagram");
        stop.wake();
        stop.wait_readable(&receiver, None).expect("poll");
        let before = std::time::Instant::now();
        stop.wait_readable(&receiver, Some(Duration::from_millis(1))).expect("poll");
        assert!(before.elapsed() >= Duration::from_millis(1), "a wake counts once");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait_readable(&receiver, None));
            stop.set();
            waiting.join().expect("no panic").expect("poll");
        });
        assert!(stop.is_set());
    }
}
