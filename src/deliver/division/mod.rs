//! One lease delivered in parts: what is wrong with a request is found down to the line, and everything else is delivered.
//!
//! A pure state machine. It says which lines to send next ([`Division::next`]), and learns from each outcome
//! ([`Division::conclude`]). The rules:
//!
//! * **Only a success acknowledges lines.** What an answer says of a request's other lines is not believed: InfluxDB 1.x
//!   names one shard's losses and leaves out another's.
//! * Lines that an answer names ([`blame`]) are sent apart from the others; where it names none, halves are.
//! * **A refusal that InfluxDB is known to give for lines is final** for a line alone, and for a part of which the answer
//!   counts every line. Any other refusal is final for one line only, and only where another one passes meanwhile; where none
//!   does, the destination is to be held.
//! * An error that tells nothing (500, a reset, silence) may be a line's fault. That is found out only while other lines pass,
//!   and a line is given up for it only when it failed three times, and a line that passes was tried after the first two.
//!
//! Bounds: for k refused lines among n, at most 2k(log2(n/k) + 2) requests beside the first, as long as names do not mislead;
//! [`MOST_PROBES`] more where nothing passes at first. Holds no more than its lease, and 16 bytes for each line.

mod blame;
mod rule;

use std::sync::Arc;

use bytes::Bytes;

use super::Outcome;
use super::outcome::Fate;
use crate::journal::{Lease, Rejection};
use crate::protocol::line::Scanner;
pub(super) use rule::Rule;

/// How much of an answer is kept with the lines that it refused, in bytes.
const ANSWER_BYTES: usize = 4096;
/// Failures that tell nothing in a row, at most, before it is tried whether lines still pass.
const FAILURES_IN_A_ROW: u32 = 3;
/// Lines that are tried, at most, for whether anything passes, before their destination is held.
const MOST_PROBES: u32 = 8;
/// Parts that must have broken before their size is taken for the cause: a failure may be chance.
const LEAST_BREAKS: u32 = 2;
/// No server's limit is below this, in bytes, unless it says so.
const LEAST_BREAKING_BYTES: u64 = 2 * 1024;
/// Answers in a row whose names are gone by while the other lines go on being refused: one for each kind of mistake that a
/// request may hold. Names may mislead, and halves never do.
const MOST_MISLED: u32 = 4;

/// A lease that is delivered in parts.
#[derive(Debug)]
pub(super) struct Division {
    lease: Lease,
    lines: Vec<Line>,
    /// To be sent, next last.
    parts: Vec<Part>,
    /// On its way.
    out: Option<Part>,
    refused: Vec<Refused>,
    /// A line that passed.
    passed: Option<u32>,
    /// The largest part that passed, and the smallest that was too large or broke, in bytes.
    sizes: (u64, u64),
    /// Whether an answer said that a part was too large.
    is_told: bool,
    /// Parts of several lines that broke.
    breaks: u32,
    /// Lines that were tried for whether anything passes.
    probes: u32,
    /// Failures that tell nothing, since something passed.
    failures: u32,
    /// Lines that may still be given up for them.
    poison_left: u32,
    poisoned: u32,
    #[cfg(test)]
    requests: u64,
}

/// A line's place: its record, and where it stands there, without its line feed.
#[derive(Clone, Copy, Debug)]
struct Line {
    record: u32,
    start: u32,
    end: u32,
}

/// Lines that are sent together.
#[derive(Clone, Debug)]
struct Part {
    /// In order.
    lines: Vec<u32>,
    /// A line that passed before, which tells whether any still does.
    is_control: bool,
    /// How often it failed without a word.
    failures: u32,
    /// How often in a row an answer named lines that were then sent apart, and these were refused all the same.
    misled: u32,
}

/// A line that the backend will never take.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// The line, without its line feed.
    pub line: Bytes,
    /// Why.
    pub class: Rejection,
    /// The status of the answer; none where there was none.
    pub status: Option<u16>,
    /// The answer's beginning.
    pub answer: Arc<str>,
}

