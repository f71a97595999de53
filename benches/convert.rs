//! Converting what Netdata sent (`tests/captures`) into line protocol, on one core.
//!
//! Each measurement asserts that every line was taken. Throughput is in bytes of input.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twinflux::protocol::{Line, Mapping, Netdata, Precision, Reader, Refused, Rules, Sink};

#[path = "../tests/support/captures.rs"]
mod captures;

/// Counts what it is given.
#[derive(Default)]
struct Count {
    bytes: usize,
    refused: usize,
}

impl Sink for Count {
    fn line(&mut self, line: Line<'_>) {
        self.bytes += black_box(line.bytes).len();
    }

    fn refused(&mut self, _: Refused<'_>) {
        self.refused += 1;
    }
}

fn convert(criterion: &mut Criterion) {
    let charts = || Mapping::netdata(Netdata { keep_prefix: false, host_parts: 2 });
    for (name, mapping, file) in [
        ("graphite/netdata", charts(), "netdata-graphite-udp"),
        ("graphite_without_labels/netdata", charts(), "netdata-graphite-udp-nolabels-ip-apps"),
        ("opentsdb/netdata", charts(), "netdata-opentsdb-telnet-udp"),
        ("json/netdata", charts(), "netdata-json-udp"),
        ("graphite/path", Mapping::path(), "netdata-graphite-udp"),
        ("opentsdb/path", Mapping::path(), "netdata-opentsdb-telnet-udp"),
    ] {
        let datagrams = captures::frames(file);
        let bytes: usize = datagrams.iter().map(Vec::len).sum();
        let lines: usize = datagrams.iter().flatten().filter(|byte| **byte == b'\n').count();
        let mut group = criterion.benchmark_group("convert");
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut reader = Reader::new(None, mapping, Rules::strict(Precision::Nanoseconds));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut count = Count::default();
                let found = datagrams.iter().map(|datagram| reader.datagram(black_box(datagram), false, &mut count));
                assert_eq!(found.map(|found| found.converted).sum::<u64>(), lines as u64);
                assert_eq!(count.refused, 0);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, convert);
criterion_main!(benches);
