//! What must hold of other senders' formats for any input at all.

use proptest::prelude::*;
use twinflux::protocol::{Format, Found, Mapping, Netdata, Precision, Reader, Rules, Stream};

use super::formats::Kept;

use crate::effort;

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
    #![proptest_config(ProptestConfig { cases: effort::cases(5_000), ..ProptestConfig::default() })]

    /// The sink asks the strict scanner about each line that comes out. A line that goes in comes
    /// out, is refused, or (a `null`, a question, a comment) holds nothing.
    #[test]
    fn any_input_becomes_valid_lines_or_is_refused(
        input in any_input(), format in any_format(), mapping in any_mapping(), truncated in any::<bool>()
    ) {
        let mut reader = Reader::new(format, mapping, Rules::strict(Precision::Nanoseconds));
        let mut kept = Kept::default();
        let found = reader.datagram(&input, truncated, &mut kept);
        let lines = input.split(|byte| *byte == b'\n').count() as u64;
        prop_assert!(found.converted + found.skipped + kept.refused.len() as u64 <= lines);
        prop_assert!(kept.lines.len() as u64 + kept.refused.len() as u64 <= lines);
        prop_assert_eq!(found.first.is_some(), !kept.lines.is_empty());
    }

    /// What a reader has seen before changes nothing, and what was accepted is accepted alone.
    #[test]
    fn a_reader_remembers_nothing_that_matters(
        before in any_input(), input in any_input(), format in any_format(), mapping in any_mapping()
    ) {
        let mut used = Reader::new(format, mapping.clone(), Rules::strict(Precision::Nanoseconds));
        used.datagram(&before, false, &mut Kept::default());
        let mut fresh = Reader::new(format, mapping, Rules::strict(Precision::Nanoseconds));
        let (mut one, mut other) = (Kept::default(), Kept::default());
        let found = used.datagram(&input, false, &mut one);
        prop_assert_eq!(found, fresh.datagram(&input, false, &mut other));
        prop_assert_eq!((one.lines, one.refused), (other.lines, other.refused));
    }

    /// What comes of a stream does not depend on where it was cut, nor on how often it waits, but
    /// for values that join in a point. Whatever is left is open, and is read at the stream's end.
    #[test]
    fn a_stream_is_read_alike_however_it_is_cut(
        input in any_stream(), format in any_format(), mapping in any_mapping(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5)
    ) {
        let rules = Rules { max_line: 60, ..Rules::strict(Precision::Nanoseconds) };
        let mut reader = Reader::new(format, mapping.clone(), rules);
        let whole = stream(&mut reader, &[&input]);
        let mut places: Vec<usize> = cuts.into_iter().map(|cut| cut.index(input.len() + 1)).collect();
        places.sort_unstable();
        let mut rest = &input[..];
        let mut pieces = Vec::new();
        for (place, before) in places.iter().zip(std::iter::once(&0).chain(&places)) {
            let (piece, more) = rest.split_at(place - before);
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        let cut = stream(&mut reader, &pieces);
        prop_assert_eq!(&whole.1.refused, &cut.1.refused);
        prop_assert_eq!((whole.0.converted, whole.0.skipped), (cut.0.converted, cut.0.skipped));
        prop_assert_eq!(whole.0.ignored_tags, cut.0.ignored_tags);
        if mapping == Mapping::path() {
            prop_assert_eq!(whole.1.lines, cut.1.lines);
        }
    }

    /// A datagram whose format is known is read as a stream of it is, but for strings of line
    /// protocol over several lines.
    #[test]
    fn a_stream_of_a_known_format_is_read_as_a_datagram_is(input in any_input(), mapping in any_mapping()) {
        let input = [&input[..], b"\n"].concat();
        for format in [Format::Graphite, Format::Opentsdb, Format::NetdataJson] {
            let mut reader = Reader::new(Some(format), mapping.clone(), Rules::strict(Precision::Nanoseconds));
            let (mut datagram, mut stream) = (Kept::default(), Kept::default());
            let found = reader.datagram(&input, false, &mut datagram);
            prop_assert_eq!(reader.stream(&input, &mut Stream::default(), false, &mut stream), found);
            prop_assert_eq!((datagram.lines, datagram.refused), (stream.lines, stream.refused));
        }
    }

    /// Lines with balanced strings are taken whole by streams and datagrams alike, whatever stands
    /// in the strings.
    #[test]
    fn balanced_strings_protect_their_text(
        texts in prop::collection::vec("([a-c ,=.\n{}]|cpu v=1 7\n|a\\.b 1 7\n|\\\\\"|\\\\\\\\){0,8}", 1..6), size in 1_usize..40
    ) {
        let lines: Vec<String> = texts.iter().map(|text| format!("log,host=a message=\"{text}\",v=1 7")).collect();
        let input = lines.join("\n") + "\n";
        let mut reader = Reader::new(None, Mapping::path(), Rules::strict(Precision::Nanoseconds));
        let mut datagram = Kept::default();
        reader.datagram(input.as_bytes(), false, &mut datagram);
        prop_assert_eq!((&datagram.lines, datagram.refused.len()), (&lines, 0));
        let pieces: Vec<&[u8]> = input.as_bytes().chunks(size).collect();
        let (_, streamed) = stream(&mut reader, &pieces);
        prop_assert_eq!((streamed.lines, streamed.refused.len()), (lines, 0));
    }
}

/// Reads a stream that comes in these pieces, as a listener's framer gives it.
fn stream(reader: &mut Reader, pieces: &[&[u8]]) -> (Found, Kept) {
    let (mut state, mut kept, mut sum, mut waiting) =
        (Stream::default(), Kept::default(), Found::default(), Vec::new());
    let mut read = |waiting: &mut Vec<u8>, is_end: bool| {
        let whole = waiting.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
        if whole == 0 {
            return;
        }
        let found = reader.stream(&waiting[..whole], &mut state, is_end, &mut kept);
        assert!(!is_end || found.consumed == whole);
        waiting.drain(..found.consumed);
        sum.converted += found.converted;
        sum.skipped += found.skipped;
        sum.ignored_tags += found.ignored_tags;
    };
    for piece in pieces {
        waiting.extend_from_slice(piece);
        read(&mut waiting, false);
    }
    read(&mut waiting, true);
    (sum, kept)
}

/// Lines with strings that go over lines, or are never closed, among others.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let string = "cpu,a=b (s=\"[a-c ,=\n\\\\]{0,9}(\"|),){0,3}(v=1|s=\"[a-c\n]{0,9}\"|t=\"[a-c\n\"]{0,3})( 7|)";
    let piece = prop_oneof![2 => string.prop_map(String::into_bytes), 1 => any_input(), 1 => line().prop_map(String::into_bytes)];
    prop::collection::vec(piece, 1..6).prop_map(|pieces| [pieces.join(&b'\n'), vec![b'\n']].concat())
}
