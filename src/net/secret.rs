//! Secrets: read from files, never shown.

use std::path::PathBuf;
use std::{fmt, io};

/// A file that holds one secret: a password or a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile(PathBuf);

/// A secret file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {}: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
    /// The file holds nothing but white space.
    #[error("the secret file {} is empty: write the password or token into it", .0.display())]
    Empty(PathBuf),
    /// The text holds a control character, such as a line feed.
    #[error("the secret file {} holds more than one line: only the secret belongs there", .0.display())]
    SeveralLines(PathBuf),
}

/// A secret's text. It has no `Display`, and its `Debug` hides it.
#[derive(Clone)]
pub struct Secret(String);

impl SecretFile {
    /// Refers to the secret in this file, without reading it.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Returns the file's path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Reads the secret, and trims white space.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or has several lines.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let text = std::fs::read_to_string(&self.0).map_err(|error| SecretError::Unreadable(self.0.clone(), error))?;
        let text = text.trim();
        if text.is_empty() {
            return Err(SecretError::Empty(self.0.clone()));
        }
        if text.chars().any(char::is_control) {
            return Err(SecretError::SeveralLines(self.0.clone()));
        }
        Ok(Secret(text.to_owned()))
    }
}

impl Secret {
    /// Returns the text, for the one function that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(****)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_trimmed_and_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("password");
        std::fs::write(&path, "  hunter2\n").expect("write");
        let secret = SecretFile::new(path).read().expect("secret");
        assert_eq!(secret.expose(), "hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn a_missing_or_empty_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("token");
        let missing = SecretFile::new(path.clone()).read().expect_err("missing").to_string();
        assert!(missing.contains("token") && missing.contains("cannot read"), "{missing}");
        std::fs::write(&path, "\n").expect("write");
        let empty = SecretFile::new(path).read().expect_err("empty").to_string();
        assert!(empty.contains("empty"), "{empty}");
    }
}
