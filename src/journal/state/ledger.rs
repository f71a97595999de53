//! One backend's counters, which must balance to the line, and the names of what they count.

use hdrhistogram::Histogram;

/// Why lines were given up for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The ring between a worker and the journal was full.
    RingFull,
    /// The memory tail was full, and these were its oldest lines.
    MemoryFull,
    /// The journal's quota on disk was reached, or the volume's floor.
    Quota,
    /// They were older than allowed.
    Age,
    /// The disk no longer had what was written.
    Corrupt,
}

impl DropReason {
    /// Every reason, in counter order.
    pub const ALL: [Self; 5] = [Self::RingFull, Self::MemoryFull, Self::Quota, Self::Age, Self::Corrupt];

    /// The reason's name in metrics, JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::MemoryFull => "memory_full",
            Self::Quota => "quota",
            Self::Age => "age",
            Self::Corrupt => "corrupt",
        }
    }
}

/// Why a backend will never accept lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It could not parse them.
    Unparsable,
    /// It has the field with another type.
    FieldType,
    /// They are older than its retention policy keeps.
    Retention,
    /// Its limit of series or tag values is reached.
    SeriesLimit,
    /// They exceed the size that it accepts in one request.
    TooLarge,
    /// It fails whenever they are sent, and accepts others.
    Poison,
    /// Any other final refusal.
    Other,
}

impl Rejection {
    /// Every class, in counter order.
    pub const ALL: [Self; 7] = [
        Self::Unparsable,
        Self::FieldType,
        Self::Retention,
        Self::SeriesLimit,
        Self::TooLarge,
        Self::Poison,
        Self::Other,
    ];

    /// The class's name in metrics, JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unparsable => "unparsable",
            Self::FieldType => "field_type",
            Self::Retention => "retention",
            Self::SeriesLimit => "series_limit",
            Self::TooLarge => "too_large",
            Self::Poison => "poison",
            Self::Other => "other",
        }
    }
}

/// One backend's side of the ledger, in lines unless stated otherwise. From the journal on,
/// `appended + recovered + resent = delivered + rejected + dropped + pending` holds at every moment
/// unless lines were lost: pending lines are counted where they are, not derived from the other
/// terms.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Found in the journal at the start, not yet acknowledged.
    pub recovered: u64,
    /// Refused before, and owed once more.
    pub resent: u64,
    /// Acknowledged by the backend.
    pub delivered: u64,
    /// Bytes of the acknowledged lines.
    pub delivered_bytes: u64,
    /// Never to be accepted, by class ([`Rejection::ALL`]).
    pub rejected: [u64; Rejection::ALL.len()],
    /// Given up, by reason ([`DropReason::ALL`]).
    pub dropped: [u64; DropReason::ALL.len()],
    /// In the journal and not yet acknowledged, as a [`Snapshot`](super::figures::Snapshot) counts
    /// them.
    pub pending: u64,
    /// Bytes of the pending lines, counted likewise.
    pub pending_bytes: u64,
    /// Time from receipt to acknowledgement, in microseconds, one value per line (that of its
    /// batch's first line).
    pub latency: Histogram<u64>,
}

/// Longer latencies count as this long: one hour, in microseconds.
const MAX_LATENCY_MICROSECONDS: u64 = 3_600_000_000;

impl Default for Ledger {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY_MICROSECONDS, 2);
        Self {
            recovered: 0,
            resent: 0,
            delivered: 0,
            delivered_bytes: 0,
            rejected: [0; Rejection::ALL.len()],
            dropped: [0; DropReason::ALL.len()],
            pending: 0,
            pending_bytes: 0,
            latency: latency.expect("BUG: constant bounds are valid"),
        }
    }
}

impl Ledger {
    /// Counts lines found at the start.
    pub(in crate::journal) fn recover(&mut self, lines: u64) {
        self.recovered += lines;
    }

    pub(in crate::journal) fn drop_lines(&mut self, reason: DropReason, lines: u64) {
        self.dropped[reason as usize] += lines;
    }

    /// Counts acknowledged lines: the backend has all except the rejected ones, of which at most
    /// `lines` are counted. The bytes count as delivered if any line was. Returns how many lines
    /// the backend has.
    pub(in crate::journal) fn ack(&mut self, lines: u64, bytes: u64, rejected: &[(Rejection, u64)]) -> u64 {
        let mut left = lines;
        for (class, count) in rejected {
            let count = left.min(*count);
            self.rejected[*class as usize] += count;
            left -= count;
        }
        self.delivered += left;
        if left > 0 {
            self.delivered_bytes += bytes;
        }
        left
    }

    pub(in crate::journal) fn record_latency(&mut self, latency: std::time::Duration, lines: u64) {
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency.saturating_record_n(microseconds.max(1), lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dashboards and alerts depend on these names.
    #[test]
    fn the_names_of_reasons_and_classes_stay() {
        assert_eq!(DropReason::ALL.map(DropReason::name), ["ring_full", "memory_full", "quota", "age", "corrupt"]);
        let classes = ["unparsable", "field_type", "retention", "series_limit", "too_large", "poison", "other"];
        assert_eq!(Rejection::ALL.map(Rejection::name), classes);
    }

    #[test]
    fn bytes_are_delivered_where_any_of_their_lines_is() {
        let mut ledger = Ledger::default();
        let sums =
            |ledger: &Ledger| (ledger.delivered, ledger.rejected[Rejection::Other as usize], ledger.delivered_bytes);
        ledger.ack(10, 500, &[]);
        assert_eq!(sums(&ledger), (10, 0, 500));
        ledger.ack(10, 70, &[(Rejection::Other, 4), (Rejection::Other, 5)]);
        assert_eq!(sums(&ledger), (11, 9, 570));
        ledger.ack(10, 3, &[(Rejection::Other, 11)]);
        assert_eq!(sums(&ledger), (11, 19, 570));
    }

    #[test]
    fn a_latency_counts_for_each_line_and_is_a_microsecond_at_least() {
        let mut ledger = Ledger::default();
        ledger.record_latency(std::time::Duration::ZERO, 3);
        ledger.record_latency(std::time::Duration::from_secs(1_000_000), 2);
        let hour = ledger.latency.equivalent(MAX_LATENCY_MICROSECONDS, ledger.latency.max());
        assert_eq!((ledger.latency.len(), ledger.latency.min(), hour), (5, 1, true));
    }
}
