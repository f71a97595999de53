//! Twinflux keeps two or more InfluxDB servers holding the same data.
//!
//! ```text
//! receive/    intake/ protocol/         batch/         journal/              deliver/
//! udp ───────▶ line protocol ─────────▶ builder ─ring─▶ append ─▶ memory ─┬─▶ flusher a ─▶ HTTP
//! tcp, http ─▶ graphite, opentsdb, json                 one log  │        └─▶ flusher b ─▶ HTTP
//!                                                                └─▶ segments on disk, read by
//!              a cursor per backend and destination                  backends that lag
//!
//! a reader ─▶ receive/http ─▶ protocol/influxql ─▶ query/ ─▶ a backend with a complete copy
//! ```
//!
//! The folders follow the data. [`receive`] reads bytes from sockets; [`intake`] turns them into
//! batches of lines, which [`protocol`] parses and checks and [`batch`] collects; [`journal`] keeps
//! them until every backend has them; [`deliver`] writes them. [`query`] chooses the copy that
//! answers a reader, and [`pair`] knows what another relay still owes. [`config`] configures all of
//! these, [`observe`] shows what they do, and [`cli`] is the command line; only [`relay`], which
//! wires the parts together, depends on these. Below all of them are [`sys`] (logging, log
//! throttles, text for people), [`net`] (TLS, an HTTP client) and [`auth`] (users and tokens).
//!
//! Two promises: every lost line is counted (see [`journal::Ledger`]), and the relay costs next to
//! nothing.

pub mod auth;
pub mod batch;
pub mod cli;
pub mod config;
pub mod deliver;
#[cfg(feature = "demo")]
pub mod demo;
pub mod intake;
pub mod journal;
pub mod net;
pub mod observe;
pub mod pair;
pub mod protocol;
pub mod query;
pub mod receive;
pub mod relay;
pub mod sys;
