//! The files that a restore reads, in order, compressed or not.
//!
//! Never does: change a file. Bounds: the list of the files.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

/// First bytes of a gzip stream.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// A file to read, or the standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File(PathBuf);

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_standard_input() { f.write_str("standard input") } else { write!(f, "{}", self.0.display()) }
    }
}

impl File {
    fn is_standard_input(&self) -> bool {
        self.0 == Path::new("-")
    }

    /// Opens the file. Decompresses it if necessary.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub(super) fn open(&self) -> io::Result<Box<dyn Read>> {
        let mut input: Box<dyn BufRead> = if self.is_standard_input() {
            Box::new(io::stdin().lock())
        } else {
            Box::new(BufReader::new(std::fs::File::open(&self.0)?))
        };
        if input.fill_buf()?.starts_with(GZIP) {
            return Ok(Box::new(MultiGzDecoder::new(input)));
        }
        Ok(Box::new(input))
    }
}

/// An argument of a restore cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// There is no such file or folder.
    #[error("{0} does not exist: name an archive's folder, or a dump")]
    Missing(PathBuf),
    /// The folder cannot be read.
    #[error("cannot read the folder {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// The folder is a relay's data folder.
    #[error("{0} is a data_dir: restore the folder of an archive in it, or what `twinflux journal dump {0}` writes")]
    DataDir(PathBuf),
    /// The folder holds no archive.
    #[error("{0} holds no archive: its files end in .lp or .lp.gz, in one folder for each destination")]
    NoArchive(PathBuf),
}

/// Lists the files of these arguments. A folder stands for the archive files in it and in its
/// subfolders, oldest first.
///
/// # Errors
/// An argument does not exist, or holds no archive. The message says what would be right.
pub(super) fn files(inputs: &[PathBuf]) -> Result<Vec<File>, SourceError> {
    let mut files = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            if input != Path::new("-") && !input.exists() {
                return Err(SourceError::Missing(input.clone()));
            }
            files.push(File(input.clone()));
            continue;
        }
        let mut found = Vec::new();
        let cannot = |error: io::Error| SourceError::Unreadable(input.clone(), error);
        list(input, &mut found).map_err(cannot)?;
        for entry in std::fs::read_dir(input).map_err(cannot)? {
            let path = entry.map_err(cannot)?.path();
            if path.is_dir() {
                list(&path, &mut found).map_err(cannot)?;
            }
        }
        if found.is_empty() {
            let is_data_dir = input.join("journal").is_dir();
            let error = if is_data_dir { SourceError::DataDir } else { SourceError::NoArchive };
            return Err(error(input.clone()));
        }
        found.sort();
        files.extend(found.into_iter().map(|(_, path)| File(path)));
    }
    Ok(files)
}

/// Adds the archive files in this folder, each with the time in its name.
fn list(folder: &Path, found: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stamp = name.strip_suffix(".lp").or_else(|| name.strip_suffix(".lp.gz"));
        // If the relay ended while a file was compressed, both versions exist. The uncompressed one
        // is always whole.
        let is_twin = name.ends_with(".gz") && path.with_extension("").exists();
        if let Some(stamp) = stamp.filter(|_| !is_twin && path.is_file()) {
            found.push((stamp.to_owned(), path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_folder_stands_for_its_files_oldest_first() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["b.ns", "a.week.s"] {
            std::fs::create_dir(at(name)).expect("a folder");
        }
        for name in [
            "lock",
            "a.week.s/20261123T034500Z.lp",
            "a.week.s/20261123T024500Z-0001.lp.gz",
            "a.week.s/20261123T024500Z.lp.gz",
            "b.ns/20261123T030000Z.lp.gz",
            "b.ns/20261123T030001Z.lp.gz",
            "b.ns/20261123T030001Z.lp",
            "b.ns/20261123T030001Z.lp.gz.tmp",
        ] {
            std::fs::write(at(name), "x").expect("write");
        }
        let expected = [
            "a.week.s/20261123T024500Z.lp.gz",
            "a.week.s/20261123T024500Z-0001.lp.gz",
            "b.ns/20261123T030000Z.lp.gz",
            "b.ns/20261123T030001Z.lp",
            "a.week.s/20261123T034500Z.lp",
        ];
        assert_eq!(files(&[folder.path().to_owned()]).expect("files"), expected.map(|name| File(at(name))).to_vec());
        // One destination's folder, a file, and the standard input.
        let inputs = [at("b.ns"), at("lock"), PathBuf::from("-")];
        let expected = [at(expected[2]), at(expected[3]), at("lock"), PathBuf::from("-")];
        assert_eq!(files(&inputs).expect("files"), expected.map(File).to_vec());
    }

    #[test]
    fn what_holds_no_archive_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(files(&[folder.path().to_owned()]).is_err_and(|error| error.to_string().contains(".lp.gz")));
        assert!(files(&[folder.path().join("x")]).is_err_and(|error| error.to_string().contains("does not exist")));
    }

    #[test]
    fn what_is_compressed_is_known_by_its_beginning() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("dump");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"m v=1 1\n").expect("write");
        for bytes in [encoder.finish().expect("compressed"), b"m v=1 1\n".to_vec()] {
            std::fs::write(&path, bytes).expect("write");
            let mut text = String::new();
            File(path.clone()).open().expect("open").read_to_string(&mut text).expect("read");
            assert_eq!(text, "m v=1 1\n");
        }
    }
}
