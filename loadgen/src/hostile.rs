//! What an HTTP listener must endure beside its writers: connections whose bodies come a byte a
//! second, and gzip bombs.
//!
//! All of it is empty lines, of which a relay counts none.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::answers::Answer;
use crate::http::{connect, read_answer};

/// What a bomb becomes.
const BOMB_BYTES: usize = 256 << 20;
/// From one byte of a slow connection to its next one.
const BEAT: Duration = Duration::from_secs(1);
/// How long a client that was turned away, or whose connection was ended, stays away.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Hostile {
    /// Slow connections that were open in the end.
    pub slow_open: u64,
    /// How often one was ended by the relay.
    pub slow_ended: u64,
    /// What bombs were answered, and how many.
    pub bombs: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Shared {
    open: AtomicU64,
    ended: AtomicU64,
    bombs: Mutex<BTreeMap<String, u64>>,
}

/// Hostile clients at work; they end with this.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Starts so many slow connections, and one client that sends bombs, one after the other.
    ///
    /// # Errors
    /// If a bomb cannot be made.
    pub fn start(target: SocketAddr, slow: u32) -> io::Result<Self> {
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // Where it stays too low, fewer connections are open.
            setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
        }
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for number in 0..slow {
            tasks.spawn(crawl(target, number, Arc::clone(&shared)));
        }
        tasks.spawn(bomb(target, slow, bomb_request()?, Arc::clone(&shared)));
        Ok(Self { shared, tasks })
    }

    /// Ends all of them.
    pub fn end(mut self) -> Hostile {
        self.tasks.abort_all();
        Hostile {
            slow_open: self.shared.open.load(Ordering::Relaxed),
            slow_ended: self.shared.ended.load(Ordering::Relaxed),
            bombs: self.shared.bombs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn bomb_request() -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let piece = vec![b'\n'; 1 << 20];
    for _ in 0..BOMB_BYTES >> 20 {
        encoder.write_all(&piece)?;
    }
    let body = encoder.finish()?;
    let head = "POST /write?db=telegraf HTTP/1.1\r\nHost: relay\r\nContent-Encoding: gzip\r\nContent-Length: ";
    Ok([format!("{head}{}\r\n\r\n", body.len()).as_bytes(), &body].concat())
}

async fn bomb(target: SocketAddr, number: u32, request: Vec<u8>, shared: Arc<Shared>) {
    loop {
        let answered = throw(target, number, &request).await;
        if answered.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        let name = answered.map_or_else(|error| error.kind().to_string(), |answer| answer.name());
        *shared.bombs.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}

async fn throw(target: SocketAddr, number: u32, request: &[u8]) -> io::Result<Answer> {
    let mut stream = connect(target, number).await?;
    let sent = stream.write_all(request).await;
    let answer = read_answer(&mut stream, &mut Vec::new()).await;
    sent.and(answer)
}

/// A request that never ends.
async fn crawl(target: SocketAddr, number: u32, shared: Arc<Shared>) {
    let head = "POST /write?db=telegraf HTTP/1.1\r\nHost: relay\r\nContent-Length: 100000\r\n\r\n";
    loop {
        if let Ok(mut stream) = connect(target, number).await {
            shared.open.fetch_add(1, Ordering::Relaxed);
            let mut next = stream.write_all(head.as_bytes()).await;
            while next.is_ok() {
                tokio::time::sleep(BEAT).await;
                next = stream.write_all(b"\n").await;
            }
            shared.open.fetch_sub(1, Ordering::Relaxed);
            shared.ended.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
