//! What an operator types at 3 am: `status --check`, `--live`, `--json`, `--watch`, `tail`, `doctor`.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use twinflux::observe::Status;

use crate::program::{PROGRAM, Started, run, text};
use crate::support::{Scripted, free_address, left_out, no_content, wait_for};

/// A relay with one backend that answers writes with this status.
struct Stand {
    folder: tempfile::TempDir,
    status: Arc<AtomicU16>,
    _backend: Scripted,
    relay: Started,
}

impl Stand {
    fn new() -> Self {
        let status = Arc::new(AtomicU16::new(204));
        let answered = Arc::clone(&status);
        let backend = Scripted::start(move |_, request| match (request.uri.path(), answered.load(Ordering::Relaxed)) {
            ("/write", code @ 400..) => {
                (code, Vec::new(), "{\"error\":\"engine: no space left on device\"}".to_owned())
            }
            _ => no_content(),
        });
        let folder = tempfile::tempdir().expect("folder");
        let relay = Started::new(&["--backend", &backend.url(), "--data-dir", "data"], folder.path());
        let stand = Self { folder, status, _backend: backend, relay };
        wait_for("the backend", || (stand.json().backends[0].state == "up").then_some(()));
        stand
    }

    fn status(&self, option: &str) -> (Option<i32>, String) {
        let output = run(&["status", "--data-dir", "data", option], self.folder.path());
        (output.status.code(), text(&output.stdout))
    }

    fn json(&self) -> Status {
        serde_json::from_str(&self.status("--json").1).expect("JSON")
    }

    fn send(&self, datagram: &[u8]) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.send_to(datagram, self.relay.target).expect("sent");
    }

    /// A command that goes on, and its output.
    fn follow(&self, arguments: &[&str]) -> (Following, impl Iterator<Item = String> + use<>) {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(self.folder.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program");
        let output = BufReader::new(child.stdout.take().expect("output"));
        (Following(child), output.lines().map(|line| line.expect("text")))
    }
}

struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn monitoring_is_told_in_one_line_and_an_exit_code() {
    let stand = Stand::new();
    // A small receive buffer is a note, and nothing to do.
    let (code, line) = stand.status("--check");
    assert_eq!((code, line.lines().count()), (Some(0), 1), "{line}");
    assert!(line.starts_with("all is well: 1 backends"), "{line}");
    stand.status.store(500, Ordering::Relaxed);
    stand.send(b"m v=1");
    wait_for("trouble", || (stand.status("--check").0 == Some(1)).then_some(()));
    let (_, line) = stand.status("--check");
    assert!(line.contains("does not take lines now") && line.contains("1 line (26 B) wait"), "{line}");
    let full = text(&run(&["status", "--data-dir", "data"], stand.folder.path()).stdout);
    assert!(full.contains("restart InfluxDB, which says so until then"), "{full}");
    // It lives all the while.
    assert_eq!(stand.status("--live"), (Some(0), String::new()));
    assert_eq!(stand.json().findings[0].about, stand.json().backends[0].name);
    stand.status.store(204, Ordering::Relaxed);
    wait_for("no trouble", || (stand.status("--check").0 == Some(0)).then_some(()));
    let backend = &stand.json().backends[0];
    assert!(backend.down_since.is_none() && backend.last_error_at.is_some() && backend.max_batch_bytes > 0);
    let (folder, status) = (stand.folder, "status");
    drop(stand.relay);
    for option in ["--check", "--live", "--json", "--data-dir=data"] {
        let output = run(&[status, "--data-dir", "data", option], folder.path());
        let is_usage = option == "--data-dir=data";
        assert_eq!(output.status.code(), Some(if is_usage { 2 } else { 3 }), "{option}");
    }
    assert_eq!(run(&[status, "--live", "--admin", &free_address().to_string()], folder.path()).status.code(), Some(3));
    assert_eq!(run(&[status, "--live", "--check"], folder.path()).status.code(), Some(2));
}

/// Once nobody reads what they print, they end.
#[test]
fn what_goes_on_ends_with_its_reader() {
    let stand = Stand::new();
    for arguments in [&["tail", "--data-dir", "data"][..], &["status", "--watch", "--data-dir", "data"]] {
        let (mut following, mut lines) = stand.follow(arguments);
        if arguments[0] == "status" {
            lines.next().expect("a line");
        }
        drop(lines);
        wait_for("the end", || {
            stand.send(b"m v=1");
            following.0.try_wait().expect("a child").map(|status| assert_eq!(status.code(), Some(0)))
        });
    }
}

