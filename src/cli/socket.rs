//! The control socket: commands that change a running relay or look into it, from its own machine and its own user.
//!
//! `control` in `data_dir`, a Unix socket (0600). One request to a connection, and one answer, a line of JSON each:
//! `{"dead_letters":{"action":"resend","filter":{"backend":"a"}}}` is answered with `{"lines":3,"is_all":true}`, or with
//! `{"error":"…"}`. `tail` alone gets answers for as long as it reads them.
//!
//! The admin listener changes nothing: whoever may read there has no way here. Bounds: connections, a request's bytes, the
//! time for it, one `tail`.

use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::deliver::State;
use crate::deliver::dead_letters::{DeadLetters, Filter, Why};
use crate::deliver::resend::resend;
use crate::intake::tap;
use crate::observe::status::Status;
use crate::observe::view::View;
use crate::receive::Listener;

/// The socket's file.
const NAME: &str = "control";
/// A request, at most, in bytes: the numbers of some thousand letters.
const REQUEST_BYTES: u64 = 256 * 1024;
/// Connections at a time.
const CONNECTIONS: usize = 8;
/// How long a request may take to come, and an answer to go.
const LONGEST: Duration = Duration::from_secs(5);
/// How long a backend's answer to a try is waited for, and how often to look for it.
const LONGEST_TRY: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(10);
/// The time from one answer with passing lines to the next.
const TAIL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Something is to be done with dead letters.
    DeadLetters {
        /// What.
        action: Action,
        /// Which.
        filter: Filter,
    },
    /// What `/api/status` says.
    Status,
    /// The configuration is to be read again.
    Reload,
    /// Lines as they pass, until whoever asks goes away: an answer a second, or sooner.
    Tail {
        /// Which.
        filter: tap::Filter,
    },
    /// A host is gone for good: it is not shown any more, unless it sends again.
    ForgetHost {
        /// Its address.
        address: IpAddr,
    },
    /// Something is to be done with a backend.
    Backend {
        /// Its name.
        name: String,
        /// What.
        action: BackendAction,
    },
}

/// What is to be done with a backend.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BackendAction {
    /// Try it now instead of at the next time; exit code 0 where it takes lines, 1 where it does not
    Try,
    /// Send readers to it again
    Reads,
    /// Send no readers to it, until the next start or `reads`
    NoReads,
    /// Say that its copy is complete: its gaps are closed, and it answers readers
    Vouch,
    /// Send no lines to it until the next start or `release`: they wait in the journal
    Hold,
    /// Send lines to it again
    Release,
}

/// What is to be done with dead letters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Owe them to their backends once more.
    Resend,
    /// Remove them.
    Discard,
}

/// What came of it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// It was done.
    Done {
        /// To so many lines.
        lines: u64,
        /// Whether these were all; else the same request goes on.
        is_all: bool,
    },
    /// What a reload did, and what it could not.
    Reloaded {
        /// A sentence for each.
        reloaded: Vec<String>,
    },
    /// A backend's state after the request.
    Backend {
        /// Its state.
        state: String,
        /// The last error, where it is not up.
        error: Option<String>,
    },
    /// Lines that passed since the last answer.
    Passed {
        /// The lines, with the listener that took them.
        passed: Vec<(String, tap::Passed)>,
        /// How many more fitted, or may have.
        left_out: u64,
    },
    /// What there is to see of the relay.
    Status {
        /// The same as `/api/status`.
        status: Box<Status>,
    },
    /// It was not done.
    Failed {
        /// Why.
        error: String,
    },
}

/// Why the relay does not do what a request asks for.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("somebody else looks at the lines: one may at a time")]
    TapInUse,
    #[error("there is no backend {name:?}; there are: {known}")]
    UnknownBackend { name: String, known: String },
    #[error("{0} answers no queries")]
    NoQueries(String),
    #[error("{} has not answered within {} s", .0, LONGEST_TRY.as_secs())]
    NoAnswer(String),
    #[error("cannot read or write the dead letters: {0}")]
    DeadLetters(#[from] io::Error),
}

/// Why a running relay cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No relay answers at the socket.
    #[error("no relay answers at {} ({error}): is it running, with this data_dir?", path.display())]
    NoRelay {
        /// The socket.
        path: PathBuf,
        /// The system's error, or that of the answer's JSON.
        #[source]
        error: io::Error,
    },
    /// The request cannot be written as JSON.
    #[error("{0}")]
    Request(serde_json::Error),
    /// The relay closed the connection without an answer.
    #[error("no answer")]
    NoAnswer,
    /// The relay answered a request for its status with something else.
    #[error("the relay does not show its status: {0:?}")]
    NoStatus(Box<Answer>),
}

