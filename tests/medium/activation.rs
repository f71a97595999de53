//! A socket that someone else holds: datagrams queue in it while the program is replaced.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::sink::{Sink, Store};
use loadgen::workload::{Host, Shape};

use crate::support::{Scripted, get, wait_for};

/// Starts the program with the socket passed as systemd does. The shell stands for the service
/// manager: it puts the socket where the protocol wants it, and the program in its own place.
fn start_with(socket: &UdpSocket, folder: &Path, admin: SocketAddr, backend: &str) -> Child {
    let passed: OwnedFd = socket.try_clone().expect("clone").into();
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=hosts; exec \"$@\"";
    Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_twinflux"), "--backend", backend])
        .args(["--udp", &socket.local_addr().expect("address").to_string(), "--admin", &admin.to_string()])
        .current_dir(folder)
        .stdin(Stdio::from(passed))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program")
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

fn terminate(mut child: Child) {
    assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill").success());
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}

#[test]
fn what_came_before_the_start_is_received() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    sender.send_to(b"m v=1 1\n", socket.local_addr().expect("address")).expect("send");
    let (backend, folder, admin) = (Scripted::accepting(), tempfile::tempdir().expect("folder"), free_port());
    let child = start_with(&socket, folder.path(), admin, &backend.url());
    wait_for("the line", || (backend.text() == "m v=1 1\n").then_some(()));
    terminate(child);
}

/// Starts the program with this configuration, and with the listener passed as systemd does.
fn start_with_stream(listener: &TcpListener, folder: &Path) -> Child {
    let passed: OwnedFd = listener.try_clone().expect("clone").into();
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=hosts; exec \"$@\"";
    Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_twinflux"), "--config", "twinflux.toml"])
        .current_dir(folder)
        .stdin(Stdio::from(passed))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program")
}

#[test]
fn connections_that_come_while_the_program_is_replaced_are_served() {
    for kind in ["tcp", "http"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let (backend, folder) = (Scripted::accepting(), tempfile::tempdir().expect("folder"));
        let file = format!(
            "data_dir = \"data\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[[{kind}]]\nlisten = \"{address}\"\n\
             [[backend]]\nname = \"a\"\nurl = \"{}\"\nlinger = \"10ms\"\n",
            backend.url()
        );
        std::fs::write(folder.path().join("twinflux.toml"), file).expect("write");
        for turn in 1..=3 {
            // Nobody listens yet: it waits in the queue of whoever holds the socket.
            let mut stream = TcpStream::connect(address).expect("connect");
            let line = format!("m,kind={kind} v={turn} {turn}\n");
            let text = match kind {
                "tcp" => line.clone(),
                _ => format!("POST /write?db=d HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n{line}", line.len()),
            };
            stream.write_all(text.as_bytes()).expect("send");
            let child = start_with_stream(&listener, folder.path());
            wait_for("the line", || backend.text().contains(&line).then_some(()));
            terminate(child);
        }
    }
}

#[test]
fn a_socket_that_no_listener_wants_is_told_by_its_name() {
    let (socket, folder) = (UdpSocket::bind("127.0.0.1:0").expect("bind"), tempfile::tempdir().expect("folder"));
    let passed: OwnedFd = socket.try_clone().expect("clone").into();
    let run = |descriptor: Stdio| {
        let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=hosts; exec \"$@\"";
        Command::new("sh")
            .args([
                "-c",
                script,
                "sh",
                env!("CARGO_BIN_EXE_twinflux"),
                "--admin",
                "127.0.0.1:0",
                "--udp",
                "127.0.0.1:0",
            ])
            .current_dir(folder.path())
            .stdin(descriptor)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program")
    };
    let mut child = run(Stdio::from(passed));
    let mut told = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let wanted = format!("set udp.listen = \"{}\"", socket.local_addr().expect("address"));
    let line = told.find(|line| line.contains("hosts")).expect("a warning");
    assert!(line.contains(&wanted), "{line}");
    // It runs.
    told.find(|line| line.contains("backend reached")).expect("an archive");
    terminate(child);

    let (_one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let output = run(Stdio::from(OwnedFd::from(other))).wait_with_output().expect("an end");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("\"hosts\" is no UDP socket and no TCP listener"), "{error}");
}

/// The sockets that a service manager holds.
struct Held {
    udp: UdpSocket,
    tcp: TcpListener,
    http: TcpListener,
    folder: tempfile::TempDir,
    admin: SocketAddr,
}

