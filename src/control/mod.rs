//! What people and machines see and say: configuration, status, metrics, command line.
//!
//! May look at everything; nothing of the data's way looks here.

pub mod admin;
mod allow;
mod backends;
#[cfg(test)]
mod balance;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod dead_letters;
mod exposure;
mod fetch;
#[cfg(test)]
mod figures;
mod gap;
pub mod journal;
mod json;
mod listen;
mod listeners;
mod load;
pub mod maintenance;
mod metrics;
pub mod notify;
pub mod reading;
pub mod relay_toml;
mod restore;
mod size;
pub mod socket;
mod source;
pub mod sources;
pub mod status;
mod table;
pub mod url;

pub use config::Config;
pub use gap::Gap;
pub use load::{ConfigError, Overrides};
pub use status::{Status, View};
