//! The scanner's hand-written cases: one for each rule, and each way a bad line could harm its
//! neighbours.

use twinflux::protocol::{Precision, Refusal, Scanner};

fn scan(input: &[u8]) -> Vec<Result<Vec<u8>, Refusal>> {
    scan_cut(input, false)
}

fn scan_cut(input: &[u8], truncated: bool) -> Vec<Result<Vec<u8>, Refusal>> {
    let mut scanner = Scanner::new(Precision::Nanoseconds);
    let lines = scanner.lines(input, truncated);
    lines.map(|line| line.map(|line| line.bytes.to_vec()).map_err(|refused| refused.reason)).collect()
}

fn accepted(lines: &[&[u8]]) -> Vec<Result<Vec<u8>, Refusal>> {
    lines.iter().map(|line| Ok(line.to_vec())).collect()
}

#[test]
fn good_lines_are_kept_byte_for_byte() {
    for line in [
        "m v=1",
        "m v=1 1795400726000000000",
        "m v=1 -1",
        "m,a=b v=1",
        "m,a=b,c=d v=1,w=2i,x=t,y=\"z\" 5",
        "m  v=1   5  ",
        "m v=1 ",
        "m=x,a=b v=1",
        "m\\ m\\,m,k\\=k\\,k\\ k=v\\=v\\,v\\ v f\\=f\\,f\\ f=1",
        "m\\x,k\\y=v\\z f\\w=1",
        "\"m\",\"a\"=\"b\" \"c\"=1",
        "m v=\"\"",
        "m v=\"a,b=c d\"",
        "m v=\"\\\"\\\\\"",
        "m v=\"C:\\dir\\\\\"",
        "m v=\"line one\nline two\r\n\" 5",
        "m v=\"\x00\x01\x7f\"",
        "mäß,tägµ=ü föld=\"日本\"",
        "m v=1,v=2",
        "m v=t,w=T,x=true,y=True,z=TRUE,a=f,b=F,c=false,d=False,e=FALSE",
        "_field v=1",
    ] {
        assert_eq!(scan(line.as_bytes()), accepted(&[line.as_bytes()]), "{line:?}");
    }
}

#[test]
fn bad_lines_are_refused_for_their_reason() {
    use Refusal::*;
    for (line, reason) in [
        (",a=b v=1", MissingMeasurement),
        ("m", MissingField),
        ("m ", MissingField),
        ("m,a=b", MissingField),
        ("m ,v=1", MissingField),
        ("m =1", MissingField),
        ("m v=1,", MissingField),
        ("m v=1,,w=2", MissingField),
        ("m v=1, w=2", MissingField),
        ("m v", InvalidValue),
        ("m v=", InvalidValue),
        ("m v= 1", InvalidValue),
        ("m v=1, 1", MissingField),
        ("m,=b v=1", MissingTagKey),
        ("m,,a=b v=1", MissingTagKey),
        ("m, a=b v=1", MissingTagKey),
        ("m,a v=1", InvalidTagValue),
        ("m,a= v=1", InvalidTagValue),
        ("m,a=,b=c v=1", InvalidTagValue),
        ("m,a=b=c v=1", InvalidTagValue),
        ("m,a=b,a=c v=1", DuplicateTag),
        ("m,a=b,c=d,a=b v=1", DuplicateTag),
        ("m,time=b v=1", ReservedTag),
        ("m,_field=b v=1", ReservedTag),
        ("m,_measurement=b v=1", ReservedTag),
        ("m time=1", ReservedField),
        ("m time=1,time=2i 7", ReservedField),
        ("m time=\"x\"", ReservedField),
        ("m v=yes", InvalidValue),
        ("m v=tRUE", InvalidValue),
        ("m v=truex", InvalidValue),
        ("m v=NaN", InvalidValue),
        ("m v=+1", InvalidValue),
        ("m v=1u", UnsignedInteger),
        ("m v=1e999", NumberOutOfRange),
        ("m v=9223372036854775808i", NumberOutOfRange),
        ("m v=\"a", UnterminatedString),
        ("m v=\"a\\\"", UnterminatedString),
        ("m v=\"a\"b", TrailingText),
        ("m v=\"a\"\"b\"", TrailingText),
        ("m v=1 x", InvalidTimestamp),
        ("m v=1 1.5", TrailingText),
        ("m v=1 1 2", TrailingText),
        ("m v=1 1 # comment", TrailingText),
        ("m v=1 9223372036854775807", TimestampOutOfRange),
        ("m\tv=1", ControlByte),
        ("m \tv=1", ControlByte),
        ("m v=1\t", ControlByte),
        ("m,a=b\tc v=1", ControlByte),
        ("m,a=b\u{7f} v=1", ControlByte),
        ("\x02m v=1", ControlByte),
        ("m v=1\rx", ControlByte),
        ("\rm v=1", ControlByte),
        ("m\\\\,a=b v=1", AmbiguousEscape),
        ("m,a=b\\\\ v=1", AmbiguousEscape),
        ("m,a\\\\=b v=1", AmbiguousEscape),
        ("m v\\\\=1", AmbiguousEscape),
        ("m,a=b\\", AmbiguousEscape),
        // Crashes InfluxDB 1.6.7.
        ("m \\0=\",\"=3,\"=\"", TrailingText),
    ] {
        assert_eq!(scan(line.as_bytes()), [Err(reason)], "{line:?}");
    }
    for line in [&b"m\xff v=1"[..], b"m,a=\xc3 v=1", b"m v=\"\xe2\x82\""] {
        assert_eq!(scan(line), [Err(InvalidUtf8)], "{}", line.escape_ascii());
    }
}

