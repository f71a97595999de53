//! Draining a socket that has datagrams queued: many in one call, and one in each. Each measurement
//! asserts that every datagram came.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use twinflux::receive::udp::{Method, SLOT_BYTES, SLOTS, Slots};

/// Datagrams in one round: what fits the default receive buffer.
const QUEUED: usize = 128;

fn drain(criterion: &mut Criterion) {
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    sender.connect(receiver.local_addr().expect("address")).expect("connect");
    let mut group = criterion.benchmark_group("udp_drain");
    group.throughput(Throughput::Elements(QUEUED as u64));
    for method in [Method::Recvmmsg, Method::Recvmsg] {
        for bytes in [300, 512] {
            let payload = vec![b'x'; bytes];
            let mut slots = Slots::new(SLOTS, SLOT_BYTES, method);
            group.bench_function(BenchmarkId::new(format!("{method:?}"), bytes), |bench| {
                bench.iter_custom(|rounds| {
                    let mut taken = Duration::ZERO;
                    for _ in 0..rounds {
                        for _ in 0..QUEUED {
                            sender.send(&payload).expect("send");
                        }
                        let start = Instant::now();
                        let mut received = 0;
                        while received < QUEUED {
                            let count = slots.receive(receiver.as_fd()).expect("receive");
                            assert!(count > 0, "datagrams are missing");
                            assert!(slots.datagrams().all(|datagram| datagram.bytes.len() == bytes));
                            received += count;
                        }
                        taken += start.elapsed();
                    }
                    taken
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, drain);
criterion_main!(benches);
