//! Delivers one lease in parts: finds the lines that make a request fail, and delivers all others.
//!
//! A pure state machine. [`Division::next`] returns the lines to send next, [`Division::conclude`]
//! learns from each outcome. The rules:
//!
//! * **Only a success acks lines.** What an answer says of a request's other lines is not trusted:
//!   InfluxDB 1.x reports one shard's losses and omits another's.
//! * Lines that an answer names ([`blame`]) are sent apart from the others. If it names none, the
//!   part is halved.
//! * **A rejection that InfluxDB is known to give for lines is final** for a single line, and for a
//!   part if the answer counts every line of it. Any other rejection is final only for a single
//!   line, and only after another line passed. If none passes, the destination is held.
//! * An error without a reason (500, a reset, a time-out) may be caused by a line. The division
//!   tests this only while other lines pass. It gives a line up after three failures, if a line
//!   that passes was tried after each of the first two.
//!
//! Bounds: for k rejected lines among n, at most 2k(log2(n/k) + 2) requests after the first, as
//! long as names do not mislead; [`MAX_PROBES`] more if nothing passes at first. Memory: the lease,
//! and 16 bytes per line.
//!
//! Never does: I/O, or wait.

mod blame;
mod rule;

use std::sync::Arc;

use bytes::Bytes;

use super::Outcome;
use super::outcome::Fate;
use crate::journal::{Lease, Rejection};
use crate::protocol::line::Scanner;
pub(super) use rule::Rule;

/// Maximum length of an answer kept with rejected lines, in bytes.
const ANSWER_BYTES: usize = 4096;
/// Maximum number of failures without a reason in a row before a line that passed is sent again.
const MAX_FAILURES_IN_A_ROW: u32 = 3;
/// Maximum number of lines tried to find one that passes before the destination is held.
const MAX_PROBES: u32 = 8;
/// Minimum number of parts that must fail before their size is taken for the cause: one failure may
/// be chance.
const MIN_BREAKS: u32 = 2;
/// Minimum size limit attributed to a server, in bytes, unless the server reports its limit.
const MIN_BREAKING_BYTES: u64 = 2 * 1024;
/// Maximum number of answers in a row whose named lines were sent apart while the others are still
/// rejected: one for each kind of mistake that a request may hold. Names may mislead; halving never
/// does.
const MAX_MISLED: u32 = 4;

/// A lease that is delivered in parts.
#[derive(Debug)]
pub(super) struct Division {
    lease: Lease,
    lines: Vec<Line>,
    /// Parts to send, the next one last.
    parts: Vec<Part>,
    /// The part in flight.
    out: Option<Part>,
    refused: Vec<Refused>,
    /// A line that passed.
    passed: Option<u32>,
    /// Largest part that passed, and smallest that was too large or failed, in bytes.
    sizes: (u64, u64),
    /// Whether an answer said that a part was too large.
    is_reported: bool,
    /// Number of parts of several lines that failed.
    breaks: u32,
    /// Number of lines tried to find one that passes.
    probes: u32,
    /// Failures without a reason since something passed.
    failures: u32,
    /// Number of lines that may still be given up as poison.
    poison_left: u32,
    poisoned: u32,
    #[cfg(test)]
    requests: u64,
}

/// Position of a line: its record, and its range there without the line feed.
#[derive(Clone, Copy, Debug)]
struct Line {
    record: u32,
    start: u32,
    end: u32,
}

/// Lines that are sent together.
#[derive(Clone, Debug)]
struct Part {
    /// Indices of the lines, in order.
    lines: Vec<u32>,
    /// Whether it is a line that passed before, sent to test whether it still does.
    is_control: bool,
    /// Number of failures without a reason.
    failures: u32,
    /// Number of answers in a row whose named lines were sent apart, while the rest was still
    /// rejected.
    misled: u32,
}

/// A line that the backend will never accept.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// The line, without its line feed.
    pub line: Bytes,
    /// Class of the rejection.
    pub class: Rejection,
    /// Status of the answer, or `None` if there was no answer.
    pub status: Option<u16>,
    /// Beginning of the answer.
    pub answer: Arc<str>,
}

/// What to do after an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send the next part.
    Next,
    /// Send the next part after a pause: the outcome was a failure.
    Pause,
    /// Nothing: every line is delivered or rejected.
    Done,
    /// Act on the outcome's fate: no line caused the failure. The part will be sent again first.
    Fail,
    /// Hold the destination: no line passes for an unknown reason, or more lines would be given up
    /// than allowed.
    Hold,
}

