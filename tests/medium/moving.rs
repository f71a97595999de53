//! influxdb-relay's configuration: run as it is, and printed as ours.

use crate::program::{Started, run, text};
use crate::support::{Scripted, wait_for};

#[test]
fn a_file_of_influxdb_relays_is_run_and_printed() {
    let folder = tempfile::tempdir().expect("folder");
    let backend = Scripted::accepting();
    let url = backend.url();
    let file = folder.path().join("relay.toml");
    let relay = format!(
        "[[http]]\nname = \"in\"\nbind-addr = \"127.0.0.1:0\"\noutput = [{{ name = \"one\", location = \"{url}/write\", \
         buffer-size-mb = 100 }}]\n[[udp]]\nbind-addr = \"127.0.0.1:0\"\noutput = [{{ location = \"127.0.0.1:8089\" }}]\n"
    );
    std::fs::write(&file, relay).expect("write");
    let file = file.display().to_string();
    let printed = run(&["convert", &file], folder.path());
    let ours = text(&printed.stdout);
    assert!(printed.status.success() && ours.contains("# http.output.buffer-size-mb is the journal's here"), "{ours}");
    let converted = folder.path().join("twinflux.toml");
    std::fs::write(&converted, &ours).expect("write");
    assert!(run(&["check", "--config", &converted.display().to_string()], folder.path()).status.success(), "{ours}");
    let started = Started::new(&["--relay-config", &file, "--database", "d", "--data-dir", "data"], folder.path());
    started.send_line();
    wait_for("the line", || backend.text().contains("m v=1 1").then_some(()));
    started.signal("-TERM");
    let (code, log) = started.end();
    assert!(code == Some(0) && log.contains("other than influxdb-relay: udp.output \"127.0.0.1:8089\""), "{log}");
    std::fs::write(folder.path().join("bad.toml"), "[[http]]\nbind = 1\n").expect("write");
    let bad = run(&["convert", "bad.toml"], folder.path());
    assert_eq!(bad.status.code(), Some(2));
    assert!(text(&bad.stderr).contains("bad.toml: line 2: unknown field `bind`"), "{}", text(&bad.stderr));
}
