//! When to look at the socket again: a pure function of what the last looks brought.
//!
//! How a worker waits costs more than how it receives. A thread that blocks until the next datagram is woken for nearly
//! each of them, which costs tens of microseconds, and each wake costs the sender's side as well. Napping and then draining
//! what has come makes that one wake for all that gathered meanwhile. So naps are as long as they may be:
//!
//! * no longer than [`LONGEST`]: lines linger for a second anyway, but what was read must be on the disk within 50 ms;
//! * no longer than [`GATHERED`] datagrams take to come: more would leave the processor's cache before they are read;
//! * no longer than the receive buffer can take: a quarter of it at the present rate, and three quarters of it if all hosts of a
//!   site restart in this moment ([`BURST_BYTES_PER_SECOND`]). Where the kernel gave a small buffer, naps shrink.
//!
//! Where fewer than [`WORTH_A_NAP`] datagrams come in a nap, the socket is waited for: an idle relay sleeps.

use std::time::Duration;

/// The longest nap.
const LONGEST: Duration = Duration::from_millis(32);
/// The shortest: shorter ones cost what they save.
const SHORTEST: Duration = Duration::from_micros(60);
/// Datagrams that gather in one nap, about: 256 of Telegraf's, as the kernel keeps them, fit a cache of 512 KiB.
const GATHERED: f64 = 256.0;
/// Naps do not get shorter than this for the cache's sake.
const SHORTEST_FOR_CACHE: Duration = Duration::from_millis(1);
/// In this time a look's share in the mean rate halves. Hosts send in bursts: what lies between two of them is no quiet.
const HALF_LIFE: Duration = Duration::from_millis(100);
/// Datagrams that a nap must save wakes for, at least: some 200 a second for the longest. Once a worker naps, half of them
/// will do.
const WORTH_A_NAP: f64 = 6.0;
/// What the kernel charges for a small datagram beyond its payload, at most (measured 1,280 bytes for payloads
/// of 300 to 512).
const CHARGE_PER_DATAGRAM: u64 = 1_280;
/// 500 hosts that restart together: 225,000 datagrams a second of 305 bytes, as the kernel charges them.
const BURST_BYTES_PER_SECOND: f64 = 225_000.0 * (305 + CHARGE_PER_DATAGRAM) as f64;

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
    buffer_bytes: f64,
    /// Datagrams a second, and what the kernel charges for them: means over the recent looks.
    rate: f64,
    charge_rate: f64,
    is_napping: bool,
}

impl Pace {
    /// The pace of a worker whose receive buffer has this size, as the kernel charges datagrams for it.
    #[expect(clippy::cast_precision_loss, reason = "a receive buffer is far below 2^52 bytes")]
    pub(super) fn new(buffer_bytes: u64) -> Self {
        Self { buffer_bytes: buffer_bytes as f64, rate: 0.0, charge_rate: 0.0, is_napping: false }
    }

    /// How to wait after this look.
    #[expect(clippy::cast_precision_loss, reason = "one look is far below 2^52 bytes")]
    pub(super) fn after(&mut self, look: Look) -> Wait {
        let seconds = look.elapsed.max(Duration::from_micros(1)).as_secs_f64();
        let rate = look.datagrams as f64 / seconds;
        let charge_rate = (look.bytes + CHARGE_PER_DATAGRAM * look.datagrams as u64) as f64 / seconds;
        let share = 1.0 - (-seconds / HALF_LIFE.as_secs_f64()).exp2();
        self.rate += share * (rate - self.rate);
        self.charge_rate += share * (charge_rate - self.charge_rate);
        if !look.drained {
            return Wait::Not;
        }
        let enough = if self.is_napping { WORTH_A_NAP / 2.0 } else { WORTH_A_NAP };
        // What comes faster now than before counts at once.
        let nap = self.nap(self.rate.max(rate), self.charge_rate.max(charge_rate));
        self.is_napping = self.rate * nap.as_secs_f64() >= enough && nap >= SHORTEST;
        if self.is_napping { Wait::Nap(nap) } else { Wait::Block }
    }

