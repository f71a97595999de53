//! Why the journal cannot be opened.

use std::io;

/// Why the journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk failed.
    #[error("{0}")]
    Disk(#[from] io::Error),
    /// A newer version wrote a file.
    #[error("{0} was written by a newer version of Twinflux: start that version, or move the folder away")]
    Newer(String),
}
