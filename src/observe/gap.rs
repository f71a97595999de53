//! An entry of the gap ledger, as `/api/status` shows it.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::batch::WallTime;
use crate::journal;

/// A gap: lines that a backend lacks.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Gap {
    /// Number of the gap; unique in this journal for all time.
    #[serde(default)]
    pub id: u64,
    /// `open`: the gap has not been repaired.
    #[serde(default)]
    pub state: String,
    /// The backend.
    pub backend: String,
    /// Database of the lines; empty for all.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// No line was received before this time, in UTC.
    pub from: String,
    /// No line was received after this time, in UTC.
    pub until: String,
    /// No point is earlier than this time, in UTC; `None` if unknown.
    pub points_from: Option<String>,
    /// No point is later than this time, in UTC; `None` if unknown.
    pub points_until: Option<String>,
    /// Number of lines; 0 if unknown.
    pub lines: u64,
    /// `ring_full`, `memory_full`, `quota`, `age` or `corrupt`; `joined` for a backend added after
    /// the journal began, `made` for a database that had disappeared, `peer` for lines that the
    /// pair's other relay owed when it was lost.
    pub reason: String,
}

impl Gap {
    pub(super) fn new(gap: &journal::Gap) -> Self {
        let point = |nanoseconds: i64| u64::try_from(nanoseconds).ok().filter(|time| *time < i64::MAX as u64).map(time);
        Self {
            id: gap.id,
            state: "open".to_owned(),
            backend: gap.backend.clone(),
            database: gap.destination.database().to_owned(),
            retention_policy: gap.destination.retention_policy().to_owned(),
            from: time(gap.from.map_or(0, WallTime::nanoseconds)),
            until: time(gap.until.nanoseconds()),
            points_from: point(gap.points.from),
            points_until: point(gap.points.until),
            lines: gap.lines,
            reason: gap.reason.name().to_owned(),
        }
    }
}

/// Formats nanoseconds since 1970 as a time in UTC.
pub(super) fn time(nanoseconds: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(nanoseconds)).to_string()
}