impl Division {
    /// Divides a request that was rejected, or that is larger than the backend accepts, into parts
    /// of at most `max_bytes`.
    pub(super) fn new(lease: Lease, max_bytes: u64) -> Self {
        let lines = lines_of(&lease);
        let mut division = Self {
            lines,
            lease,
            parts: Vec::new(),
            out: None,
            refused: Vec::new(),
            passed: None,
            sizes: (0, u64::MAX),
            is_reported: false,
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
            match parts.last_mut().filter(|_| bytes <= max_bytes) {
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

    /// Divides a request that kept failing without a reason. Sends a single line first, to see
    /// whether any passes.
    pub(super) fn of_suspects(lease: Lease) -> Self {
        let mut division = Self::new(lease, u64::MAX);
        if let Some(whole) = division.parts.last_mut().filter(|whole| whole.lines.len() > 1) {
            let any = fastrand::usize(..whole.lines.len());
            let line = whole.lines.remove(any);
            division.parts.push(Part::open(vec![line]));
        }
        division
    }

    /// Divides a request with lines that look like rejected ones, and sends these apart.
    ///
    /// # Errors
    /// Returns the lease if there is no such line.
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

    /// Divides a rejected request. `outcome` is that of the whole lease.
    pub(super) fn of_refused(lease: Lease, outcome: &Outcome) -> (Self, Step) {
        let mut division = Self::new(lease, u64::MAX);
        division.out = division.parts.pop();
        let step = division.conclude(outcome);
        (division, step)
    }

    /// Returns the lines to send next, or `None` if nothing is left.
    pub(super) fn next(&mut self) -> Option<Vec<Bytes>> {
        let mut part = self.parts.pop()?;
        // A part larger than all that passed would fail as well if smaller ones did.
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

    /// Learns from the outcome of the part in flight.
    pub(super) fn conclude(&mut self, outcome: &Outcome) -> Step {
        let Some(part) = self.out.take() else { return Step::Next };
        match outcome.fate {
            Fate::Delivered => self.pass(&part),
            // `Other` is an unknown text, which may concern something else than lines.
            Fate::Rejected { class, .. } => self.refuse(part, class, class != Rejection::Other, outcome),
            Fate::TooLarge => {
                self.sizes.1 = self.sizes.1.min(self.bytes_of(&part.lines));
                self.is_reported = true;
                self.refuse(part, Rejection::TooLarge, false, outcome)
            }
            _ if outcome.may_be_a_lines_fault() => self.suspect(part, outcome),
            _ => self.fail(part),
        }
    }

    /// Returns the lease.
    pub(super) fn into_lease(self) -> Lease {
        self.lease
    }

    /// Whether the division can continue on its own. As long as no line has passed, other lines of
    /// the destination may have to show whether any does. The lease should then be requeued,
    /// although its findings are lost.
    pub(super) fn has_progress(&self) -> bool {
        self.passed.is_some()
    }

    /// Returns the number of lines given up as poison.
    pub(super) fn poisoned(&self) -> u32 {
        self.poisoned
    }

    /// Sets the number of lines that may still be given up as poison.
    pub(super) fn allow_poison(&mut self, lines: u32) {
        self.poison_left = lines;
    }

    /// Returns the lease.
    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns the lines rejected so far.
    pub(super) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Returns the size that the backend accepts, if it turned out to refuse larger requests: it
    /// said so, or larger ones failed more than once.
    pub(super) fn learned_bytes(&self) -> Option<u64> {
        let (passed, failed) = self.sizes;
        let is_credible = self.is_reported || (self.breaks >= MIN_BREAKS && passed >= MIN_BREAKING_BYTES);
        // The halves of a failed part passed. A single line that passed tells nothing of sizes.
        (is_credible && passed < failed && passed.saturating_mul(3) >= failed).then_some(passed)
    }

    fn pass(&mut self, part: &Part) -> Step {
        self.failures = 0;
        self.passed = part.lines.first().copied();
        self.sizes.0 = self.sizes.0.max(self.bytes_of(&part.lines));
        self.step()
    }

    /// Handles a rejection: sends the named lines apart, or halves the part, down to single lines.
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
        if named.lines.is_empty() || named.lines.len() == count || part.misled >= MAX_MISLED {
            self.halve(&part.lines);
        } else {
            let (named, others) = separate(&part.lines, &named.lines);
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

    /// Handles a failure that no line caused. The same part is sent again.
    fn fail(&mut self, part: Part) -> Step {
        self.parts.push(part);
        Step::Fail
    }

    /// Handles a single line rejected for an unknown reason before anything passed: tries other
    /// lines to see whether any passes.
    fn try_another(&mut self, part: Part) -> Step {
        self.parts.push(part);
        let from = fastrand::usize(..self.parts.len());
        let largest = self.parts.iter().enumerate().max_by_key(|(index, part)| (part.lines.len(), *index == from));
        let Some(index) = largest.map(|(index, _)| index).filter(|_| self.probes < MAX_PROBES) else {
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

    /// Handles a failure without a reason.
    fn suspect(&mut self, mut part: Part, outcome: &Outcome) -> Step {
        self.failures += 1;
        // If no line passes, the backend itself does not accept anything now.
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
        if self.failures >= MAX_FAILURES_IN_A_ROW {
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

    /// Returns the size of these lines with their line feeds.
    fn bytes_of(&self, lines: &[u32]) -> u64 {
        lines.iter().map(|line| self.bytes(*line).len() as u64 + 1).sum()
    }

    /// Returns the lines' bytes, with consecutive lines in one slice.
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

/// Finds the lines of all records with the scanner, because a string may hold line feeds.
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

/// Separates the lines at these sorted indices from the others.
fn separate(lines: &[u32], indices: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let mut indices = indices.iter().copied().peekable();
    let (mut named, mut rest) = (Vec::new(), Vec::new());
    for (index, line) in lines.iter().enumerate() {
        if indices.next_if_eq(&index).is_some() { named.push(*line) } else { rest.push(*line) }
    }
    (named, rest)
}

#[cfg(test)]
mod tests;
