//! The configuration: defaults, overrides, and errors that say where and what would be right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use twinflux::config::Config;
use twinflux::config::Overrides;
use twinflux::journal::disk::{Compression, WhenFull};
use twinflux::protocol::{Format, Mapping, Netdata, Precision};
use twinflux::receive::ListenerConfig;

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("twinflux.toml");
    std::fs::write(&file, text).expect("write");
    Config::load(Some(&file), Overrides::default()).map_err(|error| {
        let error = error.to_string();
        error.replace(&format!("{}/", folder.path().display()), "")
    })
}

#[test]
fn without_a_file_it_receives_and_archives() {
    let config = Config::load(None, Overrides::default()).expect("defaults");
    assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("twinflux-data"));
    assert_eq!(config.udp.len(), 1);
    assert_eq!(config.udp[0].listen.to_string(), "0.0.0.0:8089");
    assert_eq!(config.backend.len(), 1);
    assert_eq!(config.backend[0].url.to_string(), format!("file://{}/archive", config.data_dir.display()));
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9097");
}

#[test]
fn a_file_sets_everything() {
    let config = load(
        r#"
        data_dir = "/srv/twinflux"
        shutdown_timeout = "3s"
        [admin]
        listen = "127.0.0.1:9000"
        [[udp]]
        listen = "[::]:8090"
        format = "influx"
        database = "metrics"
        retention_policy = "week"
        precision = "ms"
        workers = 2
        receive_buffer = "1MiB"
        allow = ["10.0.0.0/8", "::1/128"]
        [[backend]]
        name = "a"
        url = "http://10.0.0.1:8086"
        username = "writer"
        password_file = "/etc/twinflux/password"
        timeout = "500ms"
        gzip = true
        max_batch_lines = 1000
        max_batch_bytes = "512KiB"
        linger = "200ms"
        replay_share = 1
        [[backend]]
        name = "b"
        url = "https://10.0.0.2:8086"
        token_file = "/etc/twinflux/token"
        org = "o"
        bucket = "b"
        ca_file = "/etc/twinflux/ca.pem"
        [journal]
        durability = "synced"
        memory = "32MiB"
        disk = "1GiB"
        sync_interval = "100ms"
        compression = "zstd"
        full = "drop_newest"
        max_age = "7days"
        min_free = "2GiB"
        "#,
    )
    .expect("a good file");
    assert_eq!(config.data_dir, PathBuf::from("/srv/twinflux"));
    assert_eq!(config.udp[0].precision, Precision::Milliseconds);
    assert_eq!(config.backend[0].timeout, Duration::from_millis(500));
    assert_eq!(config.journal.memory.as_u64(), 32 << 20);
    let disk = config.disk().expect("a disk");
    assert_eq!((disk.quota, disk.min_free, disk.is_synced), (1 << 30, Some(2 << 30), true));
    assert_eq!((disk.compression, disk.full), (Compression::Zstd, WhenFull::DropNewest));
    assert_eq!(
        (disk.sync_interval, disk.max_age.map(|age| age.as_secs())),
        (Duration::from_millis(100), Some(604_800))
    );
    let shares: Vec<f64> = config.journal_backends().iter().map(|backend| backend.replay_share).collect();
    assert!(shares[0] > 0.99 && (shares[1] - 0.5).abs() < 0.01);
    assert_eq!((config.listeners(None).expect("setups").len(), config.backends().len()), (1, 2));
}

#[test]
fn the_effective_configuration_is_a_configuration() {
    let config = load("[[backend]]\nname = \"a\"\nurl = \"http://h:1\"\n").expect("good");
    let text = toml::to_string(&config).expect("text");
    let again = load(&text).expect("the same again");
    assert_eq!(toml::to_string(&again).expect("text"), text);
}

