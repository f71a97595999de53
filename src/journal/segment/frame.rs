//! Frames as bytes: a record's, or the totals' (see [`super::format`]).

use super::format::{SegmentName, i64_at, nanoseconds, precision_code, precision_of, u16_at, u32_at, u64_at};
use super::{Position, Sequence};
use crate::batch::{Destination, Span, WallTime};
use crate::protocol::line::LONGEST_LINE_BYTES;

/// Bytes of a frame's header without its names.
pub(in crate::journal) const FRAME_HEADER_BYTES: usize = 80;
/// The highest valid sequence or position. This version writes none above it.
pub(in crate::journal) const MAX_COUNT: u64 = 1 << 62;
/// The largest payload, compressed or not: the longest line, its timestamp and a line feed.
pub(in crate::journal) const MAX_PAYLOAD_BYTES: usize = LONGEST_LINE_BYTES + 1024;

/// A frame's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) enum Kind {
    /// Lines.
    Record,
    /// What was written before the segment.
    Totals,
    /// Written by a later version, to be skipped by this one.
    Other,
}

/// How a payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) enum Codec {
    /// Uncompressed.
    Plain,
    /// An LZ4 block.
    Lz4,
    /// A Zstandard frame.
    Zstd,
    /// Unknown to this version: the record cannot be read.
    Other,
}

/// A frame's header and names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::journal) struct Frame {
    pub(in crate::journal) kind: Kind,
    pub(in crate::journal) codec: Codec,
    pub(in crate::journal) destination: Destination,
    pub(in crate::journal) sequence: Sequence,
    /// What was written before it for its destination.
    pub(in crate::journal) at: Position,
    pub(in crate::journal) lines: u64,
    /// The times of its points.
    pub(in crate::journal) points: Span,
    /// Wall time when the first line was received.
    pub(in crate::journal) received: Option<WallTime>,
    /// Bytes of the payload as stored.
    pub(in crate::journal) stored_bytes: usize,
    /// Bytes of the payload uncompressed.
    pub(in crate::journal) payload_bytes: usize,
    /// Bytes of an extension that a later version wrote.
    pub(in crate::journal) extension_bytes: u16,
}

impl Frame {
    /// The position after it.
    pub(in crate::journal) fn end(&self) -> Position {
        self.at.plus(self.lines, self.payload_bytes as u64)
    }

    /// Bytes before the payload.
    pub(in crate::journal) fn header_bytes(&self) -> usize {
        let names = self.destination.database().len() + self.destination.retention_policy().len();
        FRAME_HEADER_BYTES + names + usize::from(self.extension_bytes)
    }

    /// Bytes in the file.
    pub(in crate::journal) fn bytes(&self) -> usize {
        self.header_bytes() + self.stored_bytes
    }

    /// Appends the whole frame to `out`, for this offset in the segment. `stored` is the payload in
    /// the frame's codec.
    pub(in crate::journal) fn encode(&self, key: &Key, offset: u64, stored: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&key.marker);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&key.crc(stored).to_le_bytes());
        out.extend_from_slice(&small(self.stored_bytes).to_le_bytes());
        out.extend_from_slice(&small(self.payload_bytes).to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.lines).unwrap_or(u32::MAX).to_le_bytes());
        for number in [self.sequence.get(), self.at.lines, self.at.bytes, nanoseconds(self.received)] {
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
        let (database, retention_policy) = (self.destination.database(), self.destination.retention_policy());
        out.extend_from_slice(&[
            precision_code(self.destination.precision()),
            name_bytes(database),
            name_bytes(retention_policy),
            0,
            0,
            0,
        ]);
        for time in [self.points.from, self.points.until] {
            out.extend_from_slice(&time.to_le_bytes());
        }
        out.extend_from_slice(database.as_bytes());
        out.extend_from_slice(retention_policy.as_bytes());
        let crc = key.at(offset).crc(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(stored);
    }
}

/// The marker and the checksum seed of one segment's frames.
#[derive(Clone, Copy, Debug)]
pub(in crate::journal) struct Key {
    pub(in crate::journal) marker: [u8; 4],
    seed: u32,
}

impl Key {
    pub(in crate::journal) fn new(name: SegmentName) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&name.salt.to_le_bytes());
        bytes[8..].copy_from_slice(&name.number.to_le_bytes());
        Self { marker: [bytes[0], bytes[1], bytes[2], bytes[3]], seed: crc32c::crc32c(&bytes) }
    }

    /// The key for a header at this offset, so that a frame copied to another offset is invalid.
    fn at(&self, offset: u64) -> Self {
        Self { seed: self.crc(&offset.to_le_bytes()), ..*self }
    }

    fn crc(&self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.seed, bytes)
    }
}

/// What parsing at an offset of a segment finds.
#[derive(Debug)]
pub(in crate::journal) enum Parsed {
    /// A whole frame.
    Frame(Frame),
    /// A frame whose payload is damaged.
    BadPayload(Frame),
    /// The beginning of what may be a frame of at least this many bytes.
    Partial(usize),
    /// No frame.
    Nothing,
}

/// Parses the frame at the beginning of `bytes`, which start at this offset in the segment.
pub(in crate::journal) fn parse(key: &Key, offset: u64, bytes: &[u8]) -> Parsed {
    if bytes.len() < FRAME_HEADER_BYTES {
        let begins = bytes.len().min(4);
        let is_marker = bytes[..begins] == key.marker[..begins];
        return if is_marker { Parsed::Partial(FRAME_HEADER_BYTES) } else { Parsed::Nothing };
    }
    if bytes[..4] != key.marker {
        return Parsed::Nothing;
    }
    let head = FRAME_HEADER_BYTES + usize::from(bytes[59]) + usize::from(bytes[60]) + usize::from(u16_at(bytes, 62));
    if bytes.len() < head {
        return Parsed::Partial(head);
    }
    if key.at(offset).crc(&bytes[8..head]) != u32_at(bytes, 4) {
        return Parsed::Nothing;
    }
    let Some(frame) = decode_frame(&bytes[..head]) else { return Parsed::Nothing };
    let Some(stored) = bytes.get(head..frame.bytes()) else { return Parsed::Partial(frame.bytes()) };
    if key.crc(stored) == u32_at(bytes, 8) { Parsed::Frame(frame) } else { Parsed::BadPayload(frame) }
}

