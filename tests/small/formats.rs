//! Other senders' formats: what real ones sent, by hand, and at random.

use std::collections::BTreeMap;

use twinflux::protocol::{
    Format, Found, Line, Mapping, Netdata, Precision, Reader, Refusal, Refused, Rules, Scanner, Sink, Stream, Unsigned,
};

#[path = "../support/captures.rs"]
mod captures;

/// Keeps what it is given, and checks each line with the strict scanner.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) lines: Vec<String>,
    pub(super) refused: Vec<(Refusal, String)>,
    found: Found,
}

impl Sink for Kept {
    fn line(&mut self, line: Line<'_>) {
        let mut scanner = Scanner::new(Precision::Nanoseconds);
        let scanned: Vec<_> = scanner.lines(line.bytes, false).collect();
        assert_eq!(scanned, [Ok(line)], "{}", line.bytes.escape_ascii());
        self.lines.push(String::from_utf8(line.bytes.to_vec()).expect("UTF-8"));
    }

    fn refused(&mut self, refused: Refused<'_>) {
        self.refused.push((refused.reason, String::from_utf8_lossy(refused.bytes).into_owned()));
    }
}

/// Keeps lines, and counts refusals.
#[derive(Default)]
struct Plain(Vec<String>, usize);

impl Sink for Plain {
    fn line(&mut self, line: Line<'_>) {
        self.0.push(String::from_utf8(line.bytes.to_vec()).expect("UTF-8"));
    }

    fn refused(&mut self, _: Refused<'_>) {
        self.1 += 1;
    }
}

fn netdata() -> Mapping {
    Mapping::netdata(Netdata { keep_prefix: false, host_parts: 2 })
}

/// Reads datagrams, each for itself.
fn read<D: AsRef<[u8]>>(format: Option<Format>, mapping: Mapping, datagrams: &[D]) -> Kept {
    let mut reader = Reader::new(format, mapping, Rules::strict(Precision::Nanoseconds));
    let mut kept = Kept::default();
    for datagram in datagrams {
        let found = reader.datagram(datagram.as_ref(), false, &mut kept);
        kept.found.converted += found.converted;
        kept.found.skipped += found.skipped;
        kept.found.asks_version |= found.asks_version;
    }
    kept
}

/// What a line of a capture is as line protocol with the path as measurement; none where its value
/// is no number. Made the simple way: nothing captured has a name that needs escaping, but for
/// spaces in JSON.
fn expected(line: &str) -> Option<String> {
    let line = line.trim();
    if line.starts_with('{') {
        let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| object[key].as_str().expect("text").to_owned();
        let labels = object["labels"].as_object();
        let labels = labels.map_or_else(String::new, |labels| {
            // The order in the text is kept: these are its labels, in it.
            let mut labels: Vec<_> = labels.iter().collect();
            labels.sort_by_key(|(key, _)| line.find(&format!("\"{key}\"")));
            let tag = |(key, value): (&String, &serde_json::Value)| {
                format!(",{key}={}", value.as_str().expect("text").replace(' ', "\\ "))
            };
            labels.into_iter().map(tag).collect()
        });
        let value = line.split("\"value\":").nth(1).expect("a value").split(',').next().expect("a value");
        let name = format!("{}.{}.{}", text("prefix"), text("chart_name"), text("name")).replace(' ', "\\ ");
        let (host, time) = (text("hostname"), object["timestamp"].as_u64().expect("a time"));
        return Some(format!("{name},host={host}{labels} value={value} {time}000000000"));
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, tags, value, time) = match words[..] {
        ["put", name, time, value, ..] => (name, words[4..].join(","), value, time),
        [path, value, time] => {
            let (name, tags) = path.split_once(';').unwrap_or((path, ""));
            (name, tags.replace(';', ","), value, time)
        }
        _ => panic!("{line}"),
    };
    let comma = if tags.is_empty() { "" } else { "," };
    value.parse::<f64>().is_ok_and(f64::is_finite).then(|| format!("{name}{comma}{tags} value={value} {time}000000000"))
}

