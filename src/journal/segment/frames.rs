//! From frame to frame through one segment, over whatever damage there is.
//!
//! Bounds: one chunk of the file in memory, as large as asked or as the largest frame.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem;

use super::format::SegmentName;
use super::frame::{Codec, Frame, Key, Parsed, parse};
use super::storage::StoredFile;

/// What stands in a segment.
#[derive(Debug)]
pub(in crate::journal) enum Item {
    /// A frame, and its payload as it is stored.
    Frame(Frame, Bytes),
    /// A frame whose payload is not what was written.
    BadPayload(Frame),
    /// Bytes that are no frame: damage, or at the end a write that was cut off.
    Hole {
        /// Where they begin.
        at: u64,
        /// How many they are.
        bytes: u64,
    },
}

/// A place in a segment, and the way on.
#[derive(Debug)]
pub(in crate::journal) struct Walk {
    file: Arc<dyn StoredFile>,
    name: SegmentName,
    key: Key,
    /// Where the next frame begins.
    offset: u64,
    chunk: Bytes,
    chunk_at: u64,
    chunk_bytes: usize,
    /// Whether blocks that the disk does not give count as damage; else they are an error.
    is_tolerant: bool,
    /// Blocks that the disk did not give.
    unreadable: u64,
}

/// What a disk gives or does not give at once.
const BLOCK_BYTES: usize = 4096;

impl Walk {
    /// From this offset on, reading as many bytes at once.
    pub(in crate::journal) fn new(
        file: Arc<dyn StoredFile>,
        name: SegmentName,
        offset: u64,
        chunk_bytes: usize,
    ) -> Self {
        let key = Key::new(name);
        Self {
            file,
            name,
            key,
            offset,
            chunk: Bytes::new(),
            chunk_at: offset,
            chunk_bytes,
            is_tolerant: false,
            unreadable: 0,
        }
    }

    /// The segment.
    pub(in crate::journal) fn segment(&self) -> SegmentName {
        self.name
    }

    /// Where the next frame begins.
    pub(in crate::journal) fn offset(&self) -> u64 {
        self.offset
    }

    /// From now on blocks that cannot be read are damage, and no error.
    pub(in crate::journal) fn tolerate(&mut self) {
        self.is_tolerant = true;
    }

    /// Blocks that the disk did not give, and that were taken for damage.
    pub(in crate::journal) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// What comes next; none at the file's end.
    ///
    /// # Errors
    /// What the disk says; the same place is read again by the next call.
    pub(in crate::journal) fn next(&mut self) -> io::Result<Option<Item>> {
        loop {
            let rest = self.rest_of_chunk();
            match parse(&self.key, self.offset, &rest) {
                Parsed::Frame(frame) => {
                    let payload = rest.slice(frame.head_bytes()..frame.bytes());
                    self.offset += frame.bytes() as u64;
                    return Ok(Some(Item::Frame(frame, payload)));
                }
                Parsed::BadPayload(frame) => {
                    self.offset += frame.bytes() as u64;
                    return Ok(Some(Item::BadPayload(frame)));
                }
                Parsed::Partial(needed) if self.fill(needed)? => {}
                // Nothing may be the end of what was read.
                Parsed::Nothing if rest.is_empty() && self.fill(1)? => {}
                Parsed::Partial(_) | Parsed::Nothing if self.rest_of_chunk().is_empty() => return Ok(None),
                Parsed::Partial(_) | Parsed::Nothing => return self.skip_damage().map(Some),
            }
        }
    }

    fn rest_of_chunk(&self) -> Bytes {
        let from = usize::try_from(self.offset - self.chunk_at).unwrap_or(usize::MAX).min(self.chunk.len());
        self.chunk.slice(from..)
    }

    /// Reads so that at least this many bytes are there from the offset on; false where the file has no more than
    /// is there already.
    fn fill(&mut self, needed: usize) -> io::Result<bool> {
        let had = self.rest_of_chunk().len();
        if had >= needed {
            return Ok(true);
        }
        let there = usize::try_from(self.file.bytes()?.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; needed.max(self.chunk_bytes).min(there)];
        let filled = match self.file.read_at(&mut buffer, self.offset) {
            Err(_) if self.is_tolerant => self.read_blocks(&mut buffer),
            read => read?,
        };
        buffer.truncate(filled);
        self.chunk = Bytes::from(buffer);
        self.chunk_at = self.offset;
        Ok(filled > had)
    }

    /// What the disk gives, with zeros for the blocks that it does not.
    fn read_blocks(&mut self, buffer: &mut [u8]) -> usize {
        for (place, block) in buffer.chunks_mut(BLOCK_BYTES).enumerate() {
            if self.file.read_at(block, self.offset + (place * BLOCK_BYTES) as u64).is_err() {
                block.fill(0);
                self.unreadable += 1;
            }
        }
        buffer.len()
    }

    /// Goes on to the next whole frame, or to the file's end.
    fn skip_damage(&mut self) -> io::Result<Item> {
        let at = self.offset;
        self.offset += 1;
        loop {
            let rest = self.rest_of_chunk();
            let marker = memmem::find(&rest, &self.key.marker);
            // Without a whole marker its beginning may be the last three bytes.
            self.offset += marker.unwrap_or_else(|| rest.len().saturating_sub(3)) as u64;
            let found = match marker.map(|place| parse(&self.key, self.offset, &rest[place..])) {
                Some(Parsed::Frame(_) | Parsed::BadPayload(_)) => true,
                Some(Parsed::Partial(needed)) if self.fill(needed)? => continue,
                Some(Parsed::Partial(_) | Parsed::Nothing) => {
                    self.offset += 1;
                    continue;
                }
                None if self.fill(self.rest_of_chunk().len() + 1)? => continue,
                None => false,
            };
            if !found {
                self.offset = self.chunk_at + self.chunk.len() as u64;
            }
            return Ok(Item::Hole { at, bytes: self.offset - at });
        }
    }
}

/// The payload itself; none where it is not what the header says.
pub(in crate::journal) fn unpack(frame: &Frame, stored: &Bytes) -> Option<Bytes> {
    let payload = match frame.codec {
        Codec::Plain => stored.clone(),
        // A header that promises more than there may be is none, so that these make no more than that.
        Codec::Lz4 => Bytes::from(lz4_flex::block::decompress(stored, frame.payload_bytes).ok()?),
        Codec::Zstd => Bytes::from(zstd::bulk::decompress(stored, frame.payload_bytes).ok()?),
        Codec::Other => return None,
    };
    (payload.len() == frame.payload_bytes).then_some(payload)
}
