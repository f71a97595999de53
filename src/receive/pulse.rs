//! Detects whether a thread makes progress: once asked, the thread answers in the next turn of its
//! loop.
//!
//! A waiting thread is woken to answer. A turn without a question costs two loads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The questions to one thread, and its answers.
pub struct Pulse {
    name: String,
    asked: AtomicU64,
    answered: AtomicU64,
    woken: Notify,
    /// Wakes a thread that does not wait in a runtime.
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Pulse {
    /// Creates the pulse of a thread with this name.
    pub fn new(name: impl Into<String>) -> Self {
        let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { name: name.into(), asked, answered, woken: Notify::new(), wake: None }
    }

    /// Sets the function that wakes the thread.
    #[must_use]
    pub fn woken_by(self, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { wake: Some(Box::new(wake)), ..self }
    }

    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the thread for an answer.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.woken.notify_one();
        if let Some(wake) = &self.wake {
            wake();
        }
    }

    /// Answers all open questions. The thread calls this in each turn of its loop.
    #[inline]
    pub fn beat(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if self.answered.load(Ordering::Relaxed) != asked {
            self.answered.store(asked, Ordering::Relaxed);
        }
    }

    /// Whether every question has been answered.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) == self.asked.load(Ordering::Relaxed)
    }

    /// Answers for ever, on behalf of a thread that waits in a runtime.
    pub async fn answer(&self) {
        loop {
            self.woken.notified().await;
            self.beat();
        }
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_open_until_the_next_beat() {
        let pulse = Pulse::new("udp-0");
        assert!(pulse.is_answered());
        pulse.ask();
        pulse.ask();
        assert!(!pulse.is_answered());
        pulse.beat();
        assert!(pulse.is_answered());
    }
}
