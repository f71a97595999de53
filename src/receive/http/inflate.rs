//! Decompression of a request's body, piece by piece.
//!
//! Never does: keeping a body. Bounds: the size of a decompressed body, and its ratio to the
//! compressed one.

use std::io::Write as _;

use flate2::write::MultiGzDecoder;

use super::problem::Problem;

/// Compressed bytes that are decompressed at a time. They expand to at most a thousand times as
/// many.
pub(super) const INFLATE_BYTES: usize = 1024;
/// Decompression buffer that a request keeps between pieces. Most pieces of 1,024 bytes expand to
/// no more than this.
const KEPT_BYTES: usize = 16 * 1024;
/// Maximum ratio of decompressed to compressed bytes, enforced once a body has [`GROWTH_FROM`]
/// decompressed bytes.
const MAX_GROWTH: u64 = 200;
const GROWTH_FROM: u64 = 1 << 20;

/// Decompresses a body piece by piece.
pub(super) struct Inflater {
    decoder: MultiGzDecoder<Vec<u8>>,
    wire: u64,
    inflated: u64,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self { decoder: MultiGzDecoder::new(Vec::new()), wire: 0, inflated: 0 }
    }

    /// Decompresses the next bytes. The result reuses the buffer of the previous call.
    ///
    /// # Errors
    /// The bytes are no gzip, or the body becomes larger than `limit` or grows too much.
    pub(super) fn inflate(&mut self, bytes: &[u8], limit: u64) -> Result<&[u8], Problem> {
        self.wire += bytes.len() as u64;
        self.decoder.get_mut().clear();
        self.decoder.get_mut().shrink_to(KEPT_BYTES);
        self.decoder.write_all(bytes).map_err(|error| Problem::Gzip(error.to_string()))?;
        self.inflated += self.decoder.get_ref().len() as u64;
        let is_bomb = self.inflated > GROWTH_FROM && self.inflated / self.wire > MAX_GROWTH;
        if self.inflated > limit || is_bomb { Err(Problem::TooLarge(limit)) } else { Ok(self.decoder.get_ref()) }
    }

    /// Ends decompression and returns the last bytes.
    ///
    /// # Errors
    /// The body ends too early.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, Problem> {
        self.decoder.get_mut().clear();
        self.decoder.finish().map_err(|error| Problem::Gzip(error.to_string()))
    }
}