/// Reads the configuration again.
pub type Reloader = Arc<dyn Fn() -> Result<Vec<String>, String> + Send + Sync>;
/// Has another relay take this one's place, where the configuration needs that.
pub type Successor = Arc<dyn Fn() + Send + Sync>;

/// What requests are about.
#[derive(Clone)]
pub struct SocketArgs {
    /// What there is to see.
    pub view: View,
    /// What backends will never take.
    pub letters: Arc<DeadLetters>,
    /// Reads the configuration again.
    pub reload: Reloader,
    /// What follows once that is answered.
    pub succeed: Successor,
}

/// Serves a data folder's socket on this runtime, until that ends. Where there can be none, the relay does without.
pub fn start(runtime: &Handle, data_dir: &Path, parts: SocketArgs) -> Option<SocketFile> {
    match Control::bind(data_dir) {
        Ok((control, file)) => {
            drop(runtime.spawn(control.serve(parts)));
            Some(file)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot make the control socket in data_dir: this relay can be asked for nothing but its status");
            None
        }
    }
}

/// The relay's end.
#[derive(Debug)]
struct Control(UnixListener);

/// The socket's file, which goes with this.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Control {
    /// Binds the socket in a data folder whose lock is held; one that an earlier relay left is in nobody's use.
    ///
    /// # Errors
    /// What the system says.
    fn bind(data_dir: &Path) -> io::Result<(Self, SocketFile)> {
        let path = data_dir.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let folder = File::open(data_dir)?;
        let listener = UnixListener::bind(short(&folder))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok((Self(listener), SocketFile(path)))
    }

    /// Serves until the runtime ends.
    async fn serve(self, parts: SocketArgs) {
        let listener = match tokio::net::UnixListener::from_std(self.0) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot serve the control socket");
                return;
            }
        };
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let parts = parts.clone();
            tokio::spawn(async move {
                // Clients that go away are not logged.
                drop(attend(stream, parts).await);
                drop(permit);
            });
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

async fn attend(stream: tokio::net::UnixStream, parts: SocketArgs) -> io::Result<()> {
    let SocketArgs { view, letters, reload, succeed } = parts;
    let (reader, mut writer) = stream.into_split();
    let mut request = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(REQUEST_BYTES));
    tokio::time::timeout(LONGEST, reader.read_line(&mut request)).await??;
    let answered = match serde_json::from_str(&request) {
        Ok(Request::Tail { filter }) => match Tapped::open(&view, &filter) {
            Some(tapped) => return tapped.show(&mut writer).await,
            None => Err(Refusal::TapInUse),
        },
        Ok(Request::ForgetHost { address }) => Ok(forget_host(&view, address)),
        Ok(Request::Reload) => {
            // Files may be on a disk that hangs.
            let done = tokio::task::spawn_blocking(move || reload()).await.map_err(io::Error::other)?;
            let answer = match done {
                Ok(reloaded) => Answer::Reloaded { reloaded },
                Err(error) => Answer::Failed { error },
            };
            let written = write(&mut writer, &answer).await;
            succeed();
            return written;
        }
        Ok(Request::Status) => Ok(Answer::Status { status: Box::new(view.status()) }),
        Ok(Request::Backend { name, action }) => of_backend(&name, action, &view).await,
        Ok(Request::DeadLetters { action, filter }) => {
            let answered = tokio::task::spawn_blocking(move || of_letters(action, &filter, &view, &letters));
            answered.await.map_err(io::Error::other)?
        }
        Err(error) => Err(error.into()),
    };
    write(&mut writer, &answered.unwrap_or_else(|error| Answer::Failed { error: error.to_string() })).await
}

async fn write(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    tokio::time::timeout(LONGEST, writer.write_all(&text)).await?
}

/// Listeners whose taps are open; they are closed with this.
struct Tapped {
    view: View,
    filter: tap::Filter,
    _only: SemaphorePermit<'static>,
}

/// One may look at a time.
static LOOKER: Semaphore = Semaphore::const_new(1);

impl Tapped {
    fn open(view: &View, filter: &tap::Filter) -> Option<Self> {
        let tapped = Self { view: view.clone(), filter: filter.clone(), _only: LOOKER.try_acquire().ok()? };
        tapped.listeners().for_each(|listener| listener.each_tap(|tap| tap.open(filter)));
        Some(tapped)
    }

    fn listeners(&self) -> impl Iterator<Item = &Listener> {
        let fits = |one: &&Listener| self.filter.fits_listener(one.kind(), &one.address().to_string());
        self.view.listeners.iter().filter(fits)
    }

