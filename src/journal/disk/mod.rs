//! The journal on the disk: one log of records in segments, written behind the memory tail, read by whoever lags.
//!
//! Owns: writing and syncing ([`Writer`], [`Syncer`]) on two threads ([`DiskThreads`]), reading a backlog, opening the log
//! after any crash, and inspecting the folder of a stopped relay ([`inspect`]). `segment/format.rs` specifies the files.
//!
//! Never does: memory maps, decisions about delivery, removing a file that it does not know.
//! Bounds: the quota in bytes; segments of 16 MiB; writes of 1 MiB; reads of one request, and 64 MiB in search of it.
//!
//! # The order of writes
//!
//! A crash after any step leaves a log that opens.
//!
//! 1. The writer chooses records, and saves the cursors as they are then.
//! 2. It appends the records' frames to the last segment, or to a new one.
//! 3. It saves the cursors again: they know how much was written. The gaps that they have passed are saved before them.
//! 4. The syncer syncs the folder, the segments, the gap ledger and the cursors, in this order.
//! 5. Only then it removes the segments that no synced cursor needs.
//!
//! Nothing is changed in place but the slots. The quota, the age and the floor may remove what a cursor needs: its lines are
//! counted as dropped, the cursors are saved, and then the file goes.
//!
//! # When a sync fails
//!
//! A file whose sync failed is never synced again: the kernel may have marked the lost pages as clean, so that a second sync
//! would claim success. What it holds is written again, elsewhere:
//!
//! ```text
//! before    segment 7 [0 1 2 3]      segment 8 [4 5 6]        synced below 0, next to write 7
//!           the sync of segment 7 fails
//! at once   7 and 8 are abandoned                             next to write 0, a new segment is due
//! then      segment 7 [0 1 2 3]      segment 8 [4 5 6]        segment 9, repeats [0 1 2 _ 4 5 6 7]
//!                                                             (3 had left the memory)
//! ```
//!
//! * `abandoned_below` rises over the abandoned segments and is saved with the cursors: the next start does not sync them
//!   either.
//! * Records that are still in memory are written again, from the first one that is not known to be synced. Segments that
//!   begin with such a record carry the flag `repeats`.
//! * A record that has left the memory is not repeated. It is read from the abandoned file, which the page cache still has.
//!   So a reader prefers a repeat only where every repeat is without gaps.
//! * The abandoned segment right before a repeat is removed once the repeat reaches as far and nobody needs a record that
//!   only the abandoned one has. Syncs that go on failing leave two segments.
//! * A crash may cut a repeat short. The next start removes repeats that end before an earlier segment does.
//! * A choice of records that was made before the failure is void: the writer compares `epoch` before it believes its own
//!   write.

//!
//! # When the folder goes
//!
//! `renewal.rs` says what is looked for each second, and what follows.

mod backlog;
mod credible;
mod error;
pub mod inspect;
mod recovery;
mod renewal;
pub(in crate::journal) mod saved;
mod scan;
mod syncer;
mod threads;
mod writer;

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::segment::format;
use super::segment::slots::Slots;

pub use super::segment::codec::Compression;
pub use super::segment::storage::{Folder, Identity, Misplaced, Space, Storage, StoredFile};
pub use super::state::figures::{Condition, DiskFigures, Report};
pub use super::state::options::{DiskOptions, WhenFull, floor};
pub use error::OpenError;
pub use syncer::Syncer;
pub use threads::{DiskThreads, end};
pub use writer::{Next, Writer};

pub(super) use backlog::load;
pub(super) use recovery::open;

/// The longest name of a database, retention policy or backend, in bytes.
pub const MAX_NAME_BYTES: usize = format::MAX_NAME_BYTES;

/// The longest address of a backend, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 4096;

/// The slots of one kind. A thread that panicked left them whole.
fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}
