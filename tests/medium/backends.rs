//! Each kind of backend, its requests and its credentials.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use twinflux::config::{Tcp, Udp};
use twinflux::protocol::Precision;

use crate::support::{Running, Scripted, config, no_content, wait_for};

#[test]
fn basic_credentials_and_gzip_go_to_the_v1_api() {
    let backend = Scripted::accepting();
    let folder = tempfile::tempdir().expect("folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "hunter2\n").expect("write");
    let mut config = config(&[format!("{}/prefix/", backend.url())]);
    config.backend[0].username = Some("writer".into());
    config.backend[0].password_file = Some(password);
    config.backend[0].gzip = true;
    config.udp[0].database = "my db".into();
    config.udp[0].retention_policy = "a&b".into();
    config.udp[0].precision = Precision::Microseconds;
    let relay = Running::start(config);
    relay.send(&["m v=1 1\nm v=2 2\n"]);
    relay.wait_delivered("a", 2);
    let request = &backend.requests()[0];
    assert_eq!(request.uri.to_string(), "/prefix/write?db=my%20db&rp=a%26b&precision=u");
    // writer:hunter2
    assert_eq!(request.header("authorization"), "Basic d3JpdGVyOmh1bnRlcjI=");
    assert_eq!(request.header("content-encoding"), "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&request.body[..]).read_to_string(&mut text).expect("gzip");
    assert_eq!(text, "m v=1 1\nm v=2 2\n");
    for page in ["/api/status", "/metrics"] {
        assert!(!relay.get(page).1.contains("hunter2"));
    }
}

#[test]
fn tokens_organisations_and_buckets_go_to_the_v2_api() {
    for (bucket, expected) in [(Some("my bucket"), "my%20bucket"), (None, "telegraf%2Fweek")] {
        let backend = Scripted::accepting();
        let folder = tempfile::tempdir().expect("folder");
        let token = folder.path().join("token");
        std::fs::write(&token, "secret-token").expect("write");
        let mut config = config(&[backend.url()]);
        config.backend[0].token_file = Some(token);
        config.backend[0].org = Some("my org".into());
        config.backend[0].bucket = bucket.map(str::to_owned);
        config.udp[0].retention_policy = "week".into();
        config.udp[0].precision = Precision::Milliseconds;
        let relay = Running::start(config);
        relay.send(&["m v=1 1\n"]);
        relay.wait_delivered("a", 1);
        let request = &backend.requests()[0];
        let uri = format!("/api/v2/write?org=my%20org&bucket={expected}&precision=ms");
        assert_eq!(request.uri.to_string(), uri);
        assert_eq!(request.header("authorization"), "Token secret-token");
    }
}

#[test]
fn a_mended_password_is_used_without_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "old").expect("write");
    let file = password.clone();
    let backend = Scripted::start(move |number, _| {
        if number == 0 {
            std::fs::write(&file, "new").expect("write");
            return (401, Vec::new(), "authorization failed".into());
        }
        no_content()
    });
    let mut config = config(&[backend.url()]);
    config.backend[0].username = Some("u".into());
    config.backend[0].password_file = Some(password);
    config.udp.push(Udp { database: "other".into(), ..config.udp[0].clone() });
    let relay = Running::start(config);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    // The refused destination is left alone for a moment; whichever comes first shows which
    // password is used now.
    let other = relay.relay.as_ref().expect("running").view().listeners[1].address();
    UdpSocket::bind("127.0.0.1:0").expect("bind").send_to(b"m v=2 2\n", other).expect("send");
    wait_for("the other destination's line", || (relay.backend("a").delivered_lines >= 1).then_some(()));
    let requests = backend.requests();
    // u:old and u:new
    assert_eq!(requests[0].header("authorization"), "Basic dTpvbGQ=");
    assert_eq!(requests[1].header("authorization"), "Basic dTpuZXc=");
}

