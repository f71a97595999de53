//! Batches of lines as HTTP requests, each made before it is sent.
//!
//! A batch has lines of one host, from one reading of its plugins after the other: no line has the
//! timestamp of the same series' line before it.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::workload::{Host, Shape};

/// The bytes of a chunk.
const CHUNK_BYTES: usize = 32 * 1024;

/// How requests look.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// Lines in each batch.
    pub lines: usize,
    /// Whether they are compressed.
    pub is_gzip: bool,
    /// Whether a body comes in chunks, as Telegraf's do, instead of with its length.
    pub is_chunked: bool,
    /// Whether the connection ends with the request.
    pub is_one_shot: bool,
    /// Whether there are only the lines, for a listener of streams.
    pub is_stream: bool,
}

/// One batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// All that goes over the wire.
    pub(crate) request: Vec<u8>,
    pub(crate) host: u32,
    /// The first line's number; the others follow.
    pub(crate) first: u64,
    pub(crate) lines: u64,
    /// When it was made, in nanoseconds since 1970.
    pub(crate) time: u64,
}

/// One host.
#[derive(Debug)]
pub(crate) struct Writer {
    number: u32,
    host: Host,
}

impl Writer {
    pub(crate) fn new(number: u32, shape: Shape) -> Self {
        Self { number, host: Host::new(number, shape) }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Makes the host's next batch.
    pub(crate) fn write(&mut self, form: &Form, batch: &mut Batch) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let (time, first) = (u64::try_from(now).unwrap_or(0), self.host.rendered());
        *batch = Batch { request: std::mem::take(&mut batch.request), host: self.number, first, lines: 0, time };
        batch.request.clear();
        if form.is_stream {
            self.lines(form.lines, batch.time, |lines| batch.request.extend_from_slice(lines));
        } else {
            let mut body = Vec::new();
            if form.is_gzip {
                let mut encoder = GzEncoder::new(body, Compression::default());
                // A vector takes everything.
                self.lines(form.lines, batch.time, |lines| drop(encoder.write_all(lines)));
                body = encoder.finish().unwrap_or_default();
            } else {
                self.lines(form.lines, batch.time, |lines| body.extend_from_slice(lines));
            }
            push_request(form, &body, &mut batch.request);
        }
        batch.lines = self.host.rendered() - first;
    }

    fn lines(&mut self, count: usize, time: u64, mut give: impl FnMut(&[u8])) {
        let mut left = count;
        for reading in 0.. {
            if left == 0 {
                return;
            }
            self.host.render(time + reading);
            let lines = self.host.lines();
            let taken = lines.len().min(left);
            let surplus = (lines.len() - taken) as u64;
            give(&self.host.bytes()[..lines[taken - 1].end]);
            self.host.unrender(surplus);
            left -= taken;
        }
    }
}

fn push_request(form: &Form, body: &[u8], request: &mut Vec<u8>) {
    request.extend_from_slice(
        b"POST /write?db=telegraf HTTP/1.1\r\nHost: relay\r\nUser-Agent: loadgen\r\nContent-Type: text/plain; charset=utf-8\r\n",
    );
    if form.is_gzip {
        request.extend_from_slice(b"Content-Encoding: gzip\r\n");
    }
    if form.is_one_shot {
        request.extend_from_slice(b"Connection: close\r\n");
    }
    if form.is_chunked {
        request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
        for chunk in body.chunks(CHUNK_BYTES) {
            request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            request.extend_from_slice(chunk);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
    } else {
        request.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(body);
    }
}
