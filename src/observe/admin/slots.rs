//! Decides which connections to the admin listener stay open: the newest is always admitted.
//!
//! Owns the list of connections, in three classes with slots of their own: those that have asked
//! nothing yet, those that asked for a probe (`/health`, `/ready`, `/metrics`), and those that
//! asked for anything else. If a class is full, the connection that has been idle longest gives
//! way; if none is idle, the one whose request began first. A connection that is being answered is
//! not idle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The use of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It has not asked for anything yet.
    Newcomer,
    /// It asked for `/health`, `/ready` or `/metrics`.
    Probe,
    /// It asked for anything else.
    Page,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Slots {
    /// Slots of each class.
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<u64, Connection>,
    /// The number of the last connection or event.
    next: u64,
}

#[derive(Debug)]
struct Connection {
    class: Class,
    is_busy: bool,
    /// Number of the connection's last event; the lowest has been unchanged longest.
    since: u64,
    give_way: Arc<Notify>,
}

/// The slot of one connection; freed on drop.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
    give_way: Arc<Notify>,
}

impl Slots {
    /// Creates slots for `connections` connections: a third for each class, and at least one.
    pub(super) fn new(connections: usize) -> Self {
        Self { capacity: (connections / 3).max(1), table: Mutex::default() }
    }

    /// Assigns a slot to a new connection.
    pub(super) fn enter(self: &Arc<Self>) -> Slot {
        let give_way = Arc::<Notify>::default();
        let mut table = self.lock();
        let id = table.next();
        let connection =
            Connection { class: Class::Newcomer, is_busy: false, since: id, give_way: Arc::clone(&give_way) };
        table.connections.insert(id, connection);
        self.make_room(&mut table, Class::Newcomer, id);
        drop(table);
        Slot { slots: Arc::clone(self), id, give_way }
    }

    /// Evicts connections of the class, except this one, until the others fit.
    fn make_room(&self, table: &mut Table, class: Class, id: u64) {
        while table.connections.values().filter(|one| one.class == class).count() > self.capacity {
            let others = table.connections.iter().filter(|(other, one)| one.class == class && **other != id);
            let Some((&first, _)) = others.min_by_key(|(_, one)| (one.is_busy, one.since)) else { return };
            if let Some(connection) = table.connections.remove(&first) {
                connection.give_way.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Slot {
    /// Records that a request begins.
    pub(super) fn begin(&self, class: Class) {
        let mut table = self.slots.lock();
        let since = table.next();
        // A connection that was told to give way has no slot any more.
        let Some(connection) = table.connections.get_mut(&self.id) else { return };
        (connection.class, connection.is_busy, connection.since) = (class, true, since);
        self.slots.make_room(&mut table, class, self.id);
    }

    /// Records that the request was answered.
    pub(super) fn end(&self) {
        let mut table = self.slots.lock();
        let since = table.next();
        if let Some(connection) = table.connections.get_mut(&self.id) {
            (connection.is_busy, connection.since) = (false, since);
        }
    }

    /// Waits until the connection must give way.
    pub(super) async fn evicted(&self) {
        self.give_way.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_there(slot: &Slot) -> bool {
        slot.slots.lock().connections.contains_key(&slot.id)
    }

    #[test]
    fn the_connection_that_is_idle_longest_gives_way() {
        let slots = Arc::new(Slots::new(12));
        let newcomers: Vec<_> = (0..6).map(|_| slots.enter()).collect();
        let there: Vec<_> = newcomers.iter().map(is_there).collect();
        assert_eq!(there, [false, false, true, true, true, true]);
        // A connection with a request has a slot of another class.
        newcomers[2].begin(Class::Probe);
        newcomers[3].begin(Class::Page);
        let more: Vec<_> = (0..4).map(|_| slots.enter()).collect();
        let there: Vec<_> = newcomers.iter().map(is_there).collect();
        assert_eq!(there, [false, false, true, true, false, false]);
        assert!(more.iter().all(is_there));
    }

    #[test]
    fn one_that_is_answered_stays_while_another_is_idle() {
        let slots = Arc::new(Slots::new(12));
        let enter = || {
            let slot = slots.enter();
            slot.begin(Class::Probe);
            slot
        };
        let probes = [enter(), enter(), enter(), enter()];
        probes[1].end();
        probes[3].end();
        let fifth = enter();
        assert_eq!(probes.each_ref().map(is_there), [true, false, true, true]);
        let sixth = enter();
        assert_eq!(probes.each_ref().map(is_there), [true, false, true, false]);
        // If none is idle, the first that asked gives way, so that a newcomer is answered.
        let seventh = enter();
        assert_eq!(probes.each_ref().map(is_there), [false, false, true, false]);
        assert!([fifth, sixth, seventh].iter().all(is_there));
    }

    #[test]
    fn a_class_takes_no_place_from_another_and_a_drop_frees_its_own() {
        let slots = Arc::new(Slots::new(12));
        let probe = slots.enter();
        probe.begin(Class::Probe);
        let mut pages: Vec<_> = (0..50).map(|_| slots.enter()).collect();
        pages.iter().for_each(|slot| slot.begin(Class::Page));
        assert!(is_there(&probe));
        pages.clear();
        drop(probe);
        assert!(slots.lock().connections.is_empty());
    }

    #[test]
    fn however_few_there_are_each_class_has_a_place() {
        let slots = Arc::new(Slots::new(0));
        let (probe, page, newcomer) = (slots.enter(), slots.enter(), slots.enter());
        assert_eq!([&probe, &page, &newcomer].map(is_there), [false, false, true]);
        newcomer.begin(Class::Page);
        let probe = slots.enter();
        probe.begin(Class::Probe);
        let late = slots.enter();
        assert_eq!([&newcomer, &probe, &late].map(is_there), [true; 3]);
    }
}
