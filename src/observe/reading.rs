//! What a copy's readers come to, as `/api/status` shows it.

use serde::{Deserialize, Serialize};

use crate::query;

/// What readers are answered by one copy.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Read {
    /// Whether it may answer: `yes`, `edge` (all but the newest seconds), `no`.
    pub serves: String,
    /// Why not, or not all.
    pub reason: Option<String>,
    /// Since when, in UTC.
    pub since: String,
    /// Questions that were sent to it.
    pub queries: u64,
    /// Questions that it could not answer, so that another copy was asked.
    pub failovers: u64,
    /// Answers that may lack something, and say so.
    pub incomplete: u64,
    /// Answers that ended before they were whole.
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
