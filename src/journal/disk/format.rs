//! The journal's files, byte by byte: format 1.
//!
//! All numbers are little-endian; `crc` is CRC-32C (Castagnoli; "123456789" gives `E3069283`); `wall` times are
//! nanoseconds since 1970. Names of files in the folder `journal`:
//!
//! | file | what it is |
//! |---|---|
//! | `NNNNNNNNNNNNNNNN-SSSSSSSSSSSSSSSS.segment` | a piece of the log: its number and its salt, in hexadecimal |
//! | `cursors-0` to `cursors-2` | slots (see `slots.rs`, `saved.rs`): where each backend is |
//! | `gaps-0` to `gaps-2` | slots: what was given up for a backend |
//! | `aside/` | files that could not be read; nothing in it is ever read or removed |
//!
//! A **segment** is a header, a totals frame, and frames with records, one behind the other. Its number grows by
//! one from segment to segment; its salt is random, so that bytes of another segment never pass for its own.
//!
//! | at | bytes | segment header |
//! |---|---|---|
//! | 0 | 8 | `TWINFLUX` |
//! | 8 | 2 | format: 1 |
//! | 10 | 2 | length of this header: 64 |
//! | 12 | 4 | incompatible flags: a reader that does not know one leaves all files untouched. None yet |
//! | 16 | 4 | compatible flags: 1 = begins by repeating records of the segment before, which could not be synced |
//! | 20 | 4 | crc of these 64 bytes, with these four as 0 |
//! | 24 | 8 | the journal's identity, random |
//! | 32 | 8 | number |
//! | 40 | 8 | first sequence: no record of this segment has a lower one |
//! | 48 | 8 | lines written before this segment, of all destinations |
//! | 56 | 8 | wall time of its making |
//!
//! A **frame** is a header of 64 bytes, two names, and the payload. It never spans two segments.
//!
//! | at | bytes | frame header |
//! |---|---|---|
//! | 0 | 4 | marker: the low half of the segment's salt |
//! | 4 | 4 | crc of salt, number, the frame's place in the file (8 bytes), and the header from 8 on with its names |
//! | 8 | 4 | crc of salt, number, and the payload as it is stored |
//! | 12 | 4 | bytes of the payload as it is stored, at most 1 MiB |
//! | 16 | 4 | bytes of the payload itself, at most 1 MiB |
//! | 20 | 4 | lines |
//! | 24 | 8 | sequence, growing over the whole log; there may be holes |
//! | 32 | 8 | lines written before it **for its destination**: what is missing is known by subtraction |
//! | 40 | 8 | bytes of those |
//! | 48 | 8 | wall time when the first line was received |
//! | 56 | 1 | kind: 0 = a record; 1 = totals; others are skipped |
//! | 57 | 1 | codec: 0 = as it is; 1 = an LZ4 block; 2 = a Zstandard frame |
//! | 58 | 1 | precision: 0 = ns, 1 = us, 2 = ms, 3 = s, 4 = m, 5 = h |
//! | 59 | 1 | bytes of the database's name, behind the header |
//! | 60 | 1 | bytes of the retention policy's name, behind that |
//! | 61 | 3 | 0 |
//!
//! The payload of a **totals** frame says what was written before the segment: a count (4 bytes), and for each
//! destination lines (8), bytes (8), precision (1), the database's and the retention policy's name (1 and its bytes each).
//!
//! A header and its payload have checksums of their own, so that a damaged payload costs one record of known
//! size, and a damaged header no more than the search for the next marker with a right checksum.

use std::fmt;

use super::super::record::Position;
use crate::batch::Destination;
use crate::protocol::Precision;

/// The version written here, and the newest that is read.
pub(crate) const FORMAT: u16 = 1;
/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of a frame's header without its names.
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// The largest payload, stored or not.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 1 << 20;
/// The longest name of a database or retention policy.
pub(crate) const MAX_NAME_BYTES: usize = 255;

const MAGIC: &[u8; 8] = b"TWINFLUX";
const FLAG_REPEATS: u32 = 1;

/// A segment's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    /// Grows by one from segment to segment.
    pub(crate) number: u64,
    /// Random.
    pub(crate) salt: u64,
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}.segment", self.number, self.salt)
    }
}

impl SegmentName {
    /// The name's parts, where the file is a segment.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (number, salt) = name.strip_suffix(".segment")?.split_once('-')?;
        let hex = |text: &str| if text.len() == 16 { u64::from_str_radix(text, 16).ok() } else { None };
        let parsed = Self { number: hex(number)?, salt: hex(salt)? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) journal: u64,
    pub(crate) number: u64,
    pub(crate) first_sequence: u64,
    pub(crate) lines_before: u64,
    pub(crate) created: u64,
    /// Begins by repeating records of the segment before.
    pub(crate) repeats: bool,
}

