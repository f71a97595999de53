//! The pair's other relay: whether it is there, what it owes the backends, and what is suspected once it is gone.
//!
//! Each relay has a journal of its own, and each line reaches one of them. So a backend has everything only if *both* relays
//! have delivered to it. This one asks the other each second ([`Report`]):
//!
//! | the other relay | means here |
//! |---|---|
//! | answers, and owes a backend nothing older than [`NEAR_SECONDS`] | nothing |
//! | answers, and owes it more, or knows of a gap | readers are sent elsewhere, or told ([`Pair::lacks`]) |
//! | is gone, and owed it something when it was heard last | the same, as a gap of the reason `peer` |
//! | is back with the same journal, and has delivered what it had then | the gap is closed |
//! | is back with another journal | the gap stays: whoever repairs the copy closes it |
//!
//! What the other one received within the last second before a question is not known here: an answer may lack it.
//!
//! Never does: changing the other relay; moving the address (keepalived does). Bounds: one request a second, with time limits,
//! 64 KiB of an answer.

mod holder;
mod link;
mod report;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};

use crate::journal::{Completeness, Journal, Suspicion};
use crate::net::client::{Client, Payload};
use crate::net::{ClientTlsError, SecretFile, Times, Tls};
use crate::protocol::Span;
use crate::sys::replace;
use crate::sys::text::{cut, printable};
use link::{Change, Heard, Link};

pub use link::LinkState;
pub use report::{Owed, Report, are_far_apart};

/// How often the other relay is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to connect, and to answer.
const TIMES: Times =
    Times { connect: Duration::from_secs(2), answer: Duration::from_secs(2), lifetime: Duration::from_secs(50) };
/// What it has owed a backend for so long is told to readers: less is on its way, and always there.
pub const NEAR_SECONDS: f64 = 2.0;
/// Before the oldest line that it owed, others may have been taken that it had not counted yet.
const MARGIN: Duration = Duration::from_secs(1);
/// How much of an error is kept, in bytes.
const ERROR_BYTES: usize = 500;
/// The file that says whose lines are suspected to be missing, in the data folder.
const FILE: &str = "peer";

/// How the other relay is reached.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its admin listener: `http` or `https`, host and port.
    pub peer: Uri,
    /// The file with a token that may administer there.
    pub token: Option<SecretFile>,
    /// Whom to trust.
    pub tls: Tls,
    /// The address that one of both holds.
    pub address: Option<IpAddr>,
}

/// The other relay, as this one knows it.
#[derive(Debug)]
pub struct Pair {
    setup: Setup,
    journal: Journal,
    /// The backends' names, in the journal's order.
    backends: Vec<String>,
    file: PathBuf,
    /// This process's own number.
    process: u64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    link: Link,
    /// Whether this machine holds the address.
    holds_address: Option<bool>,
    /// Since when both hold the address, or none.
    odd_since: Option<Instant>,
    /// Whose lines are suspected to be missing: the journal's number.
    suspected: Option<String>,
}

/// What there is to see of a pair.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The other relay's URL.
    pub peer: String,
    /// Whether it is there.
    pub state: LinkState,
    /// Since when that is so.
    pub since: SystemTime,
    /// Why it did not answer the last time; none if it did.
    pub error: Option<String>,
    /// What it said last.
    pub report: Option<Report>,
    /// The address that one of both holds.
    pub address: Option<IpAddr>,
    /// Whether this machine holds it.
    pub holds_address: Option<bool>,
    /// Both hold the address, or none, for longer than a switch takes.
    pub is_odd: bool,
    /// The other relay is this one.
    pub is_self: bool,
    /// Backends of the one that the other does not have.
    pub strangers: Vec<String>,
}

impl Pair {
    /// Of a relay with these backends, in the journal's order.
    ///
    /// # Errors
    /// What is wrong with a secret or certificate file.
    pub fn new(setup: Setup, journal: Journal, backends: Vec<String>, data_dir: &Path) -> Result<Self, String> {
        // Whoever cannot be asked is told of at the start.
        client(&setup).map_err(|error| error.to_string())?;
        setup.token.as_ref().map_or(Ok(()), |file| file.read().map(|_| ()))?;
        let file = data_dir.join(FILE);
        let suspected = std::fs::read_to_string(&file).ok().map(|text| text.trim().to_owned());
        let known = Known { link: Link::new(SystemTime::now()), holds_address: None, odd_since: None, suspected };
        Ok(Self { setup, journal, backends, file, process: fastrand::u64(..), known: Mutex::new(known) })
    }

