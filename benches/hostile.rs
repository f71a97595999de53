//! Lines that cost a stranger little and the relay much, beside ordinary ones, on one core.
//!
//! The first of each group is what ordinary hosts send; the others are made to cost as much CPU as
//! any line can. Each measurement asserts how many lines were taken and refused. Throughput is in
//! bytes of input: no other measurement is to be below a fifth of the first.

use std::fmt::Write;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use loadgen::workload::{Host, Shape};
use twinflux::protocol::{Line, Mapping, Precision, Reader, Refused, Rules, Sink};

/// What a datagram holds, about: a frame of Ethernet.
const DATAGRAM_BYTES: usize = 1400;
/// What a piece of a stream holds.
const PIECE_BYTES: usize = 64_000;
/// Datagrams of each kind.
const DATAGRAMS: usize = 100;

/// Counts what it is given.
#[derive(Default)]
struct Count {
    lines: usize,
    refused: usize,
}

impl Sink for Count {
    fn line(&mut self, line: Line<'_>) {
        black_box(line.bytes);
        self.lines += 1;
    }

    fn refused(&mut self, refused: Refused<'_>) {
        black_box(refused.bytes);
        self.refused += 1;
    }
}

/// One interval of 500 hosts that run Telegraf, one line to a datagram.
fn telegraf() -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    for number in 0..500 {
        let mut host = Host::new(number, Shape::default());
        host.render(1_795_400_726_000_000_000 + u64::from(number));
        datagrams.extend(host.lines().iter().map(|range| host.bytes()[range.clone()].to_vec()));
    }
    datagrams
}

/// The same line, as often as it fits.
fn repeated(line: impl AsRef<[u8]>, bytes: usize) -> Vec<Vec<u8>> {
    let line = line.as_ref();
    vec![line.repeat((bytes / line.len()).max(1)); DATAGRAMS]
}

/// So many tags with keys of this width, which begin alike.
fn tags(count: usize, width: usize, before: char, between: char) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        let separator = if n == 0 { before } else { between };
        write!(text, "{separator}k{n:0>width$x}=v", width = width - 1).expect("writing to memory does not fail");
        text
    })
}

fn influx(criterion: &mut Criterion) {
    let line = |tags: String| format!("m{tags} f=1 1\n");
    let many = |count, width| repeated(line(tags(count, width, ',', ',')), DATAGRAM_BYTES);
    measure(
        criterion,
        "influx",
        &Mapping::path(),
        &[
            ("ordinary", telegraf()),
            ("tags_255", many(255, 3)),
            ("tags_255_long", many(255, 20)),
            ("tags_16_alike", many(16, 2)),
            ("tags_5_alike", many(5, 2)),
            ("tags_twice", repeated(line(tags(99, 3, ',', ',') + ",k00=v"), DATAGRAM_BYTES)),
            ("escaped", repeated(format!("m{} f=1 1\n", "\\ ".repeat(600)), DATAGRAM_BYTES)),
            ("fields", repeated(format!("m {}f=1\n", "f=1,".repeat(300)), DATAGRAM_BYTES)),
            ("escaped_string", repeated(format!("m f=\"{}\"\n", "\\\"".repeat(600)), DATAGRAM_BYTES)),
            ("open_strings", repeated("m f=\"\n", DATAGRAM_BYTES)),
            ("short", repeated("m f=1\n", DATAGRAM_BYTES)),
            ("refused", repeated("m,a=b c\n", DATAGRAM_BYTES)),
            ("refused_short", repeated("x\n", DATAGRAM_BYTES)),
            ("empty_lines", repeated("\n", PIECE_BYTES)),
            ("comments", repeated("# a comment\n", PIECE_BYTES)),
            ("not_utf8", repeated([&b"m,a=b f=1 1\n".repeat(110)[..], b"m,a=\xff f=1 1\n"].concat(), DATAGRAM_BYTES)),
        ],
    );
}

fn graphite(criterion: &mut Criterion) {
    let templates = ["measurement.host.field*".to_owned(), "servers.* .host.measurement.field* dc=eu".to_owned()];
    let mapping = Mapping::templates(&templates).expect("templates");
    let ordinary = |host: usize| {
        let text = (0..15).fold(String::new(), |mut text, n| {
            writeln!(text, "servers.web-{host:02}.cpu{n}.usage.idle;role=web;rack=a{host} 97.{n} 1795400720")
                .expect("writing to memory does not fail");
            text
        });
        text.into_bytes()
    };
    let line = |tags: String| format!("a.b.c{tags} 1 1\n");
    let many = |count, width| repeated(line(tags(count, width, ';', ';')), DATAGRAM_BYTES);
    measure(
        criterion,
        "graphite_templates",
        &mapping,
        &[
            ("ordinary", (0..DATAGRAMS).map(ordinary).collect()),
            ("tags_250", many(250, 3)),
            ("tags_250_long", many(250, 20)),
            ("tags_5_alike", many(5, 2)),
            ("tags_twice", repeated(line(";k=v".repeat(340)), DATAGRAM_BYTES)),
            ("no_tags", repeated(line(";".repeat(1000)), DATAGRAM_BYTES)),
            ("dots", repeated(format!("a{} 1 1\n", ".b".repeat(600)), DATAGRAM_BYTES)),
            ("escaped", repeated(format!("a.b.c{} 1 1\n", ",".repeat(1000)), DATAGRAM_BYTES)),
            ("short", repeated("a.b 1\n", DATAGRAM_BYTES)),
        ],
    );
}

fn measure(criterion: &mut Criterion, name: &str, mapping: &Mapping, kinds: &[(&str, Vec<Vec<u8>>)]) {
    let mut group = criterion.benchmark_group(name);
    for (kind, datagrams) in kinds {
        let bytes: usize = datagrams.iter().map(Vec::len).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut reader = Reader::new(None, mapping.clone(), Rules::strict(Precision::Nanoseconds));
        let mut read = || {
            let mut count = Count::default();
            for datagram in datagrams {
                black_box(reader.datagram(black_box(&datagram[..]), false, &mut count));
            }
            (count.lines, count.refused)
        };
        let expected = read();
        group.bench_function(*kind, |bench| bench.iter(|| assert_eq!(read(), expected)));
    }
    group.finish();
}

criterion_group!(benches, influx, graphite);
criterion_main!(benches);
