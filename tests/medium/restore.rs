//! `twinflux restore` as its user meets it, against scripted servers.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Answer, Running, Scripted, config, influx_error, no_content};

const PROGRAM: &str = env!("CARGO_BIN_EXE_twinflux");
const HEADER: &str = "# DML\n# CONTEXT-DATABASE: db\n# CONTEXT-RETENTION-POLICY: \n# precision: ns\n";

fn restore(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let command = Command::new(PROGRAM).arg("restore").args(arguments).current_dir(folder).output();
    let Output { status, stdout, stderr } = command.expect("the program");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

/// A folder with a dump of these lines.
fn dump(lines: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("dump"), format!("{HEADER}{lines}")).expect("write");
    folder
}

/// Lines 1 to `count`.
fn lines(count: usize) -> String {
    (1..=count).map(|n| format!("m v={n} {n}\n")).collect()
}

#[test]
fn what_a_relay_archived_comes_back_in_its_destinations() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = folder.path().join("archive");
    let mut settings = config(&[format!("file://{}", archive.display())]);
    settings.udp[0].database = "a \"b\"/c".into();
    settings.udp[0].retention_policy = "one week".into();
    let text = "m,t=x\\ y s=\"a\n# DML\n# CONTEXT-DATABASE: other\n\\\"b\" 1795400726000000000\nm v=2 2\n";
    let mut relay = Running::start(settings);
    relay.send(&[text]);
    relay.wait_delivered("a", 2);
    relay.stop();
    let server = Scripted::accepting();
    let (code, out, error) = restore(folder.path(), &["archive", "--to", &server.url()]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    assert_eq!(out, format!("2 of 2 lines are in {}, from 1 of 1 files\n", server.url()));
    assert_eq!(server.requests()[0].uri.to_string(), "/write?db=a%20%22b%22%2Fc&rp=one%20week&precision=n");
    assert_eq!(server.text(), text);
}

#[test]
fn a_dump_comes_by_standard_input_and_credentials_go_along() {
    let server = Scripted::accepting();
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("token"), "secret").expect("write");
    let mut child = Command::new(PROGRAM)
        .args(["restore", "-", "--to", &format!("{}/api/v2/write", server.url())])
        .args(["--token-file", "token", "--org", "o", "--bucket", "b"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program");
    let dump = format!("{HEADER}{}", lines(12_000));
    child.stdin.take().expect("input").write_all(dump.as_bytes()).expect("write");
    assert_eq!(child.wait().expect("an end").code(), Some(0));
    assert_eq!(server.text(), lines(12_000));
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "batches of 5,000 lines");
    assert!(requests.iter().all(|one| one.uri == "/api/v2/write?org=o&bucket=b&precision=ns"));
    assert!(requests.iter().all(|one| one.header("authorization") == "Token secret"));
}

