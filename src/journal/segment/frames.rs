//! Iterates over a segment's frames, resynchronising after damage.
//!
//! Bounds: one chunk of the file in memory, as large as asked or as the largest frame.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem;

use super::format::SegmentName;
use super::frame::{Codec, Frame, Key, Parsed, parse};
use super::storage::StoredFile;

/// An item of a segment.
#[derive(Debug)]
pub(in crate::journal) enum Item {
    /// A frame, and its payload as stored.
    Frame(Frame, Bytes),
    /// A frame whose payload is damaged.
    BadPayload(Frame),
    /// Bytes that are no frame: damage, or, at the end, an unfinished write.
    Hole {
        /// Where they begin.
        at: u64,
        /// How many.
        bytes: u64,
    },
}

/// Iterates over a segment's frames.
#[derive(Debug)]
pub(in crate::journal) struct Frames {
    file: Arc<dyn StoredFile>,
    name: SegmentName,
    key: Key,
    /// Where the next frame begins.
    offset: u64,
    chunk: Bytes,
    chunk_at: u64,
    chunk_bytes: usize,
    /// Whether unreadable blocks count as damage. Otherwise they are errors.
    is_tolerant: bool,
    /// Unreadable blocks counted as damage so far.
    unreadable: u64,
}

/// The unit that a disk either reads or fails to read.
const BLOCK_BYTES: usize = 4096;

impl Frames {
    /// Starts at this offset, reading `chunk_bytes` at a time.
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

    /// The segment's name.
    pub(in crate::journal) fn segment(&self) -> SegmentName {
        self.name
    }

    /// Where the next frame begins.
    pub(in crate::journal) fn offset(&self) -> u64 {
        self.offset
    }

    /// From now on, unreadable blocks are damage instead of errors.
    pub(in crate::journal) fn tolerate(&mut self) {
        self.is_tolerant = true;
    }

    /// Unreadable blocks counted as damage so far.
    pub(in crate::journal) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Returns the next item, or `None` at the file's end.
    ///
    /// # Errors
    /// The disk fails. The next call reads the same offset again.
    pub(in crate::journal) fn next(&mut self) -> io::Result<Option<Item>> {
        loop {
            let rest = self.rest_of_chunk();
            match parse(&self.key, self.offset, &rest) {
                Parsed::Frame(frame) => {
                    let payload = rest.slice(frame.header_bytes()..frame.bytes());
                    self.offset += frame.bytes() as u64;
                    return Ok(Some(Item::Frame(frame, payload)));
                }
                Parsed::BadPayload(frame) => {
                    self.offset += frame.bytes() as u64;
                    return Ok(Some(Item::BadPayload(frame)));
                }
                Parsed::Partial(needed) if self.fill(needed)? => {}
                // `Nothing` may just be the end of the chunk.
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

    /// Reads until at least this many bytes are buffered from the offset on. Returns `false` if the
    /// file has no more than what is buffered already.
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

    /// Reads block by block, and fills unreadable blocks with zeros.
    fn read_blocks(&mut self, buffer: &mut [u8]) -> usize {
        for (index, block) in buffer.chunks_mut(BLOCK_BYTES).enumerate() {
            if self.file.read_at(block, self.offset + (index * BLOCK_BYTES) as u64).is_err() {
                block.fill(0);
                self.unreadable += 1;
            }
        }
        buffer.len()
    }

    /// Skips to the next whole frame, or to the file's end.
    fn skip_damage(&mut self) -> io::Result<Item> {
        let at = self.offset;
        self.offset += 1;
        loop {
            let rest = self.rest_of_chunk();
            let marker = memmem::find(&rest, &self.key.marker);
            // If no whole marker is found, one may begin in the last three bytes.
            self.offset += marker.unwrap_or_else(|| rest.len().saturating_sub(3)) as u64;
            let found = match marker.map(|start| parse(&self.key, self.offset, &rest[start..])) {
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

/// Decompresses a payload. Returns `None` if it differs from what the header says.
pub(in crate::journal) fn unpack(frame: &Frame, stored: &Bytes) -> Option<Bytes> {
    let payload = match frame.codec {
        Codec::Plain => stored.clone(),
        // Headers that claim more than the maximum were rejected, so these allocate no more than
        // that.
        Codec::Lz4 => Bytes::from(lz4_flex::block::decompress(stored, frame.payload_bytes).ok()?),
        Codec::Zstd => Bytes::from(zstd::bulk::decompress(stored, frame.payload_bytes).ok()?),
        Codec::Other => return None,
    };
    (payload.len() == frame.payload_bytes).then_some(payload)
}
