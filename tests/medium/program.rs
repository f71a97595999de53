//! The program as its user meets it: command line, messages, exit codes, signals.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::{Running, Scripted, config, get, wait_for};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_twinflux");

pub(crate) fn run(arguments: &[&str], folder: &std::path::Path) -> Output {
    Command::new(PROGRAM).args(arguments).current_dir(folder).output().expect("the program")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running program, with the lines it printed at its start.
pub(crate) struct Started {
    pub(crate) child: Child,
    lines: Vec<String>,
    pub(crate) target: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Started {
    pub(crate) fn new(arguments: &[&str], folder: &std::path::Path) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["--udp", "127.0.0.1:0"]).args(arguments);
        Self::from(command, folder)
    }

    pub(crate) fn from(command: Command, folder: &std::path::Path) -> Self {
        Self::with_admin(command, "127.0.0.1:0", folder)
    }

    fn with_admin(mut command: Command, admin: &str, folder: &std::path::Path) -> Self {
        command.args(["--admin", admin]);
        Self::with_log(command, Stdio::piped(), folder)
    }

    /// With an admin address among its arguments, and its log sent there.
    pub(crate) fn with_log(mut command: Command, log: Stdio, folder: &std::path::Path) -> Self {
        let mut child = command.current_dir(folder).stdout(Stdio::piped()).stderr(log).spawn().expect("the program");
        let output = BufReader::new(child.stdout.take().expect("output"));
        let lines: Vec<String> = output.lines().take(5).map(|line| line.expect("text")).collect();
        let address = |line: &str, after: &str| {
            let (_, rest) = line.split_once(after).unwrap_or_else(|| panic!("{line:?} tells an address"));
            rest.split([' ', '/']).next().expect("a word").parse().expect("an address")
        };
        let (target, admin) = (address(&lines[1], "udp "), address(&lines[4], "http://"));
        Self { child, lines, target, admin }
    }

    /// Sends a first line, and waits until it is accepted.
    pub(crate) fn send_line(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.send_to(b"m v=1 1\n", self.target).expect("send");
        wait_for("the line", || get(self.admin, "/api/status").1.contains("\"accepted_lines\":1").then_some(()));
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
    }

    /// Waits for the end of one whose log goes elsewhere.
    pub(crate) fn end_quietly(mut self) -> Option<i32> {
        self.child.wait().expect("an end").code()
    }

    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("an end").code();
        let mut log = String::new();
        self.child.stderr.take().expect("log").read_to_string(&mut log).expect("text");
        (code, log)
    }
}

