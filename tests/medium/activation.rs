//! A socket that someone else holds: datagrams queue in it while the program is replaced.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::sink::{Sink, Store};
use loadgen::workload::Shape;

use crate::support::{Scripted, get, wait_for};

/// Starts the program with the socket passed as systemd does. The shell stands for the service manager: it puts
/// the socket where the protocol wants it, and the program in its own place.
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
    wait_for("the last one to listen", || TcpStream::connect(admin).ok());
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
