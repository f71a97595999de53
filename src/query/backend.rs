//! A backend as readers use it: its slots, its connections, and its recent failures.
//!
//! Owns: idle connections, and the pause after failures. Never does: choose among backends. Bounds:
//! [`MAX_IDLE`] idle connections; the pause after failures.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Response;
use hyper::body::Incoming;

use super::figures::Figures;
use super::slots::Slots;
use crate::deliver::{Health, Link, LinkError, State, Upstream};
use crate::journal::BackendId;
use crate::receive::http::Question;

/// Maximum number of idle connections per backend.
const MAX_IDLE: usize = 32;
/// How long a connection is used.
const LIFETIME: Duration = Duration::from_secs(300);
/// A failing backend is not asked for this long, times its failures in a row, up to the maximum.
const PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Number of failures in a row before the pause.
const MAX_FAILURES: u32 = 3;
/// Number of questions that a returning backend must answer one after another before it gets its
/// full share.
const TRIALS: u8 = 2;

/// A backend that can answer readers.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    /// Its id in the journal.
    pub(super) id: BackendId,
    upstream: Upstream,
    health: Arc<Health>,
    pub(super) slots: Arc<Slots>,
    idle: Mutex<Vec<(Link, Instant)>>,
    pub(super) figures: Figures,
    /// Whether an operator or the configuration has closed it.
    pub(super) is_closed: AtomicBool,
    /// Whether it was too far behind, and has not caught up yet.
    pub(super) is_away: AtomicBool,
    /// Number of trial questions still to be answered, one at a time.
    trials: AtomicU8,
    /// Failures in a row, and the end of the pause.
    failures: Mutex<(u32, Option<Instant>)>,
}

impl Backend {
    /// Creates a backend with its name and its id in the journal. `is_open` tells whether it is
    /// asked at all, `max_concurrent` how many questions may be in flight.
    pub(super) fn new(
        (name, id): (String, BackendId),
        upstream: Upstream,
        health: Arc<Health>,
        is_open: bool,
        max_concurrent: usize,
    ) -> Self {
        let (idle, figures, failures) = Default::default();
        let (is_closed, is_away) = (AtomicBool::new(!is_open), AtomicBool::new(false));
        let slots = Slots::new(max_concurrent);
        let trials = AtomicU8::new(0);
        Self { name, id, upstream, health, slots, idle, figures, is_closed, is_away, trials, failures }
    }

    /// Whether it can be asked: it answers as far as is known, and does not pause.
    pub(super) fn is_well(&self) -> bool {
        let paused_until = self.failures.lock().unwrap_or_else(PoisonError::into_inner).1;
        let is_down = self.health.found_state() == State::Down;
        if is_down {
            self.put_on_trial();
        }
        !is_down && paused_until.is_none_or(|until| until <= Instant::now())
    }

    /// Takes the backend out of use. Once it returns, it gets one question at a time until it has
    /// answered some.
    pub(super) fn put_on_trial(&self) {
        self.trials.store(TRIALS, Ordering::Relaxed);
    }

    /// Whether a trial question is in flight.
    pub(super) fn is_on_trial(&self) -> bool {
        self.trials.load(Ordering::Relaxed) > 0 && self.slots.load() > 0
    }

    /// Records a good answer.
    pub(super) fn note_success(&self) {
        self.trials.store(self.trials.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) = (0, None);
    }

    /// Records that the backend did not accept the credentials.
    pub(super) fn note_refused(&self) {
        self.upstream.note_refused();
    }

    /// Records a failure. After several in a row, the backend pauses.
    pub(super) fn note_failure(&self) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.0 += 1;
        if failures.0 >= MAX_FAILURES {
            self.put_on_trial();
            failures.1 = Some(Instant::now() + (PAUSE * (failures.0 - MAX_FAILURES + 1)).min(MAX_PAUSE));
        }
    }

    /// Sends a question on an idle or a new connection. Returns the answer's head.
    ///
    /// # Errors
    /// The backend cannot be reached, or did not answer.
    pub(super) async fn send(&self, question: &Question) -> Result<(Link, Response<Incoming>), LinkError> {
        let request = || {
            self.upstream.request(
                &question.form,
                question.is_pretty,
                &question.headers,
                question.authorization.as_ref(),
            )
        };
        if let Some(mut link) = self.idle_link()
            && link.is_ready().await
            && let Ok(response) = link.ask(request()).await
        {
            return Ok((link, response));
        }
        // The idle connection may have been closed while the question was sent, which is no failure
        // of the backend.
        let mut link = self.upstream.connect().await?;
        let response = link.ask(request()).await?;
        Ok((link, response))
    }

    fn idle_link(&self) -> Option<Link> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((link, since)) = idle.pop() {
            if since.elapsed() < Link::longest_idle() && link.is_worth_keeping(LIFETIME) {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&self, link: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((link, Instant::now()));
        }
    }
}
