//! Secrets: whatever a backend answers, nothing that the program shows or keeps holds one in any
//! form.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::program::{PROGRAM, Started, run, text};
use crate::support::{Running, Scripted, config, get, influx_error, left_out, no_content, wait_for};

const USER: &str = "writer";
const SECRET: &str = "hunter2/%+=&?\"s3cret";

/// The secret as it may stand in a header, a URL, JSON, or Rust's `Debug`; and its beginning alone.
fn forms() -> Vec<String> {
    let pair = format!("{USER}:{SECRET}");
    vec![
        "hunter2".to_owned(),
        "s3cret".to_owned(),
        BASE64_STANDARD.encode(&pair),
        BASE64_STANDARD.encode(SECRET),
        BASE64_URL_SAFE_NO_PAD.encode(&pair),
        BASE64_URL_SAFE_NO_PAD.encode(SECRET),
        utf8_percent_encode(SECRET, NON_ALPHANUMERIC).to_string(),
        SECRET.escape_debug().to_string(),
        SECRET.bytes().map(|byte| format!("{byte:02x}")).collect(),
        format!("{:?}", SECRET.as_bytes()),
    ]
}

fn assert_no_secret(what: &str, shown: &str) {
    for form in forms() {
        assert!(!shown.contains(&form), "{what} shows {form:?}: {shown}");
    }
}

/// Every file below this folder, as text.
fn contents(folder: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        all += &if path.is_dir() { contents(&path) } else { text(&std::fs::read(path).expect("a file")) };
    }
    all
}

#[test]
fn refused_or_not_no_form_of_a_secret_is_shown_or_kept() {
    let credentials = [
        format!("username = \"{USER}\"\npassword_file = \"secret\""),
        "token_file = \"secret\"\norg = \"o\"".to_owned(),
    ];
    for (credentials, header) in credentials.iter().zip([forms()[2].clone(), SECRET.to_owned()]) {
        for (status, answer) in [(401, "authorization failed"), (400, "unable to parse 'm v': missing field value")] {
            let backend = Scripted::start(move |_, _| influx_error(status, answer));
            let folder = tempfile::tempdir().expect("folder");
            std::fs::write(folder.path().join("secret"), SECRET).expect("write");
            let file = format!(
                "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[backend]]\nname = \"a\"\nurl = \"{}\"\n\
                 linger = \"10ms\"\n{credentials}\n",
                backend.url()
            );
            std::fs::write(folder.path().join("file.toml"), file).expect("write");
            let mut command = Command::new(PROGRAM);
            command.args(["--config", "file.toml"]).env("RUST_LOG", "trace");
            let started = Started::from(command, folder.path());
            started.send_line();
            let (_, status_page) = wait_for("the answer to be noted", || {
                let page = get(started.admin, "/api/status");
                page.1.contains(answer).then_some(page)
            });
            let sent = backend.requests()[0].header("authorization").to_owned();
            assert!(sent.contains(&header), "the backend gets it: {sent}");
            assert_no_secret("/api/status", &status_page);
            assert_no_secret("/metrics", &get(started.admin, "/metrics").1);
            let admin = started.admin.to_string();
            assert_no_secret("status", &text(&run(&["status", "--admin", &admin], folder.path()).stdout));
            assert_no_secret("check", &text(&run(&["check", "--config", "file.toml"], folder.path()).stdout));
            started.signal("-TERM");
            let (code, log) = started.end();
            assert_eq!(code, Some(0), "{log}");
            assert!(log.contains(answer), "the log tells what was answered: {log}");
            assert_no_secret("the log", &log);
            assert_no_secret("the data folder", &contents(&folder.path().join("data")));
        }
    }
}

#[test]
fn a_secret_that_cannot_be_sent_is_not_shown() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("secret"), format!("{SECRET}\n{SECRET}\n")).expect("write");
    let file = "[[backend]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\ntoken_file = \"secret\"\n";
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    let output = run(&["check", "--config", "file.toml"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("more than one line"), "{}", text(&output.stderr));
    assert_no_secret("check", &text(&output.stderr));
}

