//! The control socket: commands that change or inspect a running relay, from its own machine and
//! user.
//!
//! The socket is the Unix socket `control` in `data_dir` (mode 0600). A connection carries one
//! request and one answer, each a line of JSON:
//! `{"dead_letters":{"action":"resend","filter":{"backend":"a"}}}` is answered with
//! `{"lines":3,"is_all":true}`, or with `{"error":"…"}`. Only `tail` gets more answers, for as long
//! as it reads them.
//!
//! Owns the socket, its requests and answers, and the client's side. Never reachable over the
//! network: the admin listener changes nothing, and whoever may read there cannot come here.
//! Bounds: the connections, a request's bytes and time, one `tail`.

use std::error::Error;
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

/// The socket's file name.
const NAME: &str = "control";
/// The largest request, in bytes: enough for the numbers of some thousand letters.
const REQUEST_BYTES: u64 = 256 * 1024;
/// The most connections at a time.
const CONNECTIONS: usize = 8;
/// The longest time for a request to arrive, and for an answer to be sent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for a backend's answer to a try, and the interval of polling for it.
const TRY_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Interval between two answers with passing lines.
const TAIL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a client waits for its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A request to the relay.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Act on dead letters.
    DeadLetters {
        /// The action.
        action: Action,
        /// Selects the letters.
        filter: Filter,
    },
    /// Return what `/api/status` says.
    Status,
    /// Read the configuration again.
    Reload,
    /// Show lines as they pass, until the client closes the connection; an answer each second, or
    /// more often.
    Tail {
        /// Selects the lines.
        filter: tap::Filter,
    },
    /// Forget a host that is gone for good: it is not shown any more, unless it sends again.
    ForgetHost {
        /// The host's address.
        address: IpAddr,
    },
    /// Act on a backend.
    Backend {
        /// The backend's name.
        name: String,
        /// The action.
        action: BackendAction,
    },
}

/// An action on a backend.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BackendAction {
    /// Try it now instead of at the next time; exit code 0 where it takes lines, 1 where it does
    /// not
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

/// An action on dead letters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Owe them to their backends once more.
    Resend,
    /// Remove them.
    Discard,
}

/// The relay's answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The action was carried out.
    Done {
        /// The number of lines it applied to.
        lines: u64,
        /// Whether these were all; if not, the same request continues.
        is_all: bool,
    },
    /// A reload took place.
    Reloaded {
        /// What it changed and what it could not change, a sentence each.
        reloaded: Vec<String>,
    },
    /// A backend's state after the request.
    Backend {
        /// The state's name.
        state: String,
        /// The last error, unless the backend is up.
        error: Option<String>,
    },
    /// Lines that passed since the last answer.
    Passed {
        /// The lines, with the listener that took them.
        passed: Vec<(String, tap::Passed)>,
        /// The number of further lines that matched, or may have matched.
        left_out: u64,
    },
    /// The relay's status.
    Status {
        /// The same as `/api/status`.
        status: Box<Status>,
    },
    /// The request failed.
    Failed {
        /// The reason.
        error: String,
    },
}

/// Why the relay does not do what a request asks for.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("another tail is running: only one may run at a time")]
    TapInUse,
    #[error("there is no backend {name:?}; there are: {known}")]
    UnknownBackend { name: String, known: String },
    #[error("{0} answers no queries")]
    NoQueries(String),
    #[error("{} has not answered within {} s", .0, TRY_TIMEOUT.as_secs())]
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
    /// No answer came.
    #[error("no answer")]
    NoAnswer,
    /// The relay answered a request for its status with something else.
    #[error("the relay does not show its status: {0:?}")]
    NoStatus(Box<Answer>),
}

/// Reads the configuration again.
pub type Reloader = Arc<dyn Fn() -> Result<Vec<String>, Box<dyn Error + Send + Sync>> + Send + Sync>;
/// Hands over to a successor relay, if the configuration needs one.
pub type Successor = Arc<dyn Fn() + Send + Sync>;

/// What the control socket works on.
#[derive(Clone)]
pub struct SocketArgs {
    /// The relay's figures.
    pub view: View,
    /// The dead letters.
    pub letters: Arc<DeadLetters>,
    /// Reads the configuration again.
    pub reload: Reloader,
    /// Runs after a reload is answered.
    pub succeed: Successor,
}

