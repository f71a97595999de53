//! Decides when to poll the socket again: a pure function of what the last polls received.
//!
//! Waiting costs a worker more than receiving. A thread that blocks until the next datagram is
//! woken for nearly every one, which costs tens of microseconds, and each wake-up also costs the
//! sender's side. Napping and then draining the socket costs one wake-up for everything that
//! gathered meanwhile. Naps are therefore as long as possible:
//!
//! * at most [`MAX_NAP`]: lines linger for a second anyway, but received lines must be on the disk
//!   within 50 ms;
//! * at most the time in which [`GATHERED`] datagrams arrive: more would leave the processor's
//!   cache before they are read;
//! * at most what the receive buffer can hold: a quarter of it at the present rate, and three
//!   quarters of it if all hosts of a site restart at this moment ([`BURST_BYTES_PER_SECOND`]). A
//!   small buffer makes naps shorter.
//!
//! If fewer than [`WORTH_A_NAP`] datagrams arrive per nap, the worker blocks on the socket instead,
//! so an idle relay sleeps.

use std::time::Duration;

/// Maximum duration of a nap.
const MAX_NAP: Duration = Duration::from_millis(32);
/// Minimum duration of a nap. Shorter ones cost what they save.
const MIN_NAP: Duration = Duration::from_micros(60);
/// Approximate number of datagrams that gather in one nap: 256 of Telegraf's, as the kernel stores
/// them, fit into a cache of 512 KiB.
const GATHERED: f64 = 256.0;
/// The cache does not make naps shorter than this.
const MIN_CACHE_NAP: Duration = Duration::from_millis(1);
/// The time in which a poll's weight in the mean rate halves. Hosts send in bursts, and the gap
/// between two bursts is not idleness.
const HALF_LIFE: Duration = Duration::from_millis(100);
/// Minimum number of wake-ups that a nap must save: about 200 a second for the longest nap. A
/// worker that already naps continues with half as many.
const WORTH_A_NAP: f64 = 6.0;
/// Maximum number of bytes that the kernel charges for a small datagram beyond its payload
/// (measured: 1,280 bytes for payloads of 300 to 512).
const CHARGE_PER_DATAGRAM: u64 = 1_280;
/// 500 hosts that restart together: 225,000 datagrams a second of 305 bytes, as the kernel charges
/// them.
const BURST_BYTES_PER_SECOND: f64 = 225_000.0 * (305 + CHARGE_PER_DATAGRAM) as f64;

/// What to do before the next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Block until there is a datagram.
    Block,
    /// Sleep this long, whatever arrives.
    Nap(Duration),
    /// Poll again at once.
    Not,
}

/// Result of a poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct Polled {
    /// Number of datagrams received.
    pub(super) datagrams: usize,
    /// Their size in bytes.
    pub(super) bytes: u64,
    /// Whether the socket was empty at the end of the poll.
    pub(super) drained: bool,
    /// Time since the previous poll.
    pub(super) elapsed: Duration,
}

/// The pace of one worker.
#[derive(Debug)]
pub(super) struct Pace {
    /// Size of the receive buffer in bytes as the kernel charges datagrams.
    buffer_bytes: f64,
    /// Datagrams per second, and bytes per second that the kernel charges for them: means over the
    /// recent polls.
    rate: f64,
    charge_rate: f64,
    is_napping: bool,
}

impl Pace {
    /// Creates the pace of a worker with this receive buffer, in bytes as the kernel charges
    /// datagrams.
    #[expect(clippy::cast_precision_loss, reason = "a receive buffer is far below 2^52 bytes")]
    pub(super) fn new(buffer_bytes: u64) -> Self {
        Self { buffer_bytes: buffer_bytes as f64, rate: 0.0, charge_rate: 0.0, is_napping: false }
    }

