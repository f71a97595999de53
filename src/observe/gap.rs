//! An entry of the gap ledger, as `/api/status` shows it.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::batch::WallTime;
use crate::journal;

/// Lines that a backend lacks.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Gap {
    /// Its number: no other gap of this journal has or had it.
    #[serde(default)]
    pub id: u64,
    /// `open`: nothing has been done about it.
    #[serde(default)]
    pub state: String,
    /// The backend.
    pub backend: String,
    /// The database that they were for; empty for all.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// None of them was received before, in UTC.
    pub from: String,
    /// None of them was received after, in UTC.
    pub until: String,
    /// None of their points is earlier, in UTC; none if that is not known.
    pub points_from: Option<String>,
    /// None of their points is later, in UTC; none if that is not known.
    pub points_until: Option<String>,
    /// How many; 0 if that is not known.
    pub lines: u64,
    /// `ring_full`, `memory_full`, `quota`, `age` or `corrupt`; `joined` for a backend that came later than the journal,
    /// `made` for a database that was gone, `peer` for what the pair's other relay owed when it went.
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

/// A time in UTC, of nanoseconds since 1970.
pub(super) fn time(nanoseconds: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(nanoseconds)).to_string()
}