/// A test that fails leaves no program behind.
impl Drop for Started {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn without_arguments_it_says_in_five_lines_what_it_does_and_archives() {
    let folder = tempfile::tempdir().expect("folder");
    let started = Started::new(&[], folder.path());
    assert!(started.lines[0].starts_with("Twinflux "));
    assert!(started.lines[2].contains("archive = file://"));
    assert!(started.lines[3].contains(&format!("/dev/udp/127.0.0.1/{}", started.target.port())));
    // What it says is what works.
    let command = started.lines[3].split_once("try").expect("a command").1.trim().replace("(in bash)", "");
    assert!(Command::new("bash").args(["-c", &command]).status().expect("bash").success());
    wait_for("the line", || get(started.admin, "/api/status").1.contains("\"delivered_lines\":1").then_some(()));
    let status = run(&["status", "--admin", &started.admin.to_string()], folder.path());
    assert!(status.status.success());
    assert!(text(&status.stdout).contains("accepted 1 lines"), "{}", text(&status.stdout));
    started.signal("-TERM");
    assert_eq!(started.end().0, Some(0));
    let stored = folder.path().join("twinflux-data/archive/telegraf.ns");
    let file = std::fs::read_dir(stored).expect("folder").next().expect("a file").expect("an entry").path();
    assert!(std::fs::read_to_string(file).expect("text").contains("cpu,host=me usage=1.5 "));
}

#[test]
fn the_start_says_for_each_backend_whether_it_was_reached() {
    let folder = tempfile::tempdir().expect("folder");
    let backend = Scripted::accepting();
    let archive = format!("file://{}/archive", folder.path().display());
    let arguments = ["--backend", &backend.url(), "--backend", "http://127.0.0.1:1", "--backend", &archive];
    let started = Started::new(&[&arguments[..], &["--backend", "udp://127.0.0.1:9"]].concat(), folder.path());
    wait_for("the probes", || {
        let status: serde_json::Value = serde_json::from_str(&get(started.admin, "/api/status").1).expect("JSON");
        let backends = status["backends"].as_array().expect("backends");
        let states: Vec<&str> = backends.iter().filter_map(|one| one["state"].as_str()).collect();
        (states == ["up", "unknown", "up", "unknown"] && backends[1]["last_error"].is_string()).then_some(())
    });
    // Sent before the probe of the last one could be seen in the status.
    started.send_line();
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    let (name, folder) = (backend.address, folder.path().display());
    for part in [
        format!("backend reached backend=\"{name}\" found=\"InfluxDB 1.8.10\""),
        "backend not reached; its lines wait backend=\"127.0.0.1:1\" error=\"cannot connect to 127.0.0.1:1".to_owned(),
        format!("backend reached backend=\"{folder}/archive\" found=\"a folder that can be written"),
        "backend cannot be probed: UDP gives no answer backend=\"udp://127.0.0.1:9\" sends_to=\"127.0.0.1:9\""
            .to_owned(),
    ] {
        assert!(log.contains(&part), "{part} in {log}");
    }
}

#[test]
fn addresses_may_be_ports_and_names() {
    let folder = tempfile::tempdir().expect("folder");
    for (udp, host) in [("0", "0.0.0.0"), (":0", "0.0.0.0"), ("localhost:0", "127.0.0.1")] {
        let mut command = Command::new(PROGRAM);
        command.args(["--udp", udp]);
        let started = Started::with_admin(command, "localhost:0", folder.path());
        assert_eq!(
            (started.target.ip().to_string(), started.admin.ip().to_string()),
            (host.into(), "127.0.0.1".into())
        );
        for admin in [started.admin.port().to_string(), format!("localhost:{}", started.admin.port())] {
            assert!(run(&["status", "--admin", &admin], folder.path()).status.success(), "{admin}");
        }
        started.signal("-TERM");
        assert_eq!(started.end().0, Some(0));
    }
}

#[test]
fn the_start_says_how_long_an_archive_will_last() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = folder.path().join("archive/telegraf.ns");
    std::fs::create_dir_all(&archive).expect("a folder");
    // In the last two hours 1 TiB came, which takes no room here.
    let begun = std::time::SystemTime::now() - Duration::from_secs(7200);
    let stamp = humantime::format_rfc3339_seconds(begun).to_string().replace(['-', ':'], "");
    let file = std::fs::File::create(archive.join(format!("{stamp}.lp.gz"))).expect("a file");
    file.set_len(1 << 40).expect("a length");
    let url = format!("file://{}/archive", folder.path().display());
    let text =
        format!("data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[backend]]\nname = \"a\"\nurl = \"{url}\"\n");
    std::fs::write(folder.path().join("file.toml"), text).expect("write");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>log", PROGRAM, "--config", "file.toml"]);
    let started = Started::from(command, folder.path());
    wait_for("the warning", || {
        let log = std::fs::read_to_string(folder.path().join("log")).ok()?;
        log.contains("archive full in ").then_some(())
    });
    started.signal("-TERM");
    assert_eq!(started.end().0, Some(0));
    assert!(archive.join(format!("{stamp}.lp.gz")).exists(), "nothing is removed without bounds");
}

