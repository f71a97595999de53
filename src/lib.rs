//! Twinflux keeps two or more InfluxDB servers holding the same data.
//!
//! ```text
//! receive/            parse                batch            journal/                     deliver/
//! udp workers ──▶ protocol/line scan ──▶ builder ──ring──▶ append ─▶ memory tail ─┬─▶ flusher a ─▶ HTTP
//! tcp ──▶ graphite, opentsdb, json ─▶ convert               one log,   │         └─▶ flusher b ─▶ HTTP
//!                                                           a cursor   └─▶ segments on the disk, read by
//!                                                           for each backend and destination     whoever lags
//!
//! a reader ──▶ receive/http ──▶ protocol/influxql ──▶ query/ ──▶ the backend whose copy is complete for the question
//! ```
//!
//! The folders are in the order of the data's way: [`receive`] takes bytes from sockets, [`protocol`] finds and judges lines,
//! [`batch`] gathers them, [`journal`] keeps them until every backend has them, [`deliver`] writes them, [`query`] chooses the
//! copy that answers a reader, and [`pair`] knows what another relay still owes. [`config`] sets them up, [`observe`] shows what
//! they do, [`cli`] is what people type; nothing looks at these but [`relay`], which wires the parts together. Below all of them
//! are [`sys`] (the log, its limiter, text for people), [`net`] (TLS, a client) and [`auth`] (users and tokens).
//!
//! Two promises: no line is lost uncounted (see [`journal::Ledger`]), and it costs next to nothing.

pub mod auth;
pub mod batch;
pub mod cli;
pub mod config;
pub mod deliver;
#[cfg(feature = "demo")]
pub mod demo;
pub mod journal;
pub mod net;
pub mod observe;
pub mod pair;
pub mod protocol;
pub mod query;
pub mod receive;
pub mod relay;
pub mod sys;