#[test]
fn the_status_is_drawn_again_and_again() {
    let stand = Stand::new();
    let (_watching, mut lines) = stand.follow(&["status", "--data-dir", "data", "--watch"]);
    let heads = lines.by_ref().filter(|line| line.starts_with("Twinflux "));
    assert_eq!(heads.take(2).count(), 2);
}

/// As a terminal has it.
#[test]
fn a_terminal_shows_the_status_and_draws_over_it() {
    let stand = Stand::new();
    let socket = stand.folder.path().join("tmux");
    let tmux = |arguments: &[&str]| Command::new("tmux").arg("-S").arg(&socket).args(arguments).output();
    let watch = format!("{PROGRAM} status --watch --data-dir {}", stand.folder.path().join("data").display());
    let Ok(started) = tmux(&["new-session", "-d", "-x", "130", "-y", "40", &watch]) else {
        left_out("a_terminal_shows_the_status_and_draws_over_it", "there is no tmux");
        return;
    };
    assert!(started.status.success(), "{started:?}");
    let screen = || text(&tmux(&["capture-pane", "-p"]).expect("tmux").stdout);
    wait_for("the status", || screen().contains(": all is well").then_some(()));
    stand.status.store(500, Ordering::Relaxed);
    stand.send(b"m v=1");
    wait_for("the trouble", || screen().contains("1 to do").then_some(()));
    let shown = screen();
    tmux(&["kill-server"]).expect("tmux");
    // What was there before is gone.
    assert!(!shown.contains(": all is well") && shown.starts_with("Twinflux "), "{shown}");
    assert_eq!(shown.matches("Twinflux ").count(), 1, "{shown}");
}

