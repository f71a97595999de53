//! What becomes of received bytes, without sockets, and on a clock that only the tests move.

mod allocations;

use super::*;
use crate::batch::WallTime;
use crate::protocol::line::MAX_LINE_BYTES;
use crate::protocol::{Netdata, Precision, Refusal};
use crate::sys::throttle::INTERVAL;

const AGE: Duration = Duration::from_secs(1);
/// The time of the first arrival, in nanoseconds since 1970.
const WALL: u64 = 1_700_000_000_000_000_000;

/// Takes batches as long as it has room.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<(usize, Vec<Batch>)>>);

impl Out {
    fn lock(&self) -> MutexGuard<'_, (usize, Vec<Batch>)> {
        self.0.lock().expect("no panic")
    }
}

impl Submit for Out {
    fn has_capacity(&self) -> bool {
        true
    }

    fn submit(&self, batch: Batch) -> Result<(), Batch> {
        let (room, taken) = &mut *self.lock();
        if taken.len() == *room {
            return Err(batch);
        }
        taken.push(batch);
        Ok(())
    }

    fn submitted(&self) -> u64 {
        self.lock().1.iter().map(|batch| batch.lines()).sum()
    }
}

struct Bench {
    intake: Intake<Out>,
    shown: Arc<Shown>,
    out: Out,
    begun: Instant,
}

fn setup() -> IntakeConfig {
    IntakeConfig {
        destination: Arc::new(Destination::new("db", "", Precision::Nanoseconds)),
        format: None,
        mapping: Mapping::default(),
        max_line: MAX_LINE_BYTES,
        unsigned: Unsigned::Refuse,
        allow: Allow::default(),
    }
}

impl Bench {
    /// For batches of ten lines, and with room for so many of them.
    fn new(room: usize) -> Self {
        let (shown, out, begun) = (Arc::<Shown>::default(), Out::default(), Instant::now());
        out.lock().0 = room;
        let pool = Pool::new(1, Builder::least_buffer_bytes());
        let listen = ([127, 0, 0, 1], 8089).into();
        let limits = Limits { lines: 10, age: AGE };
        let intake = Intake::new((&setup(), listen), Arc::clone(&shown), &pool, limits, out.clone());
        let mut bench = Self { intake, shown, out, begun };
        bench.at(Duration::ZERO);
        bench
    }

    /// What comes now comes so long after the beginning.
    fn at(&mut self, time: Duration) {
        let wall = WallTime::at(WALL).plus(time);
        self.intake.set_clock(Received { monotonic: self.begun + time, wall });
    }

    fn datagram(&mut self, text: &str) {
        self.intake.datagram(text.as_bytes(), false, Some(host(1)));
    }

    /// The counters, published.
    fn read(&mut self) -> Tally {
        self.intake.publish();
        self.shown.counters.read()
    }

    /// The table of sources as it is published now, or was before.
    fn sources(&mut self, time: Duration) -> Sources {
        self.intake.publish_sources(self.begun + time);
        self.shown.sources().clone()
    }

    /// The text of the batches that were taken.
    fn text(&self) -> String {
        self.out.lock().1.iter().map(|batch| String::from_utf8_lossy(batch.bytes()).into_owned()).collect()
    }
}

