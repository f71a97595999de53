//! The bytes of the log: segments of frames, slots of small states, and the storage that holds both.
//!
//! Owns: the format ([`mod@format`] has it byte by byte), frames and the way through a damaged segment, compression, slots, and
//! the trait that a disk is used through. Never does: cursors, decisions about what is kept, locks of the journal.

pub(in crate::journal) mod codec;
pub(in crate::journal) mod format;
pub(in crate::journal) mod frame;
pub(in crate::journal) mod frames;
mod position;
mod sequence;
pub(in crate::journal) mod slots;
pub(in crate::journal) mod storage;

pub(in crate::journal) use position::Position;
pub use sequence::Sequence;
