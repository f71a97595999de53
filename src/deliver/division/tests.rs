//! Divisions against models of backends: every line that a backend accepts is delivered, every
//! other one is rejected with its class, and the number of requests stays within its bound.

mod sizes;

use std::collections::HashSet;

use super::*;
use crate::batch::{Batch, Destination, Received};
use crate::deliver::outcome::of_answer;
use crate::journal::{BackendConfig, BackendId, Journal, Limits};
use crate::protocol::Precision;

/// Makes a lease of these lines, in records of so many.
fn lease(lines: &[String], of_record: usize) -> Lease {
    let backend = BackendConfig { name: "a".to_owned(), address: String::new(), replay_share: 0.5 };
    let journal = Journal::new(1 << 30, &[backend]);
    let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
    for lines in lines.chunks(of_record) {
        let bytes: Bytes = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into();
        let (capacity, received) = (bytes.len(), Received::now());
        let destination = Arc::clone(&destination);
        journal.append(Batch::new(destination, bytes, lines.len() as u64, received).with_capacity(capacity));
    }
    let limits = Limits { lines: u64::MAX, bytes: u64::MAX, linger: std::time::Duration::ZERO };
    journal.reader(BackendId::new(0)).try_next(&limits).expect("a lease")
}

/// A model of a backend: what it stores, and what it answers.
#[derive(Default)]
struct Model {
    style: Style,
    /// Lines that contain this conflict in the shard of their last digit.
    bad: &'static str,
    class: &'static str,
    stored: HashSet<String>,
    requests: u64,
    /// Maximum size of a request, in bytes.
    max_bytes: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Style {
    /// 1.x: reports one shard's losses, and may omit those of later shards.
    #[default]
    Partial,
    /// 2.x, 3.x: stores nothing if a line is bad, and names the first one.
    AllOrNothing,
    /// Stores nothing and names nothing.
    Silent,
}

impl Model {
    fn answer(&mut self, lines: &[&str]) -> Outcome {
        self.requests += 1;
        let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
        if self.max_bytes > 0 && bytes > self.max_bytes {
            return outcome(413, "");
        }
        let is_bad = |line: &&&str| !self.bad.is_empty() && line.contains(self.bad);
        let Some(first) = lines.iter().find(is_bad) else {
            self.stored.extend(lines.iter().map(|line| (*line).to_owned()));
            return outcome(204, "");
        };
        match self.style {
            Style::Partial => {
                let shard = |line: &str| line.bytes().last();
                let of_shard = || lines.iter().filter(|line| shard(line) == shard(first));
                let dropped = of_shard().filter(is_bad).count();
                // One shard is reported; the other shards' lines may or may not be stored.
                let stored: Vec<String> = lines
                    .iter()
                    .filter(|line| !is_bad(line) && (shard(line) == shard(first) || fastrand::bool()))
                    .map(|line| (*line).to_owned())
                    .collect();
                self.stored.extend(stored);
                outcome(
                    400,
                    &serde_json::json!({ "error": format!("partial write: {} dropped={dropped}", self.class) })
                        .to_string(),
                )
            }
            Style::AllOrNothing => {
                let text = format!("unable to parse '{first}': bad");
                outcome(400, &serde_json::json!({ "code": "invalid", "message": text }).to_string())
            }
            Style::Silent => outcome(400, &serde_json::json!({ "error": self.class }).to_string()),
        }
    }
}

fn outcome(status: u16, body: &str) -> Outcome {
    let code = http::StatusCode::from_u16(status).expect("a status");
    let fate = of_answer(code, None, body, std::time::SystemTime::UNIX_EPOCH);
    Outcome::of_answer(fate, format!("{status}: {body}"), status, body.to_owned())
}

/// Sends everything. Returns the last step, and the rejected lines.
fn run(division: &mut Division, mut answer: impl FnMut(&[&str]) -> Outcome) -> Step {
    division.allow_poison(10);
    for _ in 0..100_000 {
        let Some(parts) = division.next() else { return Step::Done };
        let text: Vec<u8> = parts.concat();
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.ends_with('\n'), "whole lines");
        let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(&text).split('\n').collect();
        let out = division.out.as_ref().expect("it is on its way");
        let meant: Vec<&[u8]> = out.lines.iter().map(|line| division.bytes(*line)).collect();
        assert_eq!(lines.iter().map(|line| line.as_bytes()).collect::<Vec<_>>(), meant, "these lines and no others");
        match division.conclude(&answer(&lines)) {
            Step::Next | Step::Pause => {}
            ended => return ended,
        }
    }
    panic!("it never ends");
}

