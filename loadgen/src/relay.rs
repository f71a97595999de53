//! The relay under test, as a stranger sees it: its admin address, and its process where it was
//! started here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long a relay may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const ANSWER_BYTES: u64 = 16 << 20;

/// A relay.
#[derive(Debug)]
pub struct Relay {
    /// Where it takes datagrams.
    pub target: SocketAddr,
    /// Where it takes streams; none where it does not.
    pub streams: Option<SocketAddr>,
    /// Where it takes HTTP; none where it does not.
    pub requests: Option<SocketAddr>,
    /// Where it shows its state.
    pub admin: SocketAddr,
    process: Option<Process>,
    /// Removed with the last relay that used it.
    folder: Option<Arc<Folder>>,
}

/// A relay's listeners, in TOML lines.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// The UDP listener.
    pub datagrams: String,
    /// The TCP listener, where it is to have one.
    pub streams: Option<String>,
    /// The HTTP listener, where it is to have one.
    pub requests: Option<String>,
}

/// A process that is ended with the relay.
#[derive(Debug)]
struct Process {
    child: Child,
}

/// The folder of a relay that was started here, with its configuration and its data.
#[derive(Debug)]
pub struct Folder {
    path: std::path::PathBuf,
}

impl Folder {
    /// Makes a folder with a configuration: these listeners, that of UDP at this address, these
    /// lines of TOML for the journal, and an InfluxDB backend for each of the addresses.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(listen: SocketAddr, listeners: &Listeners, journal: &str, backends: &[SocketAddr]) -> Result<Self> {
        let unique = format!("loadgen-{}-{:x}", std::process::id(), fastrand::u64(..));
        let folder = Self { path: std::env::temp_dir().join(unique) };
        let path = folder.path.display();
        std::fs::create_dir(&folder.path).with_context(|| format!("cannot make the folder {path}"))?;
        let mut toml = format!(
            "data_dir = \"{path}/data\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[journal]\n{journal}\n[[udp]]\nlisten = \"{listen}\"\n{}\n",
            listeners.datagrams
        );
        for (kind, listener) in [("tcp", &listeners.streams), ("http", &listeners.requests)] {
            if let Some(listener) = listener {
                toml.push_str(&format!("[[{kind}]]\nlisten = \"127.0.0.1:0\"\n{listener}\n"));
            }
        }
        for (place, backend) in backends.iter().enumerate() {
            toml.push_str(&format!("[[backend]]\nname = \"sink-{place}\"\nurl = \"http://{backend}\"\n"));
        }
        std::fs::write(folder.configuration(), toml)?;
        Ok(folder)
    }

    fn configuration(&self) -> std::path::PathBuf {
        self.path.join("twinflux.toml")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.path));
    }
}

impl Relay {
    /// A relay that runs already.
    pub fn running(
        target: SocketAddr,
        streams: Option<SocketAddr>,
        requests: Option<SocketAddr>,
        admin: SocketAddr,
    ) -> Self {
        Self { target, streams, requests, admin, process: None, folder: None }
    }

    /// Starts a relay's program in a folder. A socket that is given is passed on as systemd does.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn start(program: &Path, folder: &Arc<Folder>, socket: Option<&UdpSocket>) -> Result<Self> {
        let mut command = Command::new(program);
        if let Some(socket) = socket {
            // The shell puts the socket where the protocol wants it, and the program in its own
            // place.
            command = Command::new("sh");
            let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=hosts; exec \"$@\"";
            let passed: OwnedFd = socket.try_clone()?.into();
            command.args(["-c", script, "sh"]).arg(program).stdin(Stdio::from(passed));
        }
        let mut child = command
            .arg("--config")
            .arg(folder.configuration())
            .env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "warn".into()))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take();
        let mut process = Process { child };
        let addresses = read_addresses(BufReader::new(output.context("no output")?));
        let Addresses { target, streams, requests, admin } = addresses.inspect_err(|_| process.end())?;
        Ok(Self { target, streams, requests, admin, process: Some(process), folder: Some(Arc::clone(folder)) })
    }

    /// Ends the process at once (SIGKILL), as a crash would.
    pub fn kill(mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            drop(process.child.kill());
            drop(process.child.wait());
        }
    }

    /// Its `/api/status`.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub fn status(&self) -> Result<Value> {
        let body = self.get("/api/status")?;
        serde_json::from_str(&body).context("the status is not JSON")
    }

    /// One of its `/metrics` without labels.
    ///
    /// # Errors
    /// What went wrong on the way, or that there is none of this name.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let body = self.get("/metrics")?;
        let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|text| text.trim().parse().ok()).with_context(|| format!("no metric {name}"))
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, PATIENCE)
            .with_context(|| format!("cannot reach the relay's admin address {}", self.admin))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.admin).as_bytes())?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "{path} answered {}", head.lines().next().unwrap_or_default());
        Ok(body.to_owned())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end();
        }
        self.folder = None;
    }
}

impl Process {
    /// Asks the process to end, and ends it where it does not.
    fn end(&mut self) {
        let pid = i32::try_from(self.child.id()).map(nix::unistd::Pid::from_raw);
        if let Ok(pid) = pid {
            // It may have ended by itself.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        }
        let limit = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > limit {
                drop(self.child.kill());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where a relay listens.
struct Addresses {
    target: SocketAddr,
    streams: Option<SocketAddr>,
    requests: Option<SocketAddr>,
    admin: SocketAddr,
}

/// Reads the addresses from the lines that a relay prints at its start; the rest of its output is
/// discarded.
fn read_addresses(mut output: BufReader<impl Read + Send + 'static>) -> Result<Addresses> {
    let (mut target, mut streams, mut requests) = (None, None, None);
    loop {
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            bail!("the relay ended before it listened; what it said stands above");
        }
        let after = |text: &str| {
            let (_, rest) = line.split_once(text)?;
            rest.split([' ', '/', '\n']).next()?.parse::<SocketAddr>().ok()
        };
        target = after("listening on  udp ").or(target);
        streams = after(", tcp ").or(streams);
        requests = after(", http ").or(requests);
        if let (Some(target), Some(admin)) = (target, after("look at       http://")) {
            std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
            return Ok(Addresses { target, streams, requests, admin });
        }
    }
}
