//! The system interface that all other parts share: clocks, the log and its throttle, text for
//! people.
//!
//! Never depends on lines, batches or backends.

pub mod clock;
pub mod dumps;
pub mod log;
pub mod log_format;
pub mod monotonic;
mod replace;
pub mod text;
pub mod throttle;
pub mod wildcard;

pub use clock::SteadyClock;
pub use replace::replace;
pub use throttle::{Leave, Throttle};