/// What to do after an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send the next part.
    Next,
    /// Send the next part after a pause: the outcome was a failure.
    Pause,
    /// Every line is delivered or refused.
    Done,
    /// The failure is not a line's: go by the outcome's fate. The part is sent again first.
    Fail,
    /// The destination is to be held: no line passes, and why is not known; or more lines than are allowed would be given up.
    Hold,
}

impl Division {
    /// Of a request that was refused, or that is larger than the backend takes: in parts of at most so many bytes.
    pub(super) fn new(lease: Lease, most_bytes: u64) -> Self {
        let lines = lines_of(&lease);
        let mut division = Self {
            lines,
            lease,
            parts: Vec::new(),
            out: None,
            refused: Vec::new(),
            passed: None,
            sizes: (0, u64::MAX),
            is_told: false,
            breaks: 0,
            probes: 0,
            failures: 0,
            poison_left: 0,
            poisoned: 0,
            #[cfg(test)]
            requests: 0,
        };
        let mut parts: Vec<Part> = Vec::new();
        let mut bytes = u64::MAX;
        for line in 0..u32::try_from(division.lines.len()).unwrap_or(u32::MAX) {
            let length = division.bytes_of(&[line]);
            bytes = bytes.saturating_add(length);
            match parts.last_mut().filter(|_| bytes <= most_bytes) {
                Some(part) => part.lines.push(line),
                None => {
                    bytes = length;
                    parts.push(Part::open(vec![line]));
                }
            }
        }
        parts.reverse();
        division.parts = parts;
        division
    }

    /// Of a request that failed again and again for no reason that was told: one line first, which shows whether any passes.
    pub(super) fn of_suspects(lease: Lease) -> Self {
        let mut division = Self::new(lease, u64::MAX);
        if let Some(whole) = division.parts.last_mut().filter(|whole| whole.lines.len() > 1) {
            let any = fastrand::usize(..whole.lines.len());
            let line = whole.lines.remove(any);
            division.parts.push(Part::open(vec![line]));
        }
        division
    }

    /// Of a request with lines that look like those which were refused: these are sent apart.
    ///
    /// # Errors
    /// The lease, if no line does.
    pub(super) fn by_rule(lease: Lease, rule: &Rule) -> Result<Self, Lease> {
        let mut division = Self::new(lease, u64::MAX);
        let lines = 0..u32::try_from(division.lines.len()).unwrap_or(u32::MAX);
        let (named, others): (Vec<u32>, Vec<u32>) = lines.partition(|line| rule.names(division.bytes(*line)));
        if named.is_empty() {
            return Err(division.into_lease());
        }
        division.parts = [named, others].into_iter().filter(|lines| !lines.is_empty()).map(Part::open).collect();
        Ok(division)
    }

    /// The request of which the whole was the first part has had this outcome.
    pub(super) fn of_refused(lease: Lease, outcome: &Outcome) -> (Self, Step) {
        let mut division = Self::new(lease, u64::MAX);
        division.out = division.parts.pop();
        let step = division.conclude(outcome);
        (division, step)
    }

    /// The lines to send next; none where nothing is left.
    pub(super) fn next(&mut self) -> Option<Vec<Bytes>> {
        let mut part = self.parts.pop()?;
        // What is larger than all that passed, where smaller parts than it broke, would break as well.
        while part.lines.len() > 1 && self.learned_bytes().is_some_and(|most| self.bytes_of(&part.lines) > most) {
            let (first, second) = halves(&part.lines);
            self.parts.push(Part::open(second));
            part = Part::open(first);
        }
        #[cfg(test)]
        {
            self.requests += 1;
        }
        let bytes = self.gather(&part.lines);
        self.out = Some(part);
        Some(bytes)
    }

    /// Learns from what became of the lines that were sent.
    pub(super) fn conclude(&mut self, outcome: &Outcome) -> Step {
        let Some(part) = self.out.take() else { return Step::Next };
        match outcome.fate {
            Fate::Delivered => self.pass(&part),
            // Whatever is not known to be said of lines may be said of anything.
            Fate::Rejected { class, .. } => self.refuse(part, class, class != Rejection::Other, outcome),
            Fate::TooLarge => {
                self.sizes.1 = self.sizes.1.min(self.bytes_of(&part.lines));
                self.is_told = true;
                self.refuse(part, Rejection::TooLarge, false, outcome)
            }
            _ if outcome.may_be_a_lines_fault() => self.suspect(part, outcome),
            _ => self.fail(part),
        }
    }

