//! Why a line was refused: one name per reason, used as counter index, metric label and log word.

/// Why a line was refused. Each reason has its own counter. Only the line is dropped, not its
/// neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// The measurement is empty, or begins with the `#` of a comment.
    MissingMeasurement,
    /// A tag has no key: `m,=v f=1`.
    MissingTagKey,
    /// A tag has no value, or an unescaped `=` follows it: `m,a f=1`, `m,a= f=1`, `m,a=b=c f=1`.
    InvalidTagValue,
    /// The same tag key twice; InfluxDB 1.x refuses the line.
    DuplicateTag,
    /// Tag key `time`, `_field` or `_measurement`; InfluxDB drops the point or the whole request.
    ReservedTag,
    /// More than [`MAX_TAGS`](super::line::MAX_TAGS) tags, or the 100 at which InfluxDB 1.6 panics.
    TooManyTags,
    /// No field at all, or a field without a key.
    MissingField,
    /// Field key `time`, which InfluxDB reserves.
    ReservedField,
    /// A field without a value, or a value that is neither number, boolean nor string.
    InvalidValue,
    /// A number that does not fit: an integer beyond 64 bits, a float beyond the largest.
    NumberOutOfRange,
    /// An unsigned integer (`1u`), which stock InfluxDB 1.x does not know.
    UnsignedInteger,
    /// A string without a closing quote.
    UnterminatedString,
    /// Text after the end of a string field or of the timestamp.
    TrailingText,
    /// A timestamp that is not an integer.
    InvalidTimestamp,
    /// A timestamp that InfluxDB cannot hold at the listener's precision.
    TimestampOutOfRange,
    /// A control byte outside a string.
    ControlByte,
    /// Bytes that are not UTF-8.
    InvalidUtf8,
    /// A backslash that parsers read differently: at the end of a token, or an even run before a
    /// delimiter.
    AmbiguousEscape,
    /// A line or series key longer than InfluxDB accepts.
    TooLong,
    /// The last line of a datagram that the socket truncated, or of a connection that ended within
    /// it.
    Truncated,
    /// A value that is NaN or infinite, which InfluxDB cannot hold.
    NotANumber,
    /// A line that is not JSON, or not one of Netdata's objects.
    InvalidJson,
    /// A line of no format that the listener accepts, or bytes of another protocol: HTTP, TLS.
    WrongFormat,
}

impl Refusal {
    /// Every reason, in counter order.
    pub const ALL: [Self; 23] = [
        Self::MissingMeasurement,
        Self::MissingTagKey,
        Self::InvalidTagValue,
        Self::DuplicateTag,
        Self::ReservedTag,
        Self::TooManyTags,
        Self::MissingField,
        Self::ReservedField,
        Self::InvalidValue,
        Self::NumberOutOfRange,
        Self::UnsignedInteger,
        Self::UnterminatedString,
        Self::TrailingText,
        Self::InvalidTimestamp,
        Self::TimestampOutOfRange,
        Self::ControlByte,
        Self::InvalidUtf8,
        Self::AmbiguousEscape,
        Self::TooLong,
        Self::Truncated,
        Self::NotANumber,
        Self::InvalidJson,
        Self::WrongFormat,
    ];

    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();

    /// Returns the reason's index in an array of [`Self::COUNT`] counters.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the reason's name in metrics, JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingMeasurement => "missing_measurement",
            Self::MissingTagKey => "missing_tag_key",
            Self::InvalidTagValue => "invalid_tag_value",
            Self::DuplicateTag => "duplicate_tag",
            Self::ReservedTag => "reserved_tag",
            Self::TooManyTags => "too_many_tags",
            Self::MissingField => "missing_field",
            Self::ReservedField => "reserved_field",
            Self::InvalidValue => "invalid_value",
            Self::NumberOutOfRange => "number_out_of_range",
            Self::UnsignedInteger => "unsigned_integer",
            Self::UnterminatedString => "unterminated_string",
            Self::TrailingText => "trailing_text",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::TimestampOutOfRange => "timestamp_out_of_range",
            Self::ControlByte => "control_byte",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::AmbiguousEscape => "ambiguous_escape",
            Self::TooLong => "too_long",
            Self::Truncated => "truncated",
            Self::NotANumber => "not_a_number",
            Self::InvalidJson => "invalid_json",
            Self::WrongFormat => "wrong_format",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut names = std::collections::HashSet::new();
        for (index, reason) in Refusal::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(names.insert(reason.name()));
        }
    }
}
