//! Parts of other senders' lines that are of no use, or are not what they should be: they never
//! cost the value.

use proptest::prelude::*;
use twinflux::protocol::{Format, Found, Mapping, Netdata, Precision, Reader, Refusal, Rules};

use super::formats::Kept;

use crate::effort;

fn read(format: Format, mapping: Mapping, line: &[u8]) -> (Kept, Found) {
    let mut reader = Reader::new(Some(format), mapping, Rules::strict(Precision::Nanoseconds));
    let mut kept = Kept::default();
    let found = reader.datagram(line, false, &mut kept);
    (kept, found)
}

#[test]
fn tags_that_are_none_are_left_out_and_counted() {
    use Format::{Graphite, NetdataJson, Opentsdb};
    let object = |labels: &str| {
        format!(
            r#"{{"prefix":"p","hostname":"h","labels":{labels},"chart_name":"c.d","name":"e","value":5,"timestamp":7}}"#
        )
    };
    for (format, line, expected, ignored) in [
        (Opentsdb, "put disk 7 5 host=h nico".to_owned(), "disk,host=h value=5 7000000000", 1),
        (Opentsdb, "put disk 7 5 =x host=h = y".to_owned(), "disk,host=h value=5 7000000000", 3),
        (Opentsdb, "put disk 7 5 nico\\ \x01 host=h".to_owned(), "disk,host=h value=5 7000000000", 2),
        (Graphite, "disk;t 5 7".to_owned(), "disk value=5 7000000000", 1),
        (Graphite, "disk;=1;host=h 5 7".to_owned(), "disk,host=h value=5 7000000000", 1),
        (Graphite, "disk;host=h;; 5 7".to_owned(), "disk,host=h value=5 7000000000", 0),
        (NetdataJson, object(r#"{"a":"b","c":1,"":"d"}"#), "p.c.d.e,host=h,a=b value=5 7000000000", 2),
        (NetdataJson, object("null"), "p.c.d.e,host=h value=5 7000000000", 0),
        (NetdataJson, object("[]"), "p.c.d.e,host=h value=5 7000000000", 1),
    ] {
        let (kept, found) = read(format, Mapping::path(), line.as_bytes());
        assert_eq!((kept.lines, kept.refused), (vec![expected.to_owned()], Vec::new()), "{line}");
        assert_eq!((found.converted, found.ignored_tags), (1, ignored), "{line}");
    }
    // Each line's own, where several have the same, and none of those that are refused.
    let lines = "n.h.c.d.e;t;x=1 1 7\nn.h.c.d.f;t;x=1 2 7\nn.h.c.d.g;t;x=1 nan 7\nn.h.c.d.e;x=1;u;v 1 8";
    for mapping in [Mapping::path(), Mapping::netdata(Netdata { keep_prefix: false, host_parts: 1 })] {
        let (kept, found) = read(Graphite, mapping, lines.as_bytes());
        assert_eq!((found.converted, found.ignored_tags, kept.refused.len()), (3, 4, 1));
    }
}

#[test]
fn a_tag_that_distinguishes_series_is_no_junk() {
    for (line, reason) in [
        (&b"put disk 7 5 path=C:\\"[..], Refusal::AmbiguousEscape),
        (b"put disk 7 5 path=\x01", Refusal::ControlByte),
        (b"put disk 7 5 path=\xff", Refusal::InvalidUtf8),
        (b"put disk 7 5 \xff=path", Refusal::InvalidUtf8),
        (b"put d\xffsk 7 5 nico", Refusal::InvalidUtf8),
        (b"put disk 7 \xff nico", Refusal::InvalidValue),
    ] {
        let (kept, found) = read(Format::Opentsdb, Mapping::path(), line);
        assert_eq!((kept.lines.len(), found.converted, found.ignored_tags), (0, 0, 0), "{}", line.escape_ascii());
        assert_eq!(kept.refused[0].0, reason, "{}", line.escape_ascii());
    }
}

#[test]
fn bytes_that_are_no_text_matter_only_where_they_are_written() {
    let mapping = || Mapping::netdata(Netdata { keep_prefix: false, host_parts: 1 });
    let lines = b"n.h.c.d.e;x=1 1 7\nn.h.c.d.f;x=1;\xff 2 7\nn.h.c.d.g;x=1;y=\xff 3 7\nn.h.c.d.i;x=1 4 7\n# \xff\n";
    let (kept, found) = read(Format::Graphite, mapping(), lines);
    assert_eq!(
        kept.lines,
        ["c.d,host=h,x=1 e=1 7000000000", "c.d,host=h,x=1 f=2 7000000000", "c.d,host=h,x=1 i=4 7000000000"]
    );
    assert_eq!((found.converted, found.ignored_tags), (3, 1));
    assert_eq!(kept.refused.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), [Refusal::InvalidUtf8]);
}

fn mapping() -> impl Strategy<Value = Mapping> {
    let templates = Mapping::templates(&["n.* .host.measurement*.field", "measurement*"]).expect("templates");
    prop::sample::select(vec![
        Mapping::path(),
        Mapping::netdata(Netdata { keep_prefix: true, host_parts: 1 }),
        Mapping::path().with_tags(vec![("dc".to_owned(), "eu".to_owned())]).expect("tags"),
        templates,
    ])
}

/// Bytes that hold none of these.
fn bytes_without(without: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let special = prop::sample::select(&b",=\\\"#{}[]:;.\x00\x7f\xc3\xff"[..]);
    let byte = prop_oneof![2 => special, 1 => any::<u8>()];
    prop::collection::vec(byte, 1..6).prop_map(|mut bytes| {
        bytes.retain(|byte| !without.contains(byte));
        bytes
    })
}

/// A word without `=`, or with nothing before it.
fn junk() -> impl Strategy<Value = Vec<u8>> {
    let word = || bytes_without(b"=; \t\r\n\x0b\x0c");
    let value = bytes_without(b"; \t\r\n\x0b\x0c");
    prop_oneof![word(), value.prop_map(|value| [&b"="[..], &value].concat())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::cases(5_000), ..ProptestConfig::default() })]

    /// A line with any junk among its tags becomes what it becomes without.
    #[test]
    fn any_junk_among_tags_changes_nothing(
        words in prop::collection::vec(prop_oneof![
            "[a-c]{1,2}=[a-c]{0,2}".prop_map(|tag| (tag.into_bytes(), true)),
            junk().prop_map(|word| (word, false)),
        ], 0..6),
        name in "n(\\.[a-c]{1,2}){0,5}", value in -9..9_i8, mapping in mapping()
    ) {
        let line = |format, with_junk: bool| {
            let words = words.iter().filter(|(_, is_tag)| *is_tag || with_junk).map(|(word, _)| &word[..]);
            let (head, separator, tail) = match format {
                Format::Opentsdb => (format!("put {name} 7 {value}"), b' ', String::new()),
                _ => (name.clone(), b';', format!(" {value} 7")),
            };
            let tags: Vec<u8> = words.flat_map(|word| [&[separator], word].concat()).collect();
            [head.as_bytes(), &tags, tail.as_bytes()].concat()
        };
        let junk = words.iter().filter(|(word, is_tag)| !is_tag && !word.is_empty()).count() as u64;
        for format in [Format::Graphite, Format::Opentsdb] {
            let (with, without) = (line(format, true), line(format, false));
            let (kept, found) = read(format, mapping.clone(), &with);
            let (expected, _) = read(format, mapping.clone(), &without);
            prop_assert_eq!((expected.lines.len(), expected.refused.len()), (1, 0));
            prop_assert_eq!((kept.lines, kept.refused), (expected.lines, expected.refused), "{}", with.escape_ascii());
            prop_assert_eq!((found.converted, found.ignored_tags), (1, junk));
        }
    }

    /// An object with any bytes in the values of unused keys becomes what it becomes without these
    /// keys, as long as nothing in them looks like a value's end.
    #[test]
    fn any_bytes_in_unused_keys_change_nothing(
        values in prop::collection::vec((bytes_without(b"\n"), any::<bool>()), 3), value in -9..9_i8, mapping in mapping()
    ) {
        let values: Vec<Vec<u8>> = values.into_iter().map(|(mut value, is_text)| {
            if is_text {
                value.retain(|byte| !b"\",}".contains(byte));
                [b"\"", &value[..], b"\""].concat()
            } else {
                value.retain(|byte| !b"\"{}[],".contains(byte));
                value
            }
        }).collect();
        let [first, second, third] = &values[..] else { panic!("three") };
        let used = format!(r#""hostname":"h","chart_name":"c.d","name":"e","value":{value},"timestamp":7"#);
        let (before, after) = used.split_at(used.find("\"name\"").expect("a name"));
        let line = [b"{\"id\":", &first[..], b",", before.as_bytes(), b"\"units\" : ", second, b" , ", after.as_bytes(),
            b", \"chart_type\":", third, b"}"].concat();
        let (kept, found) = read(Format::NetdataJson, mapping.clone(), &line);
        let (expected, _) = read(Format::NetdataJson, mapping, format!("{{{used}}}").as_bytes());
        prop_assert_eq!(expected.lines.len(), 1);
        prop_assert_eq!((kept.lines, kept.refused), (expected.lines, expected.refused), "{}", line.escape_ascii());
        prop_assert_eq!(found.converted, 1);
    }
}
