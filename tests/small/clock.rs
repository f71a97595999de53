//! `max_age` and a clock that is wrong: nothing is given up that is not known to be old.

use std::cell::Cell;
use std::time::Duration;

use twinflux::batch::Received;
use twinflux::journal::disk::DiskOptions;

use crate::course::options;
use crate::disk::{Life, dropped, open};
use crate::faulty::FaultyDisk;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: i64 = 24 * 3600;

thread_local! {
    /// Seconds that have passed beside those of the test, and seconds by which the wall clock is
    /// ahead.
    static CLOCK: Cell<(u64, i64)> = const { Cell::new((0, 0)) };
}

fn clock() -> Received {
    let (passed, ahead) = CLOCK.get();
    let now = Received::now();
    let wall = now.wall.plus(Duration::from_secs(passed));
    let by = Duration::from_secs(ahead.unsigned_abs());
    let wall = if ahead < 0 { wall.minus(by) } else { wall.plus(by) };
    Received { monotonic: now.monotonic + Duration::from_secs(passed), wall }
}

fn pass(life: &mut Life, seconds: u64) {
    // The writer looks each second; each minute will do.
    for _ in 0..seconds / MINUTE {
        let (passed, ahead) = CLOCK.get();
        CLOCK.set((passed + MINUTE, ahead));
        life.write();
    }
}

fn set_ahead(seconds: i64) {
    CLOCK.set((CLOCK.get().0, seconds));
}

/// A log of several segments, minutes old, opened again with a clock that is ahead by so much.
fn reopened(ahead: i64) -> (FaultyDisk, Life) {
    CLOCK.set((0, 0));
    let disk = FaultyDisk::new();
    let options = DiskOptions { max_age: Some(Duration::from_secs(HOUR)), quota: 200_000, clock, ..options() };
    let mut life = open(&disk, &options, 60_000, &["a"], 1.0);
    life.append(0..30, 5_000);
    life.stop();
    set_ahead(ahead);
    let mut life = open(&disk, &options, 60_000, &["a"], 1.0);
    life.write();
    (disk, life)
}

fn aged(life: &Life) -> u64 {
    dropped(&life.snapshot(), 0).get("age").copied().unwrap_or(0)
}

#[test]
fn a_clock_that_is_ahead_at_the_start_gives_up_nothing() {
    let (_disk, mut life) = reopened(10 * DAY);
    pass(&mut life, 4 * MINUTE);
    assert_eq!(aged(&life), 0);
    set_ahead(0);
    pass(&mut life, 30 * MINUTE);
    assert_eq!(aged(&life), 0, "it was set right, and they are minutes old");
    assert_eq!(life.drain(0), (0..30).collect::<Vec<_>>());
}

#[test]
fn what_is_old_by_a_clock_that_runs_evenly_is_given_up() {
    let (disk, mut life) = reopened(10 * DAY);
    pass(&mut life, 4 * MINUTE);
    let segments = disk.segments().len();
    assert!(aged(&life) == 0 && segments > 5);
    pass(&mut life, 2 * MINUTE);
    assert!(aged(&life) > 20 && disk.segments().len() < 3, "{} lines of {segments} segments", aged(&life));
    assert_eq!(aged(&life) + life.drain(0).len() as u64, 30);
}

#[test]
fn what_grows_old_while_the_relay_runs_is_given_up_in_time() {
    let (_disk, mut life) = reopened(0);
    pass(&mut life, 50 * MINUTE);
    assert_eq!(aged(&life), 0);
    // A step forward says nothing of how much time has passed.
    set_ahead(10 * DAY);
    pass(&mut life, 8 * MINUTE);
    assert_eq!(aged(&life), 0);
    pass(&mut life, 3 * MINUTE);
    assert!(aged(&life) > 20);
}

#[test]
fn a_clock_that_is_behind_what_the_journal_holds_says_nothing_before_it_is_set() {
    let (_disk, mut life) = reopened(-10 * DAY);
    pass(&mut life, HOUR + 10 * MINUTE);
    assert_eq!(aged(&life), 0);
    set_ahead(0);
    pass(&mut life, 10 * MINUTE);
    assert!(aged(&life) > 20, "an hour and more has passed");
}
