//! The grammar of what senders put on the wire: pure functions over bytes.
//!
//! Owns: what a valid line is ([`mod@line`]), what a field's number may look like ([`number`]), what a
//! timestamp may be and how a missing one is made ([`timestamp`]), and the names of the reasons for
//! which a line is refused ([`Refusal`]).
//!
//! Never does: I/O, clocks, allocation, threads. Everything here is bounded by its input.

pub mod line;
pub mod number;
mod refusal;
pub mod timestamp;
mod token;

pub use line::{Line, Lines, Refused, Scanner};
pub use refusal::Refusal;
pub use timestamp::{Precision, Stamper};