#[test]
fn lines_are_shown_as_they_pass_and_those_that_are_refused_with_the_reason() {
    let stand = Stand::new();
    let of_data_dir = ["--data-dir", "data"];
    let (_all, mut lines) = stand.follow(&[&["tail"][..], &of_data_dir].concat());
    // Until it looks there is nothing to see: the first line is sent until it is shown.
    let target = stand.relay.target;
    let first = std::thread::scope(|threads| {
        let shown = threads.spawn(|| lines.next().expect("a line"));
        while !shown.is_finished() {
            stand.send(b"cpu,host=a v=1 1");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        shown.join().expect("a line")
    });
    assert_eq!(first, format!("127.0.0.1 udp {target}  cpu,host=a v=1 1"));
    // One may look at a time.
    let second = run(&[&["tail"][..], &of_data_dir].concat(), stand.folder.path());
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another tail is running"), "{second:?}");
    stand.send(b"mem\x1b[2J v=oops");
    let refused = lines.find(|line| line.contains("REFUSED")).expect("a line");
    assert!(refused.ends_with("mem\\u{1b}[2J v=oops") && refused.contains("REFUSED "), "{refused}");
    drop((_all, lines));
    // Once nobody looks any more, the next one may.
    let arguments = [&["tail", "--refused", "--lines", "1", "--source", "127.0.0.0/8"][..], &of_data_dir].concat();
    let again = wait_for("a look", || {
        stand.send(b"good v=1");
        let (following, mut lines) = stand.follow(&arguments);
        let shown = std::thread::scope(|threads| {
            let shown = threads.spawn(|| lines.next());
            while !shown.is_finished() {
                stand.send(b"bad");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            shown.join().expect("no panic")
        });
        drop(following);
        shown
    });
    assert!(again.contains("REFUSED") && again.ends_with("bad"), "{again}");
    let samples = &stand.json().receive[0].refused_samples;
    assert!(samples.values().any(|sample| sample.line == "bad" && sample.source == "127.0.0.1"), "{samples:?}");
    assert_eq!(stand.json().backends[0].difference(stand.json().accepted_lines).signum(), 0);
    let cure = wait_for("HTTP to be told", || {
        stand.send(b"GET /write HTTP/1.1");
        stand.json().receive[0].refused_samples.values().find_map(|sample| sample.cure.clone())
    });
    assert!(cure.contains("[[http]]"), "{cure}");
    for (wrong, code) in [(&["--source", "host"][..], 2), (&["--rate", "0"], 2), (&["--data-dir", "nowhere"], 3)] {
        assert_eq!(run(&[&["tail"][..], wrong].concat(), stand.folder.path()).status.code(), Some(code), "{wrong:?}");
    }
}

#[test]
fn points_far_from_now_are_told_with_their_host_and_the_likely_unit() {
    let stand = Stand::new();
    let milliseconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    stand.send(format!("cpu,host=a v=1 {milliseconds}").as_bytes());
    let source = wait_for("the host", || {
        let sources = stand.json().sources.top;
        sources.into_iter().find(|source| source.implausible > 0)
    });
    assert_eq!((source.implausible, source.likely_unit.as_deref()), (1, Some("ms")));
    let status = stand.json();
    assert_eq!(status.receive[0].implausible, 1);
    let finding = status.findings.iter().find(|finding| finding.about == "sources").expect("a finding");
    assert!(finding.what.contains("probably it sends ms"), "{finding:?}");
    assert_eq!(status.accepted_lines, 1, "they are stored all the same");
}

#[test]
fn an_operator_holds_a_backend_and_releases_it() {
    let stand = Stand::new();
    let name = stand.json().backends[0].name.clone();
    let order = |action: &str| {
        let output = run(&["backend", &name, action, "--data-dir", "data"], stand.folder.path());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        text(&output.stdout)
    };
    assert_eq!(order("hold"), format!("{name} is held\n"));
    stand.send(b"m v=1");
    wait_for("a line that waits", || (stand.json().backends[0].pending_lines == 1).then_some(()));
    let (code, line) = stand.status("--check");
    assert!(code == Some(1) && line.contains("is held: an operator holds it"), "{line}");
    let held = stand.json().backends[0].held.clone();
    assert_eq!((held.len(), &*held[0].reason), (1, "operator"));
    assert_eq!(held[0].what_to_do, format!("twinflux backend {name} release"));
    assert_eq!(stand.json().backends[0].delivered_lines, 0);
    assert!(order("release").contains(" is up"));
    wait_for("the line", || (stand.json().backends[0].delivered_lines == 1).then_some(()));
    // A relay that is stopped does not wait for what is held.
    order("hold");
    stand.send(b"m v=2");
    wait_for("a line that waits", || (stand.json().backends[0].pending_lines == 1).then_some(()));
    stand.relay.signal("-TERM");
    let (code, log) = stand.relay.end();
    assert!(code == Some(0) && log.contains("kept in the journal for the next start"), "{log}");
}

#[test]
fn a_host_that_is_gone_is_forgotten_until_it_sends_again() {
    let stand = Stand::new();
    stand.send(b"cpu,host=old v=1");
    let is_shown = || stand.json().sources.known == 1;
    wait_for("the host", || is_shown().then_some(()));
    let forget =
        |address: &str| run(&["forget-host", address, "--data-dir", "data"], stand.folder.path()).status.code();
    assert_eq!((forget("10.9.9.9"), forget("host"), forget("127.0.0.1")), (Some(1), Some(2), Some(0)));
    assert!(!is_shown());
    stand.send(b"cpu,host=old v=1");
    wait_for("the host again", || is_shown().then_some(()));
}

#[test]
fn the_last_address_that_is_not_allowed_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let file = "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\nallow = [\"10.0.0.0/8\"]\n";
    std::fs::write(folder.path().join("c.toml"), file).expect("write");
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "c.toml"]);
    let relay = Started::from(command, folder.path());
    let socket = UdpSocket::bind("127.7.7.7:0").expect("bind");
    socket.send_to(b"m v=1", relay.target).expect("sent");
    wait_for("the address", || {
        let output = run(&["status", "--data-dir", "data"], folder.path());
        text(&output.stdout).contains("not allowed, the last from 127.7.7.7").then_some(())
    });
}