#[test]
fn a_shutdown_with_a_dead_backend_ends_and_tells_what_is_left() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("memory.toml"), "[journal]\ndurability = \"memory\"\n").expect("write");
    let dead = &["--backend", "http://127.0.0.1:1"];
    let of_memory = [&["--config", "memory.toml"], &dead[..]].concat();
    for (arguments, told) in [(&dead[..], "kept in the journal"), (&of_memory, "lost: they were only in memory")] {
        let started = Started::new(arguments, folder.path());
        started.send_line();
        started.signal("-TERM");
        let (code, log) = started.end();
        assert_eq!(code, Some(0));
        assert!(log.contains("pending=1") && log.contains(told), "{log}");
    }
}

#[test]
fn a_hanging_backend_holds_a_shutdown_up_no_longer_than_agreed() {
    let mut settings = config(&[String::from("http://127.0.0.1:1")]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    settings.backend[0].url = format!("http://{}", listener.local_addr().expect("address")).parse().expect("URL");
    settings.shutdown_timeout = Duration::from_millis(300);
    let mut relay = Running::start(settings);
    relay.send(&["m v=1 1\n"]);
    wait_for("the request", || (relay.backend("a").requests == 1).then_some(()));
    assert_eq!(relay.stop().backends[0].pending_lines, 1);
}

#[test]
fn bad_usage_ends_with_2_and_says_what_would_be_right() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("bad.toml"), "[[udp]]\nlisten = \"127.0.0.1:0\"\ndatabse = \"x\"\n")
        .expect("write");
    std::fs::write(
        folder.path().join("secret.toml"),
        "[[backend]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\ntoken_file = \"missing\"\n",
    )
    .expect("write");
    std::fs::write(folder.path().join("users.toml"), "[auth]\nusers_file = \"nobody\"\n").expect("write");
    for (arguments, part) in [
        (&["--config", "users.toml", "--data-dir", "d", "--udp", "127.0.0.1:0"][..], "cannot read nobody"),
        (&["--config", "bad.toml"], "bad.toml:3: databse: unknown field `databse`"),
        (&["check", "--config", "bad.toml"], "bad.toml:3: databse"),
        (&["--config", "nowhere.toml"], "nowhere.toml"),
        (&["check", "--config", "secret.toml"], "cannot read the secret file missing"),
        (&["--config", "secret.toml", "--data-dir", "d", "--udp", "127.0.0.1:0"], "secret file missing"),
        (&["--backend", "localhost:8086"], "http://HOST:8086"),
        (&["--udp", "80890"], "'--udp <ADDR>': \"80890\" has no port between 0 and 65535"),
        (&["--udp", "nowhere.invalid:8089"], "'--udp <ADDR>': cannot resolve \"nowhere.invalid\""),
        (&["status", "--admin", "localhost"], "'--admin <ADDR>': \"localhost\" has no port"),
        (&["frobnicate"], "frobnicate"),
        (&["--admin", "127.0.0.1:1", "status"], "cannot be used with"),
        (&["check"], "--config"),
    ] {
        let output = run(arguments, folder.path());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn failures_at_run_time_end_with_1_and_say_what_to_do() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let taken_udp = socket.local_addr().expect("address").to_string();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken_tcp = listener.local_addr().expect("address").to_string();
    std::fs::write(folder.path().join("file"), "").expect("write");
    let any = "127.0.0.1:0";
    for (arguments, parts) in [
        (&["--udp", &taken_udp, "--admin", any][..], &[&taken_udp[..], "another program has it", "--udp"][..]),
        (&["--udp", any, "--admin", &taken_tcp], &[&taken_tcp, "another program has it", "--admin"]),
        (&["--udp", "192.0.2.1:0", "--admin", any], &["192.0.2.1:0", "no interface of this machine", "--udp"]),
        (&["--udp", any, "--admin", any, "--data-dir", "file/x"], &["file/x", "--data-dir"]),
        (&["status", "--admin", "127.0.0.1:1"], &["127.0.0.1:1", "is the relay running"]),
    ] {
        let output = run(arguments, folder.path());
        let code = if arguments[0] == "status" { 3 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        for part in parts {
            assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let first = Started::new(&["--data-dir", "data"], folder.path());
    let second = run(&["--udp", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", "data"], folder.path());
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("in use by another process"), "{}", text(&second.stderr));
    first.signal("-KILL");
    first.end();
    // The lock went with its process.
    let third = Started::new(&["--data-dir", "data"], folder.path());
    third.signal("-TERM");
    assert_eq!(third.end().0, Some(0));
}

/// Without the right to go beyond the system's limit: as another user, where the tests run as root.
#[test]
fn a_receive_buffer_that_came_out_smaller_is_logged_and_shown() {
    use std::os::unix::fs::PermissionsExt;
    let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max").expect("the limit");
    let limit: u64 = limit.trim().parse().expect("a number");
    let folder = tempfile::tempdir().expect("folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("permissions");
    let program = folder.path().join("twinflux");
    std::fs::copy(PROGRAM, &program).expect("copy");
    let wanted = limit * 4;
    let file = format!("data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\nreceive_buffer = {wanted}\n");
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    let is_root = text(&Command::new("id").arg("-u").output().expect("id").stdout).trim() == "0";
    let mut command = if is_root {
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        other
    } else {
        Command::new(&program)
    };
    command.args(["--config", "file.toml"]);
    let started = Started::from(command, folder.path());
    let status: serde_json::Value = serde_json::from_str(&get(started.admin, "/api/status").1).expect("JSON");
    let shown = run(&["status", "--admin", &started.admin.to_string()], folder.path());
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    let receive = &status["receive"][0];
    assert_eq!(
        (receive["receive_buffer"].as_u64(), receive["receive_buffer_wanted"].as_u64()),
        (Some(limit), Some(wanted))
    );
    let advice = format!("net.core.rmem_max={wanted}");
    assert!(log.contains("smaller receive buffer") && log.contains(&advice), "{log}");
    assert!(text(&shown.stdout).contains(&advice), "{}", text(&shown.stdout));
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let folder = tempfile::tempdir().expect("folder");
    let file = "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[tcp]]\nlisten = \"127.0.0.1:0\"\nmax_connections = 900\n";
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    for (hard, raised, is_told) in [(1100, 1100, true), (2000, 1636, false)] {
        let mut command = Command::new("sh");
        let script = format!("ulimit -Sn 256; ulimit -Hn {hard}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, PROGRAM, "--config", "file.toml"]);
        let started = Started::from(command, folder.path());
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", started.child.id())).expect("limits");
        started.signal("-TERM");
        let (code, log) = started.end();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit");
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!((code, numbers), (Some(0), vec![raised, hard]), "{log}");
        assert_eq!(log.contains("LimitNOFILE=") && log.contains("max_connections"), is_told, "{log}");
    }
}

#[test]
fn connections_leave_files_for_delivery_and_the_journal() {
    for kind in ["tcp", "http"] {
        assert_files_are_left(kind);
    }
}

fn assert_files_are_left(kind: &str) {
    let folder = tempfile::tempdir().expect("folder");
    // Each request takes a connection of its own.
    let closing = || Scripted::start(|_, _| (204, vec![("connection", "close".into())], String::new()));
    let (one, two) = (closing(), closing());
    let file = format!(
        "data_dir = \"data\"\n[journal]\ndisk = \"8MiB\"\n\
         [[udp]]\nlisten = \"127.0.0.1:0\"\n[[{kind}]]\nlisten = \"127.0.0.1:0\"\n\
         [[backend]]\nname = \"a\"\nurl = \"{}\"\nlinger = \"10ms\"\n\
         [[backend]]\nname = \"b\"\nurl = \"{}\"\nlinger = \"10ms\"\n",
        one.url(),
        two.url()
    );
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", PROGRAM, "--config", "file.toml"]);
    let started = Started::from(command, folder.path());
    let door = started.lines[1].split_once(&format!("{kind} ")).expect("a listener").1;
    let door: SocketAddr = door.split(' ').next().expect("a word").parse().expect("an address");
    let connect = || std::net::TcpStream::connect(door).expect("connect");
    // All are there at once when it goes on.
    started.signal("-STOP");
    let connections: Vec<_> = (0..200).map(|_| connect()).collect();
    let admin: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(started.admin).expect("connect")).collect();
    started.signal("-CONT");
    // Enough for several segments of 1 MiB.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let filler = "x".repeat(30_000);
    for sent in 1..=100 {
        socket.send_to(format!("m s=\"{filler}\" {sent}\n").as_bytes(), started.target).expect("send");
        wait_for("both backends", || {
            let has_all = |backend: &Scripted| backend.text().matches("m s=").count() >= sent;
            (has_all(&one) && has_all(&two)).then_some(())
        });
    }
    drop(admin);
    let status = wait_for("the admin page", || {
        let status: serde_json::Value = serde_json::from_str(&get(started.admin, "/api/status").1).expect("JSON");
        (status["receive"][1]["displaced"].as_u64() > Some(0)).then_some(status)
    });
    drop(connections);
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    let journal = &status["journal"];
    assert_eq!(
        (journal["state"].as_str(), journal["write_errors"].as_u64(), journal["last_error"].as_str()),
        (Some("ok"), Some(0), None),
        "{log}"
    );
    assert!(status["backends"].as_array().expect("backends").iter().all(|one| one["retries"] == 0), "{log}");
    assert!(log.contains("few files may be open") && log.contains("max_connections=16"), "{log}");
    assert!(!log.contains("cannot accept") && !log.contains("Too many open files"), "{log}");
}

#[test]
fn a_start_says_once_where_dots_of_charts_cannot_be_told() {
    for (listeners, times) in [
        (
            "[[udp]]\nlisten = \"127.0.0.1:0\"\nmapping = \"netdata\"\n[[tcp]]\nlisten = \"127.0.0.1:0\"\nmapping = \"netdata\"\nformat = \"opentsdb\"\n",
            1,
        ),
        ("[[udp]]\nlisten = \"127.0.0.1:0\"\nmapping = \"netdata\"\nformat = \"netdata-json\"\n", 0),
        ("[[udp]]\nlisten = \"127.0.0.1:0\"\n", 0),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("file.toml"), format!("data_dir = \"data\"\n{listeners}")).expect("write");
        let mut command = Command::new(PROGRAM);
        command.args(["--config", "file.toml"]);
        let started = Started::from(command, folder.path());
        started.signal("-TERM");
        let (code, log) = started.end();
        assert_eq!((code, log.matches("JSON").count()), (Some(0), times), "{log}");
    }
}

#[test]
fn check_prints_a_configuration_with_all_defaults_and_no_secret() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("token"), "hunter2").expect("write");
    let file = "[[backend]]\nname = \"a\"\nurl = \"http://127.0.0.1:8086\"\ntoken_file = \"token\"\n";
    std::fs::write(folder.path().join("good.toml"), file).expect("write");
    let output = run(&["check", "--config", "good.toml"], folder.path());
    assert_eq!(output.status.code(), Some(0));
    let printed = text(&output.stdout);
    for part in
        ["listen = \"0.0.0.0:8089\"", "max_batch_lines = 5000", "token_file = \"token\"", "durability = \"written\""]
    {
        assert!(printed.contains(part), "{printed}");
    }
    assert!(!printed.contains("hunter2"));
    std::fs::write(folder.path().join("names.toml"), "[admin]\nlisten = \"localhost:1\"\n[[udp]]\nlisten = 2\n")
        .expect("write");
    let printed = text(&run(&["check", "--config", "names.toml"], folder.path()).stdout);
    for part in ["listen = \"127.0.0.1:1\"", "listen = \"0.0.0.0:2\""] {
        assert!(printed.contains(part), "{printed}");
    }
}

#[test]
fn the_demo_holds_every_line() {
    let folder = tempfile::tempdir().expect("folder");
    let output = run(&["demo"], folder.path());
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("KILLED") && printed.contains("Both stores hold every line."), "{printed}");
}
