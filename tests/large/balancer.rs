//! A real HAProxy in front, as the guide *Moving from influxdb-relay and HAProxy* has it: it finds
//! the relay by its checks, passes writes on, and the relay knows who wrote.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::influxdb::{ServerConfig, free_port};
use crate::rig::{Program, server};
use crate::support::wait_for;

/// The address that the host writes from. Not that of HAProxy.
const HOST: &str = "127.0.0.7";

/// HAProxy with one server behind it.
pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Balancer {
    /// `mode` are the lines of the backend that differ, `server` is what follows its address.
    fn start(mode: &str, lines: &str, relay: SocketAddr, server: &str) -> Self {
        Self::run(mode, &format!("{lines}\n server relay {relay} check inter 200ms {server}"))
    }

    /// Before two servers, as people put it before two InfluxDBs: it asks whether they are there,
    /// and takes turns.
    pub(crate) fn before(servers: [SocketAddr; 2]) -> Self {
        let [a, b] = servers.map(|server| format!("{server} check inter 200ms"));
        Self::run(
            "http",
            &format!(" option httpchk GET /ping\n http-check expect status 204\n server a {a}\n server b {b}"),
        )
    }

    fn run(mode: &str, behind: &str) -> Self {
        let (address, folder) = (free_port(), tempfile::tempdir().expect("folder"));
        let file: PathBuf = folder.path().join("haproxy.cfg");
        let config = format!(
            "defaults\n mode {mode}\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
             frontend writers\n bind {address}\n default_backend twinflux\n\
             backend twinflux\n{behind}\n"
        );
        std::fs::write(&file, config).expect("write");
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy: install Debian's package haproxy");
        Self { address, child, _folder: folder }
    }

    /// Writes as the host does; gives the status and the answer.
    fn write(&self, target: &str, body: &str) -> String {
        let output = Command::new("curl")
            .args(["-s", "-w", "%{http_code}", "--interface", HOST, "--data-binary", body])
            .arg(format!("http://{}{target}", self.address))
            .output()
            .expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait_write(&self, target: &str, body: &str) {
        wait_for("a write through HAProxy", || (self.write(target, body) == "204").then_some(()));
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The relay with `more` for its HTTP listener, HAProxy before it; the host writes, nobody else
/// may.
fn assert_passed(more: &str, mode: &str, lines: &str, of_server: &str) {
    let servers = [server(ServerConfig::default()), server(ServerConfig::default())];
    let backends = [0, 1].map(|number: usize| (servers[number].url(), ""));
    let listener = format!("[[http]]\nlisten = \"127.0.0.1:0\"\nallow = [\"{HOST}/32\"]\n{more}\n");
    let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), &listener, &backends);
    let door = program.status().receive.into_iter().find(|one| one.kind == "http").expect("a listener").listen;
    let balancer = Balancer::start(mode, lines, door.parse().expect("an address"), of_server);
    balancer.wait_write("/write?db=telegraf", "balanced v=1 1500000000000000000");
    let refused =
        balancer.write("/write?db=telegraf", "balanced v= 1500000000000000000\nbalanced v=2 1500000000000000001");
    assert!(refused.ends_with("400") && refused.contains("partial write"), "the answer comes through: {refused}");
    for name in ["a", "b"] {
        program.wait_delivered(name);
    }
    for server in &servers {
        assert_eq!(server.count("telegraf", "balanced", "v"), 2);
    }
    wait_for("the host in the table of sources", || {
        program
            .status()
            .sources
            .top
            .iter()
            .any(|one| one.address == HOST && (one.lines, one.refused) == (3, 1))
            .then_some(())
    });
}

#[test]
fn haproxy_in_mode_http_says_whom_a_write_is_from() {
    let lines = " option forwardfor\n option httpchk GET /ping\n http-check expect status 204";
    assert_passed("trusted_proxies = [\"127.0.0.1/32\"]", "http", lines, "");
}

#[test]
fn haproxy_in_mode_tcp_says_whom_a_connection_is_from() {
    let more = "trusted_proxies = [\"127.0.0.1/32\"]\nproxy_protocol = true";
    assert_passed(more, "tcp", " option httpchk GET /ping", "send-proxy-v2");
}

#[test]
fn haproxy_passes_streams_on_and_says_whom_they_are_from() {
    let servers = [server(ServerConfig::default()), server(ServerConfig::default())];
    let backends = [0, 1].map(|number: usize| (servers[number].url(), ""));
    let more = format!(
        "[[tcp]]\nlisten = \"127.0.0.1:0\"\nallow = [\"{HOST}/32\"]\n\
         trusted_proxies = [\"127.0.0.1/32\"]\nproxy_protocol = true\n"
    );
    let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), &more, &backends);
    let balancer = Balancer::start("tcp", "", program.targets[1], "send-proxy-v2");
    let address = wait_for("HAProxy", || std::net::TcpStream::connect(balancer.address).ok().map(|_| balancer.address));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    let host: SocketAddr = format!("{HOST}:0").parse().expect("an address");
    socket.bind(&host.into()).expect("bind");
    socket.connect(&address.into()).expect("connect");
    std::io::Write::write_all(&mut (&socket), b"balanced v=1 1500000000000000000\n").expect("send");
    drop(socket);
    wait_for("the host in the table of sources", || {
        program.status().sources.top.iter().any(|one| one.address == HOST && one.lines == 1).then_some(())
    });
    for (name, server) in ["a", "b"].iter().zip(&servers) {
        program.wait_delivered(name);
        assert_eq!(server.count("telegraf", "balanced", "v"), 1);
    }
}