#[test]
fn a_missing_or_empty_secret_keeps_the_relay_from_starting() {
    let folder = tempfile::tempdir().expect("folder");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").expect("write");
    for (file, part) in [(empty, "is empty"), (folder.path().join("missing"), "cannot read")] {
        let mut config = config(&["http://127.0.0.1:1".to_owned()]);
        config.backend[0].token_file = Some(file);
        let error = Running::try_start(config).map(|_| ()).expect_err("refused");
        assert!(error.contains(part) && error.contains("secret file"), "{error}");
    }
}

/// An HTTPS server with a certificate of its own making that accepts every write.
pub(crate) fn tls_backend(
    certificate: &rcgen::CertifiedKey<rcgen::KeyPair>,
) -> (std::net::SocketAddr, Arc<Mutex<usize>>) {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .expect("certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async move {
            listener.set_nonblocking(true).expect("nonblocking");
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    use tokio::io::{AsyncReadExt, AsyncWriteExt};
                    let mut buffer = vec![0; 65536];
                    // One small request arrives in one read.
                    while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {
                        *counted.lock().expect("no panic") += 1;
                        if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    });
    (address, count)
}

#[test]
fn https_is_trusted_by_its_authority_only() {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    let (address, count) = tls_backend(&certificate);
    let folder = tempfile::tempdir().expect("folder");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, certificate.cert.pem()).expect("write");

    let mut trusting = config(&[format!("https://localhost:{}", address.port())]);
    trusting.backend[0].ca_file = Some(ca_file.clone());
    let relay = Running::start(trusting);
    relay.send(&["m v=1 1\n"]);
    relay.wait_delivered("a", 1);
    assert!(*count.lock().expect("no panic") >= 1);

    // The system's authorities do not know it.
    let relay = Running::start(config(&[format!("https://localhost:{}", address.port())]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    assert!(relay.backend("a").last_error.is_some_and(|error| error.contains("TLS")));

    // It is not the certificate of this name.
    let mut wrong_name = config(&[format!("https://127.0.0.1:{}", address.port())]);
    wrong_name.backend[0].ca_file = Some(ca_file.clone());
    let relay = Running::start(wrong_name);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");

    std::fs::write(&ca_file, "no certificate").expect("write");
    let mut broken = config(&["https://localhost:1".to_owned()]);
    broken.backend[0].ca_file = Some(ca_file);
    let error = Running::try_start(broken).map(|_| ()).expect_err("refused");
    assert!(error.contains("ca_file") && error.contains("PEM"), "{error}");
}

#[test]
fn a_relay_behind_a_relay_gets_whole_lines_in_datagrams_of_the_mtu() {
    let backend = Scripted::accepting();
    let second = Running::start(config(&[backend.url()]));
    let mut config = config(&[format!("udp://{}", second.target)]);
    config.backend[0].mtu = 600;
    let first = Running::start(config);
    let lines: Vec<String> = (0..500).map(|n| format!("m,h={n} v=\"a\nb\",w={n}i {n}\n")).collect();
    first.send(&lines);
    first.wait_delivered("a", 500);
    second.wait_delivered("a", 500);
    assert_eq!(backend.text(), lines.concat());
    let receive = &second.status().receive[0];
    assert!(receive.datagrams > 10 && receive.datagrams < 100, "{} datagrams", receive.datagrams);
    assert!(receive.bytes / receive.datagrams > 300);
}

#[test]
fn a_relay_that_is_not_there_gets_the_lines_once_it_is() {
    let free = UdpSocket::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let relay = Running::start(config(&[format!("udp://{free}")]));
    // The first datagram tells nothing, a later one brings the other host's answer that nobody
    // listens.
    wait_for("the error", || {
        relay.send(&["m v=1 1\n"]);
        (relay.backend("a").state == "down").then_some(())
    });
    let receiver = UdpSocket::bind(free).expect("bind");
    receiver.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let mut buffer = [0; 2048];
    let bytes = receiver.recv(&mut buffer).expect("the lines");
    assert!(buffer[..bytes].starts_with(b"m v=1 1\n"));
    relay.wait_state("a", "up");
}

#[test]
fn an_archive_holds_every_line_below_its_destination() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let mut settings = config(&[format!("file://{}", root.display())]);
    settings.udp[0].precision = Precision::Seconds;
    let read = || {
        let mut text = String::new();
        for entry in std::fs::read_dir(root.join("telegraf.s")).expect("a folder for the destination") {
            text += &std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        }
        text
    };
    let header = "# DML\n# CONTEXT-DATABASE: telegraf\n# CONTEXT-RETENTION-POLICY: \n# precision: s\n\
                  # twinflux: {\"database\":\"telegraf\",\"retention_policy\":\"\",\"precision\":\"s\"}\n";
    let mut relay = Running::start(settings.clone());
    relay.send(&["m v=1 1\n", "m v=2 2\n"]);
    relay.wait_delivered("a", 2);
    assert_eq!(read(), format!("{header}m v=1 1\nm v=2 2\n"));
    relay.stop();
    // A second run goes on in the same file.
    let relay = Running::start(settings);
    relay.send(&["m v=3 3\n"]);
    relay.wait_delivered("a", 1);
    assert_eq!(read(), format!("{header}m v=1 1\nm v=2 2\nm v=3 3\n"));
}

