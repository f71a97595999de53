//! What must hold of other senders' formats for any input at all.

use proptest::prelude::*;
use twinflux::protocol::{Format, Mapping, Netdata, Precision, Reader};

use super::formats::Kept;

fn byte() -> impl Strategy<Value = u8> {
    let special = prop::sample::select(&b",= \\\"\n\r#;.{}:\tNni+-0e\x00\x7f\xc3\xff"[..]);
    prop_oneof![4 => special, 2 => b'a'..=b'd', 1 => any::<u8>()]
}

fn line() -> impl Strategy<Value = String> {
    let name = "[a-c]{1,2}(\\.[a-c ,=\\\\#]{0,2}[a-c]){0,6}";
    let number = r"[+-]?[0-9]{0,4}(\.[0-9]{0,3})?(e[0-9]{1,3})?|nan|-inf";
    let time = "|-1|[0-9]{1,13}|17954[0-9]{5}(\\.[0-9]{1,3})?";
    let tags = || prop::collection::vec(("[a-c]{0,2}|time|host", "[a-c,\\\\]{0,2}"), 0..4);
    // A value of "a" leaves the sign between key and value out: a word that is no tag.
    let joined = |tags: &[(String, String)], with: &str| {
        let equals = |value: &str| if value == "a" { "" } else { "=" };
        tags.iter().map(|(key, value)| format!("{with}{key}{}{value}", equals(value))).collect::<String>()
    };
    prop_oneof![
        (name, tags(), number, time)
            .prop_map(move |(name, tags, value, time)| format!("{name}{} {value} {time}", joined(&tags, ";"))),
        (name, tags(), number, time)
            .prop_map(move |(name, tags, value, time)| format!("put {name} {time} {value}{}", joined(&tags, " "))),
        (name, name, tags(), number, 0_u64..1 << 40).prop_map(|(chart, name, tags, value, time)| {
            let labels: serde_json::Map<_, _> =
                tags.into_iter().map(|(key, value)| (key, serde_json::Value::String(value))).collect();
            let value: serde_json::Value = serde_json::from_str(&value).unwrap_or_default();
            serde_json::json!({"prefix": "p", "hostname": chart, "labels": labels, "chart_name": chart, "name": name,
                "value": value, "timestamp": time})
            .to_string()
        }),
        Just("cpu,host=a usage=1.5 1795400726000000000".to_owned()),
    ]
}

/// Lines, mostly good, each some times over, with now and then a byte changed.
fn any_input() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop::collection::vec((line(), 1..3_usize), 1..5);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), byte()), 0..3);
    let nearly = (lines, changes).prop_map(|(lines, changes)| {
        let lines: Vec<String> = lines.into_iter().flat_map(|(line, times)| vec![line; times]).collect();
        let mut text = lines.join("\n").into_bytes();
        for (place, byte) in changes {
            let place = place.index(text.len());
            text[place] = byte;
        }
        text
    });
    prop_oneof![1 => prop::collection::vec(byte(), 0..200), 4 => nearly]
}

fn any_mapping() -> impl Strategy<Value = Mapping> {
    let templates = Mapping::templates(&["a.* host.measurement.field* k=v", ".b.b.measurement*"]).expect("templates");
    let joined = Mapping::templates(&["a.* .host.measurement*.field.field", "measurement.field*"])
        .and_then(|mapping| mapping.with_separator("=, "))
        .and_then(|mapping| mapping.with_tags(vec![("a".to_owned(), "= b".to_owned())]))
        .expect("templates");
    prop_oneof![
        Just(Mapping::path()),
        (any::<bool>(), 1..3_usize)
            .prop_map(|(keep_prefix, host_parts)| Mapping::netdata(Netdata { keep_prefix, host_parts })),
        Just(templates),
        Just(joined),
    ]
}

