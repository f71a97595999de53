//! A backend as readers use it: its places, its connections, and whether it failed lately.
//!
//! Bounds: [`MOST_KEPT`] connections that are kept; the time that it rests after failures.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Response;
use hyper::body::Incoming;

use super::figures::Figures;
use super::slots::Slots;
use crate::deliver::{Health, Link, State, Upstream};
use crate::journal::BackendId;
use crate::receive::http::Question;

/// Connections that are kept for the next question, for each backend.
const MOST_KEPT: usize = 32;
/// A connection is used for so long.
const LIFETIME: Duration = Duration::from_secs(300);
/// A backend that fails is not asked for this long, times the failures in a row; and no longer than that.
const REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Failures in a row before it rests.
const FAILURES: u32 = 3;
/// Questions that a backend that comes back answers one after the other, before it is asked as much as the others.
const TRIALS: u8 = 2;

/// A backend that readers may be sent to.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    /// Its place in the journal.
    pub(super) id: BackendId,
    upstream: Upstream,
    health: Arc<Health>,
    pub(super) slots: Arc<Slots>,
    kept: Mutex<Vec<(Link, Instant)>>,
    pub(super) figures: Figures,
    /// An operator, or the configuration, does not want it to be asked.
    pub(super) is_closed: AtomicBool,
    /// It was too far behind, and has not caught up yet.
    pub(super) is_away: AtomicBool,
    /// Questions that are yet to be answered well, one at a time.
    trials: AtomicU8,
    /// Failures in a row, and until when it rests.
    failures: Mutex<(u32, Option<Instant>)>,
}

impl Backend {
    /// A backend of this name, with its place in the journal; whether it is asked at all, and how many questions at a time.
    pub(super) fn new(
        (name, id): (String, BackendId),
        upstream: Upstream,
        health: Arc<Health>,
        is_open: bool,
        max_concurrent: usize,
    ) -> Self {
        let (kept, figures, failures) = Default::default();
        let (is_closed, is_away) = (AtomicBool::new(!is_open), AtomicBool::new(false));
        let slots = Slots::new(max_concurrent);
        let trials = AtomicU8::new(0);
        Self { name, id, upstream, health, slots, kept, figures, is_closed, is_away, trials, failures }
    }

    /// Whether it can be asked: it answers, as far as is known, and does not rest.
    pub(super) fn is_well(&self) -> bool {
        let rests = self.failures.lock().unwrap_or_else(PoisonError::into_inner).1;
        let is_down = self.health.found_state() == State::Down;
        if is_down {
            self.put_on_trial();
        }
        !is_down && rests.is_none_or(|until| until <= Instant::now())
    }

    /// It is out of use. Once it can be asked again, it is asked one question at a time until it has answered some.
    pub(super) fn put_on_trial(&self) {
        self.trials.store(TRIALS, Ordering::Relaxed);
    }

    /// Whether a question tries it just now.
    pub(super) fn is_tried(&self) -> bool {
        self.trials.load(Ordering::Relaxed) > 0 && self.slots.load() > 0
    }

    /// It answered as it should.
    pub(super) fn note_success(&self) {
        self.trials.store(self.trials.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) = (0, None);
    }

    /// It does not know who asked.
    pub(super) fn note_refused(&self) {
        self.upstream.note_refused();
    }

    /// It failed; after some failures in a row it rests.
    pub(super) fn note_failure(&self) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.0 += 1;
        if failures.0 >= FAILURES {
            self.put_on_trial();
            failures.1 = Some(Instant::now() + (REST * (failures.0 - FAILURES + 1)).min(LONGEST_REST));
        }
    }

    /// Sends a question, on a connection that is kept or a new one; the answer's head.
    pub(super) async fn send(&self, question: &Question) -> Result<(Link, Response<Incoming>), String> {
        let request = || {
            self.upstream.request(
                &question.form,
                question.is_pretty,
                &question.headers,
                question.authorization.as_ref(),
            )
        };
        if let Some(mut link) = self.kept_link()
            && link.is_ready().await
            && let Ok(response) = link.ask(request()).await
        {
            return Ok((link, response));
        }
        // A connection that was kept may have been closed as the question came: that says nothing of the backend.
        let mut link = self.upstream.connect().await?;
        let response = link.ask(request()).await?;
        Ok((link, response))
    }

    fn kept_link(&self) -> Option<Link> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((link, since)) = kept.pop() {
            if since.elapsed() < Link::longest_idle() && link.is_worth_keeping(LIFETIME) {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&self, link: Link) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST_KEPT {
            kept.push((link, Instant::now()));
        }
    }
}