const CAPTURED: &[(&str, Format)] = &[
    ("netdata-graphite-udp", Format::Graphite),
    ("netdata-graphite-udp-ascollected", Format::Graphite),
    ("netdata-graphite-udp-nolabels-sys", Format::Graphite),
    ("netdata-graphite-udp-nolabels-ip-apps", Format::Graphite),
    ("netdata-graphite-udp-1s", Format::Graphite),
    ("netdata-opentsdb-telnet-udp", Format::Opentsdb),
    ("netdata-opentsdb-telnet-udp-ascollected", Format::Opentsdb),
    ("netdata-json-udp", Format::NetdataJson),
    ("netdata-graphite-tcp-all", Format::Graphite),
    ("collectd-graphite-udp", Format::Graphite),
];

/// A file's datagrams, or the whole lines of its stream.
fn captured(name: &str) -> Vec<Vec<u8>> {
    let frames = captures::frames(name);
    if name.contains("-udp") {
        return frames;
    }
    let stream = frames.concat();
    let whole = stream.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
    vec![stream[..whole].to_vec()]
}

#[test]
fn every_captured_line_becomes_one_and_none_is_invented() {
    for (name, format) in CAPTURED {
        let datagrams = captured(name);
        let text: String = datagrams.iter().map(|datagram| String::from_utf8_lossy(datagram).into_owned()).collect();
        let (whole, nan): (Vec<_>, Vec<_>) = text.lines().map(expected).partition(Option::is_some);
        let expected: Vec<String> = whole.into_iter().flatten().collect();
        for format in [None, Some(*format)] {
            let kept = read(format, Mapping::path(), &datagrams);
            assert!(kept.lines == expected, "{name}: {:?}", kept.lines.iter().zip(&expected).find(|(a, b)| a != b));
            assert_eq!(kept.found.converted, expected.len() as u64);
            assert_eq!(kept.refused.len(), nan.len(), "{name}");
            assert!(kept.refused.iter().all(|(reason, _)| *reason == Refusal::NotANumber), "{name}");
        }
        // Another format's listener refuses them all, by their kind.
        let other = if *format == Format::Influx { Format::Graphite } else { Format::Influx };
        let kept = read(Some(other), Mapping::path(), &datagrams);
        assert_eq!((kept.lines.len(), kept.refused.len()), (0, expected.len() + nan.len()), "{name}");
        let other = kept.refused.iter().find(|(reason, _)| *reason != Refusal::WrongFormat);
        assert_eq!(other, None, "{name}");
    }
}

/// Each value with its measurement, tags, field and time.
fn values(lines: &[String]) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for line in lines {
        let spaces: Vec<usize> =
            line.match_indices(' ').map(|(at, _)| at).filter(|at| !line[..*at].ends_with('\\')).collect();
        let [series, time] = spaces[..] else { panic!("{line}") };
        for field in line[series + 1..time].split(',') {
            let (field, value) = field.split_once('=').expect("a field");
            let name = format!("{} {field}{}", &line[..series], &line[time..]);
            // Netdata sends some values twice.
            let before = values.insert(name, value.to_owned());
            assert!(before.is_none_or(|before| before == value), "{line}");
        }
    }
    values
}

/// The series of a path-mapped line, as the mapping of Netdata's charts has it, and the field.
fn by_chart(name: &str) -> String {
    let (series, rest) = name.split_once(" value ").expect("a field");
    let (path, tags) = series.split_once(',').map_or((series, ""), |(path, tags)| (path, tags));
    let parts: Vec<&str> = path.split('.').collect();
    let (host, chart) =
        if tags.contains("host=") { (String::new(), 1) } else { (format!("host={}", parts[1..3].join(".")), 3) };
    let (chart, field) = (parts[chart..chart + 2].join("."), parts[chart + 2..].join("."));
    let tags = [host.as_str(), tags].into_iter().filter(|tags| !tags.is_empty()).collect::<Vec<_>>().join(",");
    // A name that InfluxDB keeps for itself; Netdata has such dimensions.
    let field = if field == "time" { "time_" } else { &field };
    format!("{chart},{tags} {field} {rest}")
}

