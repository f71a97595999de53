//! What befalls the network between a relay and real InfluxDBs: a server that vanishes without a
//! word, a name that moves, a resolver that fails, a server far away. Nothing is lost, and the
//! other server is not held up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::influxdb::{InfluxDb, ServerConfig, free_port};
use crate::rig::{Program, assert_numbers, server, stored};
use crate::support::{left_out, wait_for};

/// A network namespace at the end of a cable, whose other end is in the test's. It goes with the
/// process that holds it.
struct Far {
    holder: Child,
    cable: String,
    near: Ipv4Addr,
    far: Ipv4Addr,
}

impl Far {
    /// None where this user may not make one.
    fn lay() -> Option<Self> {
        let process = std::process::id();
        // The range for benchmarks has 32,768 pairs of addresses.
        let pair = 0xC612_0000 | (process % 0x8000) << 2;
        let (near, far) = (Ipv4Addr::from(pair | 1), Ipv4Addr::from(pair | 2));
        let holder = Command::new("unshare").args(["--net", "sleep", "900"]).stderr(Stdio::null()).spawn().ok()?;
        let mut this = Self { holder, cable: format!("tw{process}"), near, far };
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let is_made = wait_for("the namespace", || {
            let is_over = this.holder.try_wait().expect("wait").is_some();
            let is_own = namespace(&this.holder.id().to_string()) != namespace("self");
            (is_over || is_own).then_some(!is_over)
        });
        let (cable, holder) = (&this.cable, this.holder.id());
        let is_laid = is_made
            && ip(&[], &format!("link add {cable} type veth peer name far netns {holder}"))
            && ip(&[], &format!("address add {near}/30 dev {cable}"))
            && ip(&[], &format!("link set {cable} up"))
            && ip(&this.within(), &format!("address add {far}/30 dev far"))
            && ip(&this.within(), "link set far up")
            && ip(&this.within(), "link set lo up");
        is_laid.then_some(this)
    }

    /// The command that runs others there.
    fn within(&self) -> Vec<String> {
        let holder = self.holder.id();
        ["nsenter", &format!("--target={holder}"), "--net"].map(str::to_owned).to_vec()
    }

    /// Whatever is sent from either end arrives nowhere, and nobody is told.
    fn cut(&self) {
        for (within, address, cable) in self.ends() {
            let nobody = format!("neighbour replace {address} lladdr 02:00:00:00:00:01 nud permanent dev {cable}");
            assert!(ip(&within, &nobody));
        }
    }

    fn mend(&self) {
        for (within, address, cable) in self.ends() {
            assert!(ip(&within, &format!("neighbour delete {address} dev {cable}")));
        }
    }

    /// Each end, and the address that it sends to.
    fn ends(&self) -> [(Vec<String>, Ipv4Addr, &str); 2] {
        [(Vec::new(), self.far, &self.cable), (self.within(), self.near, "far")]
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        ip(&[], &format!("link delete {}", self.cable));
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Runs `ip` by a command; whether it succeeded.
fn ip(within: &[String], arguments: &str) -> bool {
    let mut words: Vec<&str> = within.iter().map(String::as_str).collect();
    words.push("ip");
    words.extend(arguments.split(' '));
    let ended = Command::new(words[0]).args(&words[1..]).stderr(Stdio::null()).status();
    ended.is_ok_and(|status| status.success())
}

#[test]
fn a_server_that_vanishes_from_the_network_is_noticed_and_misses_nothing() {
    let Some(far) = Far::lay() else {
        let name = "a_server_that_vanishes_from_the_network_is_noticed_and_misses_nothing";
        left_out(name, "this user may not make a network namespace");
        return;
    };
    let address = SocketAddr::new(far.far.into(), free_port().port());
    let (a, b) = (
        server(ServerConfig::default()),
        server(ServerConfig { address, within: far.within(), ..ServerConfig::default() }),
    );
    // The one connection is open, and told of nothing.
    let program = Program::start(&[(a.url(), ""), (b.url(), "concurrency = 1")]);
    program.send(1000);
    program.wait_delivered("b");
    far.cut();
    let cut = Instant::now();
    program.send_while(2000, || {
        program.wait_state("b", "down");
        eprintln!("noticed {:.1?} after it vanished", cut.elapsed());
        let before = program.backend("a").delivered_lines;
        wait_for("the other", || (program.backend("a").delivered_lines > before + 2000).then_some(()));
    });
    program.wait_delivered("a");
    assert!(program.backend("b").pending_lines > 0);
    far.mend();
    let mended = Instant::now();
    program.wait_delivered("b");
    eprintln!("{} points, delivered {:.1?} after it was back", program.sent(), mended.elapsed());
    program.assert_stored([&a, &b]);
}

/// The program with names of its own: files that stand in for the system's.
fn with_names(names: &Path) -> Command {
    const STAND_IN: &str = "mount --bind \"$0/hosts\" /etc/hosts && mount --bind \"$0/resolv.conf\" /etc/resolv.conf";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{STAND_IN} && exec \"$@\"")]).arg(names);
    command
}

