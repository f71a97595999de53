//! What the program asks of the system around it, for every other part: the log, its limits, text for people.
//!
//! Knows nothing of lines, batches or backends.

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