    /// The nap for a rate of datagrams, and of what they are charged.
    fn nap(&self, rate: f64, charge_rate: f64) -> Duration {
        let for_cache = Duration::from_secs_f64(GATHERED / rate.max(1.0)).max(SHORTEST_FOR_CACHE);
        let for_buffer = self.buffer_bytes / 4.0 / charge_rate.max(1.0);
        let for_burst = self.buffer_bytes * 0.75 / BURST_BYTES_PER_SECOND;
        let limit = LONGEST.as_secs_f64();
        for_cache.min(Duration::from_secs_f64(for_buffer.min(for_burst).min(limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 MiB, as the kernel charges them.
    const LARGE: u64 = 16 << 20;
    /// What an unprivileged process gets where nobody set `net.core.rmem_max`.
    const SMALL: u64 = 425_984;

    fn look(datagrams: usize, elapsed: Duration) -> Look {
        Look { datagrams, bytes: 305 * datagrams as u64, drained: true, elapsed }
    }

    fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// The wait after the last of these looks.
    fn after(buffer_bytes: u64, looks: impl IntoIterator<Item = Look>) -> Wait {
        let mut pace = Pace::new(buffer_bytes);
        looks.into_iter().map(|look| pace.after(look)).last().expect("a look")
    }

    /// The waits of a worker on whose socket datagrams come at a steady rate, from the state that it settles in.
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
            wait = pace.after(look(datagrams, elapsed));
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
        assert_eq!(after(LARGE, [look(0, milliseconds(100))]), Wait::Block);
        assert_eq!(after(LARGE, [look(1, milliseconds(1000)); 10]), Wait::Block);
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
        // Three quarters of a small buffer fill in 0.9 ms where the whole site restarts.
        let (Wait::Nap(seen), _) = steady(SMALL, 50_000.0) else { panic!("a nap") };
        assert!((seen.as_secs_f64() * 1e3 / 0.9 - 1.0).abs() < 0.1, "{seen:?}");
    }

    #[test]
    fn who_naps_goes_on_with_half_of_what_makes_it_worth_while() {
        let few = [look(4, milliseconds(32)); 60];
        assert_eq!(after(LARGE, few), Wait::Block);
        let many = [look(20, milliseconds(20)); 60];
        assert_eq!(after(LARGE, many.into_iter().chain(few)), Wait::Nap(LONGEST));
    }

    #[test]
    fn what_lies_between_bursts_is_no_quiet() {
        // 500 hosts, each of whom sends 40 datagrams at once every ten seconds, and nobody for three naps now and then.
        let bursts = [look(40, milliseconds(20)), look(0, milliseconds(20)), look(0, milliseconds(20))];
        assert_eq!(after(LARGE, bursts.into_iter().cycle().take(90)), Wait::Nap(LONGEST));
        // The size of datagrams is a mean as well: half of the time without any makes twice the nap.
        let large = [Look { bytes: 20 * 52_000, ..look(20, milliseconds(2)) }, look(0, milliseconds(2))];
        let Wait::Nap(nap) = after(LARGE, large.into_iter().cycle().take(400)) else { panic!("a nap") };
        assert!(nap > milliseconds(12) && nap < milliseconds(20), "{nap:?}");
    }

    #[test]
    fn quiet_after_load_is_noticed_within_a_second_or_two() {
        let load = [look(256, milliseconds(5)); 40].into_iter();
        assert_eq!(after(LARGE, load.chain([look(0, milliseconds(20)); 60])), Wait::Block);
    }

    #[test]
    fn a_socket_that_was_not_emptied_is_looked_at_again() {
        assert_eq!(after(LARGE, [Look { drained: false, ..look(4096, milliseconds(1)) }]), Wait::Not);
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
        // A rate that rises is followed at once.
        let mut pace = Pace::new(LARGE);
        assert_eq!([look(20, milliseconds(20)); 30].map(|look| pace.after(look))[29], Wait::Nap(LONGEST));
        let Wait::Nap(nap) = pace.after(look(4_500, milliseconds(20))) else { panic!("a nap") };
        assert!(nap < milliseconds(2), "{nap:?}");
    }

    #[test]
    fn large_datagrams_count_by_their_size() {
        // Netdata's: few, 52 kB each, of many hosts in the same second.
        let netdata = |elapsed| Look { bytes: 20 * 52_000, ..look(20, elapsed) };
        assert_eq!(after(SMALL, [netdata(milliseconds(1)); 40]), Wait::Block);
        let Wait::Nap(nap) = after(LARGE, [netdata(milliseconds(2)); 40]) else { panic!("a nap") };
        assert!(nap > milliseconds(4) && nap < milliseconds(9), "{nap:?}");
    }
}