#[test]
fn listeners_of_both_kinds_have_defaults_and_mappings() {
    let config = load("[[tcp]]\n").expect("good");
    assert_eq!((config.udp.len(), config.tcp.len()), (0, 1));
    assert_eq!(config.tcp[0].listen.to_string(), "0.0.0.0:2003");
    assert_eq!((config.tcp[0].max_connections, config.tcp[0].database.as_str()), (4096, "telegraf"));
    let text = "[[udp]]\nformat = \"netdata-json\"\nmapping = \"netdata\"\nnetdata_keep_prefix = true\n[[tcp]]\n\
                format = \"opentsdb\"\nmapping = [\"servers.* .host.measurement*\", \"measurement* region=eu\"]\n";
    let config = load(text).expect("good");
    let setups = config.listeners(None).expect("setups");
    let kinds: Vec<&str> = setups.iter().map(|setup| setup.kind()).collect();
    assert_eq!(kinds, ["udp", "tcp"]);
    let ListenerConfig::Udp(udp) = &setups[0] else { panic!("a UDP listener") };
    assert_eq!(udp.intake.format, Some(Format::NetdataJson));
    assert_eq!(udp.intake.mapping, Mapping::netdata(Netdata { keep_prefix: true, host_parts: 1 }));
    let ListenerConfig::Tcp(tcp) = &setups[1] else { panic!("a TCP listener") };
    let templates = Mapping::templates(&["servers.* .host.measurement*", "measurement* region=eu"]);
    assert_eq!(Ok(&tcp.intake.mapping), templates.as_ref());
    let again = load(&toml::to_string(&config).expect("text")).expect("the same again");
    assert_eq!(again.tcp[0].mapping, config.tcp[0].mapping);
}

#[test]
fn lines_that_no_datagram_carries_are_told() {
    let relay = "[[backend]]\nname = \"b\"\nurl = \"udp://127.0.0.1:8089\"\n";
    for (max_line, is_told) in [("", false), ("max_line = \"1MiB\"\n", true)] {
        let text = format!("data_dir = \"/nowhere\"\n[[tcp]]\nlisten = \"127.0.0.1:8089\"\n{max_line}{relay}");
        let told = load(&text).expect("a configuration").warnings();
        assert_eq!(told.len(), usize::from(is_told), "{told:?}");
        assert!(
            told.iter().all(|told| told.contains("backend \"b\" rejects lines of more than 65507 bytes")),
            "{told:?}"
        );
    }
}

#[test]
fn separator_and_default_tags_are_taken_as_telegraf_and_influxdb_write_them() {
    let listener = "[[udp]]\nmapping = [\"measurement*\"]\nseparator = \"_\"\n";
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let expected = Mapping::templates(&["measurement*"])
        .and_then(|mapping| mapping.with_separator("_"))
        .and_then(|mapping| mapping.with_tags(pairs(&[("dc", "eu=1"), ("zone", "1c")])))
        .expect("a mapping");
    for tags in [
        "tags = [\"dc=eu=1\", \"zone=1c\"]\n",
        "tags = { zone = \"1c\", dc = \"eu=1\" }\n",
        "[udp.tags]\nzone = \"1c\"\ndc = \"eu=1\"\n",
    ] {
        let config = load(&format!("{listener}{tags}")).expect("good");
        let text = toml::to_string(&config).expect("text");
        for config in [config, load(&text).expect("the same again")] {
            let setups = config.listeners(None).expect("setups");
            assert_eq!(setups[0].intake().mapping, expected, "{tags}");
        }
    }
    let many: String = (0..33).map(|place| format!("\"k{place}=v\", ")).collect();
    let error = load(&format!("[[tcp]]\ntags = [{many}]")).expect_err("too many");
    assert!(error.contains("at most 32"), "{error}");
    let long = "x".repeat(1024);
    let error = load(&format!("[[tcp]]\ntags = [\"k={long}\"]")).expect_err("too long");
    assert!(error.contains("more than 1024 bytes") && error.len() < 200, "{error}");
}