#[test]
fn charts_become_measurements_with_the_same_values_in_a_quarter_of_the_points() {
    for (name, _) in CAPTURED.iter().filter(|(name, _)| name.starts_with("netdata")) {
        let datagrams = captured(name);
        let path = read(None, Mapping::path(), &datagrams);
        let charts = read(None, netdata(), &datagrams);
        let expected: BTreeMap<String, String> =
            values(&path.lines).into_iter().map(|(name, value)| (by_chart(&name), value)).collect();
        let charted = values(&charts.lines);
        let other = expected.iter().zip(&charted).find(|(one, other)| one != other);
        assert!(charted == expected, "{name}: {other:?}");
        assert_eq!(charts.found.converted, path.found.converted);
        let ratio = path.lines.len() as f64 / charts.lines.len() as f64;
        eprintln!("{name}: {} values in {} points, {ratio:.1} times fewer", path.lines.len(), charts.lines.len());
        assert!(ratio > 2.0, "{name}: {ratio}");
    }
}

#[test]
fn lines_of_each_format_are_written_as_line_protocol() {
    let path = Mapping::path;
    let templates = || Mapping::templates(&["servers.* .host.measurement.field*"]).expect("templates");
    let keeping = || Mapping::netdata(Netdata { keep_prefix: true, host_parts: 1 });
    let object = r#"{"prefix":"netdata","hostname":"h i","labels":{"a":"b"},"chart_name":"c.d","name":"e f","value":1.5,"timestamp": 7}"#;
    for (mapping, input, lines) in [
        (path(), "a.b 1.5 7", &["a.b value=1.5 7000000000"][..]),
        (path(), "a.b 1.5", &["a.b value=1.5"]),
        (path(), "a.b 1.5 -1\r\n", &["a.b value=1.5"]),
        (path(), "a,b=c;d=e=f,g +1.5 7.25", &["a\\,b=c,d=e\\=f\\,g value=1.5 7250000000"]),
        (path(), "put a.b 7123 1.5 host=h", &["a.b,host=h value=1.5 7123000000000"]),
        (path(), "put a.b 1795400726123 1 host=h x=", &["a.b,host=h value=1 1795400726123000000"]),
        (path(), object, &["netdata.c.d.e\\ f,host=h\\ i,a=b value=1.5 7000000000"]),
        (netdata(), object, &["c.d,host=h\\ i,a=b e\\ f=1.5 7000000000"]),
        (keeping(), object, &["netdata.c.d,host=h\\ i,a=b e\\ f=1.5 7000000000"]),
        (templates(), object, &["netdata.c.d.e\\ f,host=h\\ i,a=b value=1.5 7000000000"]),
        (templates(), "servers.h.m.f.g;host=i;z=y 1.5 7", &["m,host=h,z=y f.g=1.5 7000000000"]),
        // Adjacent values of one chart, time and tags are one point.
        (
            keeping(),
            "netdata.h.c.d.e 1 7\nnetdata.h.c.d.f.g 2 7\nnetdata.h.c.d.time 3 7\nnetdata.h.c.d.e 1 8\nnetdata.h.c.d.f 2 8",
            &["netdata.c.d,host=h e=1,f.g=2,time_=3 7000000000", "netdata.c.d,host=h e=1,f=2 8000000000"],
        ),
        (
            keeping(),
            "netdata.h.c.d.e;x=1 1 7\nnetdata.h.c.d.f;x=2 2 7\nnetdata.h.c.dd.f;x=2 2 7\nnetdata.i.c.dd.f;x=2 2 7",
            &[
                "netdata.c.d,host=h,x=1 e=1 7000000000",
                "netdata.c.d,host=h,x=2 f=2 7000000000",
                "netdata.c.dd,host=h,x=2 f=2 7000000000",
                "netdata.c.dd,host=i,x=2 f=2 7000000000",
            ],
        ),
        // What has too few parts for a chart is its own measurement; what has no time is stamped,
        // and joins nothing.
        (keeping(), "netdata.h.c.d 1 7\nshort 2 7", &["netdata.h.c.d value=1 7000000000", "short value=2 7000000000"]),
        (keeping(), "n.h.c.d.e 1\nn.h.c.d.f 2", &["n.c.d,host=h e=1", "n.c.d,host=h f=2"]),
        (keeping(), "n.h.c.d.e 1 7\nn.h.c.d.f nan 7\nn.h.c.d.g 2 7", &["n.c.d,host=h e=1,g=2 7000000000"]),
        (keeping(), "n.h.c.d.e 1 7\nn.h.c.d.f\\ 3 7\nn.h.c.d.g 2 7", &["n.c.d,host=h e=1,g=2 7000000000"]),
    ] {
        // Whoever writes tags into a name, as line protocol does, must say that it is none.
        let format = input.starts_with("a,b=").then_some(Format::Graphite);
        let kept = read(format, mapping, &[input]);
        assert_eq!(kept.lines, lines, "{input}");
    }
}

