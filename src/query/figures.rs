//! Counts of a copy's readers, and whether it can answer.
//!
//! Owns: the counters. Never does: decide who answers. Bounds: five values per copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Counters of one copy.
#[derive(Debug, Default)]
pub(super) struct Figures {
    queries: AtomicU64,
    failovers: AtomicU64,
    incomplete: AtomicU64,
    cut: AtomicU64,
    serves: Mutex<Option<Serves>>,
}

/// Whether a copy can answer now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serves {
    /// `yes`, `edge` (all but the newest seconds) or `no`.
    pub word: &'static str,
    /// Why it cannot answer, or not completely.
    pub reason: Option<String>,
    /// Since when.
    pub since: SystemTime,
}

/// Counts of the questions to one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Questions sent to it.
    pub queries: u64,
    /// Questions that it could not answer, so that another one was asked.
    pub failovers: u64,
    /// Answers marked as possibly incomplete.
    pub incomplete: u64,
    /// Answers that ended early.
    pub cut: u64,
    /// Whether it can answer now.
    pub serves: Serves,
}

impl Figures {
    pub(super) fn note_query(&self, is_incomplete: bool) {
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.incomplete.fetch_add(u64::from(is_incomplete), Ordering::Relaxed);
    }

    pub(super) fn note_failover(&self) {
        self.failovers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    /// Records whether it can answer. Also returns the previous word, if that has changed.
    pub(super) fn note_serves(&self, word: &'static str, reason: Option<String>) -> (Serves, Option<&'static str>) {
        let mut known = self.serves.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.as_ref().map(|known| (known.word, known.since));
        let is_same = before.is_some_and(|(before, _)| before == word);
        let since = before.filter(|_| is_same).map_or_else(SystemTime::now, |(_, since)| since);
        let now = Serves { word, reason, since };
        *known = Some(now.clone());
        (now, before.map(|(before, _)| before).filter(|_| !is_same))
    }

    pub(super) fn reading(&self, serves: Serves) -> Reading {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Reading {
            queries: read(&self.queries),
            failovers: read(&self.failovers),
            incomplete: read(&self.incomplete),
            cut: read(&self.cut),
            serves,
        }
    }
}