#[test]
fn the_command_line_overrides_the_file() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("twinflux.toml");
    std::fs::write(&file, "[[udp]]\nlisten = \"0.0.0.0:1\"\nprecision = \"s\"\n[[udp]]\nlisten = \"0.0.0.0:2\"\n")
        .expect("write");
    let overrides = Overrides {
        http: None,
        credentials: None,
        udp: Some("127.0.0.1:3".parse().expect("address")),
        admin: Some("127.0.0.1:4".parse().expect("address")),
        data_dir: Some("/tmp/x".into()),
        backends: vec!["http://h:1".parse().expect("URL"), "udp://h:2".parse().expect("URL")],
        database: Some("db".into()),
    };
    let config = Config::load(Some(Path::new(&file)), overrides).expect("good");
    assert_eq!(config.udp.len(), 1);
    assert_eq!((config.udp[0].listen.port(), config.udp[0].precision), (3, Precision::Seconds));
    assert_eq!(config.udp[0].database, "db");
    let names: Vec<&str> = config.backend.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["h:1", "udp://h:2"]);
    assert_eq!((config.admin.listen.port(), config.data_dir), (4, PathBuf::from("/tmp/x")));
}

#[test]
fn errors_name_line_and_key_and_what_would_be_right() {
    let backend = "[[backend]]\nname = \"a\"\nurl = \"http://h:1\"\n";
    let archive = "[[backend]]\nname = \"a\"\nurl = \"file:///a\"\n";
    // 85 letters and the precision's `.ns` are 513 bytes there; 252 and those are 255, as many as
    // there may be.
    let wide = format!("[[tcp]]\ndatabase = \"{}\"\n{archive}", "ä".repeat(85));
    let long = format!("[[udp]]\ndatabase = \"{}\"\n{archive}", "x".repeat(253));
    load(&long.replacen('x', "", 1)).expect("as long as may be");
    load(&format!("[[udp]]\ndatabase = \"{}\"\n{backend}", "x".repeat(255))).expect("no archive");
    for (text, parts) in [
        (long.as_str(), &["twinflux.toml:2: udp.database", "256 bytes", "backend \"a\"", "255"][..]),
        (wide.as_str(), &["twinflux.toml:2: tcp.database", "513 bytes", "backend \"a\"", "255"]),
        ("data_dri = \"x\"", &["twinflux.toml:1: data_dri", "unknown field", "data_dir"]),
        ("[[udp]]\n\nlisten = \"80890\"", &["twinflux.toml:3: listen", "\"80890\" has no port between 0 and 65535"]),
        ("[[udp]]\nlisten = true", &["twinflux.toml:2: listen", "an address and a port"]),
        ("[[udp]]\nlisten = 80890", &["twinflux.toml:2: listen", "\"80890\" has no port between"]),
        (
            "[[tcp]]\nlisten = \"nowhere.invalid:2003\"",
            &["twinflux.toml:2: listen", "cannot resolve \"nowhere.invalid\""],
        ),
        ("[query]\nmax_lag = \"1ms\"", &["twinflux.toml:2: query.max_lag", "between 100ms and 1h"]),
        ("[query]\nmax_concurrent = 0", &["twinflux.toml:2: query.max_concurrent", "between 1 and 1024"]),
        ("[[backend]]\nname = \"a\"\nurl = \"http://h:1\"\nquery_username = \"x\"", &["query_username", "go together"]),
        ("[admin]\nusers = true", &["twinflux.toml:2: admin.users", "needs users_file or tokens_file in [auth]"]),
        ("[admin]\ntls_cert_file = \"x\"", &["twinflux.toml:2: admin.tls_cert_file", "go together"]),
        ("[[tcp]]\ntls_key_file = \"x\"", &["tcp.tls_cert_file", "go together"]),
        ("[admin]\nlisten = \"localhost\"", &["twinflux.toml:2: listen", "has no port", "127.0.0.1:8089"]),
        ("[[tcp]]\nlisten = \"239.0.0.1:2003\"", &["twinflux.toml:2: tcp.listen", "multicast", "[[udp]]"]),
        ("[[udp]]\ninterface = \"eth0\"", &["twinflux.toml:2: udp.interface", "239.0.0.1:8089"]),
        (
            "[[udp]]\nlisten = \"239.0.0.1:8089\"\nworkers = 2",
            &["twinflux.toml:3: udp.workers", "0 or 1", "every datagram"],
        ),
        ("[admin]\nlisten = \"[ff05::1]:2003\"", &["twinflux.toml:2: admin.listen", "multicast", "[[udp]]"]),
        (
            "[[udp]]\nlisten = \"localhost:5\"\n[[udp]]\nlisten = \"127.0.0.1:5\"",
            &["twinflux.toml:4: udp.listen", "its own port"],
        ),
        ("[[udp]]\nprecision = \"sec\"", &["twinflux.toml:2: precision", "ns", "ms"]),
        (
            "[[udp]]\nformat = \"statsd\"",
            &["twinflux.toml:2: format", "influx", "graphite", "opentsdb", "netdata-json"],
        ),
        ("[[tcp]]\nmapping = \"telegraf\"", &["twinflux.toml:2: mapping", "\"netdata\"", "templates"]),
        ("[[tcp]]\nmapping = [\"host.region\"]", &["twinflux.toml:2: tcp.mapping", "\"host.region\"", "measurement"]),
        ("[[tcp]]\nnetdata_keep_prefix = true", &["twinflux.toml:2: tcp.netdata_keep_prefix", "mapping = \"netdata\""]),
        ("[[udp]]\nnetdata_host_parts = 2", &["twinflux.toml:2: udp.netdata_host_parts", "mapping = \"netdata\""]),
        (
            "[[tcp]]\nmapping = \"netdata\"\nnetdata_host_parts = 0",
            &["twinflux.toml:3: tcp.netdata_host_parts", "between 1 and 16"],
        ),
        ("[[tcp]]\nformat = \"influx\"\nmapping = \"netdata\"", &["twinflux.toml:3: tcp.mapping", "other formats"]),
        ("[[tcp]]\nseparator = \"_\"", &["twinflux.toml:2: tcp.separator", "a list of templates as mapping"]),
        (
            "[[udp]]\nmapping = \"netdata\"\nseparator = \"_\"",
            &["twinflux.toml:3: udp.separator", "a list of templates"],
        ),
        (
            "[[udp]]\nmapping = [\"measurement\"]\nseparator = \"\"",
            &["twinflux.toml:3: udp.separator", "1 to 16 bytes"],
        ),
        ("[[udp]]\nmapping = [\"measurement\"]\nseparator = 5", &["twinflux.toml:3: separator", "write a text"]),
        ("[[tcp]]\nmapping = [\"a.b* measurement\"]", &["twinflux.toml:2: tcp.mapping", "no part of a filter"]),
        ("[[udp]]\nformat = \"influx\"\ntags = { a = \"b\" }", &["twinflux.toml:3: udp.tags", "other formats"]),
        ("[[tcp]]\ntags = [\"a\"]", &["twinflux.toml:2: tcp.tags", "\"a\"", "key=value"]),
        ("[[tcp]]\ntags = [\"a=\"]", &["twinflux.toml:2: tcp.tags", "\"a=\"", "empty"]),
        ("[[tcp]]\ntags = [\"a=b\", \"a=c\"]", &["twinflux.toml:2: tcp.tags", "\"a\" twice"]),
        ("[[tcp]]\ntags = { time = \"a\" }", &["twinflux.toml:2: tcp.tags", "for itself"]),
        ("[[tcp]]\n[tcp.tags]\na = \"b\\\\\"", &["twinflux.toml:1: tcp.tags", "backslash"]),
        ("[[tcp]]\ntags = { a = 5 }", &["twinflux.toml:2: tags", "{ dc = \"eu\" }", "[\"dc=eu\"]"]),
        ("[[tcp]]\n[[tcp]]\n", &["twinflux.toml:2: tcp.listen", "its own port"]),
        ("[[tcp]]\nnetdata_host_parts = 1000", &["twinflux.toml:2: netdata_host_parts", "between 1 and 16"]),
        ("[[tcp]]\nmapping = []", &["twinflux.toml:2: tcp.mapping", "it has none"]),
        ("[[tcp]]\nline_timeout = 30", &["twinflux.toml:2: line_timeout", "\"30s\""]),
        ("[[tcp]]\nmax_connections = 0", &["twinflux.toml:2: tcp.max_connections", "between 1"]),
        ("[[tcp]]\nmax_connections_per_source = 0", &["twinflux.toml:2: tcp.max_connections_per_source", "between 1"]),
        ("[[tcp]]\nidle_timeout = \"0s\"", &["twinflux.toml:2: tcp.idle_timeout", "100ms"]),
        ("[[tcp]]\nline_timeout = \"2days\"", &["twinflux.toml:2: tcp.line_timeout", "1day"]),
        ("[[tcp]]\nfirst_line_timeout = \"0s\"", &["twinflux.toml:2: tcp.first_line_timeout", "100ms"]),
        ("[[tcp]]\nproxy_protocol = true", &["twinflux.toml:2: tcp.proxy_protocol", "needs trusted_proxies"]),
        (
            "[[tcp]]\ntrusted_proxies = [\"::1/128\"]",
            &["twinflux.toml:2: tcp.trusted_proxies", "proxy_protocol = true"],
        ),
        ("[[tcp]]\ndatabase = \"\"", &["twinflux.toml:2: tcp.database", "telegraf"]),
        ("[[tcp]]\nworkers = 2", &["twinflux.toml:2: workers", "unknown field"]),
        ("[tcp]\nlisten = \"0.0.0.0:1\"", &["twinflux.toml:1", "[[tcp]]"]),
        ("[[udp]]\nallow = [\"10.0.0.0/99\"]", &["twinflux.toml:2: allow"]),
        ("[[udp]]\nreceive_buffer = \"8 parsecs\"", &["twinflux.toml:2: receive_buffer"]),
        ("[[udp]]\nreceive_buffer = \"8GiB\"", &["twinflux.toml:2: udp.receive_buffer", "at most 1GiB"]),
        ("[[udp]]\ndatabase = \"\"", &["twinflux.toml:2: udp.database", "telegraf"]),
        ("[[backend]]\nurl = \"http://h:1\"", &["twinflux.toml:1: [[backend]]", "missing field `name`"]),
        ("[[backend]]\nname = \"a\"", &["missing field `url`"]),
        ("[[backend]]\nname = \"a\"\nurl = \"h:1\"", &["twinflux.toml:3: url", "http://HOST"]),
        ("[[backend]]\nname = \"a b\"\nurl = \"http://h:1\"", &["twinflux.toml:2: backend.name", "letters"]),
        (&format!("{backend}timeout = \"10\"")[..], &["twinflux.toml:4: timeout", "\"10s\""]),
        (&format!("{backend}{}", backend.replace("h:1", "h:2"))[..], &["twinflux.toml:5: backend.name", "taken"]),
        (&format!("{backend}username = \"u\"")[..], &["twinflux.toml:4: backend.username", "password_file"]),
        (&format!("{backend}bucket = \"u\"")[..], &["twinflux.toml:4: backend.bucket", "token_file"]),
        (
            "[[backend]]\nname = \"a\"\nurl = \"http://h:1/api/v2/write\"",
            &["twinflux.toml:3: backend.url", "v2", "token_file"],
        ),
        (
            "[[backend]]\nname = \"a\"\nurl = \"http://h:1/write?db=x\"",
            &["twinflux.toml:3: url", "db belongs into database of the listener"],
        ),
        (
            &format!("{backend}[[backend]]\nname = \"b\"\nurl = \"http://h:1/write\"")[..],
            &["twinflux.toml:6: backend.url", "no mirror"],
        ),
        (&format!("{backend}ca_file = \"u\"")[..], &["twinflux.toml:4: backend.ca_file", "https"]),
        (&format!("{backend}max_batch_lines = 0")[..], &["twinflux.toml:4: backend.max_batch_lines", "at least 1"]),
        (&format!("{backend}max_batch_bytes = \"1KiB\"")[..], &["twinflux.toml:4: backend.max_batch_bytes", "65KiB"]),
        (&format!("{backend}disk = \"1GiB\"")[..], &["twinflux.toml:4: backend.disk", "file://"]),
        (&format!("{backend}max_age = \"1day\"")[..], &["twinflux.toml:4: backend.max_age", "file://"]),
        (&format!("{archive}disk = \"1MiB\"")[..], &["twinflux.toml:4: backend.disk", "at least 8MiB"]),
        (
            &format!("{archive}disk = \"8MiB\"\nmax_batch_bytes = \"2MiB\"")[..],
            &["twinflux.toml:4: backend.disk", "eight times max_batch_bytes"],
        ),
        (&format!("{archive}disk = \"2PiB\"")[..], &["twinflux.toml:4: backend.disk", "at most 1PiB"]),
        (&format!("{archive}max_age = \"1s\"")[..], &["twinflux.toml:4: backend.max_age", "0s for none"]),
        (&format!("{backend}mtu = 100")[..], &["twinflux.toml:4: backend.mtu", "512"]),
        (
            &format!("[[udp]]\nprecision = \"h\"\n{backend}token_file = \"t\"")[..],
            &["twinflux.toml:2: udp.precision", "v2", "ms"],
        ),
        ("[journal]\nmemory = \"1MiB\"", &["twinflux.toml:2: journal.memory", "at least 4MiB"]),
        ("[journal]\nmemory = \"9999999PiB\"", &["twinflux.toml:2: journal.memory", "at most 64GiB"]),
        ("shutdown_timeout = \"2h\"", &["shutdown_timeout", "at most 1h"]),
        ("[[udp]]\nworkers = 65535", &["twinflux.toml:2: udp.workers", "at most 64"]),
        ("[udp]\nlisten = \"0.0.0.0:1\"", &["twinflux.toml:1", "[[udp]]"]),
        ("[[udp]]\nlisten = \"localhost\"", &["twinflux.toml:2: listen", "0.0.0.0:8089"]),
        ("[[udp]]\nallow = [\"10.0.0.1\"]", &["twinflux.toml:2: allow", "/32"]),
        ("[[udp]]\nallow = [\"::ffff:10.0.0.0/8\"]", &["twinflux.toml:2: udp.allow", "write 10.0.0.0/8"]),
        ("[[tcp]]\nallow = [\"2001:db8::/32\"]", &["twinflux.toml:2: tcp.allow", "have IPv4 addresses"]),
        (&format!("{backend}timeout = \"2h\"")[..], &["twinflux.toml:4: backend.timeout", "at most 1h"]),
        (
            "[[udp]]\nlisten = \"0.0.0.0:5\"\n[[backend]]\nname = \"a\"\nurl = \"udp://localhost:5\"",
            &["twinflux.toml:2: udp.listen", "come back"],
        ),
        ("[journal]\ndurability = \"forever\"", &["twinflux.toml:2: durability", "memory"]),
        ("[journal]\ndisk = \"1MiB\"", &["twinflux.toml:2: journal.disk", "at least 8MiB"]),
        ("[journal]\ndisk = 5.5", &["twinflux.toml:2: disk", "a size such as \"8MiB\""]),
        ("[journal]\ndisk = \"8G\"", &["twinflux.toml:2: disk", "ambiguous", "\"8GiB\" or \"8GB\""]),
        ("[journal]\nmemory = \"64m\"", &["twinflux.toml:2: memory", "\"64MiB\" or \"64MB\""]),
        ("[journal]\nmin_free = \"1G\"", &["twinflux.toml:2: min_free", "\"1GiB\" or \"1GB\""]),
        ("[[udp]]\nreceive_buffer = \"8M\"", &["twinflux.toml:2: receive_buffer", "\"8MiB\" or \"8MB\""]),
        ("[[udp]]\nreceive_buffer = -1", &["twinflux.toml:2: receive_buffer", "not negative"]),
        (
            &format!("{backend}max_batch_bytes = \"1M\"")[..],
            &["twinflux.toml:4: max_batch_bytes", "\"1MiB\" or \"1MB\""],
        ),
        ("[journal]\nsync_interval = \"1ms\"", &["twinflux.toml:2: journal.sync_interval", "synced"]),
        ("[journal]\nmax_age = \"1s\"", &["twinflux.toml:2: journal.max_age", "0s for none"]),
        ("[journal]\ncompression = \"gzip\"", &["twinflux.toml:2: compression", "zstd"]),
        ("[journal]\nfull = \"block\"", &["twinflux.toml:2: full", "drop_oldest"]),
        (
            "[[backend]]\nname = \"a\"\nurl = \"http://h:1\"\nreplay_share = 2.0",
            &["twinflux.toml:4: backend.replay_share", "1 is strict order"],
        ),
        ("data_dir = ", &["twinflux.toml:1"]),
    ] {
        let error = load(text).expect_err(text);
        for part in parts {
            assert!(error.contains(part), "{text:?}: {error:?} does not say {part:?}");
        }
    }
}

