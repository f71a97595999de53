//! Two relays of a pair: what each shows of the other, what is suspected once one is gone, and how
//! that ends.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use twinflux::config::{Backend, Pair};

use crate::program::{PROGRAM, Started};
use crate::support::{Running, Scripted, config, free_address, get, no_content, wait_for};

fn status(admin: SocketAddr) -> Value {
    serde_json::from_str(&get(admin, "/api/status").1).expect("JSON")
}

/// A relay that asks the other one, as its operator sees it.
fn watching(peer: &str, urls: &[String], change: impl FnOnce(&mut Pair)) -> Running {
    let mut config = config(urls);
    config.pair.peer = Some(peer.to_owned());
    change(&mut config.pair);
    Running::start(config)
}

fn finding(relay: &Running, part: &str) -> String {
    wait_for(part, || {
        let found = relay.status().findings.into_iter().find(|one| one.about == "pair" && one.what.contains(part));
        found.map(|one| format!("{}; {}", one.what, one.to_do))
    })
}

/// The other relay, as a process, with a backend that is up and one that is not.
fn other(folder: &Path, admin: SocketAddr, urls: &[String]) -> Started {
    let backends = ["a", "b"].iter().zip(urls).map(|(name, url)| {
        format!("[[backend]]\nname = \"{name}\"\nurl = \"{url}\"\nretry_max = \"200ms\"\nlinger = \"10ms\"\n")
    });
    let file = format!("data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n{}", backends.collect::<String>());
    std::fs::write(folder.join("c.toml"), file).expect("write");
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "c.toml", "--admin", &admin.to_string()]);
    Started::with_log(command, Stdio::null(), folder)
}

fn send(target: SocketAddr, lines: u64) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for number in 1..=lines {
        socket.send_to(format!("m v=1 {number}\n").as_bytes(), target).expect("send");
    }
}