/// Names that only one program knows; none where this user may not mount.
fn names(test: &str, hosts: &str) -> Option<tempfile::TempDir> {
    let names = tempfile::tempdir().expect("folder");
    write_hosts(&names, hosts);
    // Nobody who knows names.
    std::fs::write(names.path().join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        .expect("write");
    let tried = with_names(names.path()).arg("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        left_out(test, "this user may not mount");
        return None;
    }
    Some(names)
}

fn write_hosts(names: &tempfile::TempDir, text: &str) {
    std::fs::write(names.path().join("hosts"), format!("127.0.0.1 localhost\n{text}\n")).expect("write");
}

/// The first at 127.0.0.1, the second at 127.0.0.2, both at the same port.
fn two_addresses() -> [SocketAddr; 2] {
    wait_for("a port that is free at both addresses", || {
        let here = free_port();
        let there = SocketAddr::new(IpAddr::from([127, 0, 0, 2]), here.port());
        TcpListener::bind(there).is_ok().then_some([here, there])
    })
}

/// A relay whose second backend is named, and to which a connection lives this long.
fn by_name(names: &tempfile::TempDir, a: &InfluxDb, port: u16, lifetime: &str) -> Program {
    let mut command = with_names(names.path());
    command.arg(env!("CARGO_BIN_EXE_twinflux"));
    let more = format!("connection_lifetime = \"{lifetime}\"");
    Program::with(command, "", &[(a.url(), ""), (format!("http://influx-b.test:{port}"), &more)])
}

#[test]
fn a_name_that_moves_is_followed_without_a_failure_and_a_resolver_that_fails_moves_nothing() {
    let name = "a_name_that_moves_is_followed_without_a_failure_and_a_resolver_that_fails_moves_nothing";
    let Some(names) = names(name, "127.0.0.1 influx-b.test") else { return };
    let [here, there] = two_addresses();
    let (a, old) = (server(ServerConfig::default()), server(ServerConfig { address: here, ..ServerConfig::default() }));
    let mut new = server(ServerConfig { address: there, ..ServerConfig::default() });
    let program = by_name(&names, &a, here.port(), "1s");
    program.send(500);
    program.wait_delivered("b");
    assert_numbers("the old one", &stored(&old), 0..500);

    write_hosts(&names, "127.0.0.2 influx-b.test");
    wait_for("the name to be followed", || {
        program.send(20);
        (new.count("telegraf", "m", "v") > 0).then_some(())
    });
    program.send(500);
    program.wait_delivered("b");
    let assert_well = || {
        let b = program.backend("b");
        assert_eq!((b.state.as_str(), b.retries, b.last_error), ("up", 0, None));
    };
    assert_well();
    // Requests that were under way together may have gone to either.
    let (mut all, of_old) = (stored(&new), stored(&old));
    assert_eq!((all.len() + of_old.len()) as u64, program.sent());
    all.extend(&of_old);
    assert_numbers("both", &all, 0..program.sent());

    write_hosts(&names, "");
    for _ in 0..2 {
        // From now on every request takes a new connection.
        std::thread::sleep(Duration::from_secs(1));
        program.send(500);
        program.wait_delivered("b");
        assert_well();
    }
    // And so does a server that ended.
    new.kill();
    program.send(500);
    program.wait_state("b", "down");
    new.revive();
    program.wait_delivered("b");
    program.wait_delivered("a");
    assert_eq!(stored(&old), of_old);
    all.extend(stored(&new));
    assert_numbers("both", &all, 0..program.sent());
    assert_numbers("a", &stored(&a), 0..program.sent());
}

/// A listener that takes no further connection: whoever asks for one hears nothing.
fn silent(address: SocketAddr) -> (socket2::Socket, Vec<TcpStream>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    listener.bind(&address.into()).expect("bind");
    listener.listen(0).expect("listen");
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok();
    (listener, std::iter::from_fn(connect).collect())
}

#[test]
fn an_address_that_hears_nothing_does_not_hide_the_names_next() {
    let name = "an_address_that_hears_nothing_does_not_hide_the_names_next";
    for order in [[1, 2], [2, 1]] {
        let hosts = order.map(|number| format!("127.0.0.{number} influx-b.test")).join("\n");
        let Some(names) = names(name, &hosts) else { return };
        let [here, there] = two_addresses();
        let (a, b) =
            (server(ServerConfig::default()), server(ServerConfig { address: there, ..ServerConfig::default() }));
        let _silent = silent(here);
        let program = by_name(&names, &a, here.port(), "5m");
        program.send(500);
        program.assert_stored([&a, &b]);
    }
}

/// Hands on what it reads, this much later.
async fn hand_on(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin + Send + 'static, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    tokio::spawn(async move {
        while let Some((read, bytes)) = receiver.recv().await {
            tokio::time::sleep_until((read + delay).into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if sender.send((Instant::now(), buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

/// A way to a server that takes this long in either direction.
fn long_way(runtime: &tokio::runtime::Runtime, server: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("bind");
    let address = listener.local_addr().expect("address");
    runtime.spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = tokio::net::TcpStream::connect(server).await else { continue };
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::spawn(hand_on(from_near, to_far, delay));
            tokio::spawn(hand_on(from_far, to_near, delay));
        }
    });
    address
}

#[test]
fn a_server_a_tenth_of_a_second_away_keeps_up() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (a, b): (InfluxDb, InfluxDb) = (server(ServerConfig::default()), server(ServerConfig::default()));
    let far = long_way(&runtime, b.address, Duration::from_millis(50));
    let program = Program::start(&[(a.url(), ""), (format!("http://{far}"), "")]);
    program.send_while(5000, || {
        wait_for("load", || (program.sent() >= 15_000).then_some(()));
    });
    program.assert_stored([&a, &b]);
    let b = program.backend("b");
    assert_eq!((b.state.as_str(), b.retries), ("up", 0));
    eprintln!("lag {:?}", b.latency_ms);
}