/// Everything in an archive's folder, oldest file first, without the comments at each file's head;
/// and the files.
fn archived(folder: &std::path::Path) -> (String, Vec<std::path::PathBuf>) {
    let listed = std::fs::read_dir(folder).expect("a folder for the destination");
    let mut files: Vec<_> = listed.map(|entry| entry.expect("an entry").path()).collect();
    // `X.lp` and `X-0001.lp` are of one second.
    files.sort_by_key(|path| path.file_name().map(|name| name.to_string_lossy().replace(".lp", "-0000.lp")));
    let mut text = String::new();
    for path in &files {
        let mut file = std::fs::File::open(path).expect("open");
        let mut part = String::new();
        match path.extension().is_some_and(|extension| extension == "gz") {
            true => flate2::read::MultiGzDecoder::new(file).read_to_string(&mut part).expect("gzip"),
            false => file.read_to_string(&mut part).expect("text"),
        };
        text.extend(part.split_inclusive('\n').filter(|line| !line.starts_with('#')));
    }
    (text, files)
}

#[test]
fn an_archive_of_many_files_has_every_line_once() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let mut settings = config(&[format!("file://{}", root.display())]);
    // Files of a megabyte, and room for all of them.
    settings.backend[0].disk = Some(bytesize::ByteSize::mib(8));
    settings.data_dir = folder.path().join("data");
    let noise = |n: u64| -> String {
        (0..300).map(|part| format!("{:016x}", fastrand::Rng::with_seed(n * 300 + part).u64(..))).collect()
    };
    let lines: Vec<String> = (0..900).map(|n| format!("m s=\"{}\" {n}\n", noise(n))).collect();
    for part in lines.chunks(450) {
        let mut relay = Running::start_in(settings.clone());
        let mut sent = 0;
        for few in part.chunks(30) {
            relay.send(few);
            sent += few.len() as u64;
            relay.wait_delivered("a", sent);
        }
        let last = relay.stop();
        assert_eq!((last.backends[0].delivered_lines, last.backends[0].pending_lines), (450, 0));
    }
    let (text, files) = archived(&root.join("telegraf.ns"));
    let full = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "gz")).count();
    assert!(full >= 3, "several files were ended: {files:?}");
    // Each line is there once, and in the order in which it was sent.
    assert!(text == lines.concat(), "{} bytes of {}", text.len(), lines.concat().len());
}

