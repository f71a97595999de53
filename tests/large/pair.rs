//! A pair of relays in network namespaces, with the recipes of the book: keepalived and one
//! address; nginx for UDP; HAProxy for TCP and HTTP. What is sent is counted in two real InfluxDBs,
//! which hold the same in the end.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use twinflux::observe::status::Status;

use crate::support::{left_out, wait_for};

/// The pair's address.
const SHARED: &str = "10.99.0.100";
/// The relays' own addresses.
const OWN: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
/// The senders' and the servers' address.
const SITE: &str = "10.99.0.3";
/// Sends numbered points as datagrams, and prints how many and the time of the first.
const SENDER: &str = "\
import socket, sys, time
rate, seconds, target = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
begin, start, sent = time.time_ns(), time.time(), 0
while time.time() - start < seconds:
    while sent < (time.time() - start) * rate:
        link.sendto(b'm v=%d %d\\n' % (sent, begin + sent * 1000), (target, 8089))
        sent += 1
    time.sleep(0.001)
print(sent, begin)
";

/// A bridge with two relays' machines, and a third one for senders and servers.
struct Site {
    /// The namespaces of the relays, and of the rest.
    names: [String; 3],
    folder: tempfile::TempDir,
    relays: [Option<Child>; 2],
    keepalived: [Option<Child>; 2],
    others: Vec<Child>,
}