fn refused(division: &Division) -> HashSet<String> {
    division.refused().iter().map(|line| String::from_utf8(line.line.to_vec()).expect("UTF-8")).collect()
}

/// Makes so many lines, of which these are bad.
fn lines(count: usize, bad: &HashSet<usize>) -> Vec<String> {
    (0..count)
        .map(|line| if bad.contains(&line) { format!("m v={line}i {line}") } else { format!("m v={line} {line}") })
        .collect()
}

const CONFLICT: &str =
    "field type conflict: input field \"v\" on measurement \"m\" is type integer, already exists as type float";

#[test]
fn each_bad_line_is_refused_and_each_other_one_is_stored_within_the_bound() {
    fastrand::seed(7);
    for round in 0..60 {
        for style in [Style::Partial, Style::AllOrNothing, Style::Silent] {
            for class in [CONFLICT, "points beyond retention policy", "something new"] {
                let count = fastrand::usize(2..400);
                let most = [1, 5, 50, count / 2][round % 4].min(count / 2);
                // Lines beyond retention are the oldest.
                let is_old = class.contains("retention");
                let bad: HashSet<usize> =
                    (0..most).map(|line| if is_old { line } else { fastrand::usize(..count) }).collect();
                let lines = lines(count, &bad);
                let mut model = Model { style, bad: "i ", class, ..Model::default() };
                let all: Vec<&str> = lines.iter().map(String::as_str).collect();
                let first = model.answer(&all);
                let (mut division, step) = Division::of_refused(lease(&lines, 37), &first);
                assert!(matches!(step, Step::Next | Step::Done), "{step:?}");
                let ended = if step == Step::Done { step } else { run(&mut division, |lines| model.answer(lines)) };
                let about = format!("{style:?} {class} {count} lines, bad {bad:?}");
                assert_eq!(ended, Step::Done, "{about}");
                let (bad_lines, good): (HashSet<String>, HashSet<String>) =
                    lines.iter().cloned().partition(|line| line.contains("i "));
                assert_eq!(refused(&division), bad_lines, "{about}");
                assert_eq!(division.refused.len(), bad_lines.len(), "{about}: each once");
                assert_eq!(model.stored, good, "{about}");
                #[expect(clippy::cast_precision_loss, reason = "some hundred")]
                let (k, n) = (bad_lines.len() as f64, count as f64);
                #[expect(clippy::cast_precision_loss, reason = "some hundred")]
                let requests = division.requests as f64;
                assert!(requests <= 2.0 * k * ((n / k).log2() + 2.0), "{about}: {requests} requests");
            }
        }
    }
}

