//! When to look at the socket again: a pure function of what the last look brought.
//!
//! How a worker waits costs more than how it receives. A thread that blocks until the next datagram is woken for
//! nearly each of them, and each wake costs the sender's side as well. Napping half a millisecond and then
//! draining what has come makes that cost a third at 50,000 datagrams a second; at a few hundred a second it
//! would only add wakes, so a quiet socket is waited for.

use std::time::Duration;

/// The nap under load. Long enough for tens of datagrams to gather at rates where it matters, short against
/// every other delay on the way.
const NAP: Duration = Duration::from_micros(500);
/// A look that brings fewer datagrams was not worth a nap.
const WORTH_A_NAP: usize = 8;
/// What the kernel charges for a small datagram beyond its payload, at most (measured 1,280 bytes for payloads
/// of 300 to 512).
const CHARGE_PER_DATAGRAM: u64 = 1_280;

/// What to do before the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Sleep until there is a datagram.
    Block,
    /// Sleep this long, whatever comes.
    Nap(Duration),
    /// Look again at once.
    Not,
}

/// What the last look brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Datagrams taken.
    pub datagrams: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Whether the socket was empty at the end of it.
    pub drained: bool,
    /// Whether a nap came before it, so that it tells what gathers during one.
    pub napped: bool,
}

/// How to wait after a look at a socket whose receive buffer holds `buffer_bytes` (as the kernel charges them).
pub(super) fn after(look: Look, buffer_bytes: u64) -> Wait {
    if !look.drained {
        return Wait::Not;
    }
    if look.datagrams < WORTH_A_NAP {
        return Wait::Block;
    }
    if !look.napped {
        // What was taken gathered in an unknown time: begin with a nap too short to do harm.
        return Wait::Nap(NAP / 4);
    }
    let charged = look.bytes + CHARGE_PER_DATAGRAM * look.datagrams as u64;
    match charged {
        charged if charged > buffer_bytes / 2 => Wait::Not,
        charged if charged > buffer_bytes / 4 => Wait::Nap(NAP / 4),
        _ => Wait::Nap(NAP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: u64 = 8 << 20;

    fn look(datagrams: usize) -> Look {
        Look { datagrams, bytes: 300 * datagrams as u64, drained: true, napped: true }
    }

    #[test]
    fn a_quiet_socket_is_waited_for() {
        assert_eq!(after(look(0), BUFFER), Wait::Block);
        assert_eq!(after(look(7), BUFFER), Wait::Block);
    }

    #[test]
    fn a_busy_socket_is_left_to_gather() {
        assert_eq!(after(look(8), BUFFER), Wait::Nap(NAP));
        assert_eq!(after(look(1000), BUFFER), Wait::Nap(NAP));
        assert_eq!(after(Look { napped: false, ..look(8) }, BUFFER), Wait::Nap(NAP / 4));
    }

    #[test]
    fn a_socket_that_was_not_emptied_is_looked_at_again() {
        assert_eq!(after(Look { drained: false, ..look(4096) }, BUFFER), Wait::Not);
    }

    #[test]
    fn naps_never_let_a_small_buffer_fill() {
        let small = 256 << 10;
        assert_eq!(after(look(40), small), Wait::Nap(NAP));
        assert_eq!(after(look(50), small), Wait::Nap(NAP / 4));
        assert_eq!(after(look(100), small), Wait::Not);
        // Netdata's datagrams: few and large.
        assert_eq!(after(Look { datagrams: 8, bytes: 8 * 52_000, drained: true, napped: true }, small), Wait::Not);
    }
}
