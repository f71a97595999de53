//! Copying lines into batches, and sealing them. Each measurement asserts that every byte is there.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use loadgen::workload::{Host, Shape};
use twinflux::batch::{Builder, Destination, Limits, Pool, Received, Time};
use twinflux::protocol::Precision;

fn append_and_seal(criterion: &mut Criterion) {
    let mut host = Host::new(1, Shape::default());
    host.render(1_795_400_726_000_000_000);
    let lines: Vec<Vec<u8>> =
        host.lines().iter().map(|range| host.bytes()[range.start..range.end - 1].to_vec()).collect();
    let expected = host.bytes().len() as u64;
    let destination = Arc::new(Destination::new("telegraf", "", Precision::Nanoseconds));
    let limits = Limits { lines: 5000, age: Duration::from_millis(20) };
    let pool = Pool::new(16, 256 * 1024);
    let mut builder = Builder::new(destination, pool, limits);
    let received = Received::now();

    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Bytes(expected * 100));
    group.bench_function("append_and_seal", |bench| {
        bench.iter(|| {
            let mut bytes = 0;
            for _ in 0..100 {
                for line in &lines {
                    let sealed = builder.append(black_box(line), Time::Own(1), received);
                    bytes += sealed.map_or(0, |batch| batch.bytes().len() as u64);
                }
            }
            bytes += builder.seal().map_or(0, |batch| batch.bytes().len() as u64);
            assert_eq!(bytes, expected * 100);
        });
    });
    group.finish();
}

criterion_group!(benches, append_and_seal);
criterion_main!(benches);
