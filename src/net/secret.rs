//! Secrets: read from files, never shown.

use std::fmt;
use std::path::PathBuf;

/// A file that holds one secret: a password or a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile(PathBuf);

/// A secret's text. It has no `Display`, and its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(String);

impl SecretFile {
    /// The secret in this file.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The file's path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Reads the secret, without white space around it.
    ///
    /// # Errors
    /// A sentence that names the file: it cannot be read, or is empty.
    pub fn read(&self) -> Result<Secret, String> {
        let path = self.0.display();
        let text =
            std::fs::read_to_string(&self.0).map_err(|error| format!("cannot read the secret file {path}: {error}"))?;
        let text = text.trim();
        if text.is_empty() {
            return Err(format!("the secret file {path} is empty: write the password or token into it"));
        }
        if text.chars().any(char::is_control) {
            return Err(format!("the secret file {path} holds more than one line: only the secret belongs there"));
        }
        Ok(Secret(text.to_owned()))
    }
}

impl Secret {
    /// The text, for the one place that sends it.
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
        let missing = SecretFile::new(path.clone()).read().expect_err("missing");
        assert!(missing.contains("token") && missing.contains("cannot read"), "{missing}");
        std::fs::write(&path, "\n").expect("write");
        let empty = SecretFile::new(path).read().expect_err("empty");
        assert!(empty.contains("empty"), "{empty}");
    }
}
