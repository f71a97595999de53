//! How the journal is kept on disk, and the bounds that follow.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::batch::Received;
use crate::journal::segment::codec::Compression;
use crate::journal::segment::storage::Space;

/// The largest size of a segment: what is freed at once, and the most that is lost when the quota
/// is reached.
pub(in crate::journal) const SEGMENT_BYTES: u64 = 16 << 20;
/// The fewest segments for which the quota has room.
const MIN_SEGMENTS: u64 = 8;
/// Segments do not shrink further on volumes with less than this above the floor, or of unknown
/// size.
const MIN_ROOM_BYTES: u64 = 8 << 20;

/// What gives way when the quota is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The oldest lines: metrics are worth most when fresh.
    #[default]
    DropOldest,
    /// The newest lines, once the memory is full, too.
    DropNewest,
}

/// How the journal is kept on disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Sync written records at once, instead of at intervals.
    pub is_synced: bool,
    /// How records are compressed.
    pub compression: Compression,
    /// Most bytes of all segments.
    pub quota: u64,
    /// Lines older than this are given up. `None`: never.
    pub max_age: Option<Duration>,
    /// Bytes of the volume to leave free. `None`: 5 %, at most 1 GiB.
    pub min_free: Option<u64>,
    /// What gives way when there is no room.
    pub full: WhenFull,
    /// The longest time that written bytes stay unsynced while the disk keeps up.
    pub sync_interval: Duration,
    /// How often a failing or full disk is retried.
    pub retry_after: Duration,
    /// Both clocks; tests replace them.
    pub clock: fn() -> Received,
}

impl DiskOptions {
    /// The size at which a segment ends. One eviction, by quota or floor, takes only a small part
    /// of the whole.
    pub(in crate::journal) fn segment_bytes(&self, space: Space) -> u64 {
        let room = space.total.saturating_sub(self.floor(space)).max(MIN_ROOM_BYTES);
        (self.quota.min(room) / MIN_SEGMENTS).min(SEGMENT_BYTES)
    }

    /// What must stay free on a volume.
    pub(in crate::journal) fn floor(&self, space: Space) -> u64 {
        floor(self.min_free, space)
    }
}

/// What must stay free on a volume: `min_free`, or 5 % of it, at most 1 GiB.
pub fn floor(min_free: Option<u64>, space: Space) -> u64 {
    min_free.unwrap_or_else(|| (space.total / 20).min(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_an_eighth_of_the_least_that_there_is() {
        const MIB: u64 = 1 << 20;
        for (quota, total, min_free, expected) in [
            (1024, 100_000, None, 16),
            (64, 100_000, None, 8),
            (1024, 80, None, 9),
            (1024, 80, Some(16), 8),
            (1024, 80, Some(80), 1),
            (1024, 0, None, 1),
        ] {
            let options = DiskOptions {
                is_synced: false,
                compression: Compression::None,
                quota: quota * MIB,
                max_age: None,
                min_free: min_free.map(|free| free * MIB),
                full: WhenFull::DropOldest,
                sync_interval: Duration::from_secs(1),
                retry_after: Duration::from_secs(1),
                clock: Received::now,
            };
            let bytes = options.segment_bytes(Space { free: 0, total: total * MIB });
            assert_eq!(bytes / MIB, expected, "{quota} {total} {min_free:?}");
        }
    }
}
