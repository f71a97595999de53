//! Hostile input for the fuzz targets `frames` and `slots`, and for the small tests: any bytes as a
//! segment, and as the slots beside it.

use std::io;
use std::sync::Arc;

use super::disk::saved::decode_gaps;
use super::segment::format::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentName};
use super::segment::frame::{Key, reseal};
use super::segment::frames::{Frames, Item, unpack};
use super::segment::slots::{Kind, body_of};
use super::segment::storage::{Identity, StoredFile};
use super::state::saved::Cursors;

/// The segment whose frames the bytes may be.
const NAME: SegmentName = SegmentName { number: 7, salt: 0x1122_3344_5566_7788 };

/// A read-only file in memory.
#[derive(Debug)]
struct Content(Vec<u8>);

impl StoredFile for Content {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = buffer.len().min(self.0.len() - from);
        buffer[..count].copy_from_slice(&self.0[from..from + count]);
        Ok(count)
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok((0, 0))
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn reserve(&self, _: u64) {}

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Iterates over a segment with these bytes. Each step must move forward, and frames must lie
/// within the file.
pub fn frames(data: &[u8]) {
    SegmentHeader::decode(data).ok();
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
    bytes.extend_from_slice(data);
    let length = bytes.len() as u64;
    // A mutation hardly ever hits a valid checksum, so give frame-like bytes valid ones.
    reseal(&Key::new(NAME), SEGMENT_HEADER_BYTES, &mut bytes);
    let mut frames = Frames::new(Arc::new(Content(bytes)), NAME, SEGMENT_HEADER_BYTES as u64, 4096);
    let mut before = frames.offset();
    while let Some(item) = frames.next().expect("memory can be read") {
        assert!(frames.offset() > before && frames.offset() <= length);
        before = frames.offset();
        if let Item::Frame(frame, stored) = item {
            let payload = unpack(&frame, &stored);
            assert!(payload.is_none_or(|payload| payload.len() == frame.payload_bytes));
        }
    }
}

/// Decodes these bytes as a slot, and as slot bodies. Whatever decodes must encode and decode to
/// the same value.
pub fn slots(data: &[u8]) {
    for kind in [Kind::Cursors, Kind::Gaps] {
        drop(body_of(kind, data));
    }
    if let Some(cursors) = Cursors::decode(data) {
        assert_eq!(Cursors::decode(&cursors.encode()), Some(cursors));
    }
    drop(decode_gaps(data));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Destination, Span, WallTime};
    use crate::journal::segment::frame::{Codec, Frame, Kind as FrameKind};
    use crate::journal::segment::slots::encode;
    use crate::journal::segment::{Position, Sequence};
    use crate::protocol::Precision;

    const TRIES: usize = 100_000;

    fn changed(random: &mut fastrand::Rng, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            match random.u8(..8) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = u8::MAX),
                2 => bytes.extend_from_within(at..),
                _ => bytes[at] = random.u8(..),
            }
        }
        bytes
    }

    #[test]
    fn hostile_frames_are_walked_through_to_the_end() {
        let mut bytes = Vec::new();
        for number in 0..3 {
            let frame = Frame {
                kind: FrameKind::Record,
                codec: [Codec::Plain, Codec::Lz4, Codec::Zstd][number],
                destination: Destination::new("telegraf", "week", Precision::Seconds),
                sequence: Sequence::new(number as u64),
                at: Position { lines: number as u64, bytes: 8 },
                lines: 1,
                points: Span::ALWAYS,
                received: Some(WallTime::MIN),
                stored_bytes: 8,
                payload_bytes: 8,
                extension_bytes: 0,
            };
            frame.encode(&Key::new(NAME), (SEGMENT_HEADER_BYTES + bytes.len()) as u64, b"m v=1 5\n", &mut bytes);
        }
        frames(&bytes);
        let mut random = fastrand::Rng::with_seed(1);
        (0..TRIES).for_each(|_| frames(&changed(&mut random, &bytes)));
    }

    #[test]
    fn hostile_slots_are_read_or_refused() {
        let destination = Destination::new("telegraf", "week", Precision::Seconds);
        let written = vec![(destination, Position { lines: 3, bytes: 99 })];
        let cursors =
            Cursors { next_sequence: Sequence::new(21), kept_from: written.clone(), written, ..Cursors::default() };
        let body = cursors.encode();
        let slot = encode(Kind::Cursors, 7, 1, &body);
        slots(&body);
        slots(&slot);
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..TRIES {
            slots(&changed(&mut random, &body));
            slots(&changed(&mut random, &slot));
        }
    }
}