    /// Watches the other relay until the runtime ends.
    pub async fn watch(self: Arc<Self>) {
        let Ok(mut client) = client(&self.setup) else { return };
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked = self.ask(&mut client).await;
            let holds_address = self.setup.address.and_then(holder::holds);
            self.note(asked, holds_address).await;
        }
    }

    /// What there is to see.
    pub fn seen(&self) -> Seen {
        let known = self.lock();
        let report = known.link.heard.as_ref().map(|heard| heard.report.clone());
        let strangers = report.as_ref().map_or_else(Vec::new, |report| {
            let theirs: Vec<&str> = report.backends.iter().map(|one| one.name.as_str()).collect();
            let ours = self.backends.iter().map(String::as_str);
            let only_ours = ours.clone().filter(|name| !theirs.contains(name));
            let only_theirs = theirs.iter().copied().filter(|name| !ours.clone().any(|known| known == *name));
            only_ours.chain(only_theirs).map(str::to_owned).collect()
        });
        Seen {
            peer: self.setup.peer.to_string().trim_end_matches('/').to_owned(),
            state: known.link.state,
            since: known.link.since,
            error: known.link.error.clone(),
            is_self: report.as_ref().is_some_and(|report| report.process == self.process),
            report,
            address: self.setup.address,
            holds_address: known.holds_address,
            is_odd: known.odd_since.is_some_and(|since| since.elapsed() >= link::GONE_AFTER),
            strangers,
        }
    }

    /// This process's own number, for [`Report::process`].
    pub fn process(&self) -> u64 {
        self.process
    }

    /// Whether this machine holds the address; none if there is none.
    pub fn holds_address(&self) -> Option<bool> {
        self.lock().holds_address
    }

    /// What a backend lacks of a range for the other relay still has it; none if that is nothing of note. Once the other one
    /// is gone, the journal's gaps tell.
    pub fn lacks(&self, backend: &str, range: &Span) -> Option<Completeness> {
        let known = self.lock();
        let heard = known.link.heard.as_ref().filter(|_| known.link.state == LinkState::Up)?;
        let owed = heard.report.backends.iter().find(|one| one.name == backend)?;
        lacks_of(owed, heard, range)
    }

    async fn ask(&self, client: &mut Client) -> Result<Report, String> {
        let path = "/api/pair";
        // It is read each time: who changes it need not restart anything.
        let token = match &self.setup.token {
            Some(file) => Some(file.read()?),
            None => None,
        };
        let authority = self.setup.peer.authority().map(ToString::to_string).unwrap_or_default();
        let request = || {
            let mut request = Request::new(Payload::default());
            *request.uri_mut() = Uri::from_static(path);
            let headers = request.headers_mut();
            headers.extend(HeaderValue::from_str(&authority).ok().map(|host| (HOST, host)));
            headers.insert(USER_AGENT, HeaderValue::from_static(concat!("twinflux/", env!("CARGO_PKG_VERSION"))));
            let token =
                token.as_ref().and_then(|token| HeaderValue::from_str(&format!("Token {}", token.expose())).ok());
            headers.extend(token.map(|mut value| {
                value.set_sensitive(true);
                (AUTHORIZATION, value)
            }));
            request
        };
        let answer = client.send(request).await.map_err(|error| error.to_string())?;
        let shown = || printable(cut(answer.body.trim(), ERROR_BYTES)).into_owned();
        match answer.status {
            StatusCode::OK => serde_json::from_str(&answer.body).map_err(|error| {
                let error = error.to_string();
                format!("what answers there is no relay ({})", printable(cut(&error, ERROR_BYTES)))
            }),
            StatusCode::UNAUTHORIZED => {
                Err("it asks for a user: set token_file to a token that may administer there".to_owned())
            }
            status => Err(format!("it answered {status}: {}", shown())),
        }
    }

    /// Notes what came of a try.
    async fn note(&self, asked: Result<Report, String>, holds_address: Option<bool>) {
        let (change, heard) = {
            let mut known = self.lock();
            known.holds_address = holds_address;
            let change = match asked {
                Ok(report) => known.link.note_heard(Heard { report, at: Instant::now(), wall: SystemTime::now() }),
                Err(error) => known.link.note_failure(error, Instant::now()),
            };
            let theirs = known.link.heard.as_ref().filter(|_| known.link.state == LinkState::Up);
            let is_odd =
                theirs.is_some_and(|heard| holds_address.is_some() && heard.report.holds_address == holds_address);
            known.odd_since = is_odd.then(|| known.odd_since.unwrap_or_else(Instant::now));
            (change, known.link.heard.clone())
        };
        let Some(heard) = heard else { return };
        let peer = &self.setup.peer;
        match change {
            Change::Nothing => {}
            Change::Reached => tracing::info!(%peer, version = heard.report.version, "reached the other relay"),
            Change::Back(silent) => tracing::info!(%peer, silent_seconds = silent.as_secs(), "the other relay is back"),
            Change::Gone => {
                tracing::warn!(%peer, "the other relay is gone");
                self.suspect(&heard).await;
                return;
            }
        }
        if self.lock().link.error.is_none() {
            self.clear(&heard).await;
        }
    }

    /// Notes what the other relay owed when it was heard last.
    async fn suspect(&self, heard: &Heard) {
        let owing: Vec<(usize, &Owed)> = heard
            .report
            .backends
            .iter()
            .filter(|owed| !owed.is_settled())
            .filter_map(|owed| Some((self.backends.iter().position(|name| *name == owed.name)?, owed)))
            .collect();
        if owing.is_empty() {
            return;
        }
        self.remember(heard.report.identity.clone()).await;
        for (place, owed) in owing {
            let (backend, lines) = (&owed.name, owed.pending_lines);
            self.journal.note_suspicion(place, suspicion(owed, heard));
            tracing::warn!(
                backend,
                lines,
                "the other relay owed this backend lines: until it is back and has delivered them, the copy counts as \
                 incomplete; if it will not come back: twinflux drain its data folder, or copy from the other backend, and \
                 then: twinflux backend {backend} vouch"
            );
        }
    }

    /// Closes the gaps of what the other relay has delivered meanwhile.
    async fn clear(&self, heard: &Heard) {
        let is_same = {
            let known = self.lock();
            known.suspected.is_some() && known.suspected == heard.report.identity
        };
        if !is_same {
            return;
        }
        let mut is_left = false;
        for (place, name) in self.backends.iter().enumerate() {
            let Some(until) = self.journal.suspected_until(place) else { continue };
            let owed = heard.report.backends.iter().find(|owed| owed.name == *name);
            if owed.is_some_and(|owed| owed.pending_lines == 0 || oldest(owed, heard) > until) {
                let gaps = self.journal.close_suspicions(place);
                tracing::info!(backend = name, gaps, "the other relay has delivered what it owed");
            } else {
                is_left = true;
            }
        }
        if !is_left {
            self.remember(None).await;
        }
    }

    /// Remembers whose lines are suspected to be missing.
    async fn remember(&self, identity: Option<String>) {
        self.lock().suspected.clone_from(&identity);
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || match identity {
            Some(identity) => replace(&file, identity.as_bytes()),
            None => std::fs::remove_file(&file).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }),
        });
        if let Ok(Err(error)) = saved.await {
            let file = self.file.display();
            tracing::warn!(%file, %error, "cannot remember whose lines are suspected to be missing");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(setup: &Setup) -> Result<Client, ClientTlsError> {
    let tls = if setup.peer.scheme_str() == Some("https") { Some((setup.tls.config()?, None)) } else { None };
    Ok(Client::new(&setup.peer, tls, TIMES))
}

/// When the oldest line that is owed was received, by this machine's clock; nanoseconds since 1970.
fn oldest(owed: &Owed, heard: &Heard) -> u64 {
    let age = Duration::try_from_secs_f64(owed.oldest_seconds).unwrap_or_default();
    nanoseconds(heard.wall.checked_sub(age).unwrap_or(UNIX_EPOCH))
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lacks_of(owed: &Owed, heard: &Heard, range: &Span) -> Option<Completeness> {
    let Completeness { pending_from, pending_until, gaps, gap_count, has_statement, .. } = &owed.lacks;
    let pending = Span { from: pending_from.unwrap_or(i64::MIN), until: pending_until.unwrap_or(i64::MAX) };
    let is_behind = owed.pending_lines > 0 && owed.oldest_seconds > NEAR_SECONDS && pending.meets(range);
    // Not all gaps are named.
    let met = gaps.iter().filter(|(from, until)| Span { from: *from, until: *until }.meets(range)).count() as u64;
    let gap_count = met + gap_count.saturating_sub(gaps.len() as u64);
    let found = Completeness {
        pending_from: Some(pending.from).filter(|_| is_behind),
        pending_until: Some(pending.until).filter(|_| is_behind),
        pending_since: Some(oldest(owed, heard)).filter(|_| is_behind),
        is_behind,
        gaps: Vec::new(),
        gap_count,
        has_statement: *has_statement,
    };
    (!found.is_complete()).then_some(found)
}

/// What may be missing once a relay is gone that said this: what it owed, and what it received until it was found gone.
fn suspicion(owed: &Owed, heard: &Heard) -> Suspicion {
    let until = nanoseconds(SystemTime::now());
    let margin = u64::try_from(MARGIN.as_nanos()).unwrap_or(u64::MAX);
    let from = oldest(owed, heard).saturating_sub(margin);
    // What came later has points of its own time, as far as anybody knows.
    let signed = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    let (earliest, latest) = (signed(from), signed(until));
    let points = if owed.lacks.gap_count > 0 {
        Span::ALWAYS
    } else {
        Span {
            from: owed.lacks.pending_from.map_or(earliest, |known| known.min(earliest)),
            until: owed.lacks.pending_until.map_or(latest, |known| known.max(latest)),
        }
    };
    Suspicion { received: (from, until), points, lines: owed.pending_lines }
}
