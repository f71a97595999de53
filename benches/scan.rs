//! Scanning and validating Telegraf's lines, on one core, with the crate `influxdb-line-protocol`
//! beside it.
//!
//! Each measurement asserts that every line was found. Throughput is in bytes of input.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use loadgen::workload::{Host, Shape};
use twinflux::protocol::{Precision, Scanner};

/// One interval of 500 hosts, one line to a datagram.
fn datagrams() -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    for number in 0..500 {
        let mut host = Host::new(number, Shape::default());
        host.render(1_795_400_726_000_000_000 + u64::from(number));
        datagrams.extend(host.lines().iter().map(|range| host.bytes()[range.clone()].to_vec()));
    }
    datagrams
}

fn scan(criterion: &mut Criterion) {
    let datagrams = datagrams();
    let bytes: usize = datagrams.iter().map(Vec::len).sum();
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("twinflux", |bench| {
        let mut scanner = Scanner::new(Precision::Nanoseconds);
        bench.iter(|| {
            let mut accepted = 0;
            for datagram in &datagrams {
                accepted += scanner.lines(black_box(datagram), false).filter(Result::is_ok).count();
            }
            assert_eq!(accepted, datagrams.len());
        });
    });
    group.bench_function("influxdb-line-protocol", |bench| {
        bench.iter(|| {
            let mut accepted = 0;
            for datagram in &datagrams {
                let text = std::str::from_utf8(black_box(datagram)).expect("UTF-8");
                accepted += influxdb_line_protocol::parse_lines(text).filter(Result::is_ok).count();
            }
            assert_eq!(accepted, datagrams.len());
        });
    });
    group.finish();
}

criterion_group!(benches, scan);
criterion_main!(benches);
