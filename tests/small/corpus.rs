//! A corpus of line protocol: every line that all parsers accept is accepted, every input that
//! holds a line to be refused has one refused, and where parsers differ the decision is the
//! reviewed table's.
//!
//! The project's own corpus is `tests/corpus`. The public one, of thousands of rows, stays outside
//! the project: it is read from `TWINFLUX_CORPUS`, or from `../shared/corpus`, and its tests are
//! left out where it is not at hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use twinflux::protocol::{Precision, Refusal, Scanner};

use crate::left_out::left_out;

/// The decisions where parsers differ: the reasons for which an input that some parser takes is
/// refused, each with why. Such a row refused for any other reason is a surprise. (A row that is
/// accepted must be one that InfluxDB 1.x takes, or takes once the CR before each LF is gone.)
const DECISIONS: &[(Refusal, &str)] = &[
    (Refusal::AmbiguousEscape, "an even run of backslashes before a delimiter: the v3 crate reads it otherwise"),
    (Refusal::ControlByte, "control bytes outside strings: the Go library refuses them, Telegraf takes some as spaces"),
    (Refusal::DuplicateTag, "InfluxDB 1.x and 2.x refuse the line"),
    (Refusal::InvalidTagValue, "only the v3 crate takes a tag without a value, or `=` in one"),
    (Refusal::InvalidUtf8, "500 for the whole request in InfluxDB 1.6.7 where it is in a measurement or field key"),
    (Refusal::MissingField, "only the v3 crate takes a trailing comma; or Telegraf alone reads a tab as the separator"),
    (Refusal::NumberOutOfRange, "only the v3 crate takes a float that overflows"),
    (Refusal::ReservedTag, "InfluxDB 2.x refuses the line, 1.x drops the point"),
    (Refusal::UnsignedInteger, "stock InfluxDB 1.x does not know unsigned integers"),
];

struct Row {
    input: Vec<u8>,
    precision: Precision,
    suggest: String,
    influx1_accepts: bool,
}

#[test]
fn verdicts_are_the_corpuss() {
    check_verdicts(&own_corpus());
}

#[test]
fn verdicts_are_the_public_corpuss() {
    match public_corpus() {
        Some(rows) => check_verdicts(&rows),
        None => left_out("verdicts_are_the_public_corpuss", "TWINFLUX_CORPUS names no lp-corpus.jsonl"),
    }
}

#[test]
fn what_is_accepted_is_accepted_again() {
    check_again(&own_corpus());
}

#[test]
fn what_is_accepted_of_the_public_corpus_is_accepted_again() {
    match public_corpus() {
        Some(rows) => check_again(&rows),
        None => {
            left_out(
                "what_is_accepted_of_the_public_corpus_is_accepted_again",
                "TWINFLUX_CORPUS names no lp-corpus.jsonl",
            );
        }
    }
}

fn check_verdicts(rows: &[Row]) {
    let mut wrong = Vec::new();
    let mut decided = BTreeMap::new();
    for row in rows {
        let refused = refusals(&row.input, row.precision);
        let surprise = match row.suggest.as_str() {
            "must_accept" => !refused.is_empty(),
            "must_reject" => refused.is_empty(),
            "either" if refused.is_empty() => !row.influx1_accepts && !row.input.contains(&b'\r'),
            "either" => refused.iter().any(|reason| !DECISIONS.iter().any(|(known, _)| known == reason)),
            other => panic!("unknown suggestion {other}"),
        };
        if surprise {
            wrong.push(format!("{} {refused:?} {}", row.suggest, row.input.escape_ascii()));
        }
        if row.suggest == "either" {
            for reason in refused {
                *decided.entry(reason.name()).or_insert(0) += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    for (reason, why) in DECISIONS {
        assert!(decided.contains_key(reason.name()), "no row needs the decision {}: {why}", reason.name());
    }
}

fn check_again(rows: &[Row]) {
    let mut lines = 0;
    for row in rows {
        let mut scanner = Scanner::new(row.precision);
        let accepted: Vec<Vec<u8>> =
            scanner.lines(&row.input, false).flatten().map(|line| line.bytes.to_vec()).collect();
        let joined = accepted.join(&b'\n');
        let again: Vec<Vec<u8>> =
            scanner.lines(&joined, false).map(|line| line.expect("accepted before").bytes.to_vec()).collect();
        assert_eq!(accepted, again);
        lines += accepted.len();
    }
    assert!(lines >= rows.len() / 20, "{lines} lines of {} rows are accepted", rows.len());
}

fn refusals(input: &[u8], precision: Precision) -> Vec<Refusal> {
    Scanner::new(precision).lines(input, false).filter_map(Result::err).map(|refused| refused.reason).collect()
}

fn own_corpus() -> Vec<Row> {
    let rows: Vec<Row> = include_str!("../corpus/lines.jsonl").lines().map(read_row).collect();
    assert!(rows.len() > 80);
    rows
}

/// None where it is not at hand. Where it was asked for, it must be.
fn public_corpus() -> Option<Vec<Row>> {
    let asked = std::env::var_os("TWINFLUX_CORPUS").filter(|path| !path.is_empty()).map(PathBuf::from);
    let usual = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/lp-corpus.jsonl");
    let path = asked.clone().unwrap_or_else(usual);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.lines().map(read_row).collect()),
        Err(error) => {
            assert!(asked.is_none(), "{}: {error}", path.display());
            None
        }
    }
}

fn read_row(line: &str) -> Row {
    let row: serde_json::Value = serde_json::from_str(line).expect("a row of JSON");
    let input = match row["input"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => BASE64_STANDARD.decode(row["input_b64"].as_str().expect("an input")).expect("base64"),
    };
    let verdict = row["influx1"].as_bool().or_else(|| row["verdicts"]["influx1"][0].as_bool());
    Row {
        input,
        precision: row["precision"].as_str().unwrap_or("ns").parse().expect("a precision"),
        suggest: row["suggest"].as_str().expect("a suggestion").to_owned(),
        influx1_accepts: verdict.expect("a verdict"),
    }
}
