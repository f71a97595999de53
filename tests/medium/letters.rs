//! Dead letters by the program's own commands: what a backend will never take is kept, shown, sent
//! again and discarded, and both equations hold to the line.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::program::{Started, run, text};
use crate::support::{Scripted, get, influx_error, no_content, wait_for};

/// A backend that refuses lines of an integer while `refuses` says so.
fn picky(refuses: &Arc<AtomicBool>) -> Scripted {
    let refuses = Arc::clone(refuses);
    Scripted::start(move |_, request| {
        let bad = request.text().lines().filter(|line| line.contains("i ")).count();
        match bad {
            bad if bad > 0 && refuses.load(Ordering::Relaxed) => {
                influx_error(400, &format!("partial write: field type conflict: \u{1b}[31m dropped={bad}"))
            }
            _ => no_content(),
        }
    })
}

fn backend(admin: std::net::SocketAddr, place: usize) -> Value {
    let status: Value = serde_json::from_str(&get(admin, "/api/status").1).expect("JSON");
    status["backends"][place].clone()
}

/// Both equations of a backend that was sent so many lines.
fn assert_balanced(backend: &Value, accepted: u64) {
    let of = |pointer: &str| {
        backend.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {backend}"))
    };
    let rejected: u64 =
        backend["rejected_lines"].as_object().expect("classes").values().filter_map(Value::as_u64).sum();
    let dropped: u64 = backend["dropped_lines"].as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
    assert_eq!(
        accepted + of("/recovered_lines") + of("/resent_lines"),
        of("/delivered_lines") + rejected + dropped + of("/pending_lines"),
        "{backend}"
    );
    let letters = |name: &str| of(&format!("/dead_letters/{name}"));
    assert_eq!(
        letters("found") + rejected,
        letters("kept") + letters("resent") + letters("discarded") + letters("evicted"),
        "{backend}"
    );
}

fn letters(arguments: &[&str], folder: &Path) -> (Option<i32>, String, String) {
    let output = run(&[&["dead-letters"], arguments, &["--data-dir", "twinflux-data"]].concat(), folder);
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_is_refused_is_kept_over_restarts_shown_sent_again_and_discarded() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    let refuses = Arc::new(AtomicBool::new(true));
    let (one, other) = (picky(&refuses), Scripted::accepting());
    let (one_url, other_url) = (one.url(), other.url());
    let options = ["--backend", &one_url, "--backend", &other_url];
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let started = Started::new(&options, folder);
    socket.send_to(b"m v=1 1\nm v=2i 2\nm v=3 3\nm v=4i 4\nm v=5i 5\n", started.target).expect("send");
    let shown = wait_for("all to be acked", || {
        let shown = backend(started.admin, 0);
        (shown["delivered_lines"] == 2 && shown["pending_lines"] == 0).then_some(shown)
    });
    assert_balanced(&shown, 5);
    assert_eq!((&shown["dead_letters"]["kept"], &shown["rejected_lines"]["field_type"]), (&3.into(), &3.into()));

    // They are looked at while the relay runs; nothing of them commands a terminal.
    let (code, list, error) = letters(&["list"], folder);
    assert_eq!((code, list.lines().count()), (Some(0), 3), "{list} {error}");
    assert!(list.contains("field_type m v=2i 2") && list.contains(one_url.trim_start_matches("http://")), "{list}");
    let (_, show, _) = letters(&["show", "2"], folder);
    assert!(show.contains("m v=4i 4") && show.contains("400") && show.contains("field type conflict"), "{show}");
    assert!(!show.contains('\u{1b}') && !show.contains("m v=2i"), "{show}");
    let (_, none, _) = letters(&["list", "--class", "poison"], folder);
    assert!(none.contains("no dead letters"), "{none}");

    // They survive a kill.
    started.signal("-KILL");
    started.end();
    assert_eq!(letters(&["list"], folder).1.lines().count(), 3);
    let started = Started::new(&options, folder);
    assert_balanced(&backend(started.admin, 0), 0);
    assert_eq!(backend(started.admin, 0)["dead_letters"]["found"], 3);

    // Sent again, one is refused again and kept as a new letter.
    let (code, out, error) = letters(&["resend", "1"], folder);
    assert!(code == Some(0) && out.contains("1 lines are owed"), "{out} {error}");
    let shown = wait_for("it to be refused again", || {
        let shown = backend(started.admin, 0);
        (shown["dead_letters"]["resent"] == 1).then_some(shown)
    });
    assert_balanced(&shown, 0);
    assert_eq!((&shown["dead_letters"]["kept"], &shown["resent_lines"]), (&3.into(), &1.into()));

    // Once the backend takes them, they are delivered to it, and to nobody else.
    refuses.store(false, Ordering::Relaxed);
    let before = other.requests().len();
    let (code, out, _) = letters(&["resend", "--class", "field_type", "--since", "1h"], folder);
    assert!(code == Some(0) && out.contains("3 lines are owed"), "{out}");
    let shown = wait_for("all to be taken", || {
        let shown = backend(started.admin, 0);
        (shown["dead_letters"]["kept"] == 0).then_some(shown)
    });
    assert_balanced(&shown, 0);
    assert_eq!((&shown["delivered_lines"], &shown["pending_lines"]), (&3.into(), &0.into()));
    for line in ["m v=2i 2\n", "m v=4i 4\n", "m v=5i 5\n"] {
        assert!(one.requests().last().is_some_and(|request| request.text().contains(line)), "{line}");
    }
    assert_eq!(other.requests().len(), before);

    // What nobody wants is discarded.
    refuses.store(true, Ordering::Relaxed);
    socket.send_to(b"m v=6i 6\nm v=7i 7\n", started.target).expect("send");
    wait_for("them to be refused", || (backend(started.admin, 0)["dead_letters"]["kept"] == 2).then_some(()));
    let (code, out, _) = letters(&["discard"], folder);
    assert!(code == Some(0) && out.contains("2 dead letters are discarded"), "{out}");
    let shown = backend(started.admin, 0);
    assert_balanced(&shown, 2);
    assert_eq!(shown["dead_letters"]["discarded"], 2);
    assert!(letters(&["list"], folder).1.contains("no dead letters"));

    started.signal("-TERM");
    assert_eq!(started.end().0, Some(0));
    assert!(!folder.join("twinflux-data/control").exists(), "a stop removes the socket");
}