#[test]
fn a_default_tag_is_every_lines_that_has_none_of_its_key() {
    let tags = || vec![("dc".to_owned(), "e u".to_owned()), ("host".to_owned(), "relay".to_owned())];
    let templates = || Mapping::templates(&["servers.* .host.measurement*"]).expect("templates");
    for (mapping, format, line, expected) in [
        (Mapping::path(), Format::Graphite, "a.b 1 7", "a.b,dc=e\\ u,host=relay value=1 7000000000"),
        (Mapping::path(), Format::Graphite, "a.b;dc=us 1 7", "a.b,dc=us,host=relay value=1 7000000000"),
        (Mapping::path(), Format::Opentsdb, "put a.b 7 1 host=h", "a.b,host=h,dc=e\\ u value=1 7000000000"),
        (netdata(), Format::Graphite, "n.h.i.c.d.e 1 7", "c.d,host=h.i,dc=e\\ u e=1 7000000000"),
        (templates(), Format::Graphite, "servers.h.m 1 7", "m,host=h,dc=e\\ u value=1 7000000000"),
        (templates(), Format::Graphite, "other 1 7", "other,dc=e\\ u,host=relay value=1 7000000000"),
    ] {
        let kept = read(Some(format), mapping.with_tags(tags()).expect("tags"), &[line]);
        assert_eq!(kept.lines, [expected], "{line}");
    }
    // Line protocol stays as it is.
    let kept = read(None, Mapping::path().with_tags(tags()).expect("tags"), &["m v=1 7"]);
    assert_eq!(kept.lines, ["m v=1 7"]);
}

