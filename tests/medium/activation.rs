//! A socket that someone else holds: datagrams queue in it while the program is replaced.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::sink::{Sink, Store};
use loadgen::workload::Shape;

use crate::support::{Scripted, get, wait_for};

/// Starts the program with the socket passed as systemd does. The shell stands for the service manager: it puts
/// the socket where the protocol wants it, and the program in its own place.
fn start_with(socket: &UdpSocket, folder: &std::path::Path, admin: SocketAddr, backend: &str) -> Child {
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
    std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
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

#[test]
fn a_socket_that_no_listener_wants_is_an_error_that_names_it() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let other = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let passed: OwnedFd = socket.try_clone().expect("clone").into();
    let folder = tempfile::tempdir().expect("folder");
    let run = |descriptor: Stdio, listen: SocketAddr| {
        let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=hosts; exec \"$@\"";
        Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_twinflux"), "--admin", "127.0.0.1:0", "--udp"])
            .arg(listen.to_string())
            .current_dir(folder.path())
            .stdin(descriptor)
            .output()
            .expect("the program")
    };
    let listen = other.local_addr().expect("address");
    drop(other);
    let output = run(Stdio::from(passed), listen);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    let wanted = format!("set udp.listen = \"{}\"", socket.local_addr().expect("address"));
    assert!(error.contains("\"hosts\"") && error.contains(&wanted), "{error}");

    let stream: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").into();
    let output = run(Stdio::from(stream), listen);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("\"hosts\" is no UDP socket"), "{error}");
}

#[test]
fn ten_restarts_under_load_lose_nothing_that_the_receive_buffer_holds() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let store = Arc::new(Store::default());
    let any = "127.0.0.1:0".parse().expect("address");
    let sink = runtime.block_on(Sink::start(any, Arc::clone(&store))).expect("sink");
    let backend = format!("http://{}", sink.address());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let plan = Plan {
        target: socket.local_addr().expect("address"),
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
    let (folder, admin) = (tempfile::tempdir().expect("folder"), free_port());
    let mut child = start_with(&socket, folder.path(), admin, &backend);
    let taken = || store.ledger.counts().distinct;
    let hosts = std::thread::spawn(move || send(&plan, &shared));
    for _ in 0..10 {
        let before = taken();
        wait_for("lines to be stored", || (taken() > before + 2_000).then_some(()));
        terminate(child);
        child = start_with(&socket, folder.path(), admin, &backend);
    }
    wait_for("the last one to listen", || std::net::TcpStream::connect(admin).ok());
    progress.stop();
    hosts.join().expect("no panic").expect("sent");
    let sent = progress.sent();
    // The kernel counts a socket's drops from when it was made, over all processes that had it.
    let status = wait_for("everything to be stored or counted", || {
        let status: serde_json::Value = serde_json::from_str(&get(admin, "/api/status").1).expect("JSON");
        let dropped = status["receive"][0]["kernel_dropped"].as_u64().expect("a number");
        (taken() + dropped == sent.lines).then_some(status)
    });
    eprintln!("{} sent, {}", sent.lines, status["receive"][0]);
    assert_eq!((store.ledger.counts().altered, sent.errors), (0, 0));

    terminate(child);
}
