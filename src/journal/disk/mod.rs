//! The journal on disk: one log of records in segments, written behind the memory tail and read by
//! backends that lag.
//!
//! Owns: writing and syncing ([`Writer`], [`Syncer`]) on two threads ([`DiskThreads`]), reading a
//! backlog, opening the log after any crash, and inspecting the folder of a stopped relay
//! ([`inspect`]). `segment/format.rs` specifies the files.
//!
//! Never does: memory-mapped I/O, decisions about delivery, removal of unknown files. Bounds: the
//! quota in bytes; 16 MiB per segment; 1 MiB per write; one request per read, and at most 64 MiB
//! searched for it.
//!
//! # The order of writes
//!
//! Writes happen in this order; a crash after any step leaves a log that opens:
//!
//! 1. The writer chooses records, and saves the cursors as they are then.
//! 2. It appends the records' frames to the last segment, or to a new one.
//! 3. It saves the cursors again; they now know how much was written. Gaps that the cursors have
//!    passed are saved before them.
//! 4. The syncer syncs the folder, the segments, the gap ledger and the cursors, in this order.
//! 5. Only then does it remove segments that no synced cursor needs.
//!
//! Only the slots are changed in place. The quota, the age limit and the floor may evict records
//! that a cursor still needs: their lines are counted as dropped, the cursors are saved, and then
//! the file is removed.
//!
//! # When a sync fails
//!
//! A file whose sync failed is never synced again: the kernel may have marked the lost pages as
//! clean, and a second sync would then claim success. Its records are written again, elsewhere:
//!
//! ```text
//! before    segment 7 [0 1 2 3]      segment 8 [4 5 6]        synced below 0, next to write 7
//!           the sync of segment 7 fails
//! at once   7 and 8 are abandoned                             next to write 0, a new segment is due
//! then      segment 7 [0 1 2 3]      segment 8 [4 5 6]        segment 9, repeats [0 1 2 _ 4 5 6 7]
//!                                                             (3 had left the memory)
//! ```
//!
//! * `abandoned_below` rises above the abandoned segments and is saved with the cursors, so that
//!   the next start does not sync them either.
//! * Records still in memory are written again, from the first one that is not known to be synced.
//!   Segments that begin with such a record carry the flag `repeats`.
//! * A record that has left the memory is not repeated. It is read from the abandoned file, which
//!   the page cache still holds. Therefore a reader prefers repeats only if every repeat is free of
//!   gaps.
//! * The abandoned segment right before a repeat is removed once the repeat reaches as far and no
//!   backend needs a record that only the abandoned segment has. Repeated sync failures therefore
//!   leave two segments.
//! * A crash may cut a repeat short. The next start removes repeats that end before an earlier
//!   segment does.
//! * A choice of records made before the failure is void: the writer compares `epoch` before it
//!   trusts its own write.
//!
//! # When the folder goes
//!
//! `renewal.rs` specifies what is checked each second, and what follows.

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
