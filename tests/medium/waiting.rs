//! What waits for what: senders for a disk, a stop for a backend.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use twinflux::config::Tcp;
use twinflux::receive::Inherited;
use twinflux::relay::Relay;

use crate::faulty::FaultyDisk;
use crate::support::{Running, Scripted, config, free_address, no_content, wait_for};

/// Does what is to be done in the end, also where the test fails: nobody is left waiting.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_stalled_disk_makes_senders_wait_and_loses_nothing() {
    let disk = FaultyDisk::new();
    let living = Scripted::accepting();
    // One backend is dead: what it lacks has to be on the disk before it may leave the memory.
    let mut settings = config(&[living.url(), format!("http://{}", free_address())]);
    settings.tcp.push(Tcp { listen: settings.udp[0].listen, ..Tcp::default() });
    settings.journal.memory = ByteSize::mib(8);
    let folder = tempfile::tempdir().expect("folder");
    settings.data_dir = folder.path().join("data");
    let storage = disk.storage();
    let relay =
        Relay::start_on(&settings, Inherited::default(), |_| Ok(storage)).unwrap_or_else(|error| panic!("{error}"));
    let (target, admin) = (relay.view().listeners[1].address(), relay.admin());
    let mut relay = Running { relay: Some(relay), target, admin, folder, data_dir: settings.data_dir.clone() };
    let _finally = Finally(|| disk.inner().holds_writes = false);

    // Far more than memory, ring and sockets hold together.
    let piece: String = (0..5_000).map(|n| format!("m,host=a s=\"{n:080}\" {n}\n")).collect();
    let (pieces, lines) = (120_u64, 120 * 5_000_u64);
    let sent = Arc::new(AtomicU64::new(0));
    let sender = {
        let sent = Arc::clone(&sent);
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(target)?;
            for _ in 0..pieces {
                stream.write_all(piece.as_bytes())?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    wait_for("the first lines", || (relay.status().accepted_lines > 50_000).then_some(()));
    disk.inner().holds_writes = true;
    wait_for("a write that hangs", || (disk.inner().held_writes > 0).then_some(()));
    // Until nothing has moved for a while. Should that be chance, the test is milder, and not
    // wrong.
    let mut last = (relay.status().accepted_lines, Instant::now());
    wait_for("the sender to wait", || {
        let accepted = relay.status().accepted_lines;
        if accepted != last.0 {
            last = (accepted, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let stalled = relay.status();
    for backend in &stalled.backends {
        assert_eq!(backend.dropped(), 0, "nothing is dropped for {}: {:?}", backend.name, backend.dropped_lines);
    }
    assert!(!sender.is_finished() && sent.load(Ordering::Relaxed) < pieces, "the sender waits");
    assert!(stalled.journal.memory_bytes <= 8 << 20);

    disk.inner().holds_writes = false;
    sender.join().expect("no panic").expect("it goes on");
    wait_for("all lines", || (relay.status().accepted_lines == lines).then_some(()));
    relay.wait_delivered("a", lines);
    let dead = relay.backend("b");
    assert_eq!((dead.pending_lines, dead.dropped()), (lines, 0));
    let last = relay.stop();
    assert_eq!((last.backends[1].pending_lines, last.backends[1].dropped()), (lines, 0));
}

#[test]
fn a_stop_waits_for_an_answer_that_is_on_its_way() {
    let (answers, asked) = (Arc::new((Mutex::new(false), Condvar::new())), Arc::new(AtomicBool::new(false)));
    let (may_answer, is_asked) = (Arc::clone(&answers), Arc::clone(&asked));
    let backend = Scripted::start(move |_, _| {
        is_asked.store(true, Ordering::Release);
        let may = may_answer.0.lock().expect("no panic");
        drop(may_answer.1.wait_while(may, |may| !*may).expect("no panic"));
        no_content()
    });
    let answer = || {
        *answers.0.lock().expect("no panic") = true;
        answers.1.notify_all();
    };
    let _finally = Finally(answer);
    let mut settings = config(&[backend.url()]);
    settings.shutdown_timeout = Duration::from_secs(120);
    let mut relay = Running::start(settings);
    relay.send(&["m v=1 1\n", "m v=2 2\n"]);
    wait_for("the request", || asked.load(Ordering::Acquire).then_some(()));
    let target = relay.target;
    let stopping = std::thread::spawn(move || relay.stop());
    wait_for("the listener to end", || UdpSocket::bind(target).ok());
    // A relay that waits for no answer has ended by then.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!stopping.is_finished(), "it waits for the answer");
    answer();
    let last = stopping.join().expect("no panic");
    assert_eq!((last.backends[0].delivered_lines, last.backends[0].pending_lines), (2, 0));
}
