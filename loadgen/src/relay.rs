//! The relay under test, as a stranger sees it: its admin address, and its process where it was started here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
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
    /// Where it shows its state.
    pub admin: SocketAddr,
    _process: Option<Process>,
}

/// A process that is ended with the relay.
#[derive(Debug)]
struct Process {
    child: Child,
    folder: std::path::PathBuf,
}

impl Relay {
    /// A relay that runs already.
    pub fn running(target: SocketAddr, admin: SocketAddr) -> Self {
        Self { target, admin, _process: None }
    }

    /// Starts a relay's program on ports that the kernel gives, with these lines of TOML for its listener and
    /// journal, and an InfluxDB backend for each of the addresses.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn start(program: &Path, listener: &str, journal: &str, backends: &[SocketAddr]) -> Result<Self> {
        let unique = format!("loadgen-{}-{:x}", std::process::id(), fastrand::u64(..));
        let folder = std::env::temp_dir().join(unique);
        std::fs::create_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut toml = format!(
            "data_dir = \"{}/data\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[journal]\n{journal}\n[[udp]]\nlisten = \"127.0.0.1:0\"\n{listener}\n",
            folder.display()
        );
        for (place, backend) in backends.iter().enumerate() {
            toml.push_str(&format!("[[backend]]\nname = \"sink-{place}\"\nurl = \"http://{backend}\"\n"));
        }
        let file = folder.join("twinflux.toml");
        std::fs::write(&file, toml)?;
        let mut child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .inspect_err(|_| drop(std::fs::remove_dir_all(&folder)))
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take();
        let mut process = Process { child, folder };
        let addresses = read_addresses(BufReader::new(output.context("no output")?));
        let (target, admin) = addresses.inspect_err(|_| process.end())?;
        Ok(Self { target, admin, _process: Some(process) })
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
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: relay\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "{path} answered {}", head.lines().next().unwrap_or_default());
        Ok(body.to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
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
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Reads the addresses from the lines that a relay prints at its start; the rest of its output is discarded.
fn read_addresses(mut output: BufReader<impl Read + Send + 'static>) -> Result<(SocketAddr, SocketAddr)> {
    let mut target = None;
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
        if let (Some(target), Some(admin)) = (target, after("look at       http://")) {
            std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
            return Ok((target, admin));
        }
    }
}
