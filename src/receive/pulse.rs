//! Whether a thread makes progress: it answers, once in each turn of its loop, when it has been asked.
//!
//! Who waits is woken for it; a turn without a question costs two loads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// One thread's questions and answers.
pub struct Pulse {
    name: String,
    asked: AtomicU64,
    answered: AtomicU64,
    woken: Notify,
    /// Wakes a thread that waits in no runtime.
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Pulse {
    /// The pulse of a thread with this name.
    pub fn new(name: impl Into<String>) -> Self {
        let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { name: name.into(), asked, answered, woken: Notify::new(), wake: None }
    }

    /// The pulse of a thread that this wakes, wherever it waits.
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

    /// Answers what was asked. The thread calls it in each turn of its loop.
    #[inline]
    pub fn beat(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if self.answered.load(Ordering::Relaxed) != asked {
            self.answered.store(asked, Ordering::Relaxed);
        }
    }

    /// Whether every question has its answer.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) == self.asked.load(Ordering::Relaxed)
    }

    /// Answers for a thread that waits in a runtime, for ever.
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