fn any_format() -> impl Strategy<Value = Option<Format>> {
    let formats = vec![Format::Influx, Format::Graphite, Format::Opentsdb, Format::NetdataJson];
    prop::option::weighted(0.5, prop::sample::select(formats))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    /// The sink asks the strict scanner about each line that comes out. A line that goes in comes out, is refused, or
    /// (a `null`, a question, a comment) holds nothing.
    #[test]
    fn any_input_becomes_valid_lines_or_is_refused(
        input in any_input(), format in any_format(), mapping in any_mapping(), truncated in any::<bool>()
    ) {
        let mut reader = Reader::new(format, mapping, Precision::Nanoseconds);
        let mut kept = Kept::default();
        let found = reader.datagram(&input, truncated, &mut kept);
        if found.format.is_some_and(|format| format != Format::Influx) {
            let lines = input.split(|byte| *byte == b'\n').count() as u64;
            let seen = found.converted + found.skipped + kept.refused.len() as u64;
            prop_assert!(seen <= lines && kept.lines.len() as u64 <= found.converted);
            prop_assert_eq!(found.converted > 0, !kept.lines.is_empty());
        }
    }

    /// What a reader has seen before changes nothing, and what was accepted is accepted alone.
    #[test]
    fn a_reader_remembers_nothing_that_matters(
        before in any_input(), input in any_input(), format in any_format(), mapping in any_mapping()
    ) {
        let mut used = Reader::new(format, mapping.clone(), Precision::Nanoseconds);
        used.datagram(&before, false, &mut Kept::default());
        let mut fresh = Reader::new(format, mapping, Precision::Nanoseconds);
        let (mut one, mut other) = (Kept::default(), Kept::default());
        let found = used.datagram(&input, false, &mut one);
        prop_assert_eq!(found, fresh.datagram(&input, false, &mut other));
        prop_assert_eq!((one.lines, one.refused), (other.lines, other.refused));
    }

    /// What comes of a stream does not depend on where it was cut, but for values that join in a point.
    #[test]
    fn a_stream_is_read_alike_however_it_is_cut(
        input in any_input(), format in any_format(), mapping in any_mapping(), cut in any::<prop::sample::Index>()
    ) {
        let input = [&input[..], b"\n"].concat();
        let feeds: Vec<usize> = (0..input.len()).filter(|at| input[*at] == b'\n').collect();
        let (first, second) = input.split_at(feeds[cut.index(feeds.len())] + 1);
        let mut reader = Reader::new(format, mapping.clone(), Precision::Nanoseconds);
        let (mut whole, mut cut) = (Kept::default(), Kept::default());
        let mut known = None;
        let found = reader.lines(&input, &mut known, &mut whole);
        let mut known_by_pieces = None;
        let pieces = [first, second].map(|piece| reader.lines(piece, &mut known_by_pieces, &mut cut));
        prop_assert_eq!(known, known_by_pieces);
        prop_assert_eq!(found.converted, pieces[0].converted + pieces[1].converted);
        prop_assert_eq!(found.skipped, pieces[0].skipped + pieces[1].skipped);
        prop_assert_eq!(found.ignored_tags, pieces[0].ignored_tags + pieces[1].ignored_tags);
        prop_assert_eq!(whole.refused, cut.refused);
        if mapping == Mapping::path() {
            prop_assert_eq!(whole.lines, cut.lines);
        }
    }

    /// A datagram whose format is known is read as a stream of it is, but for strings of line protocol over several lines.
    #[test]
    fn a_stream_of_a_known_format_is_read_as_a_datagram_is(input in any_input(), mapping in any_mapping()) {
        let input = [&input[..], b"\n"].concat();
        for format in [Format::Graphite, Format::Opentsdb, Format::NetdataJson] {
            let mut reader = Reader::new(Some(format), mapping.clone(), Precision::Nanoseconds);
            let (mut datagram, mut stream) = (Kept::default(), Kept::default());
            let found = reader.datagram(&input, false, &mut datagram);
            prop_assert_eq!(reader.lines(&input, &mut None, &mut stream), found);
            prop_assert_eq!((datagram.lines, datagram.refused), (stream.lines, stream.refused));
        }
    }
}
