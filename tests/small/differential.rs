//! The scanner beside the crate `influxdb-line-protocol`: where the two differ, it is for a known
//! reason.

use fastrand::Rng;
use twinflux::protocol::{Precision, Refusal, Scanner};

/// What the crate takes and we do not, by our reason, and why.
const ONLY_THE_CRATE: &[(Refusal, &str)] = &[
    (Refusal::AmbiguousEscape, "it reads `\\\\` as an escape, InfluxDB 1.x does not"),
    (Refusal::ControlByte, "it takes control bytes in names"),
    (Refusal::DuplicateTag, "it leaves duplicate tags to others; InfluxDB 1.x refuses them"),
    (Refusal::InvalidValue, "it takes a comma in a field's key"),
    (Refusal::InvalidTagValue, "it takes `=` in a tag value"),
    (Refusal::MissingField, "it takes a trailing comma"),
    (Refusal::MissingTagKey, "it takes two commas for one: `m,,a=b`"),
    (Refusal::InvalidTimestamp, "it takes what follows a comma and a space for a timestamp"),
    (Refusal::NumberOutOfRange, "it takes a float that overflows for infinity"),
    (Refusal::ReservedTag, "it leaves reserved names to others"),
    (Refusal::ReservedField, "it leaves reserved names to others"),
    (Refusal::TimestampOutOfRange, "it takes all of 64 bits"),
    (Refusal::UnsignedInteger, "it knows unsigned integers"),
];

/// Why the crate refuses a line that we take.
fn why_only_we(line: &str) -> Option<&'static str> {
    let has_short_float = line.split([',', ' ', '=']).any(|part| {
        let part = part.trim_start_matches('-');
        part.starts_with('.') || part.ends_with('.') || part.contains(".e") || part.contains(".E")
    });
    match () {
        () if line.ends_with(' ') => Some("it takes no space at the end of a line"),
        () if line.starts_with(' ') => Some("it takes no space at the beginning"),
        () if has_short_float => Some("it takes no `1.` and no `.5`"),
        () if line.contains("E") || line.contains('e') => Some("it is stricter about exponents"),
        () if line.contains('\\') => Some("it reads `\\\\` as an escape and refuses others"),
        () => None,
    }
}

#[test]
fn differences_from_the_crate_are_explained() {
    let mut random = Rng::with_seed(20_261_123);
    let mut scanner = Scanner::new(Precision::Nanoseconds);
    let (mut both, mut neither, mut explained) = (0, 0, 0);
    for _ in 0..200_000 {
        let line = any_line(&mut random);
        let ours = scanner.lines(line.as_bytes(), false).next();
        let theirs = influxdb_line_protocol::parse_lines(&line).next();
        match (ours, theirs) {
            (Some(Ok(_)), Some(Ok(_))) => both += 1,
            (Some(Err(_)), Some(Err(_))) | (None, _) => neither += 1,
            (Some(Err(refused)), _) => {
                let known = ONLY_THE_CRATE.iter().any(|(reason, _)| *reason == refused.reason);
                assert!(known, "only the crate takes {line:?}; we refuse it: {}", refused.reason.name());
                explained += 1;
            }
            (Some(Ok(_)), _) => {
                assert!(why_only_we(&line).is_some(), "only we take {line:?}");
                explained += 1;
            }
        }
    }
    assert!(both > 20_000 && neither > 20_000 && explained > 1_000, "{both} {neither} {explained}");
}

/// A line of likely and unlikely parts, without line feeds.
fn any_line(random: &mut Rng) -> String {
    const NAMES: &[&str] =
        &["cpu", "a", "b", "a\\ b", "a\\,b", "a\\=b", "a\\b", "a\\\\b", "time", "ä", "\"q\"", "_field"];
    const VALUES: &[&str] = &[
        "1",
        "1.5",
        "-1",
        "1.",
        ".5",
        "1i",
        "-1i",
        "1u",
        "1e5",
        "1E-5",
        "1e999",
        "t",
        "FALSE",
        "yes",
        "\"s\"",
        "\"a b,c=d\"",
        "\"\\\"\"",
        "\"\\\\\"",
        "\"open",
        "",
        "9223372036854775808i",
        "1.1.1",
        "+1",
    ];
    const TIMES: &[&str] = &["", " 1", " 1795400726000000000", " -1", " 9223372036854775807", " x", " ", " 1 2"];
    let pick = |random: &mut Rng, from: &[&'static str]| from[random.usize(..from.len())];
    let mut line = pick(random, NAMES).to_owned();
    for _ in 0..random.usize(..3) {
        line += &format!(",{}={}", pick(random, NAMES), pick(random, NAMES));
    }
    line.push(' ');
    for place in 0..random.usize(1..3) {
        let comma = if place > 0 { "," } else { "" };
        line += &format!("{comma}{}={}", pick(random, NAMES), pick(random, VALUES));
    }
    line += pick(random, TIMES);
    if random.u8(..4) == 0 {
        let specials: Vec<char> = ",= \\\"\t\u{7f}".chars().collect();
        let places: Vec<usize> = line.char_indices().map(|(place, _)| place).collect();
        line.insert(places[random.usize(..places.len())], specials[random.usize(..specials.len())]);
    }
    line
}
