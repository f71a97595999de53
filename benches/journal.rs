//! Through the ring and the journal to two backends: numbered, leased, acked. Each measurement
//! asserts that the ledger has every line.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twinflux::batch::{Batch, Destination, Received, Submit};
use twinflux::journal::disk::{Compression, DiskOptions, Folder, Next, WhenFull};
use twinflux::journal::{BackendConfig, BackendId, Journal, Limits, ring};
use twinflux::protocol::Precision;

/// Batches in one round, and lines in each: what 4 ms bring at 200,000 lines a second.
const BATCHES: u64 = 8;
const LINES: u64 = 100;

fn append_lease_settle(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let limits = Limits { lines: 5000, bytes: 1 << 20, linger: Duration::ZERO };
    let destination = Arc::new(Destination::new("telegraf", "", Precision::Nanoseconds));
    let bytes = Bytes::from(vec![b'x'; 28_000]);
    let journal = Journal::new(
        64 << 20,
        &["a", "b"].map(|name| BackendConfig { name: name.to_owned(), address: String::new(), replay_share: 0.5 }),
    );
    let mut readers = [journal.reader(BackendId::new(0)), journal.reader(BackendId::new(1))];
    let (producer, consumer) = ring(64);
    let mut delivered = 0;

    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Elements(BATCHES * LINES));
    group.bench_function("append_lease_settle", |bench| {
        bench.iter(|| {
            for _ in 0..BATCHES {
                let batch = Batch::new(Arc::clone(&destination), bytes.clone(), LINES, Received::now());
                producer.submit(batch).expect("room");
            }
            while let Some(batch) = consumer.pop() {
                journal.append(batch);
            }
            for reader in &mut readers {
                let lease = runtime.block_on(reader.next(&limits)).expect("a lease");
                assert_eq!(lease.lines, BATCHES * LINES);
                reader.ack(lease, None);
            }
            delivered += BATCHES * LINES;
        });
    });
    group.finish();
    for ledger in journal.snapshot().ledgers {
        assert_eq!((ledger.delivered, ledger.pending), (delivered, 0));
    }
}

/// Opening a backlog: 64 MiB, or as many as `TWINFLUX_BACKLOG_MIB` says.
fn open_backlog(criterion: &mut Criterion) {
    let mebibytes = std::env::var("TWINFLUX_BACKLOG_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(64_u64);
    let options = DiskOptions {
        is_synced: false,
        compression: Compression::None,
        quota: 1 << 40,
        max_age: None,
        min_free: Some(0),
        full: WhenFull::DropOldest,
        sync_interval: Duration::from_millis(500),
        retry_after: Duration::from_secs(1),
        clock: Received::now,
    };
    let setups =
        ["a", "b"].map(|name| BackendConfig { name: name.to_owned(), address: String::new(), replay_share: 0.5 });
    let folder = tempfile::tempdir().expect("a folder");
    let open = || {
        let storage = Arc::new(Folder::open(folder.path()).expect("a folder"));
        Journal::open(storage, &options, 64 << 20, &setups).expect("opens")
    };
    let batches = mebibytes * (1 << 20) / BATCH_BYTES as u64;
    {
        let journal = open();
        let mut writer = journal.writer().expect("a disk");
        let mut syncer = journal.syncer().expect("a disk");
        for number in 1..=batches {
            journal.append(batch(BATCH_BYTES));
            while writer.step() == Next::Now {}
            // A disk that syncs nothing for long is taken for one that fails.
            if number % BATCHES_TO_A_SYNC == 0 || number == batches {
                assert!(syncer.step());
            }
        }
    }
    let mut group = criterion.benchmark_group("journal");
    group.sample_size(10);
    group.bench_function(format!("open_backlog_of_{mebibytes}_mib"), |bench| {
        bench.iter(|| {
            for ledger in open().snapshot().ledgers {
                assert_eq!(ledger.recovered, batches * LINES);
            }
        });
    });
    group.finish();
}

const BATCH_BYTES: usize = 28_000;
/// So many of them fill a few segments.
const BATCHES_TO_A_SYNC: u64 = 2_000;

fn batch(bytes: usize) -> Batch {
    let destination = Destination::new("telegraf", "", Precision::Nanoseconds);
    Batch::new(Arc::new(destination), Bytes::from(vec![b'x'; bytes]), LINES, Received::now()).with_capacity(bytes)
}

criterion_group!(benches, append_lease_settle, open_backlog);
criterion_main!(benches);