#[test]
fn blank_lines_and_comments_are_nothing() {
    let input = b"\n\n  \r\n# a=\"b\nm v=1 1\n# x\\\nm v=2 2\r\n   # comment\n\r\n";
    assert_eq!(scan(input), accepted(&[b"m v=1 1", b"m v=2 2"]));
    assert!(scan(b"").is_empty());
    assert!(scan(b"#").is_empty());
    assert!(scan(b"\r").is_empty());
}

#[test]
fn line_ends_of_all_kinds_are_stripped() {
    let expected = accepted(&[b"m v=1 1", b"m v=\"a\"", b"m v=2"]);
    assert_eq!(scan(b"m v=1 1\r\nm v=\"a\"\r\nm v=2\r\n"), expected);
    assert_eq!(scan(b"m v=1 1\nm v=\"a\"\nm v=2"), expected);
    assert_eq!(scan(b"m v=1 1\nm v=\"a\"\nm v=2\r"), expected);
}

#[test]
fn a_bad_line_never_takes_its_neighbours_along() {
    let good: &[u8] = b"good v=1 1";
    for bad in [
        &b"bad"[..],
        b"bad v=",
        b"bad v=\"open",
        b"bad,a=b\\",
        b"bad v=1 1 2",
        b"bad\xff v=1",
        b"bad v=\"closed\"x",
        b"bad,a=b,a=c v=1",
        b"\x00",
        b"bad v=\"\\",
    ] {
        let input = [good, b"\n", bad, b"\n", good, b"\n"].concat();
        let lines = scan(&input);
        assert_eq!(lines.first(), Some(&Ok(good.to_vec())), "{}", bad.escape_ascii());
        assert_eq!(lines.last(), Some(&Ok(good.to_vec())), "{}", bad.escape_ascii());
        assert_eq!(lines.len(), 3, "{}", bad.escape_ascii());
        assert!(lines[1].is_err());
    }
}

#[test]
fn the_text_of_a_closed_string_is_never_taken_for_a_line() {
    let lines = scan(b"m v=\"one\ninvented v=1\ntwo\",w=x\ngood v=1");
    assert_eq!(lines, [Err(Refusal::InvalidValue), Ok(b"good v=1".to_vec())]);
}