/// Gives potential frames from this offset on a valid marker and valid checksums, so that random
/// bytes get past these checks.
#[cfg(any(test, fuzzing))]
pub(in crate::journal) fn reseal(key: &Key, mut offset: usize, bytes: &mut [u8]) {
    while let Some(frame) = bytes.get_mut(offset..).filter(|rest| rest.len() >= FRAME_HEADER_BYTES) {
        frame[..4].copy_from_slice(&key.marker);
        let names = usize::from(frame[59]) + usize::from(frame[60]) + usize::from(u16_at(frame, 62));
        let head = (FRAME_HEADER_BYTES + names).min(frame.len());
        let end = head.saturating_add(u32_at(frame, 12) as usize).min(frame.len());
        let crc = key.crc(&frame[head..end]);
        frame[8..12].copy_from_slice(&crc.to_le_bytes());
        let crc = key.at(offset as u64).crc(&frame[8..head]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        offset += end;
    }
}

/// Decodes a header with a valid checksum. Returns `None` if it says what no version writes.
fn decode_frame(head: &[u8]) -> Option<Frame> {
    let (stored_bytes, payload_bytes) = (u32_at(head, 12) as usize, u32_at(head, 16) as usize);
    let highest = u64_at(head, 24).max(u64_at(head, 32)).max(u64_at(head, 40));
    if stored_bytes > MAX_PAYLOAD_BYTES || payload_bytes > MAX_PAYLOAD_BYTES || highest > MAX_COUNT {
        return None;
    }
    let (database, rest) = head[FRAME_HEADER_BYTES..].split_at_checked(usize::from(head[59]))?;
    let retention_policy = rest.get(..usize::from(head[60]))?;
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
        destination: Destination::new(
            String::from_utf8(database.to_vec()).ok()?,
            String::from_utf8(retention_policy.to_vec()).ok()?,
            precision_of(head[58])?,
        ),
        sequence: Sequence::new(u64_at(head, 24)),
        at: Position { lines: u64_at(head, 32), bytes: u64_at(head, 40) },
        lines: u64::from(u32_at(head, 20)),
        points: Span { from: i64_at(head, 64), until: i64_at(head, 72) },
        received: WallTime::new(u64_at(head, 48)),
        stored_bytes,
        payload_bytes,
        extension_bytes: u16_at(head, 62),
    })
}

/// A name's length. The configuration's check bounds names by [`super::format::MAX_NAME_BYTES`].
fn name_bytes(name: &str) -> u8 {
    u8::try_from(name.len()).expect("BUG: names have at most 255 bytes")
}

fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("BUG: a payload has at most 1 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Precision;

    const NAME: SegmentName = SegmentName { number: 7, salt: 0x1122_3344_5566_7788 };

    fn frame() -> Frame {
        Frame {
            kind: Kind::Record,
            codec: Codec::Plain,
            destination: Destination::new("telegraf", "week", Precision::Seconds),
            sequence: Sequence::new(0x0102_0304_0506_0708),
            at: Position { lines: 1000, bytes: 30_000 },
            lines: 1,
            points: Span { from: -5, until: 1_795_400_725_000_000_000 },
            received: WallTime::new(1_795_400_726_000_000_001),
            stored_bytes: 8,
            payload_bytes: 8,
            extension_bytes: 0,
        }
    }

    #[test]
    fn a_frame_has_these_bytes() {
        let (key, mut bytes) = (Key::new(NAME), Vec::new());
        frame().encode(&key, 64, b"m v=1 5\n", &mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let vector = "8877665582f310f5c4fb4b020800000008000000010000000807060504030201e8030000000000003075\
                      000000000000015cb5a6728bea180000030804000000fbffffffffffffff00921a6b728bea1874656c65\
                      677261667765656b6d20763d3120350a";
        assert_eq!(hex, vector);
        assert!(matches!(parse(&key, 64, &bytes), Parsed::Frame(parsed) if parsed == frame()));
    }

    #[test]
    fn what_a_later_version_adds_to_a_header_is_skipped() {
        let (key, mut bytes) = (Key::new(NAME), Vec::new());
        frame().encode(&key, 64, b"m v=1 5\n", &mut bytes);
        let head = frame().header_bytes();
        let added = b"\x01\x04main";
        bytes.splice(head..head, added.iter().copied());
        bytes[62] = 6;
        let mut bytes = [vec![0; 64], bytes].concat();
        reseal(&key, 64, &mut bytes);
        let bytes = bytes.split_off(64);
        match parse(&key, 64, &bytes) {
            Parsed::Frame(parsed) => {
                assert_eq!(parsed, Frame { extension_bytes: 6, ..frame() });
                assert_eq!(&bytes[parsed.header_bytes()..parsed.bytes()], b"m v=1 5\n");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flipped_bit_is_seen_and_every_cut_is_partial() {
        let (key, mut bytes) = (Key::new(NAME), Vec::new());
        frame().encode(&key, 64, b"m v=1 5\n", &mut bytes);
        let head = frame().header_bytes();
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
        assert!(matches!(parse(&key, 65, &bytes), Parsed::Nothing), "another offset's frame");
    }
}
