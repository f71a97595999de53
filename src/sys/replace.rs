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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn whatever_a_crash_left_the_old_content_or_the_new_one_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let (file, new) = (folder.path().join("state.json"), folder.path().join("state.tmp"));
        replace(&file, b"old").expect("replaced");
        // The crash came before the new file was whole, or before it was renamed.
        for left in [&b""[..], b"ne", b"new, and more than that"] {
            std::fs::write(&new, left).expect("write");
            assert_eq!(std::fs::read(&file).expect("read"), b"old");
            replace(&file, b"new").expect("replaced");
            assert_eq!(std::fs::read(&file).expect("read"), b"new");
            assert!(!new.exists());
            replace(&file, b"old").expect("replaced");
        }
        let mode = std::fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, MODE, "nobody else reads it");
    }

    #[test]
    fn what_cannot_be_replaced_stays_as_it_was() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("state.json");
        replace(&file, b"old").expect("replaced");
        // A folder where the new file would be.
        std::fs::create_dir(folder.path().join("state.tmp")).expect("create");
        replace(&file, b"new").expect_err("no file can be made");
        assert_eq!(std::fs::read(&file).expect("read"), b"old");
        replace(&folder.path().join("none/state.json"), b"new").expect_err("there is no folder");
    }
}