#[test]
fn an_open_quote_takes_no_later_line_along_though_one_of_them_has_quotes() {
    let input = b"m v=\"open\na v=1 1\nb v=2 2\nc s=\"x\" 3\nd v=4 4\n";
    let lines = scan(input);
    assert_eq!(lines[0], Err(Refusal::UnterminatedString));
    assert_eq!(lines[1..], accepted(&[b"a v=1 1", b"b v=2 2", b"c s=\"x\" 3", b"d v=4 4"]));
}

#[test]
fn leading_spaces_are_not_handed_on() {
    // Behind one, InfluxDB would take the quote for a string's, and lines of others for its text.
    assert_eq!(scan(b"   a=\"b f=1 1\n m v=2"), accepted(&[b"a=\"b f=1 1", b"m v=2"]));
}

#[test]
fn the_cut_off_end_of_a_datagram_is_not_a_line() {
    let good = Ok(b"m v=1 1".to_vec());
    assert_eq!(scan_cut(b"m v=1 1\nm v=2 17954", true), [good.clone(), Err(Refusal::Truncated)]);
    assert_eq!(scan_cut(b"m v=1 1\nm v", true), [good.clone(), Err(Refusal::Truncated)]);
    assert_eq!(scan_cut(b"m v=1 1\nm v=\"", true), [good.clone(), Err(Refusal::Truncated)]);
    assert_eq!(scan_cut(b"m v=1 1\n", true), [good]);
}

#[test]
fn tags_are_bounded_and_never_a_hundred() {
    let line = |tags: usize| {
        let tags: String = (0..tags).map(|tag| format!(",t{tag}=v")).collect();
        format!("m{tags} v=1")
    };
    for (tags, expected) in [(99, true), (100, false), (101, true), (256, true), (257, false)] {
        let lines = scan(line(tags).as_bytes());
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].is_ok(), expected, "{tags} tags");
        assert!(expected || lines[0] == Err(Refusal::TooManyTags));
    }
}

#[test]
fn lines_and_series_keys_are_bounded() {
    let with_tag = |bytes: usize| format!("m,t={} v=1", "x".repeat(bytes));
    assert!(scan(with_tag(65_000).as_bytes())[0].is_ok());
    // `m,t=` and the value, `v`, and 4 that the index adds.
    assert!(scan(with_tag(65_535 - 4 - 1 - 4).as_bytes())[0].is_ok());
    assert_eq!(scan(with_tag(65_535 - 4 - 1 - 3).as_bytes()), [Err(Refusal::TooLong)]);
    // The field key counts, and no line before it does.
    for before in ["", "a.longer.measurement,with=a,tag=b v=1 1\n"] {
        let with_both = |bytes: usize| format!("{before}m,t={} {}=1", "x".repeat(40_000), "k".repeat(bytes));
        assert!(scan(with_both(65_535 - 40_004 - 4).as_bytes()).last().is_some_and(Result::is_ok));
        assert_eq!(scan(with_both(65_535 - 40_004 - 3).as_bytes()).last(), Some(&Err(Refusal::TooLong)));
    }
    let with_string = |bytes: usize| format!("m v=\"{}\"", "x".repeat(bytes));
    assert!(scan(with_string(64 * 1024 - 6).as_bytes())[0].is_ok());
    assert_eq!(scan(with_string(64 * 1024 - 5).as_bytes()), [Err(Refusal::TooLong)]);
}

#[test]
fn timestamps_count_in_the_listeners_precision() {
    let mut scanner = Scanner::new(Precision::Seconds);
    assert!(scanner.lines(b"m v=1 9223372036", false).all(|line| line.is_ok()));
    assert!(scanner.lines(b"m v=1 1795400726000000000", false).all(|line| line.is_err()));
    let stamped: Vec<bool> =
        scanner.lines(b"m v=1 5\nm v=1\nm v=1 \n", false).flatten().map(|line| line.time.is_some()).collect();
    assert_eq!(stamped, [true, false, false]);
}
