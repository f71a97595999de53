//! How the journal is kept on the disk, and the bounds that follow from it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::batch::Received;
use crate::journal::segment::codec::Compression;
use crate::journal::segment::storage::Space;

/// The size of a segment, at most: what is freed at once, and what is lost at most where the quota is reached.
pub(in crate::journal) const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments that the quota has room for, at least.
const LEAST_SEGMENTS: u64 = 8;
/// Volumes with less than this beyond their floor, or that do not tell, have no smaller segments.
const LEAST_ROOM: u64 = 8 << 20;

/// What gives way when the quota is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The oldest lines: metrics are worth most when they are fresh.
    #[default]
    DropOldest,
    /// The newest lines, once the memory is full, too.
    DropNewest,
}

/// How the journal is kept on the disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Sync at once what was written, instead of by interval.
    pub is_synced: bool,
    /// How records are compressed.
    pub compression: Compression,
    /// Bytes of all segments, at most.
    pub quota: u64,
    /// Lines older than this are given up; none: never.
    pub max_age: Option<Duration>,
    /// Bytes of the volume that are left free; none: 5 %, at most 1 GiB.
    pub min_free: Option<u64>,
    /// What gives way when there is no room.
    pub full: WhenFull,
    /// How long written bytes stay unsynced, at most, while the disk keeps up.
    pub sync_interval: Duration,
    /// How often a disk that fails or is full is tried again.
    pub retry_after: Duration,
    /// Both clocks; tests put others in their place.
    pub clock: fn() -> Received,
}

impl DiskOptions {
    /// The size at which a segment ends. What the quota or the volume's floor takes at once is a small part of the whole.
    pub(in crate::journal) fn segment_bytes(&self, space: Space) -> u64 {
        let room = space.total.saturating_sub(self.floor(space)).max(LEAST_ROOM);
        (self.quota.min(room) / LEAST_SEGMENTS).min(SEGMENT_BYTES)
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