#[test]
fn a_line_that_fits_no_datagram_is_rejected_and_its_neighbours_are_sent() {
    /// What the largest datagram holds, its line feed included.
    const MOST: usize = 65_507;
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
    receiver.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let mut settings = config(&[format!("udp://{}", receiver.local_addr().expect("address"))]);
    let any = ([127, 0, 0, 1], 0).into();
    settings.tcp.push(Tcp { listen: any, max_line: bytesize::ByteSize::mib(1), ..Tcp::default() });
    let relay = Running::start(settings);
    let line = |bytes: usize, n: u64| {
        let (head, tail) = ("m s=\"", format!("\" {n}\n"));
        format!("{head}{}{tail}", "x".repeat(bytes - head.len() - tail.len()))
    };
    let lines = [line(100, 1), line(MOST, 2), line(MOST + 1, 3), line(100_000, 4), line(MOST - 1, 5), line(100, 6)];
    let address = relay.relay.as_ref().expect("running").view().listeners[1].address();
    let mut sender = std::net::TcpStream::connect(address).expect("connect");
    let mut buffer = vec![0; 1 << 17];
    // One at a time, so that the receiver's socket has room for each.
    for (place, line) in lines.iter().enumerate() {
        sender.write_all(line.as_bytes()).expect("send");
        if line.len() <= MOST {
            let bytes = receiver.recv(&mut buffer).expect("the line");
            assert!(buffer[..bytes] == *line.as_bytes(), "line {place} as it was");
        }
        let done = place as u64 + 1;
        wait_for("the outcome", || {
            let ledger = relay.backend("a");
            (ledger.delivered_lines + ledger.rejected() == done).then_some(())
        });
    }
    let ledger = relay.backend("a");
    assert_eq!((ledger.delivered_lines, ledger.rejected_lines["too_large"], ledger.rejected()), (4, 2, 2));
    assert!(ledger.last_error.is_some_and(|error| error.contains("longer than a datagram")));
}

#[test]
fn an_archive_with_a_bound_gives_up_its_oldest_files_and_no_ledger_changes() {
    const DISK: u64 = 8 << 20;
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let mut settings = config(&[format!("file://{}", root.display())]);
    settings.backend[0].disk = Some(bytesize::ByteSize::b(DISK));
    let relay = Running::start(settings);
    let stored = || -> Vec<(std::path::PathBuf, u64)> {
        let folder = std::fs::read_dir(root.join("telegraf.ns")).expect("a folder for the destination");
        let files = folder.map(|entry| entry.expect("an entry").path());
        // One that is replaced by its compressed self meanwhile is gone.
        files.filter_map(|path| path.metadata().ok().map(|metadata| (path, metadata.len()))).collect()
    };
    // Text that does not compress well, more than three times of what is kept.
    let noise = |n: u64| -> String {
        (0..500).map(|part| format!("{:016x}", fastrand::Rng::with_seed(n * 500 + part).u64(..))).collect()
    };
    let mut sent = 0;
    for part in 0..80 {
        let lines: Vec<String> =
            (0..50).map(|n| format!("m s=\"{}\" {}\n", noise(part * 50 + n), part * 50 + n)).collect();
        relay.send(&lines);
        sent += 50;
        relay.wait_delivered("a", sent);
        let bytes: u64 = stored().iter().map(|(_, bytes)| bytes).sum();
        assert!(bytes <= DISK, "{bytes} bytes after {sent} lines");
    }
    let ledger = relay.backend("a");
    assert_eq!((ledger.delivered_lines, ledger.dropped(), ledger.rejected(), ledger.retries), (sent, 0, 0, 0));
    let bytes: u64 = stored().iter().map(|(_, bytes)| bytes).sum();
    assert!(bytes > DISK / 4, "{bytes} bytes");
    let text: String = stored()
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|name| name == "lp"))
        .map(|(path, _)| std::fs::read_to_string(path).expect("a file"))
        .collect();
    assert!(text.contains(&format!("\" {}\n", sent - 1)), "the newest line is there");
}

