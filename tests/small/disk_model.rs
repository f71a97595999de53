//! The journal on a disk that fails, fills up and dies: any course, every operation, and the
//! courses that once failed.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test small any_course_on_a_failing_disk` tries a
//! million courses.

use std::collections::BTreeMap;

use proptest::prelude::*;
use twinflux::journal::disk::{Compression, DiskOptions, WhenFull};

use crate::action::{Action, action, action_with_removals};
use crate::course::{World, options};
use crate::effort;

/// Courses tried: as many as `PROPTEST_CASES` says, where it says something.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or_else(|| effort::cases(3_000))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn any_course_on_a_failing_disk(
        actions in prop::collection::vec(action(), 1..150),
        memory in prop_oneof![Just(1_u64 << 30), 40_000..100_000_u64],
        quota in prop_oneof![Just(1_u64 << 40), 80_000..200_000_u64],
        replay_share in prop_oneof![Just(0.5), Just(1.0)],
        compression in prop_oneof![Just(Compression::None), Just(Compression::Auto), Just(Compression::Lz4), Just(Compression::Zstd)],
        keeps_oldest in any::<bool>(),
    ) {
        let full = if keeps_oldest { WhenFull::DropNewest } else { WhenFull::DropOldest };
        let mut world = World::new(DiskOptions { quota, full, compression, ..options() }, memory, replay_share);
        for action in actions {
            world.act(action);
            world.check();
        }
        world.finish();
    }

    #[test]
    fn any_course_on_a_disk_whose_folder_goes(
        actions in prop::collection::vec(action_with_removals(), 1..150),
        memory in prop_oneof![Just(1_u64 << 30), 40_000..100_000_u64],
        quota in prop_oneof![Just(1_u64 << 40), 80_000..200_000_u64],
        replay_share in prop_oneof![Just(0.5), Just(1.0)],
    ) {
        let mut world = World::new(DiskOptions { quota, ..options() }, memory, replay_share);
        for action in actions {
            world.act(action);
            world.check();
        }
        world.finish();
    }
}

#[test]
fn a_process_that_dies_at_any_operation_loses_nothing_that_was_written() {
    let course = |dies_at: Option<u64>| {
        let quota = 300_000;
        let mut world = World::new(DiskOptions { quota, ..options() }, 1 << 30, 0.5);
        world.disk.inner().dies_at = dies_at;
        for round in 0..30_usize {
            for database in 0..2 {
                world.act(Action::Append { database, lines: 2, filler: 5000 });
            }
            world.write();
            if round % 3 == 0 {
                world.sync();
            }
            if world.lease(0) && round % 4 != 3 {
                let lease = world.seen[0].leases.pop().expect("just leased");
                world.ack(0, lease, None);
            }
        }
        world
    };
    let operations = course(None).disk.inner().operations;
    assert!(operations > 80, "{operations}");
    let mut tried = BTreeMap::new();
    for at in 0..operations {
        let mut world = course(Some(at));
        world.disk.heal();
        world.known.iter_mut().for_each(|known| known.excused = !known.written);
        // What it acked after its death is only known to the test.
        for seen in &mut world.seen {
            seen.again = seen.delivered.clone();
        }
        world.restart(|known| known.written, |seen| &seen.unsaved);
        world.check();
        *tried.entry(world.disk.segments().len()).or_insert(0) += 1;
        world.finish();
    }
    assert!(tried.len() > 1, "{tried:?}");
}

/// Both backends take most of what is written, and everything is synced once in a while, until the
/// machine has died. (Of many destinations, so that what is saved of the cursors does not fit a
/// sector, which is written whole or not at all.)
fn course_until(dies_at: Option<u64>) -> World {
    let mut world = World::new(DiskOptions { quota: 300_000, ..options() }, 1 << 30, 0.5);
    world.disk.inner().dies_at = dies_at;
    for round in 0..40_usize {
        for database in [round % 12, (round + 5) % 12] {
            world.act(Action::Append { database, lines: 2, filler: 4000 });
        }
        world.write();
        for backend in 0..2 {
            while round % 5 != 4 && !is_dead(&world) && world.lease(backend) {
                let lease = world.seen[backend].leases.pop().expect("just leased");
                world.ack(backend, lease, None);
            }
        }
        if round % 2 == 0 && !is_dead(&world) {
            world.sync();
        }
        if is_dead(&world) {
            break;
        }
    }
    world
}

