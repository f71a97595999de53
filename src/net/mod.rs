//! What several parts need of the network: TLS for listeners.
//!
//! Knows nothing of lines or requests.

pub mod tls;