#[test]
fn what_was_sent_again_and_did_not_arrive_is_still_a_letter() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    let (refuses, is_down) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (of_backend, down) = (Arc::clone(&refuses), Arc::clone(&is_down));
    let server = Scripted::start(move |_, _| {
        if down.load(Ordering::Relaxed) {
            influx_error(500, "timeout")
        } else if of_backend.load(Ordering::Relaxed) {
            influx_error(400, "partial write: points beyond retention policy dropped=1")
        } else {
            no_content()
        }
    });
    let url = server.url();
    let options = ["--backend", &url];
    let started = Started::new(&options, folder);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.send_to(b"m v=1 1\n", started.target).expect("send");
    wait_for("it to be refused", || (backend(started.admin, 0)["dead_letters"]["kept"] == 1).then_some(()));
    is_down.store(true, Ordering::Relaxed);
    assert_eq!(letters(&["resend"], folder).0, Some(0));
    wait_for("it to be pending", || (backend(started.admin, 0)["pending_lines"] == 1).then_some(()));
    // Asked twice, it is owed once.
    assert!(letters(&["resend"], folder).1.contains("0 lines are owed"));
    assert_balanced(&backend(started.admin, 0), 1);
    started.signal("-KILL");
    started.end();
    let started = Started::new(&options, folder);
    assert_eq!(backend(started.admin, 0)["dead_letters"]["kept"], 1);
    is_down.store(false, Ordering::Relaxed);
    refuses.store(false, Ordering::Relaxed);
    assert!(letters(&["resend"], folder).1.contains("1 lines are owed"));
    wait_for("it to be delivered", || (backend(started.admin, 0)["delivered_lines"] == 1).then_some(()));
    started.signal("-TERM");
    assert_eq!(started.end().0, Some(0));
}

#[test]
fn a_relay_is_asked_in_however_deep_a_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let deep = folder.path().join("a-folder-with-a-long-name/".repeat(8));
    let deep = deep.to_str().expect("text");
    let started = Started::new(&["--data-dir", deep], folder.path());
    let output = run(&["dead-letters", "discard", "--data-dir", deep], folder.path());
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.code() == Some(0) && out.contains("0 dead letters"), "{out} {error}");
    started.signal("-TERM");
    assert_eq!(started.end().0, Some(0));
}

#[test]
fn bad_usage_says_what_would_be_right() {
    let folder = tempfile::tempdir().expect("folder");
    for (arguments, code, part) in [
        (&["list"][..], 1, "--data-dir"),
        (&["resend"], 3, "is it running"),
        (&["list", "--since", "soon"], 2, "two hours ago"),
        (&["list", "first"], 2, "NUMBER"),
        (&["frobnicate"], 2, "frobnicate"),
    ] {
        let (ended, out, error) = letters(arguments, folder.path());
        assert_eq!(ended, Some(code), "{arguments:?}: {out} {error}");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
    std::fs::create_dir(folder.path().join("twinflux-data")).expect("folder");
    let (code, out, _) = letters(&["list"], folder.path());
    assert_eq!((code, out.contains("no dead letters")), (Some(0), true));
}