    /// Shows what passes until nobody reads it any more. Answers without lines tell whether somebody does.
    async fn show(self, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        loop {
            let (mut passed, mut left_out) = (Vec::new(), 0);
            for listener in self.listeners() {
                let name = format!("{} {}", listener.kind(), listener.address());
                listener.each_tap(|tap| {
                    let (lines, more) = tap.take();
                    passed.extend(lines.into_iter().map(|line| (name.clone(), line)));
                    left_out += more;
                });
            }
            write(writer, &Answer::Passed { passed, left_out }).await?;
            tokio::time::sleep(TAIL_INTERVAL).await;
        }
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        self.listeners().for_each(|listener| listener.each_tap(tap::Tap::close));
    }
}

fn forget_host(view: &View, address: IpAddr) -> Answer {
    let address = address.to_canonical();
    let of = |listener: &Listener| {
        let sources = listener.sources();
        sources.entries().iter().filter(|source| source.address.to_canonical() == address).count() as u64
    };
    let known = view.listeners.iter().map(of).sum();
    view.forgotten.forget(address, crate::sys::monotonic::now());
    Answer::Done { lines: known, is_all: true }
}

async fn of_backend(name: &str, action: BackendAction, view: &View) -> Result<Answer, Refusal> {
    let Some(index) = view.backends.iter().position(|backend| backend.name == name) else {
        let names: Vec<&str> = view.backends.iter().map(|backend| &*backend.name).collect();
        return Err(Refusal::UnknownBackend { name: name.to_owned(), known: names.join(", ") });
    };
    let backend = &view.backends[index];
    let health = &backend.health;
    match action {
        BackendAction::Reads | BackendAction::NoReads => {
            let is_open = action == BackendAction::Reads;
            if !backend.readers.as_ref().is_some_and(|readers| readers.open(name, is_open)) {
                return Err(Refusal::NoQueries(name.to_owned()));
            }
            tracing::info!(backend = name, is_open, "an operator opens a copy to readers, or closes it");
        }
        BackendAction::Vouch => {
            let gaps = view.journal.vouch(crate::journal::BackendId::new(index));
            tracing::info!(backend = name, gaps, "an operator vouches for a copy: its gaps are closed");
        }
        BackendAction::Hold | BackendAction::Release => {
            let is_held = action == BackendAction::Hold;
            health.hold_back(is_held);
            tracing::info!(backend = name, is_held, "an operator holds a backend, or releases it");
        }
        BackendAction::Try => {
            let before = health.outcomes();
            health.ask();
            let deadline = tokio::time::Instant::now() + LONGEST_TRY;
            while health.outcomes() == before && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
            if health.outcomes() == before {
                return Err(Refusal::NoAnswer(name.to_owned()));
            }
        }
    }
    let state = health.state();
    Ok(Answer::Backend {
        state: state.name().to_owned(),
        error: health.last_error().filter(|_| state != State::Up && !health.is_held_back()),
    })
}

fn of_letters(action: Action, filter: &Filter, view: &View, letters: &DeadLetters) -> Result<Answer, Refusal> {
    match action {
        Action::Discard => {
            let lines = letters.remove(filter, Why::Discarded)?;
            Ok(Answer::Done { lines, is_all: true })
        }
        Action::Resend => {
            let names: Vec<&str> = view.backends.iter().map(|backend| backend.name.as_str()).collect();
            let (lines, is_all) = resend(letters, &view.journal, &names, filter)?;
            Ok(Answer::Done { lines, is_all })
        }
    }
}

/// The socket in an open folder, by a path that is short however deep the folder is: a socket's may have 107 bytes.
fn short(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()))
}

/// Asks a running relay.
///
/// # Errors
/// Nobody answers there; as a sentence.
pub fn ask(data_dir: &Path, request: &Request) -> Result<Answer, AskError> {
    let mut first = Err(AskError::NoAnswer);
    follow(data_dir, request, |answer| {
        first = Ok(answer);
        false
    })?;
    first
}

/// Asks a running relay, and takes answers for as long as `take` wants more.
///
/// # Errors
/// As [`ask`].
pub fn follow(data_dir: &Path, request: &Request, mut take: impl FnMut(Answer) -> bool) -> Result<(), AskError> {
    let path = data_dir.join(NAME);
    let failed = |error| AskError::NoRelay { path: path.clone(), error };
    let folder = File::open(data_dir).map_err(failed)?;
    let mut stream = UnixStream::connect(short(&folder)).map_err(failed)?;
    let mut text = serde_json::to_vec(request).map_err(AskError::Request)?;
    text.push(b'\n');
    let asked = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.write_all(&text));
    asked.map_err(failed)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).map_err(failed)?;
        if !take(serde_json::from_str(&line).map_err(|error| failed(error.into()))?) {
            return Ok(());
        }
    }
}

/// A running relay's status.
///
/// # Errors
/// Nobody answers there; as a sentence.
pub fn status(data_dir: &Path) -> Result<Status, AskError> {
    match ask(data_dir, &Request::Status)? {
        Answer::Status { status } => Ok(*status),
        answer => Err(AskError::NoStatus(Box::new(answer))),
    }
}
