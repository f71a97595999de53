//! What must hold for any input at all.

use proptest::prelude::*;
use twinflux::protocol::{Precision, Scanner};

use crate::effort;

/// Bytes that mean something to the grammar, more often than others.
fn byte() -> impl Strategy<Value = u8> {
    let special = prop::sample::select(&b",= \\\"\n\r#tTfFi.-+eE019_\x00\x7f\xc3\xff"[..]);
    prop_oneof![4 => special, 2 => b'a'..=b'd', 1 => any::<u8>()]
}

/// Lines that are mostly good, with now and then a byte changed, joined by line feeds.
fn nearly_lines() -> impl Strategy<Value = Vec<u8>> {
    let token = "[a-c]{1,3}(\\\\[ ,=]|\\\\x)?[a-c]";
    let number = r"-?[0-9]{1,20}(\.[0-9]{0,3})?(e[0-9]{1,3}|i)?".prop_map(String::from);
    let string = r#""([a-c ,=\n]|\\"|\\\\){0,6}""#.prop_map(String::from);
    let value = prop_oneof![number, string, Just("true".to_owned()), Just("F".to_owned())];
    let tags = prop::collection::vec((token, token), 0..4);
    let fields = prop::collection::vec((token, value), 1..4);
    let line = (token, tags, fields, prop::option::of(any::<i64>())).prop_map(|(name, tags, fields, time)| {
        let tags: String = tags.iter().map(|(key, value)| format!(",{key}={value}")).collect();
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let time = time.map_or_else(String::new, |time| format!(" {time}"));
        format!("{name}{tags} {}{time}", fields.join(","))
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), byte()), 0..3);
    (prop::collection::vec(line, 1..5), changes).prop_map(|(lines, changes)| {
        let mut text = lines.join("\n").into_bytes();
        for (place, byte) in changes {
            let place = place.index(text.len());
            text[place] = byte;
        }
        text
    })
}

fn any_input() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(byte(), 0..200), nearly_lines()]
}

/// Accepted and refused lines, and the accepted ones' bytes.
fn scan(input: &[u8], truncated: bool) -> (usize, Vec<Vec<u8>>) {
    let mut scanner = Scanner::new(Precision::Nanoseconds);
    let mut refused = 0;
    let mut accepted = Vec::new();
    let mut consumed = 0;
    for (steps, line) in scanner.lines(input, truncated).enumerate() {
        assert!(steps < input.len(), "every step consumes a byte");
        let bytes = match line {
            Ok(line) => {
                accepted.push(line.bytes.to_vec());
                line.bytes
            }
            Err(line) => {
                refused += 1;
                line.bytes
            }
        };
        // What is shown lies in the input, behind everything shown before.
        let start = bytes.as_ptr() as usize - input.as_ptr() as usize;
        assert!(start >= consumed && !bytes.is_empty() && start + bytes.len() <= input.len());
        consumed = start + bytes.len();
    }
    (refused, accepted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::cases(5_000), ..ProptestConfig::default() })]

    #[test]
    fn any_input_is_walked_through(input in any_input(), truncated in any::<bool>()) {
        scan(&input, truncated);
    }

    #[test]
    fn accepted_lines_are_accepted_alone_and_together(input in any_input()) {
        let (_, accepted) = scan(&input, false);
        for line in &accepted {
            prop_assert_eq!(scan(line, false), (0, vec![line.clone()]));
        }
        let joined: Vec<u8> = accepted.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
        prop_assert_eq!(scan(&joined, false), (0, accepted));
    }

    #[test]
    fn an_accepted_line_takes_a_stamp(input in any_input()) {
        let mut scanner = Scanner::new(Precision::Nanoseconds);
        let unstamped: Vec<Vec<u8>> =
            scanner.lines(&input, false).flatten().filter(|line| line.time.is_none()).map(|line| line.bytes.to_vec()).collect();
        for line in unstamped {
            let stamped = [&line[..], b" 1795400726000000000"].concat();
            let again: Vec<_> = scanner.lines(&stamped, false).collect();
            prop_assert_eq!(again.len(), 1);
            let again = again[0].map_err(|refused| TestCaseError::fail(refused.reason.name()))?;
            prop_assert!(again.time.is_some() && again.bytes == stamped);
        }
    }

    #[test]
    fn cutting_at_a_line_feed_between_lines_changes_nothing(first in nearly_lines(), second in nearly_lines()) {
        // A first part that is wholly good cannot reach into the second.
        let (_, accepted_first) = scan(&first, false);
        let first = accepted_first.join(&b'\n');
        let (refused_second, accepted_second) = scan(&second, false);
        let joined = [&first[..], b"\n", &second[..]].concat();
        prop_assert_eq!(scan(&joined, false), (refused_second, [accepted_first, accepted_second].concat()));
    }
}
