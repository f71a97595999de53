//! What a line costs in allocations: nothing.

use super::*;

/// Datagrams as hosts send them, of each format.
const DATAGRAMS: [(&str, Option<Format>, &str); 4] = [
    ("telegraf", None, "cpu,host=a,cpu=cpu0 usage_user=1.5,usage_system=2i 1700000000000000000\nmem,host=a used=7i\n"),
    (
        "graphite",
        Some(Format::Graphite),
        "netdata.a.system.cpu.user 1.5 1700000000\nnetdata.a.system.cpu.idle 98 1700000000\n",
    ),
    ("opentsdb", Some(Format::Opentsdb), "put netdata.system.cpu.user 1700000000 1.5 host=a\n"),
    ("refused", None, "cpu usage\nmem,host=a used=7i x y\n"),
];

#[test]
fn a_datagram_of_a_known_host_allocates_nothing() {
    for (name, format, text) in DATAGRAMS {
        let (shown, out) = (Arc::<Shown>::default(), Out::default());
        let pool = Pool::new(1, 4 << 20);
        let limits = Limits { lines: u64::MAX, age: Duration::from_secs(3600) };
        let setup = IntakeConfig { format, ..setup() };
        let mut intake = Intake::new((&setup, ([127, 0, 0, 1], 8089).into()), shown, &pool, limits, out);
        intake.set_clock(Received::now());
        let mut send = |rounds: u8| {
            for _ in 0..rounds {
                for number in 0..50 {
                    intake.datagram(text.as_bytes(), false, Some(host(number)));
                }
                intake.publish();
            }
        };
        // Adding hosts to the table and growing buffers allocates.
        let first = allocation_counter::measure(|| send(2));
        assert!(first.count_total > 0, "{name}: nothing was counted");
        let counted = allocation_counter::measure(|| send(100));
        assert_eq!(counted.count_total, 0, "{name}: {counted:?}");
    }
}
