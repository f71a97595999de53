//! Keeping the table of sources, as a UDP worker does: 500 hosts, each with 40 datagrams in a row,
//! or in turn.
//!
//! Asserts that each was counted. Throughput is in datagrams.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twinflux::intake::{Arrival, Sources};

const HOSTS: u32 = 500;
const DATAGRAMS: u32 = 40;

fn note(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sources");
    group.throughput(Throughput::Elements(u64::from(HOSTS * DATAGRAMS)));
    let arrival = Arrival { lines: 1, datagrams: 1, ..Arrival::default() };
    for (name, in_a_row) in [("in_a_row", DATAGRAMS), ("in_turn", 1)] {
        group.bench_function(name, |bench| {
            let (mut sources, mut now, mut rounds) = (Sources::default(), Instant::now(), 0);
            bench.iter(|| {
                for turn in 0..HOSTS * DATAGRAMS / in_a_row {
                    let address = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + turn % HOSTS));
                    now += Duration::from_micros(500);
                    for _ in 0..in_a_row {
                        black_box(sources.note(black_box(address), arrival, now).wants_name());
                    }
                }
                rounds += 1;
            });
            let lines: u64 = sources.entries().iter().map(|source| source.sum.lines).sum();
            assert_eq!(lines, rounds * u64::from(HOSTS * DATAGRAMS));
        });
    }
    group.finish();
}

criterion_group!(benches, note);
criterion_main!(benches);