#[test]
fn names_that_mislead_cost_requests_and_no_line() {
    for bad in [0, 100, 299] {
        let lines = lines(300, &HashSet::from([bad]));
        // Every answer names another line.
        let answer = |lines: &[&str]| match lines.iter().find(|line| !line.contains("i ")) {
            Some(innocent) if lines.iter().any(|line| line.contains("i ")) => {
                outcome(400, &serde_json::json!({ "error": format!("unable to parse '{innocent}': x") }).to_string())
            }
            None => outcome(400, r#"{"error":"unable to parse 'x': x"}"#),
            Some(_) => outcome(204, ""),
        };
        let all: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (mut division, _) = Division::of_refused(lease(&lines, 100), &answer(&all));
        assert_eq!(run(&mut division, answer), Step::Done);
        assert_eq!(refused(&division), HashSet::from([lines[bad].clone()]));
        assert!(division.requests < 100, "{}", division.requests);
    }
}

#[test]
fn a_line_that_only_others_can_judge_is_given_back() {
    // One is a known rejection. The cause of the other is unknown.
    let lines = ["m v=1i 1".to_owned(), "m v=2 2".to_owned()];
    let answer = |lines: &[&str]| match lines {
        ["m v=1i 1"] | [_, _] => {
            outcome(400, &serde_json::json!({ "error": "unable to parse 'm v=1i 1': x" }).to_string())
        }
        _ => outcome(400, r#"{"error":"something new"}"#),
    };
    let all: Vec<&str> = lines.iter().map(String::as_str).collect();
    for first in [&all[..], &all[..1]] {
        let (mut division, _) = Division::of_refused(lease(&lines, 1), &answer(first));
        assert_eq!(run(&mut division, answer), Step::Hold);
        assert!(!division.has_progress(), "lines that come later may tell");
    }
}

#[test]
fn what_refuses_every_line_alike_is_held_and_not_ground_down() {
    for text in ["something new", "<html>"] {
        let lines = lines(1000, &HashSet::new());
        let answer = || outcome(400, &serde_json::json!({ "error": text }).to_string());
        let (mut division, _) = Division::of_refused(lease(&lines, 100), &answer());
        assert_eq!(run(&mut division, |_| answer()), Step::Hold);
        // Nine halvings lead to one line; then a few others are tried.
        assert_eq!((division.refused.len(), division.requests), (0, 9 + u64::from(MAX_PROBES)));
        assert!(!division.has_progress());
    }
    // The same with 413: a backend that accepts no single line accepts nothing.
    let lines = lines(1000, &HashSet::new());
    let (mut division, _) = Division::of_refused(lease(&lines, 100), &outcome(413, ""));
    assert_eq!(run(&mut division, |_| outcome(413, "")), Step::Hold);
    assert!(division.refused.is_empty() && division.requests < 25);
}

#[test]
fn a_known_refusal_of_every_line_is_final() {
    let bad: HashSet<usize> = (0..500).collect();
    for (class, most_requests) in [(CONFLICT, 20), ("max-series-per-database limit exceeded: (3)", 20)] {
        let lines: Vec<String> = bad.iter().map(|line| format!("m v={line}i 7")).collect();
        let mut model = Model { bad: "i ", class, ..Model::default() };
        let all: Vec<&str> = lines.iter().map(String::as_str).collect();
        let first = model.answer(&all);
        let (mut division, step) = Division::of_refused(lease(&lines, 100), &first);
        let ended = if step == Step::Done { step } else { run(&mut division, |lines| model.answer(lines)) };
        assert_eq!((ended, division.refused.len()), (Step::Done, 500), "{class}");
        assert!(division.requests <= most_requests);
    }
}

#[test]
fn a_line_that_always_breaks_is_found_and_the_others_are_delivered() {
    for failure in [Fate::Failed, Fate::Stalled, Fate::Unexpected] {
        for poison in [vec![0], vec![999], vec![17, 500, 501]] {
            fastrand::seed(poison[0] as u64);
            let bad: HashSet<usize> = poison.iter().copied().collect();
            let lines = lines(1000, &bad);
            let mut stored = HashSet::new();
            let mut answer = |lines: &[&str]| {
                if lines.iter().any(|line| line.contains("i ")) {
                    return Outcome::new(failure, "broke".to_owned());
                }
                stored.extend(lines.iter().map(|line| (*line).to_owned()));
                outcome(204, "")
            };
            let mut division = Division::of_suspects(lease(&lines, 100));
            let mut ended = run(&mut division, &mut answer);
            // The first line that was tried may have been the bad one.
            while ended == Step::Fail && !division.has_progress() {
                division = Division::of_suspects(lease(&lines, 100));
                ended = run(&mut division, &mut answer);
            }
            assert_eq!(ended, Step::Done, "{failure:?} {poison:?}");
            let expected: HashSet<String> = poison.iter().map(|index| lines[*index].clone()).collect();
            assert_eq!(refused(&division), expected, "{failure:?}");
            assert!(division.refused.iter().all(|line| line.class == Rejection::Poison));
            assert_eq!(
                (stored.len(), division.poisoned()),
                (1000 - poison.len(), u32::try_from(poison.len()).expect("few"))
            );
        }
    }
}

#[test]
fn a_backend_that_breaks_for_good_costs_no_line_whenever_it_does() {
    let lines = lines(300, &HashSet::from([100]));
    for works_for in 0..60 {
        fastrand::seed(works_for);
        let mut division = Division::of_suspects(lease(&lines, 100));
        let mut requests = 0;
        let step = run(&mut division, |lines| {
            requests += 1;
            if requests > works_for || lines.iter().any(|line| line.contains("i ")) {
                return Outcome::new(Fate::Failed, "broke".to_owned());
            }
            outcome(204, "")
        });
        let refused = refused(&division);
        assert!(refused.is_empty() || refused == HashSet::from([lines[100].clone()]), "{works_for}: {refused:?}");
        assert!(step == Step::Fail || (step == Step::Done && refused.len() == 1), "{works_for}: {step:?}");
    }
}

#[test]
fn no_more_lines_are_given_up_for_silence_than_are_allowed() {
    let bad: HashSet<usize> = (0..100).map(|index| index * 3).collect();
    let lines = lines(1000, &bad);
    let answer = |lines: &[&str]| {
        if lines.iter().any(|line| line.contains("i ")) {
            return Outcome::new(Fate::Failed, "broke".to_owned());
        }
        outcome(204, "")
    };
    let mut division = Division::of_suspects(lease(&lines, 100));
    while run(&mut division, answer) == Step::Fail {
        division = Division::of_suspects(lease(&lines, 100));
    }
    assert_eq!(division.refused.len(), 10);
    // Once more lines are allowed, the division continues where it was.
    assert_eq!(run(&mut division, answer), Step::Hold);
    assert_eq!(division.refused.len(), 20);
}

#[test]
fn a_failure_that_is_no_lines_fault_is_waited_for_and_nothing_is_forgotten() {
    fastrand::seed(2);
    let lines = lines(200, &HashSet::from([7, 150]));
    let mut model = Model { bad: "i ", class: "something new", style: Style::Silent, ..Model::default() };
    let all: Vec<&str> = lines.iter().map(String::as_str).collect();
    let first = model.answer(&all);
    let (mut division, _) = Division::of_refused(lease(&lines, 100), &first);
    let mut failures = 0;
    while run(&mut division, |lines| {
        if fastrand::u8(..3) == 0 {
            failures += 1;
            return Outcome::new(
                [Fate::Down, Fate::Busy { retry_after: None }, Fate::Transient][failures % 3],
                String::new(),
            );
        }
        model.answer(lines)
    }) == Step::Fail
    {}
    assert!(failures > 0);
    assert_eq!((refused(&division).len(), model.stored.len()), (2, 198));
}

#[test]
fn few_bad_lines_among_five_thousand_cost_few_requests() {
    fastrand::seed(13);
    for style in [Style::Partial, Style::AllOrNothing, Style::Silent] {
        for bad_lines in [1, 5, 50] {
            let mut bad = HashSet::new();
            while bad.len() < bad_lines {
                bad.insert(fastrand::usize(..5000));
            }
            let lines = lines(5000, &bad);
            let class = if style == Style::Silent { "something new" } else { CONFLICT };
            let mut model = Model { style, bad: "i ", class, ..Model::default() };
            let all: Vec<&str> = lines.iter().map(String::as_str).collect();
            let first = model.answer(&all);
            let (mut division, _) = Division::of_refused(lease(&lines, 500), &first);
            assert_eq!(run(&mut division, |lines| model.answer(lines)), Step::Done);
            assert_eq!((division.refused.len(), model.stored.len()), (bad_lines, 5000 - bad_lines));
            eprintln!("{style:?}: {bad_lines} bad lines, {} further requests", division.requests);
            #[expect(clippy::cast_precision_loss, reason = "some thousand")]
            let (k, requests) = (bad_lines as f64, division.requests as f64);
            assert!(requests <= 2.0 * k * ((5000.0 / k).log2() + 2.0), "{style:?}: {requests}");
        }
    }
}

/// Makes so many lines of the same length.
fn alike(count: usize) -> Vec<String> {
    (0..count).map(|line| format!("m v={line:03} {line:03}")).collect()
}

/// Returns the lines that are sent next.
fn sent(division: &mut Division) -> Vec<String> {
    let text = String::from_utf8(division.next().expect("something is left").concat()).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

fn broken() -> Outcome {
    Outcome::new(Fate::Failed, "broke".to_owned())
}

#[test]
fn parts_are_as_large_as_they_may_be_and_lines_that_follow_each_other_are_one_piece() {
    let lines = alike(100);
    let bytes = lines[0].len() as u64 + 1;
    for (most_lines, expected) in [(30, vec![30, 30, 30, 10]), (1, vec![1; 100]), (100, vec![100])] {
        for spare in [0, bytes - 1] {
            let mut division = Division::new(lease(&lines, 50), bytes * most_lines + spare);
            let mut counts = Vec::new();
            let step = run(&mut division, |lines| {
                counts.push(lines.len());
                outcome(204, "")
            });
            assert_eq!((step, counts), (Step::Done, expected.clone()), "{most_lines} lines");
            assert!(division.has_progress());
        }
    }
    let pieces = Division::new(lease(&lines, 50), u64::MAX).next().expect("the whole");
    assert_eq!(pieces.len(), 2, "one of each record");
}

#[test]
fn a_suspect_line_that_is_alone_is_sent_once() {
    let mut division = Division::of_suspects(lease(&alike(1), 1));
    assert_eq!(run(&mut division, |_| outcome(204, "")), Step::Done);
    assert_eq!(division.requests, 1);
}

#[test]
fn once_a_size_is_known_no_request_is_larger_or_smaller_than_it_need_be() {
    let lines = alike(8);
    let max_bytes = 2 * (lines[0].len() + 1);
    let mut model = Model { max_bytes, ..Model::default() };
    let (mut division, _) = Division::of_refused(lease(&lines, 8), &outcome(413, ""));
    assert_eq!(run(&mut division, |lines| model.answer(lines)), Step::Done);
    assert_eq!(division.learned_bytes(), Some(max_bytes as u64));
    assert_eq!(division.requests, 5, "four lines are refused, and then there are two in each");
}

#[test]
fn a_part_that_breaks_where_another_one_of_its_size_passes_tells_nothing_of_sizes() {
    let lines = alike(4);
    let mut division = Division::new(lease(&lines, 4), 2 * (lines[0].len() as u64 + 1));
    assert_eq!(sent(&mut division), lines[..2]);
    assert_eq!(division.conclude(&outcome(204, "")), Step::Next);
    assert_eq!(sent(&mut division), lines[2..]);
    assert_eq!(division.conclude(&broken()), Step::Pause);
    assert_eq!(division.learned_bytes(), None);
}

#[test]
fn what_is_no_lines_fault_has_the_same_part_sent_again_also_where_others_passed() {
    let lines = alike(4);
    let mut division = Division::new(lease(&lines, 4), 2 * (lines[0].len() as u64 + 1));
    sent(&mut division);
    division.conclude(&outcome(204, ""));
    for fate in
        [Fate::Transient, Fate::Busy { retry_after: None }, Fate::Down, Fate::HoldDestination, Fate::HoldBackend]
    {
        assert_eq!(sent(&mut division), lines[2..], "{fate:?}");
        assert_eq!(division.conclude(&Outcome::new(fate, String::new())), Step::Fail, "{fate:?}");
    }
}

#[test]
fn after_a_few_failures_in_a_row_a_line_that_passed_shows_whether_any_still_does() {
    let lines = alike(1000);
    let mut division = Division::of_suspects(lease(&lines, 100));
    let passed = sent(&mut division);
    division.conclude(&outcome(204, ""));
    for _ in 0..MAX_FAILURES_IN_A_ROW {
        assert!(sent(&mut division).len() > 1);
        assert_eq!(division.conclude(&broken()), Step::Pause);
    }
    assert_eq!(sent(&mut division), passed);
    assert_eq!(division.conclude(&broken()), Step::Fail);
}

#[test]
fn a_line_is_given_up_when_it_failed_three_times_and_another_one_passed_in_between() {
    let lines = alike(2);
    let mut division = Division::new(lease(&lines, 2), 1);
    division.allow_poison(1);
    assert_eq!(sent(&mut division), lines[..1]);
    assert_eq!(division.conclude(&outcome(204, "")), Step::Next);
    for _ in 0..2 {
        assert_eq!(sent(&mut division), lines[1..]);
        assert_eq!(division.conclude(&broken()), Step::Pause);
        assert_eq!(sent(&mut division), lines[..1]);
        assert_eq!((division.conclude(&outcome(204, "")), division.poisoned()), (Step::Next, 0));
    }
    assert_eq!(sent(&mut division), lines[1..]);
    assert_eq!((division.conclude(&broken()), division.poisoned()), (Step::Done, 1));
}
