//! Users and tokens as their files have them.
//!
//! Users stand in a file as `htpasswd -B` writes it: `NAME:$2y$…`, bcrypt only. Tokens stand in another one: `NAME:TOKEN`, or
//! `NAME:sha256:HEX` with the token's digest. A line that cannot be used is an error that names it; lines that begin with
//! `#`, and empty ones, are skipped. Neither holds a secret in memory: of tokens their digests are kept.

use std::collections::HashMap;
use std::path::Path;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// A token's digest.
pub(super) type Digest = [u8; SHA256_OUTPUT_LEN];

/// More users or tokens than this are a mistake.
const MOST_NAMES: usize = 10_000;
/// The highest cost of a hash that is checked: 2^14 rounds take about a second.
const MOST_COST: u32 = 14;

/// Everybody that the files name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Bcrypt's hash of each user's password.
    pub(super) users: HashMap<String, String>,
    /// Whose each token is.
    pub(super) tokens: HashMap<Digest, String>,
}

/// A token's digest.
pub(super) fn digest_of(token: &str) -> Digest {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

impl Names {
    /// Reads the files.
    ///
    /// # Errors
    /// A sentence: which file cannot be read, or which line cannot be used and why.
    pub(super) fn read(users: Option<&Path>, tokens: Option<&Path>) -> Result<Self, String> {
        let mut names = Self::default();
        for (path, name, hash) in users.map(lines).transpose()?.into_iter().flatten() {
            check_hash(&hash).map_err(|what| format!("{path} {what}"))?;
            if names.users.insert(name.clone(), hash).is_some() {
                return Err(format!("{path} the user {name:?} is there twice"));
            }
        }
        for (path, name, token) in tokens.map(lines).transpose()?.into_iter().flatten() {
            let digest = match token.strip_prefix("sha256:") {
                Some(hex) => {
                    of_hex(hex).ok_or_else(|| format!("{path} sha256: needs 64 hexadecimal digits behind it"))?
                }
                None => digest_of(&token),
            };
            if names.tokens.insert(digest, name).is_some() {
                return Err(format!("{path} the token is there twice"));
            }
        }
        Ok(names)
    }
}

/// The names of a file, and what stands behind each, with its place for errors.
fn lines(path: &Path) -> Result<Vec<(String, String, String)>, String> {
    let file = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {file}: {error}"))?;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{file}, line {number}:");
        match line.split_once(':') {
            Some((name, rest)) if !name.is_empty() && !rest.is_empty() => {
                found.push((place, name.to_owned(), rest.to_owned()));
            }
            _ => return Err(format!("{place} write NAME:VALUE")),
        }
    }
    if found.is_empty() {
        return Err(format!("{file} names nobody"));
    }
    if found.len() > MOST_NAMES {
        return Err(format!("{file} names more than {MOST_NAMES}"));
    }
    Ok(found)
}

/// Whether a hash is bcrypt's, and one that can be checked in time.
fn check_hash(hash: &str) -> Result<(), String> {
    if !hash.is_ascii() || !["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind)) || hash.len() != 60 {
        return Err("the password's hash is not bcrypt's: make it with htpasswd -B".to_owned());
    }
    match hash[4..6].parse::<u32>() {
        Ok(cost) if (4..=MOST_COST).contains(&cost) => Ok(()),
        _ => Err(format!("the hash's cost must be between 4 and {MOST_COST}: make it with htpasswd -B -C 10")),
    }
}

fn of_hex(text: &str) -> Option<Digest> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(users: Option<&str>, tokens: Option<&str>) -> Result<Names, String> {
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
            let error = read(users, tokens).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }
}