    /// The lease.
    pub(super) fn into_lease(self) -> Lease {
        self.lease
    }

    /// Whether it can go on by itself. Where no line has passed, other lines of the destination may have to tell whether any
    /// does: then the lease is better given back, although what was found out is to be found out again.
    pub(super) fn has_progress(&self) -> bool {
        self.passed.is_some()
    }

    /// How many lines were given up for failures that tell nothing.
    pub(super) fn poisoned(&self) -> u32 {
        self.poisoned
    }

    /// How many lines may still be given up for failures that tell nothing.
    pub(super) fn allow_poison(&mut self, lines: u32) {
        self.poison_left = lines;
    }

    /// The lease that is divided.
    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What was refused so far.
    pub(super) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// The size that the backend takes, if it turned out that it takes no larger requests: it said so, or larger ones broke
    /// more than once.
    pub(super) fn learned_bytes(&self) -> Option<u64> {
        let (passed, failed) = self.sizes;
        let is_credible = self.is_told || (self.breaks >= LEAST_BREAKS && passed >= LEAST_BREAKING_BYTES);
        // Halves of what failed passed: a single line that passed tells nothing of sizes.
        (is_credible && passed < failed && passed.saturating_mul(3) >= failed).then_some(passed)
    }

    fn pass(&mut self, part: &Part) -> Step {
        self.failures = 0;
        self.passed = part.lines.first().copied();
        self.sizes.0 = self.sizes.0.max(self.bytes_of(&part.lines));
        self.step()
    }

    /// A refusal: the lines that it names are sent apart, or halves are, down to single lines.
    fn refuse(&mut self, part: Part, class: Rejection, is_known: bool, outcome: &Outcome) -> Step {
        let count = part.lines.len();
        if count == 1 && !is_known && self.passed.is_none() {
            return self.try_another(part);
        }
        let lines: Vec<&[u8]> = part.lines.iter().map(|line| self.bytes(*line)).collect();
        let named = blame::named(&outcome.body, &lines);
        let is_each_named = named.one_by_one && named.lines.len() == count;
        if count == 1 || (is_known && (is_each_named || outcome.counts(class, count))) {
            self.give_up(&part.lines, class, outcome);
            return self.step();
        }
        if named.lines.is_empty() || named.lines.len() == count || part.misled >= MOST_MISLED {
            self.halve(&part.lines);
        } else {
            let (named, others) = apart(&part.lines, &named.lines);
            self.parts.push(Part::open(named));
            self.parts.push(Part { misled: part.misled + 1, ..Part::open(others) });
        }
        Step::Next
    }

    fn halve(&mut self, lines: &[u32]) {
        let (first, second) = halves(lines);
        self.parts.push(Part::open(second));
        self.parts.push(Part::open(first));
    }

    /// A failure that is no line's: the same part is to be sent again.
    fn fail(&mut self, part: Part) -> Step {
        self.parts.push(part);
        Step::Fail
    }

    /// One line was refused for a reason that is not known, and nothing passed yet: some others tell whether anything does.
    fn try_another(&mut self, part: Part) -> Step {
        self.parts.push(part);
        let from = fastrand::usize(..self.parts.len());
        let largest = self.parts.iter().enumerate().max_by_key(|(index, part)| (part.lines.len(), *index == from));
        let Some(index) = largest.map(|(index, _)| index).filter(|_| self.probes < MOST_PROBES) else {
            return Step::Hold;
        };
        let lines = &mut self.parts[index].lines;
        if lines.len() == 1 {
            return Step::Hold;
        }
        let line = lines.swap_remove(fastrand::usize(..lines.len()));
        lines.sort_unstable();
        self.probes += 1;
        self.parts.push(Part::open(vec![line]));
        Step::Next
    }

