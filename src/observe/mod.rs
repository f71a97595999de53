//! What people and machines see of a relay: a snapshot of all figures, as JSON, metrics and text,
//! and the listener that serves it.
//!
//! Owns the snapshot ([`Status`]), its forms, and the admin listener. May use every other module;
//! no module on the path of the data uses this one.

pub mod admin;
#[cfg(test)]
mod balance;
mod fetch;
#[cfg(test)]
mod figures;
pub mod findings;
mod gap;
pub mod history;
pub(crate) mod json;
mod metrics;
pub mod pair;
mod reading;
pub mod receiving;
pub mod sources;
pub mod status;
mod text;
pub mod view;
pub mod watch;

pub use gap::Gap;
pub use status::Status;
pub use view::View;
