//! When to look at the socket again: a pure function of what the last looks brought.
//!
//! How a worker waits costs more than how it receives. A thread that blocks until the next datagram is woken for
//! nearly each of them, and each wake costs the sender's side as well. Napping a millisecond and then draining
//! what has come makes that cost a third at 50,000 datagrams a second; at a few hundred a second it would only
//! add wakes, so a quiet socket is waited for.

use std::time::Duration;

/// The nap under load. Long enough for tens of datagrams to gather at rates where it matters, short against
/// every other delay on the way.
const NAP: Duration = Duration::from_millis(1);
/// In this time a look's share in what counts as recent halves.
const HALF_LIFE: Duration = Duration::from_millis(16);
/// Fewer recent datagrams than this are not worth a nap: a steady 8,700 a second, or a burst of several hosts.
const WORTH_A_NAP: f64 = 200.0;
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

/// What a look brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Datagrams taken.
    pub(super) datagrams: usize,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Whether the socket was empty at the end of it.
    pub(super) drained: bool,
    /// Since the look before.
    pub(super) elapsed: Duration,
}

/// The pace of one worker.
#[derive(Debug)]
pub(super) struct Pace {
    /// The receive buffer's size, as the kernel charges datagrams for it.
    buffer_bytes: u64,
    /// Recent datagrams. Hosts send in bursts: one empty look between two of them is no quiet.
    recent: f64,
    /// The nap before the next look; none where there is none.
    nap: Option<Duration>,
}

impl Pace {
    /// The pace of a worker whose receive buffer has this size, as the kernel charges datagrams for it.
    pub(super) fn new(buffer_bytes: u64) -> Self {
        Self { buffer_bytes, recent: 0.0, nap: None }
    }

    /// How to wait after this look.
    pub(super) fn after(&mut self, look: Look) -> Wait {
        let decay = (-look.elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.recent = self.recent * decay + f64::from(u32::try_from(look.datagrams).unwrap_or(u32::MAX));
        self.nap = self.next_nap(look);
        match self.nap {
            _ if !look.drained => Wait::Not,
            Some(nap) => Wait::Nap(nap),
            None => Wait::Block,
        }
    }

    /// A nap during which the buffer will not fill beyond a quarter, judged by what the last nap brought; none
    /// where it is not worth one, or there is no room for one.
    fn next_nap(&self, look: Look) -> Option<Duration> {
        if self.recent < WORTH_A_NAP || !look.drained {
            return None;
        }
        let charged = look.bytes + CHARGE_PER_DATAGRAM * look.datagrams as u64;
        match self.nap {
            // What was taken gathered in an unknown time: begin with a nap too short to do harm.
            None if charged <= self.buffer_bytes / 2 => Some(NAP / 8),
            None => None,
            Some(nap) if charged > self.buffer_bytes / 4 => Some(nap / 2).filter(|nap| *nap >= NAP / 16),
            Some(nap) if charged > self.buffer_bytes / 8 => Some(nap),
            Some(nap) => Some((nap * 2).min(NAP)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: u64 = 16 << 20;
    const SMALL: u64 = 512 << 10;

    fn look(datagrams: usize, milliseconds: u64) -> Look {
        let elapsed = Duration::from_millis(milliseconds);
        Look { datagrams, bytes: 300 * datagrams as u64, drained: true, elapsed }
    }

    /// The wait after the last of these looks.
    fn after(buffer_bytes: u64, looks: impl IntoIterator<Item = Look>) -> Wait {
        let mut pace = Pace::new(buffer_bytes);
        looks.into_iter().map(|look| pace.after(look)).last().expect("a look")
    }

    #[test]
    fn a_quiet_socket_is_waited_for() {
        assert_eq!(after(LARGE, [look(0, 100)]), Wait::Block);
        assert_eq!(after(LARGE, [look(5, 1); 100]), Wait::Block);
        // The bursts of single hosts, 5,000 datagrams a second.
        assert_eq!(after(LARGE, [look(40, 8); 100]), Wait::Block);
    }

    #[test]
    fn a_busy_socket_is_left_to_gather() {
        assert_eq!(after(LARGE, [look(300, 10)]), Wait::Nap(NAP / 8));
        assert_eq!(after(LARGE, [look(50, 1); 20]), Wait::Nap(NAP));
        assert_eq!(after(LARGE, [look(1000, 1); 20]), Wait::Nap(NAP));
    }

    #[test]
    fn one_empty_look_between_bursts_is_no_quiet() {
        let bursts = [look(40, 1), look(0, 1)].into_iter().cycle().take(40);
        assert_eq!(after(LARGE, bursts), Wait::Nap(NAP));
    }

    #[test]
    fn quiet_after_load_is_noticed() {
        let load = [look(50, 1); 40].into_iter();
        assert_eq!(after(LARGE, load.chain([look(0, 1); 60])), Wait::Block);
    }

    #[test]
    fn a_socket_that_was_not_emptied_is_looked_at_again() {
        assert_eq!(after(LARGE, [Look { drained: false, ..look(4096, 1) }]), Wait::Not);
    }

    #[test]
    fn naps_shrink_before_a_small_buffer_fills() {
        let mut pace = Pace::new(SMALL);
        for rate in [20, 50, 100, 200, 400, 800, 1600] {
            let mut brought = rate;
            for _ in 0..40 {
                brought = match pace.after(look(brought, 1)) {
                    Wait::Nap(nap) => rate * usize::try_from(nap.as_micros()).expect("short") / 1000,
                    Wait::Not | Wait::Block => rate / 50,
                };
                // 512 KiB have room for 331 such datagrams.
                assert!(brought <= 331 || brought == rate, "{rate} a millisecond: {brought} gathered");
            }
            assert!(brought <= 331, "{rate} a millisecond: {brought} gathered");
        }
    }

    #[test]
    fn large_datagrams_count_by_their_size() {
        // Netdata's: few, 52 kB each, of many hosts in the same second.
        let netdata = |datagrams| Look { bytes: datagrams as u64 * 52_000, ..look(datagrams, 1) };
        assert_eq!(after(SMALL, [netdata(20); 40]), Wait::Block);
        assert!(matches!(after(LARGE, [netdata(20); 40]), Wait::Nap(_)));
    }
}