    /// A failure that tells nothing.
    fn suspect(&mut self, mut part: Part, outcome: &Outcome) -> Step {
        self.failures += 1;
        // Without a line that passes, it is the backend that takes nothing now.
        let Some(passed) = self.passed.filter(|_| !part.is_control) else { return self.fail(part) };
        let control = || Part { is_control: true, ..Part::open(vec![passed]) };
        self.sizes.1 = self.sizes.1.min(self.bytes_of(&part.lines));
        self.breaks += u32::from(part.lines.len() > 1);
        if part.lines.len() == 1 {
            part.failures += 1;
            if part.failures > 2 {
                let Some(left) = self.poison_left.checked_sub(1) else {
                    self.parts.push(part);
                    return Step::Hold;
                };
                (self.poison_left, self.poisoned) = (left, self.poisoned + 1);
                self.give_up(&part.lines, Rejection::Poison, outcome);
                return self.step();
            }
            self.parts.push(part);
            self.parts.push(control());
            return Step::Pause;
        }
        self.halve(&part.lines);
        if self.failures >= FAILURES_IN_A_ROW {
            self.parts.push(control());
        }
        Step::Pause
    }

    fn give_up(&mut self, lines: &[u32], class: Rejection, outcome: &Outcome) {
        let answer: Arc<str> = crate::sys::text::cut(outcome.answer(), ANSWER_BYTES).into();
        for line in lines {
            let Line { record, start, end } = self.lines[*line as usize];
            let line = self.lease.records[record as usize].batch.bytes().slice(start as usize..end as usize);
            self.refused.push(Refused { line, class, status: outcome.status, answer: Arc::clone(&answer) });
        }
    }

    fn step(&self) -> Step {
        if self.parts.is_empty() { Step::Done } else { Step::Next }
    }

    fn bytes(&self, line: u32) -> &[u8] {
        let Line { record, start, end } = self.lines[line as usize];
        &self.lease.records[record as usize].batch.bytes()[start as usize..end as usize]
    }

    /// With their line feeds.
    fn bytes_of(&self, lines: &[u32]) -> u64 {
        lines.iter().map(|line| self.bytes(*line).len() as u64 + 1).sum()
    }

    /// The lines' bytes: one piece for lines that follow each other.
    fn gather(&self, lines: &[u32]) -> Vec<Bytes> {
        let mut pieces: Vec<(u32, u32, u32)> = Vec::new();
        for line in lines {
            let Line { record, start, end } = self.lines[*line as usize];
            match pieces.last_mut() {
                Some(piece) if piece.0 == record && piece.2 == start => piece.2 = end + 1,
                _ => pieces.push((record, start, end + 1)),
            }
        }
        let records = &self.lease.records;
        let slice = |(record, start, end): (u32, u32, u32)| {
            records[record as usize].batch.bytes().slice(start as usize..end as usize)
        };
        pieces.into_iter().map(slice).collect()
    }
}

impl Part {
    fn open(lines: Vec<u32>) -> Self {
        Self { lines, is_control: false, failures: 0, misled: 0 }
    }
}

/// The lines of all records, as the scanner finds them: a string may hold line feeds.
fn lines_of(lease: &Lease) -> Vec<Line> {
    let mut scanner = Scanner::of_accepted(lease.destination.precision());
    let mut found = Vec::with_capacity(usize::try_from(lease.lines).unwrap_or(0));
    for (record, bytes) in lease.records.iter().map(|record| &record.batch.bytes()[..]).enumerate() {
        let mut at = 0;
        for line in scanner.lines(bytes, false) {
            let text = line.map_or_else(|refused| refused.bytes, |line| line.bytes);
            let end = at + text.strip_suffix(b"\n").unwrap_or(text).len();
            let index = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
            found.push(Line { record: index(record), start: index(at), end: index(end) });
            at = end + 1;
        }
    }
    found
}

fn halves(lines: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let (first, second) = lines.split_at(lines.len() / 2);
    (first.to_vec(), second.to_vec())
}

/// The lines at these places, which are in order, and the others.
fn apart(lines: &[u32], places: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let mut places = places.iter().copied().peekable();
    let (mut named, mut rest) = (Vec::new(), Vec::new());
    for (index, line) in lines.iter().enumerate() {
        if places.next_if_eq(&index).is_some() { named.push(*line) } else { rest.push(*line) }
    }
    (named, rest)
}

#[cfg(test)]
mod tests;