/// Whatever somebody does to its files, a line that counts as delivered is in the folder.
#[test]
fn an_archive_whose_files_go_begins_anew_and_counts_nothing_that_is_not_there() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let relay = Running::start(config(&[format!("file://{}", root.display())]));
    let files = |folder: &std::path::Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    let destination = root.join("telegraf.ns");
    let stored =
        || files(&destination).iter().map(|path| std::fs::read_to_string(path).expect("text")).collect::<String>();
    relay.send(&["m v=0 0\n"]);
    relay.wait_delivered("a", 1);
    let changes: [&dyn Fn(); 4] = [
        &|| std::fs::remove_file(&files(&destination)[0]).expect("removed"),
        &|| std::fs::rename(&files(&destination)[0], root.join("telegraf.ns/old.txt")).expect("renamed"),
        &|| std::fs::remove_dir_all(&destination).expect("removed"),
        &|| std::fs::rename(&root, folder.path().join("elsewhere")).expect("moved"),
    ];
    for (number, change) in (1..).zip(changes) {
        change();
        relay.send(&[format!("m v={number} {number}\n")]);
        relay.wait_delivered("a", number + 1);
        assert!(stored().contains(&format!("m v={number} {number}\n")), "{number}: {}", stored());
        assert!(root.join("lock").exists());
    }
}

/// `check` refuses such a name, but file systems differ in what they take.
#[test]
fn a_destination_that_an_archive_cannot_store_is_held_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("folder");
    let mut settings = config(&[format!("file://{}", folder.path().display())]);
    settings.udp.push(settings.udp[0].clone());
    settings.udp[1].database = "x".repeat(255);
    let relay = Running::start(settings);
    let other = relay.relay.as_ref().expect("running").view().listeners[1].address();
    UdpSocket::bind("127.0.0.1:0").expect("bind").send_to(b"m v=0 0\n", other).expect("send");
    relay.wait_state("a", "held");
    for n in 1..=3 {
        relay.send(&[format!("m v={n} {n}\n")]);
        wait_for("the others", || (relay.backend("a").delivered_lines == n).then_some(()));
    }
    let backend = relay.backend("a");
    assert_eq!((backend.state.as_str(), backend.pending_lines, backend.dropped() + backend.rejected()), ("held", 1, 0));
    assert!(backend.last_error.is_some_and(|error| error.contains("destination's folder: File name too long")));
}

#[test]
fn an_archive_that_cannot_be_written_says_so_and_waits() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("file");
    std::fs::write(&root, "in the way").expect("write");
    let relay = Running::start(config(&[format!("file://{}", root.display())]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "retrying");
    assert!(relay.backend("a").last_error.is_some_and(|error| error.contains("archive")));
    std::fs::remove_file(&root).expect("remove");
    relay.wait_delivered("a", 1);
}

/// A server that takes every write, and counts connections and requests.
fn counting() -> (std::net::SocketAddr, Arc<Mutex<(usize, usize)>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let (address, counts) = (listener.local_addr().expect("address"), Arc::new(Mutex::new((0, 0))));
    let counted = Arc::clone(&counts);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counted.lock().expect("no panic").0 += 1;
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                // One small request arrives in one read.
                while let Ok(1..) = stream.read(&mut bytes) {
                    let is_write = bytes.starts_with(b"POST");
                    counted.lock().expect("no panic").1 += usize::from(is_write);
                    drop(stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"));
                }
            });
        }
    });
    (address, counts)
}

#[test]
fn a_connection_is_renewed_after_its_lifetime_and_no_request_is_lost() {
    let (address, counts) = counting();
    let mut config = config(&[format!("http://{address}")]);
    config.backend[0].connection_lifetime = Duration::from_secs(1);
    let relay = Running::start(config);
    let mut sent = 0;
    // However slow the machine is, it has to be done at some time.
    wait_for("a third connection for writes", || {
        relay.send(&["m v=1 1\n"]);
        sent += 1;
        relay.wait_delivered("a", sent);
        std::thread::sleep(Duration::from_millis(100));
        // One is the probe's.
        (counts.lock().expect("no panic").0 >= 4).then_some(())
    });
    let (connections, requests) = *counts.lock().expect("no panic");
    assert!(connections < requests, "{connections} connections for {requests} requests");
    assert_eq!((relay.backend("a").retries, relay.backend("a").rejected()), (0, 0));
}