/// A relay in this folder whose backend has a password, or none; it may be dumped as far as the
/// shell lets it.
fn with_password(folder: &Path, credentials: &str) -> Started {
    let file = format!(
        "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[backend]]\nname = \"a\"\n\
         url = \"http://192.0.2.7:8086\"\n{credentials}"
    );
    std::fs::write(folder.join("file.toml"), file).expect("write");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\"", PROGRAM, "--config", "file.toml"]);
    Started::from(command, folder)
}

#[test]
fn a_process_that_holds_secrets_leaves_no_core_behind() {
    let credentials = "username = \"u\"\npassword_file = \"secret\"\n";
    for (credentials, may_dump) in [("", true), (credentials, false)] {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("secret"), SECRET).expect("write");
        let mut relay = with_password(folder.path(), credentials);
        relay.signal("-ABRT");
        let dumped = relay.child.wait().expect("an end").core_dumped();
        if may_dump && !dumped {
            left_out("a_process_that_holds_secrets_leaves_no_core_behind", "nothing is dumped here");
            return;
        }
        assert_eq!(dumped, may_dump);
    }
}

#[test]
fn what_others_may_read_or_write_is_told_by_the_start_and_by_check() {
    let folder = tempfile::tempdir().expect("folder");
    let (data, secret) = (folder.path().join("data"), folder.path().join("secret"));
    std::fs::create_dir(&data).expect("a folder");
    std::fs::write(&secret, SECRET).expect("write");
    std::fs::set_permissions(&data, Permissions::from_mode(0o777)).expect("permissions");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o644)).expect("permissions");
    let relay = with_password(folder.path(), "username = \"u\"\npassword_file = \"secret\"\n");
    let lock = std::fs::metadata(data.join("lock")).expect("a lock").permissions().mode();
    assert_eq!(lock & 0o777, 0o600);
    relay.signal("-TERM");
    let (code, log) = relay.end();
    assert_eq!(code, Some(0), "{log}");
    let checked = run(&["check", "--config", "file.toml"], folder.path());
    assert_eq!(checked.status.code(), Some(0));
    for told in [log, text(&checked.stderr)] {
        for part in [
            "(data_dir) may be read and written by others (mode 0777)",
            "(password_file of backend \"a\") may be read by others (mode 0644)",
            "the credentials of backend \"a\" go to 192.0.2.7 over plain http://",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert_no_secret("the warning", &told);
    }
}

#[test]
fn a_password_that_is_mended_is_used_by_every_connection() {
    let folder = tempfile::tempdir().expect("folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "old").expect("write");
    let header = |password: &str| format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{password}")));
    let (old, new) = (header("old"), header("new"));
    let expected = new.clone();
    let backend = Scripted::start(move |_, request| {
        if request.header("authorization") == expected {
            no_content()
        } else {
            influx_error(401, "authorization failed")
        }
    });
    let mut settings = config(&[backend.url()]);
    settings.backend[0].username = Some(USER.to_owned());
    settings.backend[0].password_file = Some(password.clone());
    settings.backend[0].max_batch_lines = 5;
    let relay = Running::start(settings);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    std::fs::write(&password, "new").expect("write");
    // There is work for all connections, of which one was refused so far.
    let lines: Vec<String> = (2..100).map(|number| format!("m v=1 {number}\n")).collect();
    relay.send(&lines);
    relay.wait_delivered("a", 99);
    let requests = backend.requests();
    let used: Vec<&str> = requests.iter().map(|request| request.header("authorization")).collect();
    let first = used.iter().position(|header| *header == new).expect("it was used");
    assert!(used[..first].contains(&&*old));
    assert!(used[first..].iter().all(|header| *header == new), "the old one is used no more");
}
