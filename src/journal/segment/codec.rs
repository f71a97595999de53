//! Compression of records' payloads.

use serde::{Deserialize, Serialize};

use super::frame::Codec;

/// How records are compressed on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard while a backend is so far behind that it reads from disk; otherwise none.
    #[default]
    Auto,
    /// None.
    None,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard, level 1.
    Zstd,
}

/// Zstandard's level: higher levels cost more CPU than the disk space they save is worth.
const ZSTD_LEVEL: i32 = 1;

/// Compresses into a buffer that it reuses.
pub(in crate::journal) struct Compressor {
    compression: Compression,
    /// Created on first use.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Compressor").field(&self.compression).finish()
    }
}

impl Compressor {
    pub(in crate::journal) fn new(compression: Compression) -> Self {
        Self { compression, zstd: None, buffer: Vec::new() }
    }

    /// Returns the payload as it is to be stored: unchanged if compression does not make it
    /// smaller. `is_behind`: some backend needs records that are only on disk, so this record will
    /// stay there for a while, too.
    pub(in crate::journal) fn compress<'a>(&'a mut self, payload: &'a [u8], is_behind: bool) -> (Codec, &'a [u8]) {
        let (codec, length) = match self.compression {
            Compression::Lz4 => {
                self.buffer.resize(lz4_flex::block::get_maximum_output_size(payload.len()), 0);
                (Codec::Lz4, lz4_flex::block::compress_into(payload, &mut self.buffer).ok())
            }
            Compression::Zstd => self.zstd(payload),
            Compression::Auto if is_behind => self.zstd(payload),
            Compression::Auto | Compression::None => (Codec::Plain, None),
        };
        match length.filter(|length| *length < payload.len()) {
            Some(length) => (codec, &self.buffer[..length]),
            None => (Codec::Plain, payload),
        }
    }

    /// Compresses into the buffer. Returns the compressed length, or `None` on failure.
    fn zstd(&mut self, payload: &[u8]) -> (Codec, Option<usize>) {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        self.buffer.resize(zstd::zstd_safe::compress_bound(payload.len()), 0);
        let buffer = &mut self.buffer[..];
        let compressed = self.zstd.as_mut().and_then(|zstd| zstd.compress_to_buffer(payload, buffer).ok());
        (Codec::Zstd, compressed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::{Destination, Span};
    use crate::journal::segment::frame::{Frame, Kind};
    use crate::journal::segment::frames::unpack;
    use crate::journal::segment::{Position, Sequence};
    use crate::protocol::Precision;

    fn frame(codec: Codec, stored_bytes: usize, payload_bytes: usize) -> Frame {
        let destination = Destination::new("db", "", Precision::Nanoseconds);
        let (sequence, at) = (Sequence::FIRST, Position::default());
        Frame {
            kind: Kind::Record,
            codec,
            destination,
            sequence,
            at,
            points: Span::NONE,
            lines: 1,
            received: None,
            stored_bytes,
            payload_bytes,
            extension_bytes: 0,
        }
    }

    #[test]
    fn what_is_compressed_is_smaller_and_comes_back_and_what_is_not_stays() {
        let lines = b"cpu,host=a usage=1 1\n".repeat(1000);
        let noise: Vec<u8> = (0..1000).map(|_| fastrand::u8(..)).collect();
        for (compression, is_behind, codec) in [
            (Compression::None, true, Codec::Plain),
            (Compression::Lz4, false, Codec::Lz4),
            (Compression::Zstd, false, Codec::Zstd),
            (Compression::Auto, false, Codec::Plain),
            (Compression::Auto, true, Codec::Zstd),
        ] {
            let mut compressor = Compressor::new(compression);
            for (payload, expected) in [(&lines, codec), (&noise, Codec::Plain)] {
                let (codec, stored) = compressor.compress(payload, is_behind);
                assert_eq!(codec, expected);
                assert!(codec == Codec::Plain || stored.len() < payload.len() / 20);
                let frame = frame(codec, stored.len(), payload.len());
                let stored = Bytes::copy_from_slice(stored);
                assert_eq!(unpack(&frame, &stored).as_deref(), Some(&payload[..]));
                for wrong in [payload.len() - 1, payload.len() + 1] {
                    assert!(unpack(&Frame { payload_bytes: wrong, ..frame.clone() }, &stored).is_none());
                }
            }
        }
    }
}
