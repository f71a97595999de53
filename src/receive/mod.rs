//! Bytes in from the network: sockets and their counters.
//!
//! Owns: the listeners, their worker threads, the counters of what came in, and the table of who sent it. Knows sockets,
//! not grammar: lines are found by [`crate::protocol`] and gathered by [`crate::batch`].
//!
//! A UDP worker never waits for what comes behind it: a batch that finds no room is a counted drop. Streams and requests
//! do: their senders wait, and part of the room is kept for datagrams.

mod allow;
mod counters;
mod crowd;
mod crowd_logs;
mod door;
pub mod files;
mod framer;
mod handshake;
pub mod http;
mod inherited;
mod intake;
mod listener;
mod proxy;
mod pulse;
mod socket;
mod source;
mod sources;
pub mod tap;
pub mod tcp;
pub mod udp;

pub use allow::Allow;
pub(crate) use counters::each_counter;
pub use counters::{ANSWERS, Counters, Tally};
pub use door::Door;
pub use inherited::Inherited;
pub use intake::Setup as IntakeSetup;
pub use listener::{Listener, Setup};
pub use pulse::Pulse;
pub use source::{Arrival, Source};
pub use sources::Sources;
pub use tap::Tap;
