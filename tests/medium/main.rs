//! Medium tests: one relay on loopback, with backends in the same process.

#[path = "../support/captures.rs"]
mod captures;
#[path = "../support/mod.rs"]
mod support;

mod access;
mod activation;
mod answers;
mod backends;
mod captured;
mod journal;
mod multicast;
mod process;
mod program;
mod receiving;
mod secrets;
mod stalls;
mod tcp;
mod units;