#[test]
fn what_cannot_be_a_line_is_refused_for_its_reason() {
    let long_name = format!("a.{} 1 7", "x".repeat(65_530));
    let long_total = format!("a.{};t={} 1 7", ",".repeat(20_000), "=".repeat(20_000));
    for (input, reason) in [
        ("a.b 1 7\na.b NaN 7", Refusal::NotANumber),
        ("a.b 1 7\na.b -inf 7", Refusal::NotANumber),
        ("a.b 1 7\na.b x 7", Refusal::InvalidValue),
        ("a.b 1 7\na.b 1e999 7", Refusal::NumberOutOfRange),
        ("a.b 1 7\na.b 1 x", Refusal::InvalidTimestamp),
        ("a.b 1 7\na.b 1 1795400726123", Refusal::TimestampOutOfRange),
        ("a.b 1 7\na.b 1 7 8", Refusal::TrailingText),
        ("a.b 1 7\na.b", Refusal::MissingField),
        ("a.b 1 7\na.b;c=d\\ 1 7", Refusal::AmbiguousEscape),
        ("a.b 1 7\na.b\\ 1 7", Refusal::AmbiguousEscape),
        ("a.b 1 7\na.b\x01 1 7", Refusal::ControlByte),
        ("a.b 1 7\ncpu,host=a usage= 7", Refusal::InvalidValue),
        ("a.b 1 7\ncpu,host=a 1 7", Refusal::InvalidValue),
        ("put a 7 1 h=i\nput a 7", Refusal::MissingField),
        ("put a 7 1 h=i\nput a x 1 h=i", Refusal::InvalidTimestamp),
        ("put a 7 1 h=i\nput #a 7 1 h=i", Refusal::MissingMeasurement),
        ("{\"chart_name\":\"c\",\"name\":\"d\",\"value\":1,\"timestamp\":7}\n{\"a\":1}", Refusal::InvalidJson),
        (
            "{\"chart_name\":\"c\",\"name\":\"d\",\"value\":1,\"timestamp\":7}\n{\"chart_name\":\"\",\"name\":\"\",\"value\":1,\"timestamp\":7}",
            Refusal::MissingMeasurement,
        ),
        (&format!("a.b 1 7\n{long_name}"), Refusal::TooLong),
        (&format!("a.b 1 7\n{long_total}"), Refusal::TooLong),
    ] {
        let kept = read(None, Mapping::path(), &[input]);
        let shown = &input[..input.len().min(100)];
        assert_eq!((kept.lines.len(), kept.refused.len()), (1, 1), "{shown}");
        assert_eq!(kept.refused[0].0, reason, "{shown}");
    }
    let mut kept = Kept::default();
    let mut reader = Reader::new(None, Mapping::path(), Rules::strict(Precision::Nanoseconds));
    reader.datagram(b"a.b 1 7\na.\xff 1 7\nc.d 2 7", false, &mut kept);
    assert_eq!((kept.lines.len(), kept.refused[0].0), (2, Refusal::InvalidUtf8));
    reader.datagram(b"a.b 1 7\nc.d 2 7", true, &mut kept);
    assert_eq!((kept.lines.len(), kept.refused[1].0), (3, Refusal::Truncated));
    reader.datagram(b"garbage\n\nmore garbage", false, &mut kept);
    assert_eq!((kept.lines.len(), kept.refused.len()), (3, 4));
    assert!(kept.refused[2..].iter().all(|(reason, _)| *reason == Refusal::WrongFormat));
}