/// Why a segment's header is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Its bytes are not what was written.
    Damaged,
    /// It is sound, and made by a newer version.
    Newer,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[10..12].copy_from_slice(&64_u16.to_le_bytes());
        bytes[16..20].copy_from_slice(&(if self.repeats { FLAG_REPEATS } else { 0 }).to_le_bytes());
        let numbers = [self.journal, self.number, self.first_sequence, self.lines_before, self.created];
        for (place, number) in numbers.iter().enumerate() {
            bytes[24 + place * 8..32 + place * 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
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
            first_sequence: u64_at(&header, 40),
            lines_before: u64_at(&header, 48),
            created: u64_at(&header, 56),
            repeats: u32_at(&header, 16) & FLAG_REPEATS != 0,
        })
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Lines.
    Record,
    /// What was written before the segment.
    Totals,
    /// Made by a later version that wanted this one to skip it.
    Other,
}

/// How a payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// As it is.
    Plain,
    /// An LZ4 block.
    Lz4,
    /// A Zstandard frame.
    Zstd,
    /// Not known to this version: the record cannot be read.
    Other,
}

/// A frame's header and names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
    pub(crate) destination: Destination,
    pub(crate) sequence: u64,
    /// Written before it for its destination.
    pub(crate) at: Position,
    pub(crate) lines: u64,
    /// Wall time when the first line was received.
    pub(crate) received: u64,
    /// Bytes of the payload as it is stored.
    pub(crate) stored_bytes: usize,
    /// Bytes of the payload itself.
    pub(crate) payload_bytes: usize,
}

impl Frame {
    /// The position behind it.
    pub(crate) fn end(&self) -> Position {
        self.at.plus(self.lines, self.payload_bytes as u64)
    }

    /// Bytes before the payload.
    pub(crate) fn head_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.destination.database.len() + self.destination.retention_policy.len()
    }

    /// Bytes in the file.
    pub(crate) fn bytes(&self) -> usize {
        self.head_bytes() + self.stored_bytes
    }

    /// Appends the whole frame to `out`, for this place in the segment. `stored` is the payload in the frame's codec.
    pub(crate) fn encode(&self, key: &Key, place: u64, stored: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&key.marker);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&key.crc(stored).to_le_bytes());
        out.extend_from_slice(&small(self.stored_bytes).to_le_bytes());
        out.extend_from_slice(&small(self.payload_bytes).to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.lines).unwrap_or(u32::MAX).to_le_bytes());
        for number in [self.sequence, self.at.lines, self.at.bytes, self.received] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(match self.kind {
            Kind::Record => 0,
            Kind::Totals => 1,
            Kind::Other => u8::MAX,
        });
        out.push(match self.codec {
            Codec::Plain => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
            Codec::Other => u8::MAX,
        });
        let Destination { database, retention_policy, precision } = &self.destination;
        out.extend_from_slice(&[
            precision_code(*precision),
            name_bytes(database),
            name_bytes(retention_policy),
            0,
            0,
            0,
        ]);
        out.extend_from_slice(database.as_bytes());
        out.extend_from_slice(retention_policy.as_bytes());
        let crc = key.at(place).crc(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(stored);
    }
}

/// What the frames of one segment begin with, and what their checksums begin with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) marker: [u8; 4],
    seed: u32,
}

impl Key {
    pub(crate) fn new(name: SegmentName) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&name.salt.to_le_bytes());
        bytes[8..].copy_from_slice(&name.number.to_le_bytes());
        Self { marker: [bytes[0], bytes[1], bytes[2], bytes[3]], seed: crc32c::crc32c(&bytes) }
    }

    /// The same for a header at this place, so that a frame that strayed to another one is none.
    fn at(&self, place: u64) -> Self {
        Self { seed: self.crc(&place.to_le_bytes()), ..*self }
    }

    fn crc(&self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.seed, bytes)
    }
}

/// What stands at a place of a segment.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// A whole frame.
    Frame(Frame),
    /// A frame whose payload is not what was written.
    BadPayload(Frame),
    /// The beginning of what may be a frame of at least this many bytes.
    Partial(usize),
    /// No frame.
    Nothing,
}

/// Reads the frame that `bytes` begin with, which are from this place in the segment.
pub(crate) fn parse(key: &Key, place: u64, bytes: &[u8]) -> Parsed {
    if bytes.len() < FRAME_HEADER_BYTES {
        let begins = bytes.len().min(4);
        let is_marker = bytes[..begins] == key.marker[..begins];
        return if is_marker { Parsed::Partial(FRAME_HEADER_BYTES) } else { Parsed::Nothing };
    }
    if bytes[..4] != key.marker {
        return Parsed::Nothing;
    }
    let head = FRAME_HEADER_BYTES + usize::from(bytes[59]) + usize::from(bytes[60]);
    if bytes.len() < head {
        return Parsed::Partial(head);
    }
    if key.at(place).crc(&bytes[8..head]) != u32_at(bytes, 4) {
        return Parsed::Nothing;
    }
    let Some(frame) = decode_frame(&bytes[..head]) else { return Parsed::Nothing };
    let Some(stored) = bytes.get(head..frame.bytes()) else { return Parsed::Partial(frame.bytes()) };
    if key.crc(stored) == u32_at(bytes, 8) { Parsed::Frame(frame) } else { Parsed::BadPayload(frame) }
}

