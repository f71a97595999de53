//! Tests of the request sizes that a division learns.

use super::*;

#[test]
fn a_size_is_learned_and_only_a_line_too_large_alone_is_refused() {
    for max_bytes in [40, 400, 4000] {
        let mut lines = lines(1000, &HashSet::new());
        lines[500] = format!("m s=\"{}\" 1", "x".repeat(5000));
        let mut model = Model { max_bytes, ..Model::default() };
        let (mut division, _) = Division::of_refused(lease(&lines, 100), &outcome(413, ""));
        assert_eq!(run(&mut division, |lines| model.answer(lines)), Step::Done);
        assert_eq!(refused(&division), HashSet::from([lines[500].clone()]));
        assert_eq!(model.stored.len(), 999);
        let learned = division.learned_bytes().expect("a size");
        assert!(learned <= max_bytes as u64 && learned * 3 > max_bytes as u64, "{learned} of {max_bytes}");
    }
}

#[test]
fn connections_that_break_for_large_requests_teach_their_size_and_cost_no_line() {
    let lines = lines(2000, &HashSet::new());
    let mut stored = HashSet::new();
    let mut division = Division::of_suspects(lease(&lines, 100));
    let step = run(&mut division, |lines| {
        if lines.iter().map(|line| line.len() + 1).sum::<usize>() > 5000 {
            return Outcome::new(Fate::Failed, "reset".to_owned());
        }
        stored.extend(lines.iter().map(|line| (*line).to_owned()));
        outcome(204, "")
    });
    assert_eq!((step, stored.len(), division.refused.len()), (Step::Done, 2000, 0));
    assert!(division.learned_bytes().is_some_and(|bytes| (1500..=5000).contains(&bytes)));
}

#[test]
fn one_request_that_breaks_by_chance_teaches_no_size() {
    let lines = lines(2000, &HashSet::new());
    for breaks_at in 2..40 {
        fastrand::seed(breaks_at);
        let mut count = 0;
        let mut division = Division::of_suspects(lease(&lines, 100));
        let step = run(&mut division, |_| {
            count += 1;
            if count == breaks_at { Outcome::new(Fate::Failed, "reset".to_owned()) } else { outcome(204, "") }
        });
        assert_eq!((step, division.learned_bytes()), (Step::Done, None), "request {breaks_at}");
    }
}