fn host(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

/// Whether an event was told, and so may not be told now.
fn is_told(throttle: &Throttle, now: Instant) -> bool {
    !throttle.is_due_at(now)
}

#[test]
fn who_is_not_of_the_networks_is_not_allowed() {
    let setup = setup();
    assert!(setup.allows(Some(host(1))) && setup.allows(None), "without networks everybody is");
    setup.allow.replace(vec!["10.0.0.0/30".parse().expect("a network"), "192.168.0.0/16".parse().expect("a network")]);
    assert!(setup.allows(Some(host(1))) && setup.allows(Some([192, 168, 7, 7].into())));
    assert!(!setup.allows(Some(host(4))) && !setup.allows(None), "nor is who cannot be told");
}

#[test]
fn charts_are_split_at_dots_where_paths_are_netdatas() {
    let netdata = Mapping::netdata(Netdata { keep_prefix: false, host_parts: 1 });
    for (format, splits) in [
        (None, true),
        (Some(Format::Graphite), true),
        (Some(Format::Opentsdb), true),
        (Some(Format::NetdataJson), false),
        (Some(Format::Influx), false),
    ] {
        assert_eq!(
            IntakeConfig { format, mapping: netdata.clone(), ..setup() }.splits_charts_at_dots(),
            splits,
            "{format:?}"
        );
        assert!(!IntakeConfig { format, mapping: Mapping::path(), ..setup() }.splits_charts_at_dots(), "{format:?}");
    }
}

#[test]
fn every_line_is_refused_or_accepted_and_held_until_it_is_handed_over() {
    let mut bench = Bench::new(9);
    assert_eq!(bench.intake.due(), None);
    bench.at(Duration::from_millis(5));
    bench.datagram("m v=1 1\nm v= 2\nm v=3 3\n");
    bench.at(Duration::from_millis(7));
    let found = bench.intake.stream(b"m v=4 4\nm v=5 5\nm v=x 6\n", &mut Stream::default(), false, host(2));
    assert_eq!(found.consumed, 24);
    bench.intake.refuse(Refused { reason: Refusal::TooLong, bytes: b"m" }, host(2));
    let tally = bench.read();
    assert_eq!((tally.accepted, tally.held, tally.submitted, tally.ring_full), (4, 4, 0, 0));
    assert_eq!((tally.lines(), tally.refused[Refusal::TooLong.index()]), (7, 1));
    // The batch is as old as its first line.
    assert_eq!(bench.intake.due(), Some(bench.begun + Duration::from_millis(5) + AGE));

    bench.intake.seal();
    assert_eq!((bench.intake.due(), bench.text().as_str()), (None, "m v=1 1\nm v=3 3\nm v=4 4\nm v=5 5\n"));
    // What is handed over is told at once.
    let tally = bench.shown.counters.read();
    assert_eq!((tally.accepted, tally.held, tally.submitted, tally.ring_full), (4, 0, 4, 0));
    bench.intake.seal();
    assert_eq!(bench.out.lock().1.len(), 1, "there is no batch without lines");
}

#[test]
fn a_full_batch_that_finds_no_room_is_dropped_and_told_with_its_lines() {
    let mut bench = Bench::new(1);
    for _ in 0..7 {
        bench.datagram(&"m v=1 1\n".repeat(5));
    }
    let tally = bench.read();
    assert_eq!((tally.accepted, tally.held, tally.submitted, tally.ring_full), (35, 5, 10, 20));
    assert!(!bench.intake.lines.logs.ring_full.is_due(), "it is told");
}

#[test]
fn a_line_without_a_timestamp_has_the_time_of_its_arrival() {
    let mut bench = Bench::new(9);
    bench.datagram("m v=1\n");
    bench.at(Duration::from_secs(3));
    bench.datagram("m v=2\nm v=3 3\n");
    bench.intake.seal();
    assert_eq!(bench.text(), "m v=1 1700000000000000000\nm v=2 1700000003000000000\nm v=3 3\n");
    assert_eq!(bench.out.lock().1[0].received().wall, WallTime::at(WALL));
}

#[test]
fn what_is_converted_left_out_or_skipped_is_counted() {
    let mut bench = Bench::new(9);
    bench.datagram("put a.b 1700000000 5 host=x word\nput a.c 1700000000 5 host=x\nput a.d 1700000000 5 host=x\n");
    bench.datagram("put a.b 1700000000 5 host=x word word\n");
    let null = concat!(
        r#"{"labels":{},"hostname":"h","prefix":"netdata","chart_id":"a.b","chart_name":"a.b","chart_family":"f","#,
        r#""chart_context":"c","chart_type":"t","units":"u","id":"d","name":"d","value":null,"timestamp":1700000000}"#,
    );
    for _ in 0..2 {
        bench.datagram(null);
    }
    let tally = bench.read();
    assert_eq!((tally.converted, tally.ignored_tags, tally.skipped, tally.accepted), (4, 3, 2, 4));
}

#[test]
fn a_source_has_what_it_sent() {
    let mut bench = Bench::new(9);
    bench.datagram("m v=1 1\nm v= 2\nm v=3 3\n");
    bench.datagram("m v=4 4\n");
    bench.intake.empty(Some(host(1)));
    for _ in 0..2 {
        bench.intake.connect(host(2), bench.begun);
    }
    bench.intake.stream(b"m v=1 1\nm v=x 6\n", &mut Stream::default(), false, host(2));
    bench.intake.refuse(Refused { reason: Refusal::TooLong, bytes: b"m" }, host(2));
    // Without an address there is no source; what it sent counts.
    bench.intake.empty(None);
    bench.intake.datagram(b"m v=1 1\n", false, None);
    let sources = bench.sources(Duration::ZERO);
    let sums: Vec<_> = sources.entries().iter().map(|source| (source.address, source.sum)).collect();
    let numbers = |sum: Arrival| [sum.lines, sum.refused, sum.datagrams, sum.empty, sum.connections];
    assert_eq!((sums[0].0, numbers(sums[0].1)), (host(1), [4, 1, 3, 1, 0]));
    assert_eq!((sums[1].0, numbers(sums[1].1)), (host(2), [3, 2, 0, 0, 2]));
    assert_eq!(sums.len(), 2);
    let tally = bench.read();
    assert_eq!((tally.empty, tally.connections, tally.accepted), (2, 2, 5));
}

#[test]
fn the_first_line_of_a_burst_names_its_host() {
    let mut bench = Bench::new(9);
    let name = |bench: &mut Bench, time: Duration| bench.sources(time).entries()[0].host.clone();
    // The second line's host is not the first one's.
    bench.datagram("m v=1 1\nm,host=b v=1 1\n");
    assert_eq!(name(&mut bench, Duration::ZERO), "");
    let later = PUBLISH_INTERVAL * 2;
    bench.at(later);
    bench.datagram("nonsense\nm,host=c v=1 1\nm,host=d v=1 1\n");
    bench.datagram("m,host=e v=1 1\n");
    assert_eq!(name(&mut bench, later), "c");
    // A burst begins with what names nobody.
    let later = later * 2;
    bench.at(later);
    bench.datagram("nonsense\n");
    bench.datagram("m,host=f v=1 1\n");
    assert_eq!(name(&mut bench, later), "f");
}

#[test]
fn the_table_of_sources_is_published_at_once_and_then_once_in_a_while() {
    let mut bench = Bench::new(9);
    let lines = |sources: &Sources| sources.entries().iter().map(|source| source.sum.lines).sum::<u64>();
    assert_eq!(bench.intake.sources_due(), None);
    bench.datagram("m v=1 1\n");
    assert_eq!(bench.intake.sources_due(), Some(bench.begun));
    assert_eq!(lines(&bench.sources(Duration::ZERO)), 1);
    assert_eq!(bench.intake.sources_due(), None);
    // Whatever comes now is shown together.
    for _ in 0..3 {
        bench.at(PUBLISH_INTERVAL / 3);
        bench.datagram("m v=1 1\n");
        assert_eq!(bench.intake.sources_due(), Some(bench.begun + PUBLISH_INTERVAL));
        assert_eq!(lines(&bench.sources(PUBLISH_INTERVAL / 2)), 1);
    }
    // Where somebody looks at the last one, the next time will do.
    let (shown, now) = (Arc::clone(&bench.shown), bench.begun + PUBLISH_INTERVAL * 2);
    let looking = shown.sources();
    bench.intake.publish_sources(now);
    drop(looking);
    assert_eq!(bench.intake.sources_due(), Some(now + PUBLISH_INTERVAL));
    assert_eq!(lines(&bench.sources(PUBLISH_INTERVAL * 3)), 4);
    // Connections and datagrams without payload are news, too.
    bench.intake.connect(host(3), now + PUBLISH_INTERVAL * 4);
    assert!(bench.intake.sources_due().is_some());
    bench.sources(PUBLISH_INTERVAL * 6);
    bench.intake.empty(Some(host(3)));
    assert!(bench.intake.sources_due().is_some());
}

#[test]
fn the_log_is_told_of_refusals_and_of_batches_that_are_too_large_for_their_sender() {
    let mut bench = Bench::new(9);
    bench.datagram("m v=1 1\n");
    assert!(!is_told(&bench.intake.lines.logs.refused, bench.begun));
    bench.datagram("m v= 1\n");
    assert!(is_told(&bench.intake.lines.logs.refused, bench.begun));
    // A single empty datagram says nothing; several of one source do.
    let is_hinted = |bench: &Bench, time: Duration| is_told(&bench.intake.lines.logs.hint, bench.begun + time);
    bench.intake.empty(Some(host(1)));
    assert!(!is_hinted(&bench, Duration::ZERO));
    for _ in 0..9 {
        bench.intake.empty(Some(host(1)));
    }
    assert!(is_hinted(&bench, Duration::ZERO));
    // Another source is told of when the log may be told again, and not forgotten until then.
    for time in [INTERVAL / 2, INTERVAL * 2] {
        bench.at(time);
        for _ in 0..9 {
            bench.intake.empty(Some(host(2)));
        }
    }
    assert!(is_hinted(&bench, INTERVAL * 2));
}
