//! The range of times of the points in some lines.

use super::Precision;

/// The inclusive range of times of some points, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The earliest.
    pub from: i64,
    /// The latest.
    pub until: i64,
}

impl Span {
    /// The range without any point.
    pub const NONE: Self = Self { from: i64::MAX, until: i64::MIN };
    /// The range of all points, for lines whose times are unknown.
    pub const ALWAYS: Self = Self { from: i64::MIN, until: i64::MAX };

    /// Returns whether the range contains no point.
    pub fn is_none(&self) -> bool {
        self.from > self.until
    }

    /// Returns whether the ranges overlap.
    pub fn meets(&self, other: &Self) -> bool {
        !self.is_none() && !other.is_none() && self.from <= other.until && other.from <= self.until
    }

    /// Extends the range to a point at this time.
    #[inline]
    pub fn add(&mut self, time: i64) {
        self.from = self.from.min(time);
        self.until = self.until.max(time);
    }

    /// Returns the smallest range that contains both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), until: self.until.max(other.until) }
    }

    /// Converts a range in this unit to nanoseconds.
    #[must_use]
    pub fn in_nanoseconds(self, precision: Precision) -> Self {
        if self.is_none() {
            return self;
        }
        let unit = i64::try_from(precision.nanoseconds()).unwrap_or(i64::MAX);
        Self { from: self.from.saturating_mul(unit), until: self.until.saturating_mul(unit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_meet_where_they_have_a_time_in_common() {
        let span = |from, until| Span { from, until };
        for (one, other, expected) in [
            (span(1, 3), span(3, 5), true),
            (span(1, 3), span(4, 5), false),
            (span(1, 9), span(4, 5), true),
            (Span::NONE, Span::ALWAYS, false),
            (span(7, 7), Span::ALWAYS, true),
        ] {
            assert_eq!((one.meets(&other), other.meets(&one)), (expected, expected), "{one:?} {other:?}");
        }
        let mut grown = Span::NONE;
        grown.add(5);
        grown.add(-2);
        assert_eq!((grown, grown.and(Span::NONE), grown.and(span(0, 9))), (span(-2, 5), span(-2, 5), span(-2, 9)));
        assert_eq!(grown.in_nanoseconds(Precision::Seconds), span(-2_000_000_000, 5_000_000_000));
        assert!(Span::NONE.in_nanoseconds(Precision::Hours).is_none());
    }
}
