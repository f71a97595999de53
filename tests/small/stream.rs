//! A stream's lines: how long they may be, and which of them wait for more.

use twinflux::protocol::{Format, Mapping, Precision, Reader, Refusal, Rules, Stream};

use super::formats::Kept;

const MAX_LINE: usize = 40;

/// Reads pieces of a stream of line protocol, the last of which ends it. What a piece leaves begins
/// the next one.
fn read(pieces: &[&str]) -> (Vec<String>, Vec<Refusal>) {
    let rules = Rules { max_line: MAX_LINE, ..Rules::strict(Precision::Nanoseconds) };
    let mut reader = Reader::new(Some(Format::Influx), Mapping::path(), rules);
    let (mut stream, mut kept, mut left) = (Stream::default(), Kept::default(), String::new());
    for (place, piece) in pieces.iter().enumerate() {
        left.push_str(piece);
        let is_end = place + 1 == pieces.len();
        let found = reader.stream(left.as_bytes(), &mut stream, is_end, &mut kept);
        assert!(!is_end || found.consumed == left.len(), "nothing waits at the end");
        left.drain(..found.consumed);
        assert!(left.len() < MAX_LINE + "\r\n".len(), "what waits may still become a line: {left:?}");
    }
    (kept.lines, kept.refused.iter().map(|(reason, _)| *reason).collect())
}

/// A line whose value is a string, of so many bytes.
fn line(bytes: usize) -> String {
    format!("m v=\"{}\"", "x".repeat(bytes - 6))
}

#[test]
fn the_longest_line_is_taken_whatever_stands_before_it_and_whatever_ends_it() {
    for before in ["", "m v=1 1\n", "# a comment\n\n", "m v=\"open\n", "\r\n"] {
        for end in ["\n", "\r\n", ""] {
            let (lines, refused) = read(&[&format!("{before}{}{end}", line(MAX_LINE))]);
            assert_eq!(lines.last(), Some(&line(MAX_LINE)), "{before:?} {end:?}");
            assert_eq!(refused.len(), usize::from(before.contains("open")));
            let (lines, refused) = read(&[&format!("{before}{}{end}", line(MAX_LINE + 1))]);
            assert_eq!(refused.last(), Some(&Refusal::TooLong), "{before:?} {end:?}");
            assert!(!lines.contains(&line(MAX_LINE + 1)));
        }
    }
}

#[test]
fn comments_and_spaces_are_bounded_like_any_line() {
    let comment = |bytes: usize| format!("#{}", "c".repeat(bytes - 1));
    let spaces = |bytes: usize| " ".repeat(bytes);
    let good = "m v=1 1";
    for end in ["\n", "\r\n"] {
        for fits in [
            format!("{}{end}{good}{end}", comment(MAX_LINE)),
            format!("{}{end}{}{end}{good}{end}", comment(MAX_LINE), spaces(MAX_LINE)),
            format!("{}{good}{end}", spaces(MAX_LINE - good.len())),
            format!("{end}{end}{}{end}{good}{end}", comment(MAX_LINE - 1)),
        ] {
            assert_eq!(read(&[&fits]), (vec![good.to_owned()], vec![]), "{fits:?}");
        }
        for (is_too_long, lines) in [
            (format!("{}{end}{good}{end}", comment(MAX_LINE + 1)), 1),
            (format!("{}{end}{}{end}{good}{end}", comment(9), comment(MAX_LINE + 1)), 1),
            (format!("{}{end}{good}{end}", spaces(MAX_LINE + 1)), 1),
            (format!("{good}{end}{}{good}{end}", spaces(MAX_LINE - good.len() + 1)), 1),
            (format!("{good}{end}{}", spaces(MAX_LINE + 1)), 1),
            (format!("{good}{end}{}", comment(MAX_LINE + 1)), 1),
        ] {
            assert_eq!(
                read(&[&is_too_long]),
                (vec![good.to_owned(); lines], vec![Refusal::TooLong]),
                "{is_too_long:?}"
            );
        }
    }
}

#[test]
fn what_is_wrong_with_a_line_that_is_too_long_is_its_length() {
    for (bytes, reason) in [
        (MAX_LINE - 1, Refusal::InvalidValue),
        (MAX_LINE, Refusal::InvalidValue),
        (MAX_LINE + 1, Refusal::TooLong),
        (MAX_LINE + 9, Refusal::TooLong),
    ] {
        for end in ["\n", "\r\n"] {
            let bad = format!("m v=1 1\nm v={}{end}m v=2 2\n", "x".repeat(bytes - 4));
            assert_eq!(read(&[&bad]), (vec!["m v=1 1".to_owned(), "m v=2 2".to_owned()], vec![reason]), "{bad:?}");
        }
    }
}

#[test]
fn a_line_whose_string_is_open_waits_until_it_would_be_too_long() {
    for before in ["", "m v=1 1\n", "m v=\n"] {
        // Of any length, and whatever is at hand of it at first.
        for bytes in 8..MAX_LINE - 2 {
            let begin = format!("m v=\"{}\n", "x".repeat(bytes - 6));
            for waits in ["", "y\n"] {
                let (lines, _) = read(&[&format!("{before}{begin}"), waits, "\"\n"]);
                let whole = format!("{begin}{waits}\"");
                assert_eq!(lines.contains(&whole), whole.len() <= MAX_LINE, "{before:?} {whole:?}");
            }
        }
        // Its first physical line is given up, and what stood behind that is read.
        let tail = "m v=2 2\n".repeat(MAX_LINE / 8 + 1);
        let (lines, refused) = read(&[&format!("{before}m v=\"open\n{tail}"), "end\" 5\n"]);
        assert_eq!(lines.iter().filter(|line| *line == "m v=2 2").count(), MAX_LINE / 8 + 1, "{before:?}");
        assert_eq!(refused[usize::from(before == "m v=\n")], Refusal::UnterminatedString, "{before:?}");
    }
}
