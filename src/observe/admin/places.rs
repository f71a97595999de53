//! Who may stay connected to the admin listener: the newest always gets in.
//!
//! Owns the list of connections, in three classes with places of their own: those that have asked nothing yet, those that
//! asked for a probe (`/health`, `/ready`, `/metrics`), and those that asked for anything else. Where a class is full, the
//! connection that has been idle longest gives way; where none is idle, the one whose request began first. One that is
//! being answered is not idle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a connection is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It has asked nothing yet.
    Newcomer,
    /// It asked for `/health`, `/ready` or `/metrics`.
    Probe,
    /// It asked for something else.
    Page,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Places {
    /// Connections of each class.
    most: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<u64, Connection>,
    /// Numbers connections, and what happens to them.
    next: u64,
}

#[derive(Debug)]
struct Connection {
    class: Class,
    is_busy: bool,
    /// Grows from event to event: the smallest has been as it is for longest.
    since: u64,
    give_way: Arc<Notify>,
}

/// One connection's place, free again once this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    indexes: Arc<Places>,
    id: u64,
    give_way: Arc<Notify>,
}

impl Places {
    /// Places for so many connections, the same number for each class, and one at least.
    pub(super) fn new(connections: usize) -> Self {
        Self { most: (connections / 3).max(1), table: Mutex::default() }
    }

    /// Gives a new connection its place.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let give_way = Arc::<Notify>::default();
        let mut table = self.lock();
        let id = table.next();
        let connection =
            Connection { class: Class::Newcomer, is_busy: false, since: id, give_way: Arc::clone(&give_way) };
        table.connections.insert(id, connection);
        self.make_room(&mut table, Class::Newcomer, id);
        drop(table);
        Place { indexes: Arc::clone(self), id, give_way }
    }

    /// Lets connections of the class, but not this one, give way until the others have their places.
    fn make_room(&self, table: &mut Table, class: Class, id: u64) {
        while table.connections.values().filter(|one| one.class == class).count() > self.most {
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

impl Place {
    /// A request begins.
    pub(super) fn begin(&self, class: Class) {
        let mut table = self.indexes.lock();
        let since = table.next();
        // One that is told to give way has no place any more.
        let Some(connection) = table.connections.get_mut(&self.id) else { return };
        (connection.class, connection.is_busy, connection.since) = (class, true, since);
        self.indexes.make_room(&mut table, class, self.id);
    }

    /// The request has its answer.
    pub(super) fn end(&self) {
        let mut table = self.indexes.lock();
        let since = table.next();
        if let Some(connection) = table.connections.get_mut(&self.id) {
            (connection.is_busy, connection.since) = (false, since);
        }
    }

    /// Waits until the connection is to give way.
    pub(super) async fn is_taken(&self) {
        self.give_way.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.indexes.lock().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_there(index: &Place) -> bool {
        index.indexes.lock().connections.contains_key(&index.id)
    }

    #[test]
    fn the_connection_that_is_idle_longest_gives_way() {
        let indexes = Arc::new(Places::new(12));
        let newcomers: Vec<_> = (0..6).map(|_| indexes.enter()).collect();
        let there: Vec<_> = newcomers.iter().map(is_there).collect();
        assert_eq!(there, [false, false, true, true, true, true]);
        // What has a request has another class's place.
        newcomers[2].begin(Class::Probe);
        newcomers[3].begin(Class::Page);
        let more: Vec<_> = (0..4).map(|_| indexes.enter()).collect();
        let there: Vec<_> = newcomers.iter().map(is_there).collect();
        assert_eq!(there, [false, false, true, true, false, false]);
        assert!(more.iter().all(is_there));
    }

    #[test]
    fn one_that_is_answered_stays_while_another_is_idle() {
        let indexes = Arc::new(Places::new(12));
        let enter = || {
            let index = indexes.enter();
            index.begin(Class::Probe);
            index
        };
        let probes = [enter(), enter(), enter(), enter()];
        probes[1].end();
        probes[3].end();
        let fifth = enter();
        assert_eq!(probes.each_ref().map(is_there), [true, false, true, true]);
        let sixth = enter();
        assert_eq!(probes.each_ref().map(is_there), [true, false, true, false]);
        // Where none is idle, the first to ask gives way: whoever comes is answered.
        let seventh = enter();
        assert_eq!(probes.each_ref().map(is_there), [false, false, true, false]);
        assert!([fifth, sixth, seventh].iter().all(is_there));
    }

    #[test]
    fn a_class_takes_no_place_from_another_and_a_drop_frees_its_own() {
        let indexes = Arc::new(Places::new(12));
        let probe = indexes.enter();
        probe.begin(Class::Probe);
        let mut pages: Vec<_> = (0..50).map(|_| indexes.enter()).collect();
        pages.iter().for_each(|index| index.begin(Class::Page));
        assert!(is_there(&probe));
        pages.clear();
        drop(probe);
        assert!(indexes.lock().connections.is_empty());
    }

    #[test]
    fn however_few_there_are_each_class_has_a_place() {
        let indexes = Arc::new(Places::new(0));
        let (probe, page, newcomer) = (indexes.enter(), indexes.enter(), indexes.enter());
        assert_eq!([&probe, &page, &newcomer].map(is_there), [false, false, true]);
        newcomer.begin(Class::Page);
        let probe = indexes.enter();
        probe.begin(Class::Probe);
        let late = indexes.enter();
        assert_eq!([&newcomer, &probe, &late].map(is_there), [true; 3]);
    }
}
