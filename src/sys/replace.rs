//! Replaces small files atomically.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Only the owner may read the file.
const MODE: u32 = 0o600;

/// Replaces a file's content atomically: after a crash it is either the old or the new one. May
/// block as long as the disk does.
///
/// # Errors
/// The system's error; the old content is kept.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("tmp");
    let mut file = File::options().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}