#[test]
fn errors_never_show_a_secret() {
    for text in [
        "[[backend]]\nname = \"a\"\nurl = \"http://admin:hunter2@h:1\"",
        "[[backend]]\nname = \"a\"\nurl = \"http://h:1/?p=hunter2\"",
        "[[backend]]\nname = \"a\"\nurl = \"http://h:1\"\npassword = \"hunter2\"",
        "[[backend]]\nname = \"a\"\nurl = \"http://h:1\"\ntoken = \"hunter2\"",
    ] {
        let error = load(text).expect_err(text);
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("_file"), "{error}");
    }
}

#[test]
fn listen_takes_a_port_a_name_or_both() {
    let text = "[admin]\nlisten = 9000\n[[udp]]\nlisten = \"localhost:1\"\n[[udp]]\nlisten = \"2\"\n[[tcp]]\nlisten = \":3\"\n";
    let config = load(text).expect("a good file");
    let udp: Vec<String> = config.udp.iter().map(|one| one.listen.to_string()).collect();
    assert_eq!(udp, ["127.0.0.1:1", "0.0.0.0:2"]);
    assert_eq!(config.tcp[0].listen.to_string(), "0.0.0.0:3");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9000");
}

#[test]
fn sizes_are_exact_in_either_unit_and_shown_so() {
    let text =
        "[journal]\ndisk = \"8GB\"\nmemory = \"64MiB\"\nmin_free = \"1.5GB\"\n[[udp]]\nreceive_buffer = 100000\n";
    let config = load(text).expect("a good file");
    assert_eq!((config.journal.disk.as_u64(), config.journal.memory.as_u64()), (8_000_000_000, 64 << 20));
    assert_eq!(config.udp[0].receive_buffer.as_u64(), 100_000);
    let shown = toml::to_string(&config).expect("TOML");
    for part in ["disk = \"8GB\"", "memory = \"64MiB\"", "min_free = \"1500MB\"", "receive_buffer = \"100KB\""] {
        assert!(shown.contains(part), "{shown}");
    }
    // Every key is read and shown by the same rules: nothing is rounded to a tenth of a unit.
    assert!(!shown.contains(".0 "), "{shown}");
    // What is shown is what was meant.
    let again = load(&shown).expect("a good file");
    assert_eq!(toml::to_string(&again).expect("TOML"), shown);
}

