//! Queries answered by one copy, as `/api/status` shows them.

use serde::{Deserialize, Serialize};

use crate::query;

/// Figures of the queries to one copy.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Read {
    /// Whether the copy may answer: `yes`, `edge` (all but the newest seconds), `no`.
    pub serves: String,
    /// The reason, unless it may answer everything.
    pub reason: Option<String>,
    /// Since when this holds, in UTC.
    pub since: String,
    /// Queries sent to the copy.
    pub queries: u64,
    /// Queries that it could not answer, so that another copy was asked.
    pub failovers: u64,
    /// Answers that may be incomplete, and say so.
    pub incomplete: u64,
    /// Answers that broke off.
    pub cut: u64,
}

impl Read {
    pub(super) fn new(reading: query::Reading) -> Self {
        let query::Reading { queries, failovers, incomplete, cut, serves } = reading;
        Self {
            serves: serves.word.to_owned(),
            reason: serves.reason,
            since: humantime::format_rfc3339_seconds(serves.since).to_string(),
            queries,
            failovers,
            incomplete,
            cut,
        }
    }
}