impl Held {
    fn new(backend: &str) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("bind");
        let (udp, tcp, http) = (UdpSocket::bind("127.0.0.1:0").expect("bind"), bind(), bind());
        let (folder, admin) = (tempfile::tempdir().expect("folder"), free_port());
        let address = |listener: &TcpListener| listener.local_addr().expect("address");
        let file = format!(
            "data_dir = \"data\"\n[admin]\nlisten = \"{admin}\"\n[[udp]]\nlisten = \"{}\"\n[[tcp]]\nlisten = \"{}\"\n\
             [[http]]\nlisten = \"{}\"\n[[backend]]\nname = \"a\"\nurl = \"{backend}\"\n",
            udp.local_addr().expect("address"),
            address(&tcp),
            address(&http)
        );
        std::fs::write(folder.path().join("twinflux.toml"), file).expect("write");
        Self { udp, tcp, http, folder, admin }
    }

    /// A new program on the same sockets, which a shell passes in the places of its standard files.
    fn start(&self) -> Child {
        let script = "exec 3<&0 4<&1 5<&2 </dev/null >/dev/null 2>>log; \
                      export LISTEN_FDS=3 LISTEN_PID=$$ LISTEN_FDNAMES=udp:tcp:http; exec \"$@\"";
        let passed = |listener: &TcpListener| Stdio::from(OwnedFd::from(listener.try_clone().expect("clone")));
        Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_twinflux"), "--config", "twinflux.toml"])
            .current_dir(self.folder.path())
            .stdin(Stdio::from(OwnedFd::from(self.udp.try_clone().expect("clone"))))
            .stdout(passed(&self.tcp))
            .stderr(passed(&self.http))
            .spawn()
            .expect("the program")
    }
}

/// A client that writes by HTTP until it is told to stop, each line until it is taken; how many
/// were, and how often it was refused.
fn write_by_http(address: SocketAddr, is_over: &AtomicBool) -> (u64, u64) {
    let mut host = Host::new(5_000, Shape::default());
    let (mut lines, mut refused, mut round) = (0, 0, 0);
    while !is_over.load(Ordering::Relaxed) {
        round += 1;
        host.render(1_795_400_726_000_000_000 + round);
        let body =
            String::from_utf8(host.lines().iter().flat_map(|line| host.bytes()[line.clone()].to_vec()).collect());
        let body = body.expect("text");
        let head = format!("POST /write?db=d HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        // An answer that was lost with the program is asked for again: the same points.
        loop {
            let Ok(mut stream) = TcpStream::connect(address) else {
                refused += 1;
                continue;
            };
            let mut answer = String::new();
            let sent = stream.write_all((head.clone() + &body).as_bytes());
            if sent.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.contains(" 204 ") {
                break;
            }
        }
        lines += host.lines().len() as u64;
        std::thread::sleep(Duration::from_millis(5));
    }
    (lines, refused)
}

/// A client that connects again and again to a stream; how often, and how often it was refused.
fn connect_by_tcp(address: SocketAddr, is_over: &AtomicBool) -> (u64, u64) {
    let (mut connected, mut refused) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        match TcpStream::connect(address) {
            Ok(mut stream) => {
                connected += 1;
                stream.write_all(format!("stream.test {connected}\n").as_bytes()).ok();
            }
            Err(_) => refused += 1,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (connected, refused)
}

/// Tells those who send to end.
struct End<'a>(&'a AtomicBool, &'a Progress);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.stop();
    }
}

#[test]
fn twenty_replacements_under_load_lose_nothing_and_refuse_nobody() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let store = Arc::new(Store::default());
    let any = "127.0.0.1:0".parse().expect("address");
    let sink = runtime.block_on(Sink::start(any, Arc::clone(&store))).expect("sink");
    let held = Held::new(&format!("http://{}", sink.address()));
    let plan = Plan {
        target: held.udp.local_addr().expect("address"),
        hosts: 100,
        first_host: 0,
        shape: Shape::default(),
        pace: Pace::Rate(20_000.0),
        // It is stopped once the last one listens.
        duration: Duration::from_secs(3600),
        payload: None,
    };
    let progress = Arc::new(Progress::default());
    let shared = Arc::clone(&progress);
    let first = held.start();
    let taken = || store.ledger.counts().distinct;
    let is_over = AtomicBool::new(false);
    let (http, tcp) = (held.http.local_addr().expect("address"), held.tcp.local_addr().expect("address"));
    let (by_http, by_tcp, last) = std::thread::scope(|threads| {
        // Where it fails, the clients end, too.
        let _end = End(&is_over, &progress);
        let mut child = first;
        let hosts = threads.spawn(move || send(&plan, &shared));
        let by_http = threads.spawn(|| write_by_http(http, &is_over));
        let by_tcp = threads.spawn(|| connect_by_tcp(tcp, &is_over));
        for _ in 0..20 {
            let before = taken();
            wait_for("lines to be stored", || (taken() > before + 2_000).then_some(()));
            terminate(child);
            child = held.start();
        }
        wait_for("the last one to listen", || TcpStream::connect(held.admin).ok());
        drop(End(&is_over, &progress));
        hosts.join().expect("no panic").expect("sent");
        (by_http.join().expect("no panic"), by_tcp.join().expect("no panic"), child)
    });
    let sent = progress.sent();
    // The kernel counts a socket's drops from when it was made, over all processes that had it.
    let status = wait_for("everything to be stored or counted", || {
        let status: serde_json::Value = serde_json::from_str(&get(held.admin, "/api/status").1).expect("JSON");
        let dropped = status["receive"][0]["kernel_dropped"].as_u64().expect("a number");
        (taken() + dropped == sent.lines + by_http.0).then_some(status)
    });
    let counts = store.ledger.counts();
    eprintln!(
        "{} datagrams sent, {} lines by HTTP, {} TCP connections, {} of their lines stored; {}",
        sent.lines, by_http.0, by_tcp.0, counts.foreign, status["receive"][0]
    );
    assert_eq!((counts.altered, sent.errors, by_http.1, by_tcp.1), (0, 0, 0, 0), "nobody is refused");
    terminate(last);
}
