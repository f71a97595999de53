//! The journal's files, byte by byte: format 1.
//!
//! All numbers are little-endian. `crc` is CRC-32C (Castagnoli; "123456789" gives `E3069283`).
//! `wall` times are nanoseconds since 1970. The folder `journal` holds these files:
//!
//! | file | content |
//! |---|---|
//! | `NNNNNNNNNNNNNNNN-SSSSSSSSSSSSSSSS.segment` | a segment of the log; its number and its salt, in hexadecimal |
//! | `cursors-0` to `cursors-2` | slots (see `slots.rs`, `saved.rs`): where each backend is |
//! | `gaps-0` to `gaps-2` | slots: what was given up for each backend |
//! | `quarantine/` | unreadable files; nothing in it is ever read or removed |
//!
//! A **segment** is a header, a totals frame, and frames with records, back to back. Numbers
//! increase by one from segment to segment. The salt is random, so that bytes of another segment
//! never pass as this one's.
//!
//! | at | bytes | segment header |
//! |---|---|---|
//! | 0 | 8 | `TWINFLUX` |
//! | 8 | 2 | format: 1 |
//! | 10 | 2 | length of this header: 64 |
//! | 12 | 4 | incompatible flags: a reader that does not know one leaves all files untouched. None defined yet |
//! | 16 | 4 | compatible flags: 1 = begins by repeating records of the segment before, which could not be synced |
//! | 20 | 4 | crc of these 64 bytes, with these four as 0 |
//! | 24 | 8 | the journal's identity, random |
//! | 32 | 8 | number |
//! | 40 | 8 | first sequence: no record of this segment has a lower one |
//! | 48 | 8 | lines written before this segment, of all destinations |
//! | 56 | 8 | wall time of its creation |
//!
//! A **frame** is a header of 80 bytes, two names, an extension, and the payload. It never spans
//! two segments.
//!
//! | at | bytes | frame header |
//! |---|---|---|
//! | 0 | 4 | marker: the low half of the segment's salt |
//! | 4 | 4 | crc of salt, number, the frame's offset in the file (8 bytes), and the header from 8 on, with names and extension |
//! | 8 | 4 | crc of salt, number, and the payload as stored |
//! | 12 | 4 | bytes of the payload as stored, at most 1 MiB |
//! | 16 | 4 | bytes of the payload uncompressed, at most 1 MiB |
//! | 20 | 4 | lines |
//! | 24 | 8 | sequence, increasing over the whole log; numbers may be skipped |
//! | 32 | 8 | lines written before it **for its destination**: subtraction shows what is missing |
//! | 40 | 8 | bytes of those |
//! | 48 | 8 | wall time when the first line was received |
//! | 56 | 1 | kind: 0 = record; 1 = totals; others are skipped |
//! | 57 | 1 | codec: 0 = none; 1 = an LZ4 block; 2 = a Zstandard frame |
//! | 58 | 1 | precision: 0 = ns, 1 = us, 2 = ms, 3 = s, 4 = m, 5 = h |
//! | 59 | 1 | bytes of the database's name, which follows the header |
//! | 60 | 1 | bytes of the retention policy's name, which follows that |
//! | 61 | 1 | 0 |
//! | 62 | 2 | bytes of the extension, which follows the names; this version writes none |
//! | 64 | 8 | the earliest time of its points, in nanoseconds since 1970, signed; above the latest if there are no points |
//! | 72 | 8 | the latest time of its points |
//!
//! The payload of a **totals** frame says what was written before the segment: a count (4 bytes),
//! and for each destination lines (8), bytes (8), precision (1), and the database's and the
//! retention policy's names (1 and their bytes each); then, again for each destination, the
//! earliest and the latest time of its points in the segment before (8 each).
//!
//! An **extension** holds what a later version knows of a record and this one can ignore, such as
//! the group to which it is owed, or its origin. Readers skip it. What must not be skipped gets an
//! incompatible flag in the segment's header, or a kind of its own. The format can therefore grow
//! without a new number.
//!
//! Header and payload have separate checksums. A damaged payload costs one record of known size. A
//! damaged header costs its record, and a search for the next marker with a matching checksum.

use super::Sequence;
use std::fmt;

use crate::batch::WallTime;
use crate::protocol::Precision;

/// The version written here, and the newest that can be read.
pub(in crate::journal) const FORMAT: u16 = 1;
/// Bytes of a segment's header.
pub(in crate::journal) const SEGMENT_HEADER_BYTES: usize = 64;
/// The longest name of a database or retention policy, in bytes.
pub(in crate::journal) const MAX_NAME_BYTES: usize = 255;

const MAGIC: &[u8; 8] = b"TWINFLUX";
const FLAG_REPEATS: u32 = 1;

/// A segment's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::journal) struct SegmentName {
    /// Increases by one from segment to segment.
    pub(in crate::journal) number: u64,
    /// Random.
    pub(in crate::journal) salt: u64,
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}.segment", self.number, self.salt)
    }
}