    /// Decides how to wait after this poll.
    #[expect(clippy::cast_precision_loss, reason = "one poll is far below 2^52 bytes")]
    pub(super) fn after(&mut self, polled: Polled) -> Wait {
        let seconds = polled.elapsed.max(Duration::from_micros(1)).as_secs_f64();
        let rate = polled.datagrams as f64 / seconds;
        let charge_rate = (polled.bytes + CHARGE_PER_DATAGRAM * polled.datagrams as u64) as f64 / seconds;
        let share = 1.0 - (-seconds / HALF_LIFE.as_secs_f64()).exp2();
        self.rate += share * (rate - self.rate);
        self.charge_rate += share * (charge_rate - self.charge_rate);
        if !polled.drained {
            return Wait::Not;
        }
        let enough = if self.is_napping { WORTH_A_NAP / 2.0 } else { WORTH_A_NAP };
        // An increase of the rate counts at once.
        let nap = self.nap(self.rate.max(rate), self.charge_rate.max(charge_rate));
        self.is_napping = self.rate * nap.as_secs_f64() >= enough && nap >= MIN_NAP;
        if self.is_napping { Wait::Nap(nap) } else { Wait::Block }
    }

    /// The nap for a rate of datagrams and a rate of charged bytes.
    fn nap(&self, rate: f64, charge_rate: f64) -> Duration {
        let for_cache = Duration::from_secs_f64(GATHERED / rate.max(1.0)).max(MIN_CACHE_NAP);
        let for_buffer = self.buffer_bytes / 4.0 / charge_rate.max(1.0);
        let for_burst = self.buffer_bytes * 0.75 / BURST_BYTES_PER_SECOND;
        let limit = MAX_NAP.as_secs_f64();
        for_cache.min(Duration::from_secs_f64(for_buffer.min(for_burst).min(limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 MiB, as the kernel charges it.
    const LARGE: u64 = 16 << 20;
    /// What an unprivileged process gets if `net.core.rmem_max` is not set.
    const SMALL: u64 = 425_984;

    fn polled(datagrams: usize, elapsed: Duration) -> Polled {
        Polled { datagrams, bytes: 305 * datagrams as u64, drained: true, elapsed }
    }

    fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Returns the wait after the last of these polls.
    fn after(buffer_bytes: u64, polls: impl IntoIterator<Item = Polled>) -> Wait {
        let mut pace = Pace::new(buffer_bytes);
        polls.into_iter().map(|polled| pace.after(polled)).last().expect("a poll")
    }

    /// Returns the wait of a worker in its steady state at this rate of datagrams, and the most
    /// that gathered in one wait.
    fn steady(buffer_bytes: u64, rate: f64) -> (Wait, f64) {
        let (mut pace, mut elapsed, mut most) = (Pace::new(buffer_bytes), milliseconds(1), 0.0_f64);
        let mut wait = Wait::Block;
        for round in 0..2_000 {
            let gathered = (rate * elapsed.as_secs_f64()).max(1.0);
            if round > 1_000 {
                most = most.max(gathered);
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
            let datagrams = gathered as usize;
            wait = pace.after(polled(datagrams, elapsed));
            elapsed = match wait {
                Wait::Nap(nap) => nap,
                Wait::Block => Duration::from_secs_f64(1.0 / rate),
                Wait::Not => milliseconds(0),
            };
        }
        (wait, most)
    }

    #[test]
    fn a_quiet_socket_is_waited_for() {
        assert_eq!(after(LARGE, [polled(0, milliseconds(100))]), Wait::Block);
        assert_eq!(after(LARGE, [polled(1, milliseconds(1000)); 10]), Wait::Block);
        for rate in [0.1, 1.0, 10.0, 100.0] {
            assert_eq!(steady(LARGE, rate).0, Wait::Block, "{rate}");
        }
    }

    #[test]
    fn naps_are_as_long_as_cache_and_buffer_allow() {
        for (rate, nap) in
            [(500.0, 32.0), (1_000.0, 32.0), (5_000.0, 32.0), (50_000.0, 5.1), (200_000.0, 1.28), (1e6, 1.0)]
        {
            let (Wait::Nap(seen), _) = steady(LARGE, rate) else { panic!("{rate}") };
            assert!((seen.as_secs_f64() * 1e3 / nap - 1.0).abs() < 0.1, "{rate}: {seen:?}");
        }
        // Three quarters of a small buffer fill in 0.9 ms if the whole site restarts.
        let (Wait::Nap(seen), _) = steady(SMALL, 50_000.0) else { panic!("a nap") };
        assert!((seen.as_secs_f64() * 1e3 / 0.9 - 1.0).abs() < 0.1, "{seen:?}");
    }

    #[test]
    fn who_naps_goes_on_with_half_of_what_makes_it_worth_while() {
        let few = [polled(4, milliseconds(32)); 60];
        assert_eq!(after(LARGE, few), Wait::Block);
        let many = [polled(20, milliseconds(20)); 60];
        assert_eq!(after(LARGE, many.into_iter().chain(few)), Wait::Nap(MAX_NAP));
    }

    #[test]
    fn what_lies_between_bursts_is_no_quiet() {
        // 500 hosts, each of which sends 40 datagrams at once every ten seconds; now and then,
        // nothing arrives for three naps.
        let bursts = [polled(40, milliseconds(20)), polled(0, milliseconds(20)), polled(0, milliseconds(20))];
        assert_eq!(after(LARGE, bursts.into_iter().cycle().take(90)), Wait::Nap(MAX_NAP));
        // The size of datagrams is averaged as well: with none in half of the time, naps are twice
        // as long.
        let large = [Polled { bytes: 20 * 52_000, ..polled(20, milliseconds(2)) }, polled(0, milliseconds(2))];
        let Wait::Nap(nap) = after(LARGE, large.into_iter().cycle().take(400)) else { panic!("a nap") };
        assert!(nap > milliseconds(12) && nap < milliseconds(20), "{nap:?}");
    }

    #[test]
    fn quiet_after_load_is_noticed_within_a_second_or_two() {
        let load = [polled(256, milliseconds(5)); 40].into_iter();
        assert_eq!(after(LARGE, load.chain([polled(0, milliseconds(20)); 60])), Wait::Block);
    }

    #[test]
    fn a_socket_that_was_not_emptied_is_looked_at_again() {
        assert_eq!(after(LARGE, [Polled { drained: false, ..polled(4096, milliseconds(1)) }]), Wait::Not);
    }

    #[test]
    fn a_burst_of_a_whole_site_fits_into_any_buffer() {
        for buffer in [SMALL, 1 << 20, 4 << 20, LARGE, 1 << 30] {
            for rate in [500.0, 5_000.0, 50_000.0, 200_000.0] {
                let (wait, most) = steady(buffer, rate);
                let gathered = most * (305.0 + 1_280.0);
                assert!(gathered <= buffer as f64 / 4.0 * 1.05, "{buffer} {rate}: {gathered} {wait:?}");
                if let Wait::Nap(nap) = wait {
                    assert!(
                        nap.as_secs_f64() * BURST_BYTES_PER_SECOND <= buffer as f64 * 0.7501,
                        "{buffer} {rate}: {nap:?}"
                    );
                }
            }
        }
        // A rising rate is followed at once.
        let mut pace = Pace::new(LARGE);
        assert_eq!([polled(20, milliseconds(20)); 30].map(|polled| pace.after(polled))[29], Wait::Nap(MAX_NAP));
        let Wait::Nap(nap) = pace.after(polled(4_500, milliseconds(20))) else { panic!("a nap") };
        assert!(nap < milliseconds(2), "{nap:?}");
    }

    #[test]
    fn large_datagrams_count_by_their_size() {
        // Netdata's datagrams: few, of 52 kB each, from many hosts in the same second.
        let netdata = |elapsed| Polled { bytes: 20 * 52_000, ..polled(20, elapsed) };
        assert_eq!(after(SMALL, [netdata(milliseconds(1)); 40]), Wait::Block);
        let Wait::Nap(nap) = after(LARGE, [netdata(milliseconds(2)); 40]) else { panic!("a nap") };
        assert!(nap > milliseconds(4) && nap < milliseconds(9), "{nap:?}");
    }
}
