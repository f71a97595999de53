//! Listeners: sockets, connections, requests, and the threads that serve them.
//!
//! Owns: sockets, their settings, limits on connections and requests, and answers to clients. Never
//! does: parsing lines; received bytes go to [`crate::intake`].
//!
//! A UDP worker never waits: if there is no capacity, it drops the batch and counts it. Streams and
//! requests wait for capacity, part of which is reserved for datagrams.

mod crowd;
mod crowd_logs;
mod door;
pub mod files;
mod handshake;
pub mod http;
mod inherited;
mod listener;
mod proxy;
mod pulse;
mod socket;
pub mod tcp;
pub mod udp;

pub use door::Door;
pub use inherited::Inherited;
pub use listener::{Listener, ListenerConfig};
pub use pulse::Pulse;
