//! What a ticket says holds: what was written survives the process's end, what was synced a power
//! cut, whatever failed before.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use twinflux::journal::BackendId;

use twinflux::batch::{Batch, Step, Ticket};
use twinflux::journal::disk::{DiskOptions, Next};

use crate::course::{batch, number, options};
use crate::disk::{LIMITS, Life, PLENTY, drain, open};
use crate::effort;
use crate::faulty::FaultyDisk;

/// What a ticket says now; none while it is too early.
fn says(ticket: &Ticket, step: Step) -> Option<bool> {
    match pin!(ticket.wait(step)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reached) => Some(reached.is_ok()),
        Poll::Pending => None,
    }
}

fn with_ticket(number: u64, filler: usize) -> (Batch, Arc<Ticket>) {
    let ticket = Ticket::new();
    (batch(number, 0, 1, filler).with_ticket(Arc::clone(&ticket)), ticket)
}

/// A journal, its tickets, and what its backend has.
struct Course {
    disk: FaultyDisk,
    life: Life,
    tickets: Vec<Arc<Ticket>>,
    acked: BTreeSet<u64>,
}

impl Course {
    fn new(memory: u64) -> Self {
        let disk = FaultyDisk::new();
        let life = open(&disk, &at_once(), memory, &["a"], 0.5);
        Self { disk, life, tickets: Vec::new(), acked: BTreeSet::new() }
    }

    fn step(&mut self) {
        match fastrand::u32(..20) {
            0..8 => {
                let (batch, ticket) = with_ticket(self.tickets.len() as u64, fastrand::usize(..2_000));
                self.life.journal.append(batch);
                self.tickets.push(ticket);
            }
            8..12 => drop(self.life.writer.step()),
            12..15 => drop(self.life.syncer.step()),
            15..17 => {
                let mut reader = self.life.journal.reader(BackendId::new(0));
                if let Some(lease) = reader.try_next(&LIMITS) {
                    self.acked.extend(lease.records.iter().map(|record| number(record.batch.bytes())));
                    reader.ack(lease, None);
                }
            }
            17 => self.disk.inner().failing_writes = 1,
            18 => self.disk.inner().failing_syncs = 1,
            _ => self.disk.heal(),
        }
    }

    /// The numbers that the backend has, or finds after a restart.
    fn found(self) -> BTreeSet<u64> {
        let Self { disk, life, mut acked, .. } = self;
        drop(life);
        disk.heal();
        let life = open(&disk, &at_once(), PLENTY, &["a"], 0.5);
        acked.extend(drain(&mut life.journal.reader(BackendId::new(0))));
        acked
    }
}

fn at_once() -> DiskOptions {
    DiskOptions { is_synced: true, ..options() }
}

#[test]
fn what_a_ticket_says_holds_after_a_crash() {
    for seed in 0..u64::from(effort::cases(4_000)) {
        fastrand::seed(seed);
        // Little memory: some of it is given up while the disk fails.
        let mut course = Course::new(if seed % 2 == 0 { PLENTY } else { 20_000 });
        for _ in 0..fastrand::u32(10..120) {
            course.step();
        }
        let (is_power_cut, tickets) = (seed % 3 == 0, course.tickets.clone());
        let step = if is_power_cut { Step::Synced } else { Step::Written };
        let promised: BTreeSet<u64> = (0..)
            .zip(&tickets)
            .filter(|(_, ticket)| says(ticket, step) == Some(true))
            .map(|(number, _)| number)
            .collect();
        if is_power_cut {
            course.disk.cut_power(fastrand::bool);
        } else {
            course.disk.end_process();
        }
        let found = course.found();
        let missing: Vec<_> = promised.difference(&found).collect();
        assert!(missing.is_empty(), "seed {seed}: {step:?} and not there: {missing:?}");
    }
}

#[test]
fn every_ticket_is_answered_once_the_disk_is_well() {
    for seed in 0..u64::from(effort::cases(1_000)) {
        fastrand::seed(seed);
        let mut course = Course::new(if seed % 2 == 0 { PLENTY } else { 20_000 });
        for _ in 0..fastrand::u32(10..80) {
            course.step();
        }
        course.disk.heal();
        for _ in 0..3 {
            while course.life.writer.step() == Next::Now {}
            course.life.syncer.step();
        }
        for (number, ticket) in course.tickets.iter().enumerate() {
            assert!(says(ticket, Step::Synced).is_some(), "seed {seed}: nobody answers {number}");
        }
    }
}

#[test]
fn a_ticket_tells_each_step_and_what_is_given_up() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &at_once(), 20_000, &["a"], 0.5);
    let (first, ticket) = with_ticket(0, 100);
    assert_eq!(says(&ticket, Step::Accepted), None);
    life.journal.append(first);
    assert_eq!((says(&ticket, Step::Accepted), says(&ticket, Step::Written)), (Some(true), None));
    life.write();
    assert_eq!((says(&ticket, Step::Written), says(&ticket, Step::Synced)), (Some(true), None));
    life.syncer.step();
    assert_eq!(says(&ticket, Step::Synced), Some(true));

    // A backend that has it before it is written makes it safe.
    let (second, ticket) = with_ticket(1, 100);
    life.journal.append(second);
    assert_eq!(drain(&mut life.journal.reader(BackendId::new(0))), [0, 1]);
    assert_eq!(says(&ticket, Step::Synced), Some(true));

    // The disk writes nothing, and the memory is too small.
    disk.inner().failing_writes = u32::MAX;
    let tickets: Vec<_> = (2..40)
        .map(|number| {
            let (batch, ticket) = with_ticket(number, 1_000);
            life.journal.append(batch);
            life.writer.step();
            ticket
        })
        .collect();
    let lost = tickets.iter().filter(|ticket| says(ticket, Step::Written) == Some(false)).count() as u64;
    assert!(lost > 10);
    assert_eq!(life.snapshot().ledgers[0].dropped.iter().sum::<u64>(), lost);
}
