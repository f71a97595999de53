//! The comments that name the destination of a text's lines, in archives and in dumps of the
//! journal.
//!
//! ```text
//! # DML
//! # CONTEXT-DATABASE: telegraf
//! # CONTEXT-RETENTION-POLICY: week
//! # precision: ms
//! # twinflux: {"database":"telegraf","retention_policy":"week","precision":"ms"}
//! ```
//!
//! `influx -import` reads the first three lines; all other programs take all of them for comments.
//! Only the last line holds every name unchanged: `read` uses it, and falls back to the others if
//! it is missing. Comments stand between lines: within a string they are part of the text.

use serde::{Deserialize, Serialize};

use crate::batch::Destination;
use crate::protocol::{Precision, UnknownPrecision};

/// A header cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The JSON of this line is malformed.
    #[error("{0:?} is no header: {1}")]
    Malformed(String, serde_json::Error),
    /// There is no such precision.
    #[error(transparent)]
    Precision(#[from] UnknownPrecision),
}

/// Content of the last line.
#[derive(Debug, Deserialize, Serialize)]
struct Exact {
    database: String,
    retention_policy: String,
    precision: Precision,
}

/// Writes the header of lines for this destination.
pub fn write(destination: &Destination) -> String {
    let (database, retention_policy) = (destination.database().to_owned(), destination.retention_policy().to_owned());
    let precision = destination.precision();
    // A line feed in a name would begin a line of the text.
    let plain = |name: &str| name.replace(char::is_control, "?");
    let (shown, policy) = (plain(&database), plain(&retention_policy));
    let exact = serde_json::to_string(&Exact { database, retention_policy, precision });
    let exact = exact.expect("BUG: names and a precision are always JSON");
    format!(
        "# DML\n# CONTEXT-DATABASE: {shown}\n# CONTEXT-RETENTION-POLICY: {policy}\n# precision: {precision}\n\
         # twinflux: {exact}\n"
    )
}

/// Reads the destination from these comments. `None`: the destination stays what it was before
/// them.
///
/// # Errors
/// The header is malformed.
pub(super) fn read(comments: &str) -> Result<Option<Destination>, HeaderError> {
    let (mut database, mut retention_policy, mut precision, mut exact) = (None, String::new(), None, None);
    for line in comments.lines() {
        let Some(comment) = line.trim_start().strip_prefix('#') else { continue };
        let comment = comment.trim_start();
        let value = |key: &str| comment.strip_prefix(key).map(|value| value.strip_prefix(' ').unwrap_or(value));
        if let Some(json) = value("twinflux:") {
            let read: Exact =
                serde_json::from_str(json).map_err(|error| HeaderError::Malformed(line.to_owned(), error))?;
            exact = Some(read);
        } else if let Some(name) = value("CONTEXT-DATABASE:") {
            database = Some(name.to_owned());
        } else if let Some(name) = value("CONTEXT-RETENTION-POLICY:") {
            name.clone_into(&mut retention_policy);
        } else if let Some(unit) = value("precision:").or_else(|| value("DML, timestamps in")) {
            precision = Some(unit.trim().parse()?);
        }
    }
    if let Some(Exact { database, retention_policy, precision }) = exact {
        return Ok(Some(Destination::new(database, retention_policy, precision)));
    }
    // Other programs export nanoseconds, and do not say so.
    let precision = precision.unwrap_or_default();
    Ok(database.map(|database| Destination::new(database, retention_policy, precision)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(database: &str, policy: &str, precision: Precision) -> Destination {
        Destination::new(database.to_owned(), policy.to_owned(), precision)
    }

    #[test]
    fn every_name_comes_back_as_it_was() {
        let names = ["telegraf", " a ", "a: b", "a\nm v=1 1\n# CONTEXT-DATABASE: b", "\"\\\r", "ü # DML", "{}"];
        for (index, database) in names.iter().enumerate() {
            for policy in ["", names[names.len() - 1 - index]] {
                let written = destination(database, policy, Precision::Minutes);
                let header = write(&written);
                assert!(header.lines().all(|line| line.starts_with("# ")), "{header}");
                assert_eq!(read(&header).expect("a header"), Some(written), "{header}");
            }
        }
    }

    #[test]
    fn headers_of_other_programs_are_read_too() {
        let (seconds, nanoseconds) = (Precision::Seconds, Precision::Nanoseconds);
        for (comments, expected) in [
            (
                "# DML\n# CONTEXT-DATABASE: db\n# CONTEXT-RETENTION-POLICY: \n# precision: s\n",
                Some(destination("db", "", seconds)),
            ),
            (
                "# DML, timestamps in s\n# CONTEXT-DATABASE: a: b\n# CONTEXT-RETENTION-POLICY: rp\n",
                Some(destination("a: b", "rp", seconds)),
            ),
            (
                "# CONTEXT-DATABASE:db\r\n# CONTEXT-RETENTION-POLICY:autogen\r\n# writing tsm data\r\n",
                Some(destination("db", "autogen", nanoseconds)),
            ),
            ("# a comment\n\n", None),
            ("", None),
        ] {
            assert_eq!(read(comments).expect("a header"), expected, "{comments}");
        }
        for wrong in ["# precision: weeks\n", "# twinflux: {\"database\":1}\n"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