#[test]
fn what_a_dead_relay_owed_is_a_gap_here_until_it_is_back_and_has_delivered_it() {
    let folder = tempfile::tempdir().expect("folder");
    let (a, b) = (Scripted::accepting(), free_address());
    let urls = [a.url(), format!("http://{b}")];
    let admin = free_address();
    let gone = other(folder.path(), admin, &urls);
    let mut here = watching(&format!("http://{admin}"), &urls, |_| ());
    send(gone.target, 40);
    // While it is there, its lines are its own: readers here are told, and there is no gap.
    let owed = wait_for("the other one's news", || {
        let pair = here.status().pair.expect("a pair");
        let b = pair.backends.iter().find(|one| one.name == "b").filter(|one| one.lag_seconds > 2.0).cloned();
        b.map(|b| (pair, b))
    });
    assert_eq!((owed.0.state.as_str(), owed.1.pending_lines, owed.1.complete), ("up", 40, false));
    assert_eq!(owed.0.backends[0].pending_lines, 0);
    assert_eq!(owed.0.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    wait_for("readers to be sent to the other copy", || {
        let backend = here.backend("b");
        backend.read.filter(|read| read.serves != "yes" && backend.pending_lines == 0)
    });
    assert_eq!(here.backend("a").read.expect("reads").serves, "yes");
    assert!(here.status().journal.gaps.is_empty());
    assert!(here.get("/metrics").1.contains("twinflux_peer_pending_lines{backend=\"b\"} 40"));

    gone.signal("-KILL");
    assert_eq!(gone.end_quietly(), None);
    let told = finding(&here, "is gone");
    assert!(told.contains("cannot connect") && told.contains("start it"), "{told}");
    let gaps = here.status().journal.gaps;
    assert_eq!(
        gaps.iter().map(|gap| (gap.backend.as_str(), gap.reason.as_str(), gap.lines)).collect::<Vec<_>>(),
        [("b", "peer", 40)]
    );
    // The points' own times are the gap's.
    assert_eq!(gaps[0].points_from.as_deref(), Some("1970-01-01T00:00:00.000Z"));
    assert!(!here.backend("b").complete && here.backend("a").complete);

    // Also after a restart of this one, which has heard of nobody by then.
    here.stop();
    let mut again = config(&urls);
    again.pair.peer = Some(format!("http://{admin}"));
    again.data_dir.clone_from(&here.data_dir);
    let again = Running::start_in(again);
    assert_eq!(again.status().journal.gaps.len(), 1);
    let back = other(folder.path(), admin, &urls);
    let stored = Scripted::start_at(b, |_, _| no_content());
    wait_for("the gap to be closed", || again.status().journal.gaps.is_empty().then_some(()));
    let lines: usize = stored.requests().iter().map(|request| request.text().lines().count()).sum();
    assert_eq!(lines, 40, "what was owed is there");
    assert_eq!(status(back.admin)["backends"][1]["pending_lines"], 0);
    wait_for("both to be complete", || again.backend("b").complete.then_some(()));
    drop(here);
}

#[test]
fn a_relay_that_cannot_be_asked_or_is_the_same_is_told() {
    let url = [Scripted::accepting().url()];
    let nobody = free_address();
    let relay = watching(&format!("http://{nobody}"), &url, |_| ());
    assert!(finding(&relay, "was not reached yet").contains("[pair] peer"));
    let stranger = Scripted::start(|_, _| (200, Vec::new(), "hello".to_owned()));
    assert!(finding(&watching(&stranger.url(), &url, |_| ()), "does not say how it is").contains("is no relay"));
    // Other backends, and a token.
    let folder = tempfile::tempdir().expect("folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "pair:secret\n").expect("write");
    let mut guarded = config(&[Scripted::accepting().url()]);
    guarded.backend[0] = Backend::new("other".to_owned(), url[0].parse().expect("a URL"));
    guarded.auth.tokens_file = Some(tokens);
    guarded.auth.right =
        vec![serde_json::from_value(serde_json::json!({ "name": "pair", "admin": true })).expect("one")];
    guarded.admin.users = true;
    let guarded = Running::start(guarded);
    let peer = format!("http://{}", guarded.admin);
    let blind = watching(&peer, &url, |_| ());
    assert!(finding(&blind, "does not say how it is").contains("set token_file"));
    // Nobody knows what it owes: no copy is called complete for what comes now.
    wait_for("readers to be told", || blind.backend("a").read.filter(|read| read.serves != "yes"));
    assert!(blind.get("/metrics").1.contains("} 0\n"), "peer_up");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret\n").expect("write");
    let relay = watching(&peer, &url, |pair| pair.token_file = Some(secret.clone()));
    let told = finding(&relay, "only one of both relays has the backends");
    assert!(told.contains("a (here), other (there)"), "{told}");
    assert_eq!(relay.status().pair.expect("a pair").state, "up");
    // Itself.
    let admin = free_address();
    let mut alone = config(&url);
    alone.admin.listen = admin;
    alone.pair.peer = Some(format!("http://{admin}"));
    finding(&Running::start(alone), "is this relay itself");
}

#[test]
fn an_address_that_neither_holds_is_told() {
    let url = [Scripted::accepting().url()];
    let admins = [free_address(), free_address()];
    let relays = [0, 1].map(|place: usize| {
        let mut config = config(&url);
        config.admin.listen = admins[place];
        config.pair.peer = Some(format!("http://{}", admins[1 - place]));
        config.pair.address = Some([192, 0, 2, 77].into());
        Running::start(config)
    });
    for relay in &relays {
        assert!(finding(relay, "no relay holds the address 192.0.2.77").contains("keepalived"));
        let pair = relay.status().pair.expect("a pair");
        assert_eq!((pair.role.as_deref(), pair.peer_role.as_deref()), (Some("standby"), Some("standby")));
        assert!(relay.get("/metrics").1.contains("twinflux_pair_address_odd 1"));
    }
}

#[test]
fn a_relay_that_ends_cleanly_and_owes_nothing_leaves_no_gap() {
    let folder = tempfile::tempdir().expect("folder");
    let (a, b) = (Scripted::accepting(), Scripted::accepting());
    let (urls, admin) = ([a.url(), b.url()], free_address());
    let leaving = other(folder.path(), admin, &urls);
    let here = watching(&format!("http://{admin}"), &urls, |_| ());
    wait_for("the other one", || here.status().pair.filter(|pair| pair.state == "up").map(|_| ()));
    // Lines that wait for others when the other one says last how it is.
    let target = leaving.target;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                send(target, 20);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        std::thread::sleep(std::time::Duration::from_secs(2));
        leaving.signal("-TERM");
        assert_eq!(leaving.end_quietly(), Some(0));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    finding(&here, "is gone");
    assert!(here.status().journal.gaps.is_empty(), "{:?}", here.status().journal.gaps);
}

#[test]
fn a_relay_that_comes_back_at_once_with_nothing_is_told_from_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let a = Scripted::accepting();
    let urls = [a.url(), format!("http://{}", free_address())];
    let admin = free_address();
    let gone = other(folder.path(), admin, &urls);
    let here = watching(&format!("http://{admin}"), &urls, |_| ());
    send(gone.target, 30);
    wait_for("what it owes", || {
        let owed: Vec<u64> = here.status().pair?.backends.iter().map(|one| one.pending_lines).collect();
        (owed == [0, 30]).then_some(())
    });
    gone.signal("-KILL");
    gone.end_quietly();
    std::fs::remove_dir_all(folder.path().join("data")).expect("remove");
    let _anew = other(folder.path(), admin, &urls);
    let gap = wait_for("the gap", || here.status().journal.gaps.pop());
    assert_eq!((gap.backend.as_str(), gap.reason.as_str(), gap.lines), ("b", "peer", 30));
    // It owes nothing now, and has not delivered what the other journal held.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(here.status().journal.gaps.len(), 1);
    here.change("b", twinflux::cli::socket::BackendAction::Vouch);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(here.status().journal.gaps.is_empty(), "an operator's word counts");
}