/// Goes through all sizes that a configuration has, so that a new key cannot be read by other
/// rules.
#[test]
fn every_size_refuses_a_letter_alone_and_is_shown_exactly() {
    let text = "[journal]\nmin_free = \"1GiB\"\n[[udp]]\n[[tcp]]\nlisten = \"0.0.0.0:1\"\n\
                [[backend]]\nname = \"a\"\nurl = \"file:///a\"\ndisk = \"50GiB\"\n";
    let shown = toml::to_string(&load(text).expect("a good file")).expect("TOML");
    assert!(!shown.contains(".0 "), "{shown}");
    let mut keys = Vec::new();
    for line in shown.lines() {
        let Some((key, value)) = line.split_once(" = \"") else { continue };
        let number = value.trim_end_matches("B\"").trim_end_matches(char::is_alphabetic);
        if !value.ends_with("B\"") || number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let error = load(&shown.replacen(line, &format!("{key} = \"8G\""), 1)).expect_err(line);
        assert!(error.contains(key) && error.contains("ambiguous"), "{key}: {error}");
        keys.push(key);
    }
    keys.sort_unstable();
    assert_eq!(keys, ["disk", "disk", "disk", "max_batch_bytes", "max_line", "memory", "min_free", "receive_buffer"]);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/twinflux.toml")), Overrides::default()).expect_err("missing");
    assert!(error.to_string().contains("/nowhere/twinflux.toml"));
}