fn doctor(folder: &Path, config: &str, faked: Option<&str>) -> (Option<i32>, String) {
    std::fs::write(folder.join("c.toml"), config).expect("write");
    let mut command = match faked {
        Some(time) => {
            let mut command = Command::new("faketime");
            command.args(["-f", time, PROGRAM]);
            command
        }
        None => Command::new(PROGRAM),
    };
    let output = command.args(["doctor", "--config", "c.toml"]).current_dir(folder).output().expect("the program");
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn the_doctor_says_what_is_wrong_and_what_mends_it() {
    let folder = tempfile::tempdir().expect("folder");
    let backend = Scripted::start(|_, request| match request.uri.path() {
        "/query" if request.uri.query().unwrap_or_default().contains("SHOW") || request.text().contains("SHOW") => (
            200,
            Vec::new(),
            "{\"results\":[{\"statement_id\":0,\"error\":\"database not found: telegraf\"}]}".to_owned(),
        ),
        _ => no_content(),
    });
    let taken = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let config = |data_dir: &str, port: u16, url: &str| {
        format!(
            "data_dir = \"{data_dir}\"\n[[udp]]\nlisten = \"127.0.0.1:{port}\"\nreceive_buffer = \"64KiB\"\n\
             [[backend]]\nname = \"a\"\nurl = \"{url}\"\n"
        )
    };
    let port = taken.local_addr().expect("address").port();
    let (code, said) = doctor(folder.path(), &config("data", port, &backend.url()), None);
    assert_eq!(code, Some(1), "{said}");
    for what in ["cannot be used", "ss -lnp", "it has no database telegraf", "CREATE DATABASE", "is not there yet"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(!folder.path().join("data").exists(), "it changes nothing");
    // A well one, and the same where this machine's clock is off.
    let well = Scripted::accepting();
    std::fs::create_dir(folder.path().join("data")).expect("folder");
    let config = config("data", free_address().port(), &well.url());
    let (code, said) = doctor(folder.path(), &config, None);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("takes lines") && said.contains("its clock is ours") && said.contains("syncs in"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path().join("data")).expect("folder").count(), 0, "it leaves nothing behind");
    let (code, said) = doctor(folder.path(), &config, Some("+100s"));
    assert!(code == Some(1) && said.contains("s behind of this machine's"), "{said}");
    // Few files, a user that may write nothing, and one whom the backend does not know.
    let many = config.clone() + "[[http]]\nlisten = \"127.0.0.1:0\"\n";
    let few = |arguments: &[&str]| {
        let mut command = Command::new(arguments[0]);
        let output =
            command.args(&arguments[1..]).args([PROGRAM, "doctor", "--config", "c.toml"]).current_dir(folder.path());
        let output = output.output().expect("the program");
        text(&output.stdout) + &text(&output.stderr)
    };
    std::fs::write(folder.path().join("c.toml"), &many).expect("write");
    let said = few(&["sh", "-c", "ulimit -n 500; exec \"$@\"", "sh"]);
    assert!(said.contains("500 files may be open") && said.contains("LimitNOFILE="), "{said}");
    let refusing = Scripted::start(|_, request| match request.uri.path() {
        "/ping" => no_content(),
        _ => (401, Vec::new(), "{\"error\":\"unable to parse authentication credentials\"}".to_owned()),
    });
    let (code, said) = doctor(folder.path(), &config.replace(&well.url(), &refusing.url()), None);
    assert!(code == Some(1) && said.contains("telegraf takes no lines") && said.contains("cannot be read"), "{said}");
    // An archive is looked at, and not made.
    let archive = format!("file://{}/archive", folder.path().display());
    let (code, said) = doctor(folder.path(), &config.replace(&well.url(), &archive), None);
    assert!(code == Some(0) && said.contains("archive is not there yet"), "{said}");
    assert!(!folder.path().join("archive").exists());
    // The pair's other relay.
    let paired = format!("{config}[pair]\npeer = \"http://{}\"\n", free_address());
    let (code, said) = doctor(folder.path(), &paired, None);
    assert!(code == Some(1) && said.contains("does not say how it is: cannot connect"), "{said}");
    // Nobody there, and no such file.
    let (code, said) = doctor(folder.path(), &config.replace(&well.url(), &format!("http://{}", free_address())), None);
    assert!(code == Some(1) && said.contains("start the server"), "{said}");
    assert_eq!(run(&["doctor", "--config", "nowhere.toml"], folder.path()).status.code(), Some(2));
}
