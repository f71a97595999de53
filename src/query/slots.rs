//! Limits the questions in flight to one backend, and queues the others. Sources take turns, so
//! that one dashboard cannot occupy all slots.
//!
//! Never does: cancel a question in flight. Bounds: questions in flight, [`MAX_WAITING`] in the
//! queue, and the time in the queue.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Maximum number of questions queued for one backend.
const MAX_WAITING: usize = 1024;

/// The slots of one backend.
#[derive(Debug)]
pub(super) struct Slots {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Number of occupied slots.
    active: usize,
    /// The queue of each source. The first source is next.
    waiting: VecDeque<(IpAddr, VecDeque<oneshot::Sender<Slot>>)>,
    count: usize,
}

/// An occupied slot. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, table: Mutex::default() })
    }

    /// Returns the number of questions in flight and in the queue.
    pub(super) fn load(&self) -> usize {
        let table = self.table();
        table.active + table.count
    }

    /// Waits for a slot. `None` if none becomes free in time, or the queue is full.
    pub(super) async fn enter(self: &Arc<Self>, source: IpAddr, longest: Duration) -> Option<Slot> {
        let called = {
            let mut table = self.table();
            if table.active < self.max && table.count == 0 {
                table.active += 1;
                return Some(Slot(Arc::clone(self)));
            }
            table.wait(source)?
        };
        // If the slot arrives at the last moment, dropping the channel passes it on to the next
        // question.
        tokio::time::timeout(longest, called).await.ok()?.ok()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn wait(&mut self, source: IpAddr) -> Option<oneshot::Receiver<Slot>> {
        // Removes questions that gave up.
        for (_, queue) in &mut self.waiting {
            queue.retain(|one| !one.is_closed());
        }
        self.waiting.retain(|(_, queue)| !queue.is_empty());
        self.count = self.waiting.iter().map(|(_, queue)| queue.len()).sum();
        if self.count >= MAX_WAITING {
            return None;
        }
        let (call, called) = oneshot::channel();
        match self.waiting.iter_mut().find(|(known, _)| *known == source) {
            Some((_, queue)) => queue.push_back(call),
            None => self.waiting.push_back((source, VecDeque::from([call]))),
        }
        self.count += 1;
        Some(called)
    }

    /// Returns the next question in the queue, skipping those that gave up.
    fn next(&mut self) -> Option<oneshot::Sender<Slot>> {
        while let Some((source, mut queue)) = self.waiting.pop_front() {
            let next = queue.pop_front();
            self.count -= usize::from(next.is_some());
            if !queue.is_empty() {
                self.waiting.push_back((source, queue));
            }
            if let Some(call) = next.filter(|call| !call.is_closed()) {
                return Some(call);
            }
        }
        None
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.0.table();
        let Some(call) = table.next() else {
            table.active -= 1;
            return;
        };
        drop(table);
        // A question that gives up now drops the slot, which then goes to the next one.
        drop(call.send(Self(Arc::clone(&self.0))));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_place_that_was_given_to_one_that_is_gone_is_free() {
        let slots = Slots::new(1);
        let source = IpAddr::from([10, 0, 0, 1]);
        let first = slots.enter(source, LONG).await.expect("a place");
        let mut second = Box::pin(slots.enter(source, LONG));
        assert!(second.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(first);
        drop(second);
        assert_eq!(slots.load(), 0);
        assert!(slots.enter(source, Duration::ZERO).await.is_some());
    }

    #[tokio::test]
    async fn sources_take_turns_and_those_that_give_up_hold_nothing() {
        let slots = Slots::new(1);
        let (greedy, modest) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = slots.enter(greedy, LONG).await.expect("a place");
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (number, source) in [(0, greedy), (1, greedy), (2, greedy), (3, modest)] {
            let (slots, order) = (Arc::clone(&slots), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let slot = slots.enter(source, LONG).await.expect("a place");
                order.lock().expect("no panic").push(number);
                drop(slot);
            }));
            tokio::task::yield_now().await;
        }
        assert!(slots.enter(modest, Duration::from_millis(1)).await.is_none());
        assert_eq!(slots.load(), 6, "one that gave up is counted until the next one comes");
        drop(first);
        for task in tasks {
            task.await.expect("ended");
        }
        assert_eq!(*order.lock().expect("no panic"), [0, 3, 1, 2]);
        assert_eq!(slots.load(), 0);
        assert!(slots.enter(greedy, Duration::ZERO).await.is_some());
    }
}
