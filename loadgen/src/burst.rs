//! Sending as hosts that run Netdata do: all of them in the same second, each its whole batch at
//! once.
//!
//! Over TCP a host keeps its connection. Where that breaks it makes a new one and sends the whole
//! batch again, as Netdata does. Over UDP a batch is one datagram; one that is larger than a
//! datagram is lost at the sender, and an empty datagram goes out instead.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use socket2::{Domain, Socket, Type};

use crate::netdata::{Exporter, Format};
use crate::send::Progress;

/// How long a host may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broken connection is left alone.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// How long a batch may take until the hosts give up on it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait where no connection takes anything.
const PAUSE: Duration = Duration::from_millis(1);

/// What a batch travels in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// One stream for each host.
    Tcp,
    /// One datagram for each batch.
    Udp,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// In what.
    pub transport: Transport,
    /// Written in what.
    pub format: Format,
    /// How many hosts, numbered from 0.
    pub hosts: u32,
    /// Values of each.
    pub dimensions: u32,
    /// From one export to the next.
    pub interval: Duration,
    /// For how long; there is one export at least.
    pub duration: Duration,
}

/// Sends on the calling thread until the time is over; returns how long the longest burst took,
/// from its first byte to its last one, and when the last one began.
///
/// # Errors
/// What the system says when it gives no connection, or a relay that takes nothing for a minute.
pub fn send(plan: &Plan, progress: &Progress) -> io::Result<(Duration, Instant)> {
    let mut hosts = (0..plan.hosts).map(|number| Host::new(number, plan)).collect::<io::Result<Vec<_>>>()?;
    let (start, start_wall) = (Instant::now(), SystemTime::now());
    let (mut longest, mut began) = (Duration::ZERO, start);
    for turn in 0.. {
        let due = start + plan.interval * turn;
        if (turn > 0 && due.duration_since(start) >= plan.duration) || progress.is_stopped() {
            break;
        }
        // Rendered before it is due, with the time at which it is.
        let time = (start_wall + plan.interval * turn).duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        for host in &mut hosts {
            host.exporter.render(time);
            host.sent = 0;
            host.is_done = false;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        began = Instant::now();
        longest = longest.max(burst(plan, &mut hosts, progress)?);
    }
    Ok((longest, began))
}

/// One simulated host.
struct Host {
    exporter: Exporter,
    source: Option<Ipv4Addr>,
    road: Road,
    /// How much of the batch is sent.
    sent: usize,
    is_done: bool,
}

enum Road {
    Stream(TcpStream),
    /// A stream that broke is made again at this time.
    Broken(Instant),
    Datagrams(UdpSocket),
}

impl Host {
    fn new(number: u32, plan: &Plan) -> io::Result<Self> {
        let source = source_of(number, plan.target);
        let road = match plan.transport {
            Transport::Tcp => Road::Stream(connect(plan.target, source)?),
            Transport::Udp => {
                let any = source.map_or_else(|| unspecified(plan.target), |ip| (ip, 0).into());
                let socket = UdpSocket::bind(any)?;
                socket.connect(plan.target)?;
                Road::Datagrams(socket)
            }
        };
        let exporter = Exporter::new(number, plan.dimensions, plan.format);
        Ok(Self { exporter, source, road, sent: 0, is_done: false })
    }

    /// Sends as much as is taken now; true where that was something.
    fn send(&mut self, plan: &Plan, progress: &Progress) -> bool {
        match &mut self.road {
            Road::Datagrams(socket) => {
                let batch = self.exporter.batch();
                self.is_done = true;
                match socket.send(batch) {
                    Ok(_) => progress.add(self.exporter.values(), 1, batch.len() as u64, 0),
                    Err(_) => progress.add(0, u64::from(socket.send(&[]).is_ok()), 0, 1),
                }
                true
            }
            Road::Broken(until) if Instant::now() < *until => false,
            Road::Broken(_) => {
                self.road = connect(plan.target, self.source)
                    .map_or_else(|_| Road::Broken(Instant::now() + RECONNECT_PAUSE), Road::Stream);
                true
            }
            Road::Stream(stream) => match stream.write(&self.exporter.batch()[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    if self.sent == self.exporter.batch().len() {
                        self.is_done = true;
                        progress.add(self.exporter.values(), 0, self.sent as u64, 0);
                    }
                    true
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
                Err(_) => {
                    progress.add(0, 0, 0, 1);
                    self.sent = 0;
                    self.road = Road::Broken(Instant::now() + RECONNECT_PAUSE);
                    true
                }
            },
        }
    }
}

/// All hosts' batches, in turn, each as far as it goes.
fn burst(plan: &Plan, hosts: &mut [Host], progress: &Progress) -> io::Result<Duration> {
    let start = Instant::now();
    let mut moved = start;
    while hosts.iter().any(|host| !host.is_done) && !progress.is_stopped() {
        let mut has_moved = false;
        for host in hosts.iter_mut().filter(|host| !host.is_done) {
            has_moved |= host.send(plan, progress);
        }
        if has_moved {
            moved = Instant::now();
        } else if moved.elapsed() > PATIENCE {
            return Err(io::Error::new(ErrorKind::TimedOut, "the relay takes nothing any more"));
        } else {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(start.elapsed())
}

/// On loopback each host has an address of its own, as it would in a network.
pub(crate) fn source_of(number: u32, target: SocketAddr) -> Option<Ipv4Addr> {
    let is_loopback = matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback());
    is_loopback.then(|| Ipv4Addr::from(0x7f01_0000 + (number / 250) * 256 + number % 250 + 1))
}

fn connect(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&target.into(), CONNECT_TIMEOUT)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn unspecified(target: SocketAddr) -> SocketAddr {
    if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    fn plan(target: SocketAddr, transport: Transport, dimensions: u32) -> Plan {
        let (interval, duration) = (Duration::from_millis(20), Duration::from_millis(40));
        Plan { target, transport, format: Format::Graphite, hosts: 3, dimensions, interval, duration }
    }

    #[test]
    fn a_host_that_loses_its_connection_sends_its_whole_batch_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let target = listener.local_addr().expect("address");
        let receiver = std::thread::spawn(move || {
            let mut texts = Vec::new();
            for accepted in 0..4 {
                let (mut stream, _) = listener.accept().expect("accept");
                texts.push(std::thread::spawn(move || {
                    let mut text = Vec::new();
                    if accepted == 0 {
                        // Closed with data unread: the sender learns it by a reset.
                        stream.read_exact(&mut [0; 100]).expect("read");
                    } else {
                        stream.read_to_end(&mut text).expect("read");
                    }
                    text
                }));
            }
            texts.into_iter().flat_map(|text| text.join().expect("no panic")).collect::<Vec<u8>>()
        });
        // Large enough not to fit into the sockets' buffers.
        let plan = Plan { duration: Duration::ZERO, ..plan(target, Transport::Tcp, 40_000) };
        let progress = Progress::default();
        send(&plan, &progress).expect("sent");
        let text = receiver.join().expect("no panic");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 3 * 40_000);
        assert_eq!((progress.sent().lines, progress.sent().errors), (3 * 40_000, 1));
    }

    #[test]
    fn a_batch_too_large_for_a_datagram_is_an_empty_one() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let target = receiver.local_addr().expect("address");
        for (dimensions, sizes) in [(10, 1000..2000), (1000, 0..1)] {
            let progress = Progress::default();
            send(&plan(target, Transport::Udp, dimensions), &progress).expect("sent");
            let sent = progress.sent();
            assert_eq!((sent.datagrams, sent.lines > 0, sent.errors > 0), (6, dimensions == 10, dimensions == 1000));
            for _ in 0..6 {
                assert!(sizes.contains(&receiver.recv(&mut [0; 65_536]).expect("a datagram")));
            }
        }
    }
}