/// A header with a right checksum; none where it says what no version writes.
fn decode_frame(head: &[u8]) -> Option<Frame> {
    let (stored_bytes, payload_bytes) = (u32_at(head, 12) as usize, u32_at(head, 16) as usize);
    if stored_bytes > MAX_PAYLOAD_BYTES || payload_bytes > MAX_PAYLOAD_BYTES {
        return None;
    }
    let (database, retention_policy) = head[FRAME_HEADER_BYTES..].split_at_checked(usize::from(head[59]))?;
    Some(Frame {
        kind: match head[56] {
            0 => Kind::Record,
            1 => Kind::Totals,
            _ => Kind::Other,
        },
        codec: match head[57] {
            0 => Codec::Plain,
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => Codec::Other,
        },
        destination: Destination {
            database: String::from_utf8(database.to_vec()).ok()?,
            retention_policy: String::from_utf8(retention_policy.to_vec()).ok()?,
            precision: precision_of(head[58])?,
        },
        sequence: u64_at(head, 24),
        at: Position { lines: u64_at(head, 32), bytes: u64_at(head, 40) },
        lines: u64::from(u32_at(head, 20)),
        received: u64_at(head, 48),
        stored_bytes,
        payload_bytes,
    })
}

/// A precision's number in files.
pub(crate) fn precision_code(precision: Precision) -> u8 {
    match precision {
        Precision::Nanoseconds => 0,
        Precision::Microseconds => 1,
        Precision::Milliseconds => 2,
        Precision::Seconds => 3,
        Precision::Minutes => 4,
        Precision::Hours => 5,
    }
}

/// The precision of this number.
pub(crate) fn precision_of(code: u8) -> Option<Precision> {
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

/// A name's length; names are no longer than [`MAX_NAME_BYTES`], which the configuration's check sees to.
fn name_bytes(name: &str) -> u8 {
    u8::try_from(name.len()).expect("BUG: names have at most 255 bytes")
}

fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("BUG: a payload has at most 1 MiB")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: SegmentName = SegmentName { number: 7, salt: 0x1122_3344_5566_7788 };

    fn frame() -> Frame {
        Frame {
            kind: Kind::Record,
            codec: Codec::Plain,
            destination: Destination {
                database: "telegraf".to_owned(),
                retention_policy: "week".to_owned(),
                precision: Precision::Seconds,
            },
            sequence: 0x0102_0304_0506_0708,
            at: Position { lines: 1000, bytes: 30_000 },
            lines: 1,
            received: 1_795_400_726_000_000_001,
            stored_bytes: 8,
            payload_bytes: 8,
        }
    }

    #[test]
    fn checksums_are_crc_32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_segment_header_has_these_bytes() {
        let header = SegmentHeader {
            journal: 1,
            number: 7,
            first_sequence: 99,
            lines_before: 1000,
            created: 1_795_400_726_000_000_001,
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
        let header =
            SegmentHeader { journal: 1, number: 7, first_sequence: 0, lines_before: 0, created: 0, repeats: false };
        let mut bytes = header.encode();
        bytes[30] ^= 1;
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Damaged));
        for (place, value) in [(8, 2), (12, 1)] {
            let mut newer = header.encode();
            newer[place] = value;
            newer[20..24].fill(0);
            let crc = crc32c::crc32c(&newer);
            newer[20..24].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(SegmentHeader::decode(&newer), Err(BadHeader::Newer));
        }
    }

    #[test]
    fn a_frame_has_these_bytes() {
        let (key, mut bytes) = (Key::new(NAME), Vec::new());
        frame().encode(&key, 64, b"m v=1 5\n", &mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let vector = "88776655d90301ccc4fb4b020800000008000000010000000807060504030201e8030000000000003075\
                      000000000000015cb5a6728bea18000003080400000074656c65677261667765656b6d20763d3120350a";
        assert_eq!(hex, vector);
        assert!(matches!(parse(&key, 64, &bytes), Parsed::Frame(parsed) if parsed == frame()));
    }

    #[test]
    fn every_flipped_bit_is_seen_and_every_cut_is_partial() {
        let (key, mut bytes) = (Key::new(NAME), Vec::new());
        frame().encode(&key, 64, b"m v=1 5\n", &mut bytes);
        let head = frame().head_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match parse(&key, 64, &flipped) {
                Parsed::BadPayload(parsed) => assert!(bit / 8 >= head && parsed == frame(), "bit {bit}"),
                Parsed::Nothing | Parsed::Partial(_) => assert!(bit / 8 < head, "bit {bit}"),
                Parsed::Frame(_) => panic!("bit {bit}"),
            }
        }
        for cut in 0..bytes.len() {
            assert!(matches!(parse(&key, 64, &bytes[..cut]), Parsed::Partial(more) if more > cut), "{cut}");
        }
        let other = Key::new(SegmentName { number: 8, ..NAME });
        assert!(matches!(parse(&other, 64, &bytes), Parsed::Nothing), "another segment's frame");
        assert!(matches!(parse(&key, 65, &bytes), Parsed::Nothing), "another place's frame");
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
