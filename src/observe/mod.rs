//! What people and machines see: one picture of all figures, as JSON, metrics and text, and the listener that shows it.
//!
//! Owns: the picture ([`Status`]), its forms, the admin listener. May look at everything; nothing of the data's way looks here.

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
