//! The program between real InfluxDB servers, fed with points that are told apart: what it says it
//! delivered is read back.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use twinflux::observe::status::{self, Status};

use crate::influxdb::{InfluxDb, ServerConfig};
use crate::support::{get, wait_for};

/// Points in one datagram, about 1,400 bytes.
const POINTS: u64 = 25;
/// Datagrams that wait in the relay's socket at most: the smallest receive buffer has room for
/// them.
const WINDOW: u64 = 40;

/// A running program with backends called a, b and so on.
pub(crate) struct Program {
    child: Child,
    folder: tempfile::TempDir,
    admin: SocketAddr,
    /// Its UDP listeners, in order.
    pub(crate) targets: Vec<SocketAddr>,
    socket: UdpSocket,
    /// Nanoseconds since 1970 of point 0.
    begin: u64,
    /// Points that were sent to the first listener.
    sent: AtomicU64,
}

/// A backend's URL, and what is added to its table.
pub(crate) type Backend<'a> = (String, &'a str);

impl Program {
    pub(crate) fn start(backends: &[Backend<'_>]) -> Self {
        Self::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), "", backends)
    }

    /// By a command whose further arguments are the program's, and with more in its configuration.
    pub(crate) fn with(mut command: Command, more: &str, backends: &[Backend<'_>]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut file = "data_dir = \"data\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
                        [[udp]]\nlisten = \"127.0.0.1:0\"\ndatabase = \"telegraf\"\n"
            .to_owned();
        file += more;
        for (name, (url, more)) in ["a", "b"].iter().zip(backends) {
            file += &format!("\n[[backend]]\nname = \"{name}\"\nurl = \"{url}\"\nlinger = \"10ms\"\n{more}\n");
        }
        std::fs::write(folder.path().join("twinflux.toml"), file).expect("write");
        let log = std::fs::File::create(folder.path().join("log")).expect("log");
        let mut child = command
            .args(["--config", "twinflux.toml"])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program");
        let output = BufReader::new(child.stdout.take().expect("output"));
        let page = output.lines().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("http://127.0.0.1:")?;
            line.contains("status").then(|| address.split(['/', ' ']).next().expect("a word").parse::<u16>())?.ok()
        });
        let admin = SocketAddr::from(([127, 0, 0, 1], page.expect("the start names the page")));
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let begin = u64::try_from(now).expect("before 2554");
        let mut program = Self { child, folder, admin, targets: Vec::new(), socket, begin, sent: AtomicU64::new(0) };
        let listeners = program.status().receive;
        program.targets = listeners.iter().map(|one| one.listen.parse().expect("an address")).collect();
        program
    }

    /// All figures; every ledger balances.
    pub(crate) fn status(&self) -> Status {
        let (code, text) = get(self.admin, "/api/status");
        assert_eq!(code, 200, "{text}");
        let status: Status = serde_json::from_str(&text).expect("JSON");
        for backend in &status.backends {
            assert_eq!(backend.difference(status.accepted_lines), 0, "the ledger balances: {text}");
        }
        status
    }

    pub(crate) fn backend(&self, name: &str) -> status::Backend {
        let backends = self.status().backends;
        backends.into_iter().find(|backend| backend.name == name).expect("a backend of this name")
    }

    /// The address of the first listener of this kind.
    pub(crate) fn listener(&self, kind: &str) -> SocketAddr {
        let receive = self.status().receive.into_iter().find(|one| one.kind == kind);
        receive.expect("a listener").listen.parse().expect("an address")
    }

    /// The admin listener's address.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Has a backend tried now.
    pub(crate) fn try_backend(&self, name: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinflux"));
        command.args(["backend", name, "try", "--data-dir"]).arg(self.folder.path().join("data"));
        assert!(command.output().expect("the program").status.success());
    }

    pub(crate) fn wait_state(&self, name: &str, state: &str) {
        wait_for(&format!("{name} to be {state}"), || (self.backend(name).state == state).then_some(()));
    }

    /// A point's line. Every number is a point of its own, however often it is written.
    pub(crate) fn line(&self, number: u64) -> String {
        format!("m,host=h{} v={number} {}\n", number % 20, self.begin + number * 1000)
    }

    /// Sends so many points; the kernel drops none.
    pub(crate) fn send(&self, points: u64) {
        let first = self.sent.load(Ordering::Relaxed);
        let lines: Vec<String> = (first..first + points).map(|number| self.line(number)).collect();
        self.send_lines(self.targets[0], &lines);
        self.sent.store(first + points, Ordering::Relaxed);
    }

    pub(crate) fn send_lines(&self, target: SocketAddr, lines: &[String]) {
        let taken = || self.status().receive.iter().map(|one| one.datagrams).sum::<u64>();
        let mut expected = taken();
        for (number, datagram) in (1..).zip(lines.chunks(usize::try_from(POINTS).expect("a few"))) {
            self.socket.send_to(datagram.concat().as_bytes(), target).expect("send");
            expected += 1;
            if number % WINDOW == 0 {
                wait_for("the datagrams to be taken", || (taken() >= expected).then_some(()));
            }
        }
        wait_for("the datagrams to be taken", || (taken() >= expected).then_some(()));
    }

    /// Sends so many points a second, as far as the machine lets it, while something is done;
    /// returns what that gives.
    pub(crate) fn send_while<T>(&self, points_per_second: u64, work: impl FnOnce() -> T) -> T {
        const TURN: Duration = Duration::from_millis(50);
        let (is_over, begun, before) = (AtomicBool::new(false), Instant::now(), self.sent());
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(TURN);
                    let due = before
                        + u64::try_from(begun.elapsed().as_millis()).expect("a while") * points_per_second / 1000;
                    self.send(due.saturating_sub(self.sent()).min(points_per_second));
                }
            });
            // Where the work fails, the sending ends, too.
            let _end = End(&is_over);
            work()
        })
    }

    /// Points that were sent to the first listener.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until a backend has taken everything; it refused nothing, and nothing was given up.
    pub(crate) fn wait_delivered(&self, name: &str) {
        wait_for(&format!("{name} to have everything"), || {
            let status = self.status();
            let backend = status.backends.into_iter().find(|one| one.name == name).expect("a backend of this name");
            assert_eq!((backend.rejected(), backend.dropped()), (0, 0), "{backend:?}");
            (backend.pending_lines == 0 && backend.delivered_lines == status.accepted_lines).then_some(())
        });
    }

    /// Waits until both have taken everything that was sent, and reads every point back.
    pub(crate) fn assert_stored(&self, servers: [&InfluxDb; 2]) {
        for (name, server) in ["a", "b"].iter().zip(servers) {
            self.wait_delivered(name);
            assert_eq!(self.backend(name).delivered_lines, self.sent(), "{name}");
            assert_numbers(name, &stored(server), 0..self.sent());
        }
    }
}

/// A test that fails leaves no program behind, and shows what it had to say.
impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A server with the database.
pub(crate) fn server(setup: ServerConfig<'_>) -> InfluxDb {
    let server = InfluxDb::with(setup);
    server.query("", "CREATE DATABASE telegraf");
    server
}

/// The numbers of the points that a server holds.
pub(crate) fn stored(server: &InfluxDb) -> BTreeSet<u64> {
    let numbers = server.values("telegraf").into_iter().filter(|((measurement, ..), _)| measurement == "m");
    numbers.map(|(_, value)| format!("{value}").parse().expect("a number of a point")).collect()
}

/// A server holds exactly these.
pub(crate) fn assert_numbers(name: &str, stored: &BTreeSet<u64>, expected: Range<u64>) {
    let missing: Vec<u64> = expected.clone().filter(|number| !stored.contains(number)).collect();
    let shown = &missing[..missing.len().min(10)];
    assert!(missing.is_empty(), "{name} lacks {} of {expected:?}, first {shown:?}", missing.len());
    assert_eq!(stored.len() as u64, expected.end - expected.start, "{name} has more than was sent");
}