impl Site {
    /// None where this user may not make one.
    fn build() -> Option<Self> {
        static SITES: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), SITES.fetch_add(1, Ordering::Relaxed));
        let names = ["a", "b", "s"].map(|end| format!("twinflux-{process}-{number}{end}"));
        let folder = tempfile::tempdir().expect("folder");
        let site = Self { names, folder, relays: [None, None], keepalived: [None, None], others: Vec::new() };
        let [.., rest] = &site.names;
        let mut is_made = ip(&format!("netns add {rest}"));
        is_made = is_made
            && ip(&format!("-n {rest} link set lo up"))
            && ip(&format!("-n {rest} link add br0 type bridge"))
            && ip(&format!("-n {rest} link set br0 up"))
            && ip(&format!("-n {rest} address add {SITE}/24 dev br0"));
        for (place, own) in OWN.iter().enumerate() {
            let name = &site.names[place];
            is_made = is_made
                && ip(&format!("netns add {name}"))
                && ip(&format!("-n {name} link set lo up"))
                && ip(&format!("-n {name} link add eth0 type veth peer name to{place} netns {rest}"))
                && ip(&format!("-n {rest} link set to{place} master br0"))
                && ip(&format!("-n {rest} link set to{place} up"))
                && ip(&format!("-n {name} address add {own}/24 dev eth0"))
                && ip(&format!("-n {name} link set eth0 up"))
                // What still comes to the one that gave the address up is read there.
                && ip(&format!("-n {name} address add {SHARED}/32 dev lo"));
            let arp = ["net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"];
            is_made = is_made && site.run(place, &[&["sysctl", "-qw"][..], &arp].concat()).status.success();
        }
        is_made.then_some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, place: usize, command: &[&str]) -> Command {
        let mut all = Command::new("ip");
        all.args(["netns", "exec", &self.names[place]]).args(command).current_dir(self.folder.path());
        all
    }

    fn run(&self, place: usize, command: &[&str]) -> Output {
        self.command(place, command).output().expect("ip")
    }

    /// Starts something whose output goes to a file.
    fn spawn(&self, place: usize, command: &[&str], log: &str) -> Child {
        let log = std::fs::File::create(self.path(log)).expect("a file");
        let again = log.try_clone().expect("a file");
        self.command(place, command).stdout(log).stderr(again).spawn().expect("a process")
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("write");
        path.display().to_string()
    }

    /// Starts two InfluxDBs.
    fn start_servers(&mut self) {
        for port in [8086, 8087] {
            let folder = self.path(&port.to_string());
            let folder = folder.display();
            let text = format!(
                "reporting-disabled = true\nbind-address = \"127.0.0.1:1{port}\"\n[meta]\ndir = \"{folder}/meta\"\n\
                 [data]\ndir = \"{folder}/data\"\nwal-dir = \"{folder}/wal\"\nquery-log-enabled = false\n\
                 [monitor]\nstore-enabled = false\n[http]\nbind-address = \"{SITE}:{port}\"\nlog-enabled = false\n"
            );
            let file = self.write(&format!("{port}.conf"), &text);
            let child = self.spawn(2, &["influxd", "-config", &file], &format!("{port}.log"));
            self.others.push(child);
            wait_for("a server", || self.query(port, "CREATE DATABASE telegraf").contains("results").then_some(()));
        }
    }

    fn query(&self, port: u16, statement: &str) -> String {
        let url = format!("http://{SITE}:{port}/query?db=telegraf");
        let output = self.run(2, &["curl", "-sS", "-XPOST", &url, "--data-urlencode", &format!("q={statement}")]);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Points from this time on, in one server.
    fn stored(&self, port: u16, begin: &str) -> u64 {
        let answer = self.query(port, &format!("SELECT count(v) FROM m WHERE time >= {begin}"));
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        answer["results"][0]["series"][0]["values"][0][1].as_u64().unwrap_or(0)
    }

    fn start_relay(&mut self, place: usize) {
        let (own, peer) = (["a", "b"][place], OWN[1 - place]);
        let data = self.path(own);
        let text = format!(
            "data_dir = \"{}\"\n[admin]\nlisten = \"0.0.0.0:9097\"\n[[udp]]\nlisten = \"0.0.0.0:8089\"\ndatabase = \"telegraf\"\n\
             [[tcp]]\nlisten = \"0.0.0.0:2003\"\ndatabase = \"telegraf\"\nproxy_protocol = true\ntrusted_proxies = [\"{SITE}/32\"]\n\
             [[http]]\nlisten = \"0.0.0.0:8096\"\ntrusted_proxies = [\"{SITE}/32\"]\n\
             [[backend]]\nname = \"a\"\nurl = \"http://{SITE}:8086\"\nretry_max = \"500ms\"\n\
             [[backend]]\nname = \"b\"\nurl = \"http://{SITE}:8087\"\nretry_max = \"500ms\"\n\
             [pair]\npeer = \"http://{peer}:9097\"\naddress = \"{SHARED}\"\n",
            data.display()
        );
        let file = self.write(&format!("{own}.toml"), &text);
        let program = env!("CARGO_BIN_EXE_twinflux");
        self.relays[place] = Some(self.spawn(place, &[program, "--config", &file], &format!("{own}.log")));
        wait_for("a relay", || {
            let ready = self.run(place, &["curl", "-fsS", "http://127.0.0.1:9097/ready"]);
            ready.status.success().then_some(())
        });
    }

    fn kill_relay(&mut self, place: usize) {
        let mut child = self.relays[place].take().expect("running");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    fn status(&self, place: usize) -> Status {
        let answer = self.run(place, &["curl", "-sS", "http://127.0.0.1:9097/api/status"]).stdout;
        serde_json::from_slice(&answer).expect("a status")
    }

    /// keepalived, as the book has it.
    fn start_keepalived(&mut self, place: usize) {
        let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/pair.md");
        let book = std::fs::read_to_string(book).expect("the book");
        let (_, recipe) = book.split_once("```text\nglobal_defs").expect("keepalived.conf");
        let recipe = format!("global_defs{}", recipe.split("```").next().expect("its end"));
        let file = self.write(&format!("keepalived-{place}.conf"), &recipe.replace("192.0.2.100", SHARED));
        let checked = self.run(place, &["keepalived", "-t", "-f", &file]);
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let (pid, vrrp) = (self.path(&format!("k{place}.pid")), self.path(&format!("k{place}-vrrp.pid")));
        let (pid, vrrp) = (pid.display().to_string(), vrrp.display().to_string());
        let command = ["keepalived", "-n", "-l", "-D", "-f", &file, "-p", &pid, "-r", &vrrp];
        self.keepalived[place] = Some(self.spawn(place, &command, &format!("keepalived-{place}.log")));
    }

    fn stop_keepalived(&mut self, place: usize) {
        if let Some(child) = self.keepalived[place].take() {
            end(child);
        }
    }

    /// Who holds the address, once one does.
    fn active(&self) -> usize {
        wait_for("one to hold the address", || {
            let holds = |place: usize| {
                let shown = self.run(place, &["ip", "-br", "address", "show", "dev", "eth0"]).stdout;
                String::from_utf8_lossy(&shown).contains(SHARED)
            };
            match [holds(0), holds(1)] {
                [true, false] => Some(0),
                [false, true] => Some(1),
                _ => None,
            }
        })
    }

    /// Sends for four seconds and does something meanwhile; how many were sent, and since when.
    fn send_while(&mut self, target: &str, work: impl FnOnce(&mut Self)) -> (u64, String) {
        let mut command = self.command(2, &["python3", "-c", SENDER, "5000", "4", target]);
        let child = command.stdout(Stdio::piped()).spawn().expect("python3");
        // The switch is to come amid what is sent.
        std::thread::sleep(Duration::from_millis(1500));
        work(self);
        let output = child.wait_with_output().expect("an end");
        let said = String::from_utf8(output.stdout).expect("text");
        let (sent, begin) = said.trim().split_once(' ').expect("two numbers");
        (sent.parse().expect("a number"), begin.to_owned())
    }

    /// Datagrams that both relays have taken, and those that their kernels dropped.
    fn taken(&self) -> (u64, u64) {
        let receive = [0, 1].map(|place| self.status(place).receive[0].clone());
        (receive.iter().map(|one| one.datagrams).sum(), receive.iter().map(|one| one.kernel_dropped).sum())
    }

    /// Datagrams that found no room in nginx's socket: a busy machine lets it wait.
    fn dropped_before_nginx(&self) -> u64 {
        let table = self.run(2, &["cat", "/proc/net/udp"]).stdout;
        let table = String::from_utf8(table).expect("text");
        let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let own = sockets.filter(|columns| columns.get(1).is_some_and(|local| local.ends_with(":1F99")));
        own.filter_map(|columns| columns.last()?.parse::<u64>().ok()).sum()
    }

    /// Waits until neither relay owes anything, and no gap is open.
    fn wait_settled(&self) {
        wait_for("both relays to have delivered everything", || {
            let settled = [0, 1].iter().all(|place| {
                let status = self.status(*place);
                status.backends.iter().all(|backend| backend.pending_lines == 0 && backend.complete)
            });
            settled.then_some(())
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let started = self.keepalived.iter_mut().chain(&mut self.relays).filter_map(Option::take);
        started.chain(self.others.drain(..)).for_each(end);
        for name in &self.names {
            ip(&format!("netns delete {name}"));
        }
    }
}

fn ip(arguments: &str) -> bool {
    let ended = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    ended.is_ok_and(|status| status.success())
}

/// Lets a process end, with those that it started.
fn end(mut child: Child) {
    drop(Command::new("kill").args(["-TERM", &child.id().to_string()]).stderr(Stdio::null()).status());
    drop(child.wait());
}

/// None where the parts are missing.
fn site(test: &str, program: &str) -> Option<Site> {
    if Command::new(program).arg("--version").output().is_err() {
        left_out(test, &format!("{program} is not installed"));
        return None;
    }
    let site = Site::build();
    if site.is_none() {
        left_out(test, "this user may not make a network namespace");
    }
    site
}

#[test]
fn a_planned_switch_loses_nothing_and_a_cut_link_is_counted_and_delivered() {
    let name = "a_planned_switch_loses_nothing_and_a_cut_link_is_counted_and_delivered";
    let Some(mut site) = site(name, "keepalived") else { return };
    site.start_servers();
    for place in [0, 1] {
        site.start_relay(place);
        site.start_keepalived(place);
    }
    let role = |site: &Site, place: usize| site.status(place).pair.expect("a pair").role.expect("a role");
    for _ in 0..2 {
        let (was, before) = (site.active(), site.taken());
        wait_for("the roles", || (role(&site, was) == "active" && role(&site, 1 - was) == "standby").then_some(()));
        let (sent, begin) = site.send_while(SHARED, |site| site.stop_keepalived(was));
        assert_eq!(site.active(), 1 - was);
        site.wait_settled();
        let after = site.taken();
        assert_eq!(after.0 - before.0 + after.1 - before.1, sent, "taken, or counted by the kernel");
        let stored = [8086, 8087].map(|port| site.stored(port, &begin));
        assert_eq!(stored, [after.0 - before.0; 2]);
        site.start_keepalived(was);
    }

    // The active one's link is cut for longer than a restart takes: what it had is suspected, and
    // comes later.
    let (was, before) = (site.active(), site.taken());
    let rest = site.names[2].clone();
    let (sent, begin) = site.send_while(SHARED, |_| assert!(ip(&format!("-n {rest} link set to{was} down"))));
    wait_for("the other one to know", || {
        let status = site.status(1 - was);
        let is_told =
            status.findings.iter().any(|one| one.what.contains("the other relay") && one.what.contains("is gone"));
        (is_told && status.journal.gaps.iter().any(|gap| gap.reason == "peer")).then_some(())
    });
    assert!(ip(&format!("-n {rest} link set to{was} up")));
    site.wait_settled();
    let after = site.taken();
    let (taken, dropped) = (after.0 - before.0, after.1 - before.1);
    assert_eq!([8086, 8087].map(|port| site.stored(port, &begin)), [taken; 2], "whoever took it has delivered it");
    eprintln!("cut link: {sent} sent, {taken} taken, {dropped} dropped, {} lost", sent - taken - dropped);
    assert!(site.status(1 - was).journal.gaps.is_empty() && taken < sent);

    // A relay that is killed does not take the address with it.
    let was = site.active();
    let (sent, begin) = site.send_while(SHARED, |site| {
        site.kill_relay(was);
        wait_for("the other one to take over", || (site.active() == 1 - was).then_some(()));
    });
    site.start_relay(was);
    site.wait_settled();
    let stored = [8086, 8087].map(|port| site.stored(port, &begin));
    eprintln!("killed relay: {sent} sent, {} lost", sent - stored[0]);
    assert_eq!(stored[0], stored[1], "both servers hold the same");
}

#[test]
fn a_balancer_spreads_datagrams_and_connections_and_goes_round_a_dead_relay() {
    let name = "a_balancer_spreads_datagrams_and_connections_and_goes_round_a_dead_relay";
    let Some(mut site) = site(name, "nginx") else { return };
    site.start_servers();
    site.start_relay(0);
    site.start_relay(1);
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/pair.md");
    let book = std::fs::read_to_string(book).expect("the book");
    let recipe = |begin: &str| {
        let (_, text) = book.split_once(&format!("```text\n{begin}")).expect("a recipe");
        let text = format!("{begin}{}", text.split("```").next().expect("its end"));
        text.replace("192.0.2.1:", &format!("{}:", OWN[0])).replace("192.0.2.2:", &format!("{}:", OWN[1]))
    };
    let pid = site.path("nginx.pid");
    let nginx = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\npid {};\nevents {{}}\n{}",
        pid.display(),
        recipe("stream {")
    );
    let (nginx, haproxy) = (site.write("nginx.conf", &nginx), site.write("haproxy.cfg", &recipe("defaults\n")));
    site.others.push(site.spawn(2, &["nginx", "-c", &nginx], "nginx.log"));
    site.others.push(site.spawn(2, &["haproxy", "-f", &haproxy], "haproxy.log"));
    let idle = site.taken();
    wait_for("nginx", || {
        let send = format!("import socket\nsocket.socket(2, 2).sendto(b'probe v=1 1\\n', ('{SITE}', 8089))");
        assert!(site.run(2, &["python3", "-c", &send]).status.success());
        (site.taken() != idle).then_some(())
    });
    let (before, dropped_before) = (site.taken(), site.dropped_before_nginx());
    let (sent, begin) = site.send_while(SITE, |_| ());
    site.wait_settled();
    let (after, dropped_after) = (site.taken(), site.dropped_before_nginx());
    let late = dropped_after.checked_sub(dropped_before).expect("nginx keeps its socket");
    assert_eq!(after.0 - before.0 + after.1 - before.1 + late, sent);
    assert!(late < sent / 4, "nginx dropped {late} of {sent}");
    assert_eq!([8086, 8087].map(|port| site.stored(port, &begin)), [after.0 - before.0; 2]);

    let url = format!("http://{SITE}:8096");
    let post = |site: &Site, line: &str| {
        let address = format!("{url}/write?db=telegraf");
        let answer = site.run(2, &["curl", "-sS", "-w", "%{http_code}", "-XPOST", &address, "--data-binary", line]);
        String::from_utf8(answer.stdout).expect("text")
    };
    let stream = |site: &Site, line: &str| {
        let send =
            format!("import socket\ns=socket.create_connection(('{SITE}', 2003))\ns.sendall(b'{line}\\n')\ns.close()");
        assert!(site.run(2, &["python3", "-c", &send]).status.success());
    };
    let has = |site: &Site, measurement: &str, count: u64| {
        wait_for(&format!("{count} of {measurement}"), || {
            let statement = format!("SELECT count(/v/) FROM {measurement}");
            [8086, 8087].iter().all(|port| site.query(*port, &statement).contains(&format!(",{count}]]"))).then_some(())
        });
    };
    wait_for("HAProxy", || (post(&site, "h v=1 1") == "204").then_some(()));
    stream(&site, "t v=1 1");
    has(&site, "h", 1);
    has(&site, "t", 1);
    let hosts = site.status(0).sources.top.into_iter().chain(site.status(1).sources.top);
    let addresses: Vec<IpAddr> = hosts.filter_map(|one| one.address.parse().ok()).collect();
    assert!(addresses.contains(&SITE.parse().expect("an address")), "{addresses:?}");
    site.kill_relay(0);
    for number in 2..12 {
        wait_for("HAProxy to go round it", || (post(&site, &format!("h v=1 {number}")) == "204").then_some(()));
    }
    has(&site, "h", 11);
    wait_for("a stream to the other one", || {
        stream(&site, "t v=1 2");
        site.query(8087, "SELECT count(v) FROM t").contains(",2]]").then_some(())
    });
    has(&site, "t", 2);
}
