//! One file of dead letters: a line of text that identifies the format, followed by entries.
//!
//! ```text
//! twinflux dead letters 1\n
//! length (u32, little endian)  CRC-32C of the body (u32)  body (JSON)
//! …
//! ```
//!
//! A body holds lines that one answer rejected, or the numbers of removed letters. An entry torn by
//! a crash ends the file: nothing behind it was acknowledged.
//!
//! Owns: the format. Never does: keep a file open for reading, or change one. Bounds:
//! [`MAX_BODY_BYTES`] per body; reading holds one file in memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// First bytes of a file.
pub(super) const MAGIC: &[u8] = b"twinflux dead letters 1\n";
/// Size of an entry's length and checksum.
const HEAD_BYTES: usize = 8;
/// Maximum size of a body: a longer one is damage.
const MAX_BODY_BYTES: usize = 64 << 20;

/// An entry of a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// Lines that one answer rejected. They are numbered consecutively from `first`.
    Refused(Refusal),
    /// Numbers of removed letters.
    Gone(Vec<u64>),
}

/// Lines that one answer rejected.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Refusal {
    pub first: u64,
    pub backend: String,
    pub database: String,
    pub retention_policy: String,
    pub precision: String,
    pub class: String,
    pub status: Option<u16>,
    pub answer: String,
    /// Nanoseconds since 1970.
    pub at: u64,
    pub lines: Vec<String>,
}

impl Entry {
    /// Encodes the entry as it is written.
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        Ok([&length.to_le_bytes()[..], &crc32c::crc32c(&body).to_le_bytes(), &body].concat())
    }
}

/// Reads a file, and calls `each` with every whole entry and its size in bytes. Returns the offset
/// where the last whole entry ends.
///
/// # Errors
/// The file cannot be read, or is not a file of dead letters.
pub(super) fn read(path: &Path, mut each: impl FnMut(Entry, u64)) -> io::Result<u64> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    if !bytes.starts_with(MAGIC) {
        let is_torn = MAGIC.starts_with(&bytes);
        return if is_torn {
            Ok(0)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "no file of dead letters"))
        };
    }
    let mut at = MAGIC.len();
    while let Some((entry, length)) = decode(&bytes[at..]) {
        each(entry, length as u64);
        at += length;
    }
    Ok(at as u64)
}

/// Creates a new file.
pub(super) fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options().create_new(true).append(true).mode(0o600).open(path)?;
    file.write_all(MAGIC)?;
    Ok(file)
}

/// Decodes the entry at the start of these bytes. Returns it with its length.
fn decode(bytes: &[u8]) -> Option<(Entry, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (length, checksum) = (usize::try_from(number(0)?).ok()?, number(4)?);
    let body = bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(length)?).filter(|_| length <= MAX_BODY_BYTES)?;
    if crc32c::crc32c(body) != checksum {
        return None;
    }
    Some((serde_json::from_slice(body).ok()?, HEAD_BYTES + length))
}