fn is_dead(world: &World) -> bool {
    let inner = world.disk.inner();
    inner.dies_at.is_some_and(|at| inner.operations >= at)
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_was_synced() {
    let operations = course_until(None).disk.inner().operations;
    assert!(operations > 80, "{operations}");
    for at in 0..operations {
        // What was not synced is gone, is all there, or is there by every other sector.
        let patterns = [[false, false], [true, false], [true, true], [false, true]];
        for pattern in &patterns[..effort::times(2, 4, 4)] {
            let mut world = course_until(Some(at));
            world.disk.heal();
            let mut survives = pattern.iter().cycle();
            world.cut_power(|| survives.next().is_some_and(|survives| *survives));
            // Where nothing unsynced survives, the synced cursors know of nothing that is not
            // there.
            world.power_was_cut = pattern.contains(&true);
            world.check();
            world.finish();
        }
    }
}

#[test]
fn what_is_settled_and_not_saved_is_still_there_after_a_kill() {
    let mut world = World::new(DiskOptions { quota: 300_000, ..options() }, 1 << 30, 0.5);
    for _ in 0..30 {
        world.act(Action::Append { database: 0, lines: 2, filler: 5000 });
        world.act(Action::Write);
    }
    world.act(Action::Sync);
    let segments = world.disk.segments();
    assert!(segments.len() > 3, "{segments:?}");
    for backend in 0..2 {
        while world.lease(backend) {
            world.act(Action::Settle { backend, which: 0 });
        }
    }
    world.act(Action::SyncAlone);
    world.check();
    assert_eq!(world.disk.segments(), segments, "the saved cursors need them");
    world.act(Action::Kill);
    world.finish();
}

/// Courses that once failed, and what they showed.
fn kept() -> Vec<(&'static str, u64, f64, Vec<Action>)> {
    let append = |database, filler| Action::Append { database, lines: 1, filler };
    let (lease, ack) = (|backend| Action::Lease { backend }, |backend, which| Action::Settle { backend, which });
    let fail_syncs = |times| Action::FailSyncs { times };
    let die = |operations| Action::KillWithin { operations };
    let much = 1 << 30;
    vec![
        (
            "a repeat that a crash left empty hides nothing",
            much,
            0.5,
            vec![fail_syncs(1), append(0, 0), Action::Sync, die(2)],
        ),
        (
            "a segment is not passed because its repeat begins as low",
            much,
            0.5,
            vec![append(0, 0), fail_syncs(1), append(0, 0), Action::Sync, die(2), Action::Sync],
        ),
        (
            "a repeat is not preferred before it has all",
            much,
            0.5,
            vec![
                append(0, 0),
                Action::Write,
                append(0, 0),
                fail_syncs(2),
                Action::FailWrites { times: 1 },
                Action::Write,
                append(0, 0),
                Action::Stop,
            ],
        ),
        (
            "what lies between two repeats is not passed over",
            much,
            0.5,
            vec![
                append(0, 0),
                append(1, 0),
                Action::Sync,
                fail_syncs(2),
                append(0, 0),
                Action::Sync,
                append(1, 0),
                Action::Write,
                Action::FailWrites { times: 1 },
                append(1, 0),
                Action::Write,
                Action::Sync,
                Action::Write,
                die(1),
            ],
        ),
        (
            "what a repeat lacks is known as acked",
            much,
            0.5,
            vec![
                append(1, 0),
                lease(1),
                append(0, 0),
                lease(1),
                lease(0),
                lease(0),
                fail_syncs(1),
                append(0, 0),
                lease(0),
                ack(0, 1),
                Action::Sync,
                ack(1, 1),
                die(3),
            ],
        ),
        (
            "a lane that was read keeps the fresh lines behind it delivered",
            much,
            0.5,
            vec![
                append(1, 0),
                append(0, 0),
                Action::Stop,
                append(1, 0),
                lease(0),
                ack(0, 0),
                Action::Write,
                Action::Kill,
                append(0, 0),
                Action::Sync,
                lease(0),
                lease(0),
                Action::Write,
                ack(0, 1),
                Action::CutPower { seed: 12_503_231_426_112_556_045 },
            ],
        ),
        (
            "a header that cannot be read for a moment makes no other journal of it",
            much,
            0.5,
            vec![append(0, 0), die(3), Action::FailReads { times: 1 }, Action::Kill, Action::Write, Action::Kill],
        ),
        (
            "what was given back is not leased again under a lease of what is not written",
            40_000,
            1.0,
            vec![
                append(0, 3000),
                Action::Write,
                Action::Stop,
                append(0, 0),
                append(0, 4789),
                append(0, 5895),
                append(0, 5993),
                append(0, 5378),
                append(0, 5459),
                append(0, 0),
                lease(1),
                lease(1),
                Action::GiveBack { backend: 1, which: 0 },
                append(0, 3154),
                append(0, 5465),
            ],
        ),
    ]
}

/// Courses of small segments: the quota, memory, share, and what was done.
fn kept_small() -> Vec<(&'static str, u64, u64, f64, Vec<Action>)> {
    let append = |database, filler| Action::Append { database, lines: 1, filler };
    let fail_syncs = |times| Action::FailSyncs { times };
    vec![
        (
            "what stands before a segment without a head is not known",
            135_800,
            40_000,
            0.5,
            vec![
                Action::Write,
                Action::RemoveFolder,
                append(0, 0),
                Action::Lease { backend: 0 },
                append(0, 0),
                Action::Write,
                Action::Fill,
                append(0, 0),
                Action::Kill,
                Action::Append { database: 0, lines: 2, filler: 0 },
                append(1, 4315),
                Action::Append { database: 0, lines: 4, filler: 0 },
                Action::Append { database: 0, lines: 2, filler: 0 },
                Action::Append { database: 0, lines: 3, filler: 5303 },
                Action::Sync,
                Action::Lease { backend: 0 },
                Action::Write,
                Action::FailWrites { times: 1 },
                Action::Settle { backend: 0, which: 0 },
                append(0, 0),
                Action::Lease { backend: 0 },
                Action::RemoveFolder,
                Action::Lease { backend: 0 },
                Action::Settle { backend: 0, which: 6_354_978_495_028_379_009 },
                Action::Heal,
                Action::Sync,
                Action::RemoveFolder,
                append(0, 3000),
                append(0, 0),
                append(0, 3000),
                Action::RemoveFolder,
                append(0, 5070),
                append(0, 4431),
                append(0, 5227),
                Action::FailSyncs { times: 1 },
                Action::Stop,
                Action::CutPower { seed: 24_903_893_576_343_259 },
            ],
        ),
        (
            "a repeat of several segments that a crash cut short hides nothing",
            80_000,
            1 << 30,
            0.5,
            vec![
                append(0, 3000),
                append(0, 3678),
                fail_syncs(1),
                append(0, 5549),
                append(1, 4388),
                Action::Sync,
                Action::KillWithin { operations: 7 },
            ],
        ),
        (
            "what has left the memory is not repeated, and is still there",
            80_000,
            40_000,
            1.0,
            vec![
                append(0, 0),
                append(0, 3000),
                append(0, 4262),
                Action::Stop,
                append(0, 5931),
                append(0, 0),
                append(0, 5613),
                append(0, 3890),
                fail_syncs(1),
                append(0, 0),
                append(0, 0),
                Action::Sync,
                Action::Lease { backend: 1 },
                append(0, 0),
                Action::Lease { backend: 0 },
                Action::Stop,
            ],
        ),
        (
            "what was given back and has left the memory is not repeated either",
            98_488,
            46_840,
            1.0,
            vec![
                append(1, 3000),
                append(0, 0),
                append(0, 4510),
                Action::Stop,
                append(0, 5931),
                Action::Lease { backend: 0 },
                append(0, 54),
                append(0, 5889),
                append(0, 3890),
                fail_syncs(1),
                Action::GiveBack { backend: 0, which: 0 },
                Action::Lease { backend: 1 },
                Action::Sync,
                Action::Lease { backend: 1 },
                append(0, 4253),
                Action::Lease { backend: 0 },
                Action::Settle { backend: 0, which: 0 },
                Action::Stop,
            ],
        ),
    ]
}

#[test]
fn courses_of_small_segments_that_once_failed() {
    for (what, quota, memory, replay_share, actions) in kept_small() {
        eprintln!("{what}");
        let mut world = World::new(DiskOptions { quota, ..options() }, memory, replay_share);
        for action in actions {
            world.act(action);
            world.check();
        }
        world.finish();
    }
}

#[test]
fn courses_that_once_failed() {
    for (what, memory, replay_share, actions) in kept() {
        eprintln!("{what}");
        let mut world = World::new(options(), memory, replay_share);
        for action in actions {
            world.act(action);
            world.check();
        }
        world.finish();
    }
}
