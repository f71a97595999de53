//! Bytes in from the network: sockets and their counters.
//!
//! Owns: the listeners, their worker threads, and the counters of what came in. Knows sockets, not grammar:
//! lines are found by [`crate::protocol`] and gathered by [`crate::batch`].
//!
//! Never does: waiting for what comes behind it. A batch that finds no room is a counted drop.

mod counters;
pub mod udp;

pub use counters::{Counters, Tally};
