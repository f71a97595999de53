//! What several parts need of the network: TLS for listeners; a client, its TLS, its secrets and the addresses of names.
//!
//! Knows nothing of lines.

pub(crate) mod addresses;
pub(crate) mod client;
mod client_tls;
mod opening;
mod secret;
pub mod tls;

pub use client::Times;
pub use client_tls::{ClientTlsError, Tls};
pub use secret::{Secret, SecretError, SecretFile};
