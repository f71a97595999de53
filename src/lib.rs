//! Twinflux keeps two or more InfluxDB servers holding the same data.
//!
//! ```text
//! receive/          intake/ protocol/      batch/           journal/                     deliver/
//! udp workers ──▶ scan of line protocol ──▶ builder ──ring──▶ append ─▶ memory tail ─┬─▶ flusher a ─▶ HTTP
//! tcp, http ──▶ graphite, opentsdb, json ─▶ convert          one log,   │           └─▶ flusher b ─▶ HTTP
//!                                                            a cursor   └─▶ segments on disk, read by
//!                                                            for each backend and destination  whoever lags
//!
//! a reader ──▶ receive/http ──▶ protocol/influxql ──▶ query/ ──▶ the backend whose copy is complete for the question
//! ```
//!
//! The folders follow the data: [`receive`] takes bytes from sockets, [`intake`] turns them into batches of lines,
//! which [`protocol`] finds and judges and [`batch`] gathers, [`journal`] keeps them until every backend has them, [`deliver`] writes them, [`query`] chooses the
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
