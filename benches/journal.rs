//! Through the ring and the journal to two backends: numbered, leased, settled. Each measurement asserts that the
//! ledger has every line.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twinflux::batch::{Batch, Destination, HandOver, Received};
use twinflux::journal::{BackendSetup, Journal, Limits, ring};
use twinflux::protocol::Precision;

/// Batches in one round, and lines in each: what 4 ms bring at 200,000 lines a second.
const BATCHES: u64 = 8;
const LINES: u64 = 100;

fn append_lease_settle(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let limits = Limits { lines: 5000, bytes: 1 << 20, linger: Duration::ZERO };
    let destination = Arc::new(Destination {
        database: "telegraf".to_owned(),
        retention_policy: String::new(),
        precision: Precision::Nanoseconds,
    });
    let bytes = Bytes::from(vec![b'x'; 28_000]);
    let journal =
        Journal::new(64 << 20, &["a", "b"].map(|name| BackendSetup { name: name.to_owned(), replay_share: 0.5 }));
    let mut readers = [journal.reader(0), journal.reader(1)];
    let (producer, consumer) = ring(64);
    let mut delivered = 0;

    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Elements(BATCHES * LINES));
    group.bench_function("append_lease_settle", |bench| {
        bench.iter(|| {
            for _ in 0..BATCHES {
                let batch = Batch {
                    destination: Arc::clone(&destination),
                    bytes: bytes.clone(),
                    lines: LINES,
                    received: Received::now(),
                    capacity: bytes.len(),
                };
                producer.hand_over(batch).expect("room");
            }
            while let Some(batch) = consumer.pop() {
                journal.append(batch);
            }
            for reader in &mut readers {
                let lease = runtime.block_on(reader.next(&limits)).expect("a lease");
                assert_eq!(lease.lines, BATCHES * LINES);
                reader.settle(lease, None);
            }
            delivered += BATCHES * LINES;
        });
    });
    group.finish();
    for ledger in journal.snapshot().ledgers {
        assert_eq!((ledger.delivered, ledger.pending), (delivered, 0));
    }
}

criterion_group!(benches, append_lease_settle);
criterion_main!(benches);
