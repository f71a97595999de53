//! Reads users and tokens from their files.
//!
//! The users' file is written by `htpasswd -B`: `NAME:$2y$…`, bcrypt only. The tokens' file has
//! lines `NAME:TOKEN`, or `NAME:sha256:HEX` with the token's digest. Empty lines and lines that
//! begin with `#` are skipped; an invalid line is an error that names it. Never keeps a secret in
//! memory: only digests of tokens are kept. Bounds: [`MAX_NAMES`] per file.

use std::collections::HashMap;
use std::path::Path;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::error::{AuthError, InvalidLine};

/// A token's digest.
pub(super) type Digest = [u8; SHA256_OUTPUT_LEN];

/// Maximum number of users or tokens; more are probably a mistake.
pub(super) const MAX_NAMES: usize = 10_000;
/// Maximum cost of a hash: 2^14 rounds take about a second.
pub(super) const MAX_COST: u32 = 14;
/// Minimum cost of a hash: bcrypt's own.
pub(super) const MIN_COST: u32 = 4;

/// The names in the files.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Bcrypt's hash of each user's password.
    pub(super) users: HashMap<String, String>,
    /// The name of each token.
    pub(super) tokens: HashMap<Digest, String>,
}

/// Returns a token's digest.
pub(super) fn digest_of(token: &str) -> Digest {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

impl Names {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, or a line is invalid.
    pub(super) fn read(users: Option<&Path>, tokens: Option<&Path>) -> Result<Self, AuthError> {
        let mut names = Self::default();
        for Entry { line, name, value: hash } in users.map(entries).transpose()?.into_iter().flatten() {
            check_hash(&hash).map_err(|problem| line.error(problem))?;
            if names.users.insert(name.clone(), hash).is_some() {
                return Err(line.error(InvalidLine::SameUser(name)));
            }
        }
        for Entry { line, name, value: token } in tokens.map(entries).transpose()?.into_iter().flatten() {
            let digest = match token.strip_prefix("sha256:") {
                Some(hex) => of_hex(hex).ok_or_else(|| line.error(InvalidLine::NoDigest))?,
                None => digest_of(&token),
            };
            if names.tokens.insert(digest, name).is_some() {
                return Err(line.error(InvalidLine::SameToken));
            }
        }
        Ok(names)
    }
}

/// A line `NAME:VALUE` of a file.
struct Entry<'a> {
    line: Line<'a>,
    name: String,
    value: String,
}

/// A line's file and number, for errors.
#[derive(Clone, Copy)]
struct Line<'a> {
    file: &'a Path,
    number: usize,
}

impl Line<'_> {
    fn error(self, problem: InvalidLine) -> AuthError {
        AuthError::Line { file: self.file.to_owned(), number: self.number, problem }
    }
}

/// Reads a file's entries.
fn entries(file: &Path) -> Result<Vec<Entry<'_>>, AuthError> {
    let text = std::fs::read_to_string(file).map_err(|error| AuthError::Unreadable(file.to_owned(), error))?;
    let mut found = Vec::new();
    for (number, text) in (1..).zip(text.lines()) {
        let text = text.trim_end();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let line = Line { file, number };
        match text.split_once(':') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                found.push(Entry { line, name: name.to_owned(), value: value.to_owned() });
            }
            _ => return Err(line.error(InvalidLine::NoPair)),
        }
    }
    if found.is_empty() {
        return Err(AuthError::Empty(file.to_owned()));
    }
    if found.len() > MAX_NAMES {
        return Err(AuthError::TooManyNames(file.to_owned()));
    }
    Ok(found)
}

/// Checks that a hash is bcrypt's, and that its check is fast enough.
fn check_hash(hash: &str) -> Result<(), InvalidLine> {
    if !hash.is_ascii() || !["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind)) || hash.len() != 60 {
        return Err(InvalidLine::NotBcrypt);
    }
    match hash[4..6].parse::<u32>() {
        Ok(cost) if (MIN_COST..=MAX_COST).contains(&cost) => Ok(()),
        _ => Err(InvalidLine::Cost),
    }
}

fn of_hex(text: &str) -> Option<Digest> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(users: Option<&str>, tokens: Option<&str>) -> Result<Names, AuthError> {
        let folder = tempfile::tempdir().expect("folder");
        let file = |name: &str, text: Option<&str>| {
            let path = folder.path().join(name);
            text.map(|text| {
                std::fs::write(&path, text).expect("write");
                path.clone()
            })
        };
        Names::read(file("users", users).as_deref(), file("tokens", tokens).as_deref())
    }

    const HASH: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

    #[test]
    fn users_and_tokens_are_found() {
        let users = format!("# people\nme:{HASH}\n\nyou:{}\n", HASH.replace("$2y$", "$2b$"));
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let names =
            read(Some(&users), Some(&format!("grafana:secret:with:colons\nhost:sha256:{hex}\n"))).expect("names");
        assert_eq!((names.users.len(), &names.users["me"]), (2, &HASH.to_owned()));
        assert_eq!(names.tokens[&digest_of("secret:with:colons")], "grafana");
        assert_eq!(names.tokens[&digest_of("abc")], "host");
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_line() {
        for (users, tokens, part) in [
            (Some("me:plain"), None, "line 1: the password's hash is not bcrypt's: make it with htpasswd -B"),
            (Some("# x\nme:$apr1$x$y"), None, "line 2: the password's hash"),
            (Some("me:{SHA}x="), None, "htpasswd -B"),
            (Some(&*format!("me:{}", HASH.replace("$05$", "$31$"))), None, "cost must be between 4 and 14"),
            (Some(&*format!("me:{}ä", &HASH[..58])), None, "is not bcrypt's"),
            (Some(&*format!("me:{HASH}\nme:{HASH}")), None, "line 2: the user \"me\" is there twice"),
            (Some("me"), None, "line 1: write NAME:VALUE"),
            (Some("\n# x\n"), None, "names nobody"),
            (None, Some("a:x\nb:x"), "line 2: the token is there twice"),
            (None, Some("a:sha256:abc"), "64 hexadecimal digits"),
        ] {
            let error = read(users, tokens).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