/// Serves a data folder's socket on this runtime, until the runtime ends. If the socket cannot be
/// created, the relay works without it.
pub fn start(runtime: &Handle, data_dir: &Path, args: SocketArgs) -> Option<SocketFile> {
    match Control::bind(data_dir) {
        Ok((control, file)) => {
            drop(runtime.spawn(control.serve(args)));
            Some(file)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot create the control socket in data_dir: commands cannot reach this relay, only its admin listener works");
            None
        }
    }
}

/// The relay's end of the socket.
#[derive(Debug)]
struct Control(UnixListener);

/// The socket's file; removed on drop.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Control {
    /// Binds the socket in a data folder whose lock is held. The lock proves that nobody uses a
    /// socket that an earlier relay left.
    ///
    /// # Errors
    /// The system refuses.
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

    /// Serves connections until the runtime ends.
    async fn serve(self, args: SocketArgs) {
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
            let args = args.clone();
            tokio::spawn(async move {
                // Client disconnects are not logged.
                drop(attend(stream, args).await);
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

async fn attend(stream: tokio::net::UnixStream, args: SocketArgs) -> io::Result<()> {
    let SocketArgs { view, letters, reload, succeed } = args;
    let (reader, mut writer) = stream.into_split();
    let mut request = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(REQUEST_BYTES));
    tokio::time::timeout(REQUEST_TIMEOUT, reader.read_line(&mut request)).await??;
    let answered = match serde_json::from_str(&request) {
        Ok(Request::Tail { filter }) => match Tapped::open(&view, &filter) {
            Some(tapped) => return tapped.show(&mut writer).await,
            None => Err(Refusal::TapInUse),
        },
        Ok(Request::ForgetHost { address }) => Ok(forget_host(&view, address)),
        Ok(Request::Reload) => {
            // The files may be on a disk that hangs.
            let done = tokio::task::spawn_blocking(move || reload()).await.map_err(io::Error::other)?;
            let answer = match done {
                Ok(reloaded) => Answer::Reloaded { reloaded },
                Err(error) => Answer::Failed { error: error.to_string() },
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
    tokio::time::timeout(REQUEST_TIMEOUT, writer.write_all(&text)).await?
}

/// Listeners whose taps are open; dropping this closes them.
struct Tapped {
    view: View,
    filter: tap::Filter,
    _only: SemaphorePermit<'static>,
}

/// Permits one `tail` at a time.
static TAIL_PERMIT: Semaphore = Semaphore::const_new(1);

impl Tapped {
    fn open(view: &View, filter: &tap::Filter) -> Option<Self> {
        let tapped = Self { view: view.clone(), filter: filter.clone(), _only: TAIL_PERMIT.try_acquire().ok()? };
        tapped.listeners().for_each(|listener| listener.each_tap(|tap| tap.open(filter)));
        Some(tapped)
    }

    fn listeners(&self) -> impl Iterator<Item = &Listener> {
        let fits = |one: &&Listener| self.filter.fits_listener(one.kind(), &one.address().to_string());
        self.view.listeners.iter().filter(fits)
    }

    /// Shows passing lines until the client closes the connection. Writes answers without lines,
    /// too, to detect that.
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
            let deadline = tokio::time::Instant::now() + TRY_TIMEOUT;
            while health.outcomes() == before && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(POLL_INTERVAL).await;
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

/// Returns a short path of the socket in an open folder, however deep the folder is: a socket's
/// path may have 107 bytes.
fn short(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()))
}

/// Asks a running relay.
///
/// # Errors
/// No relay answers.
pub fn ask(data_dir: &Path, request: &Request) -> Result<Answer, AskError> {
    let mut first = Err(AskError::NoAnswer);
    follow(data_dir, request, |answer| {
        first = Ok(answer);
        false
    })?;
    first
}

/// Asks a running relay, and passes its answers to `take` until that returns false.
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
    let asked = stream.set_read_timeout(Some(CLIENT_TIMEOUT)).and_then(|()| stream.write_all(&text));
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

/// Fetches a running relay's status.
///
/// # Errors
/// No relay answers.
pub fn status(data_dir: &Path) -> Result<Status, AskError> {
    match ask(data_dir, &Request::Status)? {
        Answer::Status { status } => Ok(*status),
        answer => Err(AskError::NoStatus(Box::new(answer))),
    }
}