/// Whatever stands first, a line that is valid in one format only is taken, and a bad line costs
/// itself.
#[test]
fn a_bad_line_costs_itself_wherever_it_stands() {
    let good = [
        ("a.b 1 7", "a.b value=1 7000000000"),
        ("put c.d 7 1 host=h", "c.d,host=h value=1 7000000000"),
        ("cpu,host=h v=1 7", "cpu,host=h v=1 7"),
        (r#"{"chart_name":"e","name":"f","value":1,"timestamp":7}"#, "e.f value=1 7000000000"),
        (r#""web.cgroups-dev\x2d1.cpu-user" 0 7"#, r#""web.cgroups-dev\x2d1.cpu-user" value=0 7000000000"#),
    ];
    for bad in [
        "metric;tag1=aaa1;tag2=bb b2 2",
        "cpu,dc=a.b 1.5",
        "put a=b",
        "put",
        "{",
        r#"{"chart_name":"e"}"#,
        "garbage",
        "cpu,host=a v=",
        "cpu v=\"open",
        "a.b x 7",
        "GET / HTTP/1.1",
    ] {
        for (first, expected) in good {
            for (second, also) in good {
                let lines = format!("{bad}\n{first}\n{bad}\n{second}\n{bad}");
                let kept = read(None, Mapping::path(), &[&lines]);
                assert_eq!(kept.lines, [expected, also], "{lines}");
                assert_eq!(kept.refused.len(), 3, "{lines}");
            }
        }
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_name() {
    for line in [
        "cpu,host=h v=1 7",
        "a.b 1 7",
        "put c.d 7 1 host=h",
        r#"{"chart_name":"e","name":"f","value":1,"timestamp":7}"#,
    ] {
        for format in [None, Format::detect(line.as_bytes())] {
            let marked = format!("\u{feff}{line}\n");
            let (plain, kept) = (read(format, Mapping::path(), &[line]), read(format, Mapping::path(), &[&marked]));
            assert_eq!(plain.lines, kept.lines);
            let mut reader = Reader::new(format, Mapping::path(), Rules::strict(Precision::Nanoseconds));
            let mut streamed = Kept::default();
            let found = reader.stream(marked.as_bytes(), &mut Stream::default(), false, &mut streamed);
            assert_eq!((streamed.lines, found.consumed), (plain.lines, marked.len()));
        }
    }
}

#[test]
fn unsigned_integers_are_refused_kept_or_made_signed() {
    let input = b"m u=5u,v=18446744073709551615u 7\nm v=18446744073709551616u 7\nm v=-5u 7\nm v=1.5u 7\nm v=1i 7\n";
    for (unsigned, lines) in [
        (Unsigned::Refuse, &["m v=1i 7"][..]),
        (Unsigned::Keep, &["m u=5u,v=18446744073709551615u 7", "m v=1i 7"]),
        (Unsigned::Signed, &["m u=5i,v=9223372036854775807i 7", "m v=1i 7"]),
    ] {
        let rules = Rules { unsigned, ..Rules::strict(Precision::Nanoseconds) };
        for format in [None, Some(Format::Influx)] {
            let (mut reader, mut datagram, mut stream) =
                (Reader::new(format, Mapping::path(), rules), Plain::default(), Plain::default());
            reader.datagram(input, false, &mut datagram);
            reader.stream(input, &mut Stream::default(), false, &mut stream);
            assert_eq!(
                (datagram.0, datagram.1),
                (lines.iter().map(|line| (*line).to_owned()).collect(), 5 - lines.len())
            );
            assert_eq!(stream.0, lines);
        }
    }
}

#[test]
fn null_is_counted_and_version_is_asked_for() {
    let null = r#"{"chart_name":"c","name":"d","value":null,"timestamp":7}"#;
    let kept = read(None, Mapping::path(), &[null]);
    assert_eq!((kept.lines.len(), kept.refused.len()), (0, 0));
    assert_eq!((kept.found.skipped, kept.found.converted), (1, 0));
    let kept = read(None, Mapping::path(), &["version\n"]);
    assert!(kept.found.asks_version && kept.refused.is_empty() && kept.lines.is_empty());
}

#[test]
fn hosts_are_named_by_their_lines() {
    let plain = Reader::new(None, Mapping::path(), Rules::strict(Precision::Nanoseconds));
    let charts = Reader::new(None, netdata(), Rules::strict(Precision::Nanoseconds));
    let templates = Mapping::templates(&["collectd.* .host.measurement*"]).expect("templates");
    let templates = Reader::new(None, templates, Rules::strict(Precision::Nanoseconds));
    for (reader, line, host) in [
        (&templates, "collectd.web-01.cpu-0.cpu-user 1 7", Some("web-01")),
        (&templates, "other.web-01.cpu-0.cpu-user 1 7", None),
        (&plain, "cpu,host=web-01,dc=eu usage=1", Some("web-01")),
        (&plain, "cpu usage=1", None),
        (&plain, "netdata.web-01.system.cpu.user 1 7", Some("web-01")),
        (&plain, "collectd.web-01.cpu-0.cpu-user 1 7", None),
        (&charts, "netdata.web-01.example.system.cpu.user;a=b 1 7", Some("web-01.example")),
        (&charts, "x.y.z 1 7", None),
        (&plain, "put a.b 7 1 host=web-01", Some("web-01")),
        (&plain, "put a.b 7 1 x=y", None),
        (&plain, r#"{"prefix":"netdata","hostname":"web-01","value":1}"#, Some("web-01")),
    ] {
        let format = Format::detect(line.as_bytes()).expect("a format");
        assert_eq!(reader.host(format, line.as_bytes()), host.map(str::as_bytes), "{line}");
    }
}
