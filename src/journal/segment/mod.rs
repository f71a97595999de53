//! The bytes of the log: segments of frames, slots for small states, and the storage for both.
//!
//! Owns: the format ([`mod@format`] specifies it byte by byte), frames and how to iterate over a
//! damaged segment, compression, slots, and the trait through which a disk is used. Never does:
//! cursors, decisions about what is kept, the journal's lock.

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
