//! Listeners on multicast addresses: joined on the interface that is meant, each datagram once.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use socket2::SockRef;

use crate::support::{Running, Scripted, config, get, left_out, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_twinflux");

/// A sender to a group on the loopback interface.
fn sender() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    SockRef::from(&socket).set_multicast_if_v4(&[127, 0, 0, 1].into()).expect("an interface");
    socket
}

#[test]
fn a_group_is_joined_on_its_interface_and_each_datagram_taken_once() {
    for (last, interface) in [(1, "lo"), (2, "127.0.0.1")] {
        let backend = Scripted::accepting();
        let mut config = config(&[backend.url()]);
        config.udp[0].listen = SocketAddr::from(([239, 77, 2, last], 0));
        config.udp[0].interface = Some(interface.to_owned());
        let relay = Running::start(config);
        let socket = sender();
        for n in 0..10 {
            socket.send_to(format!("m v={n} {n}\n").as_bytes(), relay.target).expect("send");
        }
        relay.wait_delivered("a", 10);
        assert_eq!(relay.status().receive[0].datagrams, 10);
    }
}

#[test]
fn an_interface_that_is_not_there_keeps_the_relay_from_starting() {
    let mut config = config(&["http://127.0.0.1:1".to_owned()]);
    config.udp[0].listen = SocketAddr::from(([239, 77, 2, 3], 0));
    config.udp[0].interface = Some("nowhere9".to_owned());
    let error = Running::try_start(config).map(|_| ()).expect_err("refused");
    assert!(error.contains("239.77.2.3") && error.contains("\"nowhere9\" does not exist"), "{error}");
}

/// As a service manager passes it: bound, and joined by nobody.
#[test]
fn a_passed_socket_is_joined_also_when_an_earlier_process_did() {
    let socket = UdpSocket::bind("239.77.2.4:0").expect("bind");
    let group = socket.local_addr().expect("address");
    let folder = tempfile::tempdir().expect("folder");
    let file = format!("data_dir = \"data\"\n[[udp]]\nlisten = \"{group}\"\ninterface = \"lo\"\n");
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    for accepted in 1..=2 {
        let admin = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
        let passed: OwnedFd = socket.try_clone().expect("clone").into();
        let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", PROGRAM, "--config", "file.toml", "--admin", &admin.to_string()])
            .current_dir(folder.path())
            .stdin(Stdio::from(passed))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program");
        wait_for("the program to listen", || std::net::TcpStream::connect(admin).ok());
        sender().send_to(b"m v=1 1\n", group).expect("send");
        wait_for("the line", || get(admin, "/api/status").1.contains("\"accepted_lines\":1").then_some(()));
        assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill").success());
        assert_eq!(child.wait().expect("an end").code(), Some(0), "run {accepted}");
    }
}

/// Two network namespaces with a cable between them; removed at the end. None where this user may
/// not make them.
struct Cable {
    names: [String; 2],
}

impl Cable {
    fn new() -> Option<Self> {
        let names = ["a", "b"].map(|end| format!("twinflux-{}-{end}", std::process::id()));
        let ip = |arguments: &str| {
            let ended = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
            ended.is_ok_and(|status| status.success())
        };
        let [a, b] = &names;
        if !ip(&format!("netns add {a}")) {
            return None;
        }
        let cable = Self { names: names.clone() };
        let mut is_made = ip(&format!("netns add {b}"));
        is_made = is_made && ip(&format!("-n {a} link add relay0 type veth peer name host0 netns {b}"));
        for (name, link, last) in [(a, "relay0", 1), (b, "host0", 2)] {
            is_made = is_made
                && ip(&format!("-n {name} address add 10.77.0.{last}/24 dev {link}"))
                && ip(&format!("-n {name} address add fd77::{last}/64 dev {link} nodad"))
                && ip(&format!("-n {name} link set lo up"))
                && ip(&format!("-n {name} link set {link} up"));
        }
        // IPv4 has no route to groups of its own.
        is_made = is_made && ip(&format!("-n {a} route add 239.0.0.0/8 dev relay0"));
        is_made = is_made && ip(&format!("-n {b} route add 239.0.0.0/8 dev host0"));
        is_made.then_some(cable)
    }

    fn run(&self, end: usize, command: &[&str]) -> Command {
        let mut all = Command::new("ip");
        all.args(["netns", "exec", &self.names[end]]).args(command);
        all
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            drop(Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status());
        }
    }
}

/// A relay at one end of the cable.
struct AtCable<'a> {
    cable: &'a Cable,
    child: Child,
}

impl<'a> AtCable<'a> {
    fn start(cable: &'a Cable, folder: &Path, listen: &str, interface: Option<&str>) -> Self {
        let interface = interface.map_or_else(String::new, |name| format!("interface = \"{name}\"\n"));
        let file = format!(
            "data_dir = \"data\"\n[admin]\nlisten = \"127.0.0.1:9097\"\n[[udp]]\nlisten = \"{listen}\"\n{interface}\
             [[backend]]\nname = \"archive\"\nurl = \"file://{}/archive\"\nlinger = \"10ms\"\n",
            folder.display()
        );
        std::fs::write(folder.join("file.toml"), file).expect("write");
        let mut command = cable.run(0, &[PROGRAM, "--config", "file.toml"]);
        let child =
            command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
        let relay = Self { cable, child };
        wait_for("the relay to listen", || relay.status());
        relay
    }

    fn status(&self) -> Option<String> {
        let output = self.cable.run(0, &[PROGRAM, "status"]).output().expect("the program");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for AtCable<'_> {
    fn drop(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

#[test]
fn groups_of_both_families_are_received_from_another_host() {
    let Some(cable) = Cable::new() else {
        left_out("groups_of_both_families_are_received_from_another_host", "only root may make network namespaces");
        return;
    };
    for (listen, interface, to) in [
        ("239.77.3.1:8089", Some("relay0"), "239.77.3.1"),
        ("239.77.3.2:8089", Some("10.77.0.1"), "239.77.3.2"),
        ("239.77.3.3:8089", None, "239.77.3.3"),
        ("[ff05::77:1]:8089", Some("relay0"), "ff05::77:1"),
        ("[ff05::77:2]:8089", Some("fd77::1"), "ff05::77:2"),
        ("[ff05::77:3]:8089", None, "ff05::77:3"),
        ("[ff02::77:4]:8089", Some("relay0"), "ff02::77:4%host0"),
        ("[ff02::77:5%relay0]:8089", None, "ff02::77:5%host0"),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let relay = AtCable::start(&cable, folder.path(), listen, interface);
        let mut sent = 0;
        // What is sent before the cable is up is lost.
        let status = wait_for(&format!("a line to {to}"), || {
            let script = format!("echo 'm v=1 1' > /dev/udp/{to}/8089");
            let is_sent = cable.run(1, &["bash", "-c", &script]).stderr(Stdio::null()).status();
            sent += usize::from(is_sent.expect("bash").success());
            relay.status().filter(|status| !status.contains("accepted 0 lines"))
        });
        let accepted: usize = status
            .lines()
            .find_map(|line| line.strip_prefix("accepted ")?.split(' ').next()?.parse().ok())
            .expect("a number of lines");
        assert!((1..=sent).contains(&accepted), "{listen}: {sent} sent\n{status}");
    }
}
