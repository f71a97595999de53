//! Twinflux.
pub mod protocol;