impl SegmentName {
    /// Parses a file name. Returns `None` if it is not a segment's.
    pub(in crate::journal) fn parse(name: &str) -> Option<Self> {
        let (number, salt) = name.strip_suffix(".segment")?.split_once('-')?;
        let hex = |text: &str| if text.len() == 16 { u64::from_str_radix(text, 16).ok() } else { None };
        let parsed = Self { number: hex(number)?, salt: hex(salt)? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) struct SegmentHeader {
    pub(in crate::journal) journal: u64,
    pub(in crate::journal) number: u64,
    pub(in crate::journal) first_sequence: Sequence,
    pub(in crate::journal) lines_before: u64,
    pub(in crate::journal) created: Option<WallTime>,
    /// The segment begins by repeating records of the segment before.
    pub(in crate::journal) repeats: bool,
}

/// Why a segment's header is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::journal) enum BadHeader {
    /// The bytes are damaged.
    #[error("the segment's header is damaged")]
    Damaged,
    /// It is sound, but a newer version wrote it.
    #[error("a newer version wrote the segment")]
    Newer,
}

impl SegmentHeader {
    pub(in crate::journal) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[10..12].copy_from_slice(&64_u16.to_le_bytes());
        bytes[16..20].copy_from_slice(&(if self.repeats { FLAG_REPEATS } else { 0 }).to_le_bytes());
        let numbers =
            [self.journal, self.number, self.first_sequence.get(), self.lines_before, nanoseconds(self.created)];
        for (index, number) in numbers.iter().enumerate() {
            bytes[24 + index * 8..32 + index * 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(in crate::journal) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let mut header: [u8; SEGMENT_HEADER_BYTES] =
            bytes.get(..SEGMENT_HEADER_BYTES).and_then(|head| head.try_into().ok()).ok_or(BadHeader::Damaged)?;
        let crc = u32_at(&header, 20);
        header[20..24].fill(0);
        if &header[..8] != MAGIC || crc32c::crc32c(&header) != crc {
            return Err(BadHeader::Damaged);
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version > FORMAT || u32_at(&header, 12) != 0 {
            return Err(BadHeader::Newer);
        }
        Ok(Self {
            journal: u64_at(&header, 24),
            number: u64_at(&header, 32),
            first_sequence: Sequence::new(u64_at(&header, 40)),
            lines_before: u64_at(&header, 48),
            created: WallTime::new(u64_at(&header, 56)),
            repeats: u32_at(&header, 16) & FLAG_REPEATS != 0,
        })
    }
}

/// A time as stored in files: 0 if unknown.
pub(in crate::journal) fn nanoseconds(time: Option<WallTime>) -> u64 {
    time.map_or(0, WallTime::nanoseconds)
}

/// A precision's number in files.
pub(in crate::journal) fn precision_code(precision: Precision) -> u8 {
    match precision {
        Precision::Nanoseconds => 0,
        Precision::Microseconds => 1,
        Precision::Milliseconds => 2,
        Precision::Seconds => 3,
        Precision::Minutes => 4,
        Precision::Hours => 5,
    }
}

/// The precision with this number.
pub(in crate::journal) fn precision_of(code: u8) -> Option<Precision> {
    Some(match code {
        0 => Precision::Nanoseconds,
        1 => Precision::Microseconds,
        2 => Precision::Milliseconds,
        3 => Precision::Seconds,
        4 => Precision::Minutes,
        5 => Precision::Hours,
        _ => return None,
    })
}

pub(in crate::journal) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(in crate::journal) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

pub(in crate::journal) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at).cast_signed()
}

pub(in crate::journal) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: SegmentName = SegmentName { number: 7, salt: 0x1122_3344_5566_7788 };

    #[test]
    fn checksums_are_crc_32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_segment_header_has_these_bytes() {
        let header = SegmentHeader {
            journal: 1,
            number: 7,
            first_sequence: Sequence::new(99),
            lines_before: 1000,
            created: WallTime::new(1_795_400_726_000_000_001),
            repeats: true,
        };
        let bytes = header.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let vector = "5457494e464c55580100400000000000010000009b8afbd00100000000000000\
                      07000000000000006300000000000000e803000000000000015cb5a6728bea18";
        assert_eq!(hex, vector);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn a_newer_header_is_told_from_a_damaged_one() {
        let header = SegmentHeader {
            journal: 1,
            number: 7,
            first_sequence: Sequence::new(0),
            lines_before: 0,
            created: None,
            repeats: false,
        };
        let mut bytes = header.encode();
        bytes[30] ^= 1;
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Damaged));
        for (offset, value) in [(8, 2), (12, 1)] {
            let mut newer = header.encode();
            newer[offset] = value;
            newer[20..24].fill(0);
            let crc = crc32c::crc32c(&newer);
            newer[20..24].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(SegmentHeader::decode(&newer), Err(BadHeader::Newer));
        }
    }

    #[test]
    fn names_are_hexadecimal_and_nothing_else_passes() {
        assert_eq!(NAME.to_string(), "0000000000000007-1122334455667788.segment");
        assert_eq!(SegmentName::parse(&NAME.to_string()), Some(NAME));
        for other in
            ["7-1.segment", "0000000000000007-1122334455667788", "000000000000000G-1122334455667788.segment", ""]
        {
            assert_eq!(SegmentName::parse(other), None);
        }
    }
}
