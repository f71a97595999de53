//! Shared networking: TLS for listeners; an HTTP client with its TLS, secrets and name resolution.
//!
//! Never depends on lines.

pub(crate) mod addresses;
pub(crate) mod client;
mod client_tls;
mod opening;
mod secret;
pub mod tls;

pub use client::Times;
pub use client_tls::{ClientTlsError, Tls};
pub use secret::{Secret, SecretError, SecretFile};
