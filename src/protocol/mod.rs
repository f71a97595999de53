//! The grammar of what senders put on the wire: pure functions over bytes.
//!
//! Owns: what a valid line is ([`mod@line`]), what a field's number may look like ([`number`]), what a
//! timestamp may be and how a missing one is made ([`timestamp`]), the names of the reasons for
//! which a line is refused ([`Refusal`]); the other formats that senders speak ([`Format`]), one parser for each, and how
//! they become line protocol ([`Mapping`]). [`Reader`] puts it all together.
//!
//! Never does: I/O, clocks, threads. Line protocol is never copied here; other formats are written to one buffer for
//! each worker. Everything is bounded by its input.

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
