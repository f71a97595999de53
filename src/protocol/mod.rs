//! The grammar of everything senders put on the wire, as pure functions over bytes.
//!
//! Owns: the grammar of a line ([`mod@line`]), of a field's number ([`number`]) and of a timestamp,
//! and how a missing timestamp is made ([`timestamp`]); the names of the reasons for refusing a
//! line ([`Refusal`]); the other formats that senders use ([`Format`]), with one parser for each,
//! and their conversion to line protocol ([`Mapping`]). [`Reader`] combines all of these.
//!
//! Never does: I/O, clocks, threads. Line protocol is never copied here; other formats are written
//! to one buffer per worker.
//!
//! Bounds: all work and memory are bounded by the input.

mod convert;
mod cure;
mod format;
mod graphite;
pub mod influxql;
mod json_list;
mod keys;
pub mod line;
mod netdata_json;
pub mod number;
mod opentsdb;
mod others;
mod reader;
mod refusal;
mod span;
pub mod timestamp;
mod token;
mod unsigned;

pub use convert::{InvalidMapping, Mapping, Netdata};
pub use cure::cure;
pub use format::Format;
pub use json_list::JsonList;
pub use line::{Line, Lines, Refused, Rules, Scanner, Unsigned};
pub use reader::{Found, Reader, Sink, Stream, host_of};
pub use refusal::Refusal;
pub use span::Span;
pub use timestamp::{Plausible, Precision, Stamper, UnknownPrecision};
