//! What leaves the memory or the disk: what is read again, what is lost, and by whom.

use super::*;

#[test]
fn what_was_given_back_and_is_on_the_disk_may_leave_the_memory() {
    let mut world = World::with(4);
    world.lease(3);
    world.requeue(Sequence::new(0));
    world.requeue(Sequence::new(3));
    assert!(!world.release(Sequence::new(0)), "something between is on its way");
    world.requeue(Sequence::new(6));
    // Records no longer on disk stay.
    assert!(world.release(Sequence::new(1)) && !world.release(Sequence::new(1)));
    let held = |world: &World| world.cursor.held().map(|record| record.sequence.get()).collect::<Vec<_>>();
    assert_eq!(held(&world), [0]);
    assert!(world.release(Sequence::new(0)));
    assert_eq!(held(&world), [0; 0]);
    // In memory it is there for the open lane.
    world.check(&[], &[], "released");
    assert_eq!(world.lease(9), [0, 3, 6, 9]);

    // And on disk, once it has left the memory.
    world.cursor.requeue_all();
    for _ in 0..4 {
        world.forget(0);
    }
    assert!(world.release(Sequence::new(0)));
    world.check(&[], &[], "released");
    assert_eq!((world.lease(9), world.read(9)), (vec![], Some(vec![0, 3, 6, 9])));

    // Acked records are not read again.
    let mut world = World::with(3);
    world.lease(3);
    world.requeue(Sequence::new(0));
    world.requeue(Sequence::new(6));
    world.cursor.ack(Sequence::new(3));
    assert!(world.release(Sequence::new(0)) && !world.release(Sequence::new(0)));
    assert_eq!((held(&world), world.saved()), (vec![0], vec![0, 6]));
}

#[test]
fn what_is_not_written_yet_stays_between_what_was_given_back_and_the_rest() {
    for is_settled in [false, true] {
        let mut world = World::with(1);
        world.append();
        assert_eq!(world.lease(2), [0, 3]);
        world.requeue(Sequence::new(0));
        if is_settled {
            world.cursor.ack(Sequence::new(3));
        }
        assert!(!world.release(Sequence::new(0)), "{is_settled}");
        world.write();
        assert_eq!(world.saved().len(), if is_settled { 1 } else { 2 });
    }
}

#[test]
fn what_the_disk_lost_is_taken_from_what_was_given_back() {
    let mut world = World::with(3);
    world.lease(3);
    world.requeue(Sequence::new(0));
    world.requeue(Sequence::new(6));
    let taken = world.cursor.take_requeued(Sequence::new(4));
    assert_eq!(taken.iter().map(|record| record.sequence.get()).collect::<Vec<_>>(), [0]);
    world.check(&[3], &[0], "taken");
    assert_eq!(world.lease(9), [6]);
}

#[test]
fn a_record_that_is_only_in_memory_is_lost_to_who_has_still_to_lease_it() {
    let fall_off = |world: &mut World| {
        let record = world.records.pop_front().expect("a record");
        world.cursor.fall_off(&record, &world.records)
    };
    let mut world = World::new();
    for _ in 0..4 {
        world.append();
    }
    assert_eq!(world.lease(2), [0, 3]);
    world.requeue(Sequence::new(3));
    assert!(!fall_off(&mut world), "it is on its way");
    assert!(fall_off(&mut world), "it was requeued");
    assert!(fall_off(&mut world), "it waits");
    world.check(&[0], &[3, 6], "fallen off");
    assert_eq!(world.lease(9), [9]);

    // Records that the disk had and lost are not sought there.
    let mut world = World::with(3);
    assert!(fall_off(&mut world));
    assert!(!world.cursor.is_yet_to_lease(&world.all[0]));
    world.check(&[], &[0], "fallen off");
    assert_eq!((world.lease(9), world.read(9)), (vec![3, 6], None));
}

/// Records that are only in memory because the quota was reached may stay when a later one leaves.
#[test]
fn a_lane_has_no_hole_where_the_first_records_stay_in_memory() {
    let mut world = World::with(5);
    let tail = Tail { records: &world.records, written: world.written, next_sequence: Sequence::new(world.next) };
    let begin = End { sequence: Sequence::new(6), at: Position { lines: LINES * 2, bytes: BYTES * 2 } };
    assert_eq!(world.cursor.cut(tail, begin), (Position::default(), None), "memory has what the disk lost");
    world.forget(2);
    world.check(&[], &[], "held");
    assert_eq!((world.lease(9), world.cursor.watermark().get()), (vec![0, 3], 0));
    assert_eq!(world.cursor.needed_from_disk(world.tail()), Some(Sequence::new(6)));
    world.split_backlog();
    assert_eq!((world.lease(9), world.read(9)), (vec![9, 12], Some(vec![6])));
    // Nothing is held if nothing precedes it.
    let mut world = World::with(3);
    world.lease(1);
    world.forget(1);
    assert_eq!(world.cursor.held().count(), 1);
    assert_eq!((world.read(9), world.lease(9)), (Some(vec![3]), vec![6]));
}

#[test]
fn what_the_disk_lost_is_counted_once_and_since_when() {
    let mut world = World::with(6);
    for _ in 0..4 {
        world.forget(0);
    }
    world.split_backlog();
    let size = |records| Position { lines: LINES * records, bytes: BYTES * records };
    let mut cut = |sequence, records| {
        let tail = Tail { records: &world.records, written: world.written, next_sequence: Sequence::new(world.next) };
        world.cursor.cut(tail, End { sequence, at: size(records) })
    };
    assert_eq!(cut(Sequence::new(3), 1), (size(1), WallTime::new(1000)));
    assert_eq!(cut(Sequence::new(3), 1), (Position::default(), None));
    // Whatever was lost, memory has the rest.
    assert_eq!(cut(Sequence::new(18), 6).0, size(3));
    assert_eq!(cut(Sequence::new(18), 6), (Position::default(), None));
    assert_eq!((world.read(9), world.lease(9)), (None, vec![12, 15]));
}