#[test]
fn what_the_server_refuses_is_counted_with_its_first_answer() {
    // As 1.x: the rest of the request is stored.
    let partial = "partial write: field type conflict: input field \"v\" dropped=2";
    let folder = dump(&lines(10));
    let server = Scripted::start(move |_, _| influx_error(400, partial));
    let (code, out, error) = restore(folder.path(), &["dump", "--to", &server.url()]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("8 of 10 lines") && out.contains("2 lines were refused, first with: 400"), "{out}");
    assert!(out.contains("field type conflict") && error.contains("not every line"), "{out} {error}");
    // As 2.x: nothing is stored beside a line that is refused.
    let server = Scripted::start(|_, request| match request.text().contains("v=7 ") {
        true => (400, Vec::new(), r#"{"code":"invalid","message":"unable to parse"}"#.to_owned()),
        false => no_content(),
    });
    let (code, out, _) = restore(folder.path(), &["dump", "--to", &server.url()]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("9 of 10 lines"), "{out}");
    for n in (1..=10).filter(|n| *n != 7) {
        let of_line = |text: &str| text.contains(&format!("v={n} ")) && !text.contains("v=7 ");
        assert!(server.requests().iter().any(|request| of_line(&request.text())), "line {n}");
    }
}

#[test]
fn a_server_that_refuses_everything_is_left_alone_in_time() {
    let folder = dump(&lines(20_000));
    let server = Scripted::start(|_, _| influx_error(400, "no coffee"));
    let (code, out, error) = restore(folder.path(), &["dump", "--to", &server.url()]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("0 of 5000 lines") && error.contains("1000 lines in a row"), "{out} {error}");
}

#[test]
fn too_large_requests_go_in_halves_and_passing_failures_are_tried_again() {
    let folder = dump(&lines(100));
    let server = Scripted::start(|number, request| match request.text().lines().count() {
        _ if number < 2 => influx_error(503, "later"),
        31.. => influx_error(413, "Request Entity Too Large"),
        _ => no_content(),
    });
    let (code, out, _) = restore(folder.path(), &["dump", "--to", &server.url()]);
    assert_eq!(code, Some(0), "{out}");
    let taken: String =
        server.requests().iter().map(|one| one.text()).filter(|text| text.lines().count() < 31).collect();
    assert_eq!(taken, lines(100));
}

#[test]
fn a_server_that_never_can_is_given_up_and_one_that_is_not_there_ends_with_3() {
    let folder = dump(&lines(10));
    let server = Scripted::start(|_, _| influx_error(500, "timeout"));
    let (code, _, error) = restore(folder.path(), &["dump", "--to", &server.url(), "--retry-for", "200ms"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("gave up after 200ms: 500") && error.contains("run it again"), "{error}");
    assert!(server.requests().len() > 1);
    let (code, _, error) = restore(folder.path(), &["dump", "--to", "http://127.0.0.1:1"]);
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("cannot connect to 127.0.0.1:1"), "{error}");
    let (code, _, error) = restore(folder.path(), &["dump", "--to", &server.url().replace("http", "https")]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("speaks plain HTTP"), "{error}");
}

/// Has no database until it is made.
fn without_database() -> Scripted {
    let exists = AtomicBool::new(false);
    Scripted::start(move |_, request| -> Answer {
        if request.uri.path() == "/query" {
            exists.store(true, Ordering::Relaxed);
            return (200, Vec::new(), "{\"results\":[{\"statement_id\":0}]}".to_owned());
        }
        if exists.load(Ordering::Relaxed) { no_content() } else { influx_error(404, "database not found: \"db\"") }
    })
}

#[test]
fn a_missing_database_is_made_only_when_asked_for() {
    let folder = dump(&lines(10));
    let server = without_database();
    let (code, out, error) = restore(folder.path(), &["dump", "--to", &server.url()]);
    assert_eq!(code, Some(1), "{out}");
    assert!(error.contains("\"db\"") && error.contains("CREATE DATABASE \"db\""), "{error}");
    assert!(error.contains("--create-database") && server.requests().len() == 1, "{error}");
    let (code, out, error) = restore(folder.path(), &["dump", "--to", &server.url(), "--create-database"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("created the database \"db\"") && out.contains("10 of 10 lines"), "{out}");
    let made = server.requests().into_iter().find(|one| one.uri.path() == "/query").expect("a statement");
    assert_eq!(made.text(), "q=CREATE%20DATABASE%20%22db%22");
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_is_put_back() {
    let folder = dump(&format!("{}m v=4 1795400", lines(3)));
    std::fs::write(folder.path().join("broken.gz"), [0x1f, 0x8b, 8, 0, 1, 2, 3]).expect("write");
    std::fs::write(folder.path().join("other"), "m v=5 5\n").expect("write");
    let server = Scripted::accepting();
    let (code, out, _) = restore(folder.path(), &["broken.gz", "other", "dump", "--to", &server.url()]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("3 of 3 lines") && out.contains("from 1 of 3 files"), "{out}");
    assert!(out.contains("1 more") && out.contains("dump: byte ") && out.contains("truncated: m v=4 1795400"), "{out}");
    assert!(out.contains("not read to its end: broken.gz") && out.contains("not read to its end: other"), "{out}");
    assert_eq!(server.text(), lines(3));
}

#[test]
fn bad_usage_ends_with_2_and_says_what_would_be_right() {
    let folder = dump(&lines(1));
    std::fs::create_dir(folder.path().join("empty")).expect("a folder");
    std::fs::create_dir_all(folder.path().join("data/journal")).expect("a folder");
    let to = "--to=http://127.0.0.1:1";
    for (arguments, part) in [
        (&[to][..], "FOLDER"),
        (&["dump"], "--to"),
        (&["dump", "--to=file:///x"], "http://HOST:8086"),
        (&["dump", "--to=http://me:hunter2@127.0.0.1:1"], "password_file"),
        (&["dump", to, "--username=u"], "--username and password_file go together"),
        (&["dump", to, "--bucket=b"], "--bucket needs token_file"),
        (&["dump", to, "--token-file=missing"], "cannot read the secret file missing"),
        (&["dump", to, "--token-file=dump", "--create-database"], "1.x API"),
        (&["dump", to, "--retry-for=soon"], "--retry-for"),
        (&["empty", to], ".lp.gz"),
        (&["data", to], "`twinflux journal dump data`"),
        (&["nowhere", to], "nowhere does not exist"),
    ] {
        let (code, _, error) = restore(folder.path(), arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(part) && !error.contains("hunter2"), "{arguments:?}: {error}");
    }
}
