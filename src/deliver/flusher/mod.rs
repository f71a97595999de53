//! The loop of one backend: wait for lines, send them, do what the answer means.
//!
//! * **A destination's failure is its own.** What the backend answers holds up the destination that was asked for, with a pause
//!   of its own ([`troubles`]); the others go on. Only what concerns the whole backend (nobody answers, or something that is no
//!   InfluxDB) holds up everything.
//! * **A refused request is divided** ([`Division`]) until each line is delivered or known to be what is wrong. Its destination
//!   waits meanwhile, and no other.
//! * **A failure that tells nothing** is taken for the backend's own, until it has come a few times; then it is tried whether a
//!   line is the cause.
//! * Several requests may be under way, each on a connection of its own. The reader gives out what is full or has lingered, so
//!   that a near backend sees no more requests for it. While it is not known whether the backend takes lines there is one.
//!
//! Every way back to the loop's head after a failure goes through a pause, or makes the next request smaller: no loop is hot.
//! A flusher knows nothing of the others.

mod sizes;
mod told;
mod troubles;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::dead_letters::{DeadLetters, Filter, Why};
use super::division::{Division, Refused, Rule, Step};
use super::health::{Backoff, Health, State};
use super::outcome::Fate;
use super::{Endpoint, Outcome};
use crate::journal::{Lease, Limits, LogId, Reader, Rejection};
use crate::sys::monotonic;
use sizes::Sizes;
use told::Told;
use troubles::Troubles;
pub(super) use troubles::advice;

/// Pauses between the tries of a shutdown, at most.
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// The pause between the parts of a division that failed.
const PART_PAUSE: Duration = Duration::from_millis(200);
/// Far away.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One backend's flusher.
pub(super) struct Flusher {
    reader: Reader,
    sizes: Sizes,
    health: Arc<Health>,
    /// Changes when an operator asks for a try.
    asked: watch::Receiver<u64>,
    /// True once the relay shuts down.
    closing: watch::Receiver<bool>,
    /// What requests are sent with: one for each that may be under way.
    idle: Vec<Endpoint>,
    out: JoinSet<Ended>,
    divisions: Vec<Waiting>,
    /// How many leases of each destination are being divided, whether or not a part of them is under way.
    divided: HashMap<LogId, usize>,
    troubles: Troubles,
    /// What destinations refused lately, by their log in the journal.
    rules: HashMap<LogId, Rule>,
    /// The whole backend is left alone until then.
    resumes_at: Option<Instant>,
    backoff: Backoff,
    longest_pause: Duration,
    /// What was due before this was done.
    woken_at: Instant,
    /// Whether it took lines since it failed.
    is_proven: bool,
    /// Whether the journal is closed and has nothing more to lease.
    is_drained: bool,
    /// Whether nothing more is tried.
    is_over: bool,
    letters: Arc<DeadLetters>,
    told: Told,
}

/// What is sent.
enum Sent {
    Lease(Lease),
    Part(Box<Division>),
}

/// What has ended.
enum Ended {
    Request(Box<Request>),
    /// What a division refused was kept, as far as it could be.
    Kept(Box<Division>, io::Result<()>),
    /// Letters that were sent again are removed, as far as they could be.
    Removed(io::Result<u64>),
}

/// A request that has ended.
struct Request {
    endpoint: Endpoint,
    sent: Sent,
    outcome: Outcome,
}

/// A division with parts to send.
struct Waiting {
    division: Box<Division>,
    due: Instant,
}

impl Flusher {
    /// Of a backend that is written to by these endpoints, as many as there may be requests under way.
    pub(super) fn new(
        name: String,
        endpoints: Vec<Endpoint>,
        reader: Reader,
        (limits, longest_pause): (Limits, Duration),
        health: Arc<Health>,
        letters: Arc<DeadLetters>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            asked: health.asked(),
            longest_pause,
            letters,
            idle: endpoints,
            reader,
            sizes: Sizes::new(limits),
            health,
            closing,
            out: JoinSet::new(),
            divisions: Vec::new(),
            divided: HashMap::new(),
            troubles: Troubles::new(longest_pause),
            rules: HashMap::new(),
            resumes_at: None,
            woken_at: monotonic::now(),
            backoff: Backoff::default(),
            is_proven: false,
            is_drained: false,
            is_over: false,
            told: Told::new(name),
        }
    }

    /// Runs until the journal is closed and what can be delivered is.
    pub(super) async fn run(mut self) {
        let mut is_closing = *self.closing.borrow();
        while !self.is_over {
            self.send_due_parts();
            let due = self.due(is_closing);
            let is_done = self.is_drained && due.is_none() || is_closing && self.health.is_held_back();
            if is_done && self.out.is_empty() {
                break;
            }
            let (may_lease, limits) = (self.may_send() && !self.is_drained, self.sizes.limits());
            tokio::select! {
                biased;
                Some(ended) = self.out.join_next() => match ended {
                    Ok(Ended::Request(request)) => self.conclude(*request, is_closing),
                    Ok(Ended::Kept(division, kept)) => self.ack_division(*division, kept),
                    Ok(Ended::Removed(removed)) => drop(removed.map_err(|error| self.told.unkept(&error))),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                _ = self.closing.changed(), if !is_closing => {
                    is_closing = true;
                    self.hurry();
                }
                Ok(()) = self.asked.changed() => self.hurry(),
                lease = self.reader.next(&limits), if may_lease => match lease {
                    Some(lease) => self.send_lease(lease),
                    None => self.is_drained = true,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(monotonic::now).into()), if due.is_some() => self.wake(),
            }
        }
        for Waiting { division, .. } in std::mem::take(&mut self.divisions) {
            self.reader.requeue(division.into_lease());
        }
    }

    /// Whether another request may be sent now.
    fn may_send(&self) -> bool {
        let is_paused = self.resumes_at.is_some_and(|resumes| resumes > monotonic::now());
        !is_paused && self.has_capacity()
    }

    /// Whether there may be another request, and no operator holds the backend.
    fn has_capacity(&self) -> bool {
        !self.idle.is_empty() && !self.health.is_held_back() && (self.is_proven || self.out.is_empty())
    }

    /// When there is something to do that no request and no line brings.
    fn due(&self, is_closing: bool) -> Option<Instant> {
        let parts = self.divisions.iter().map(|waiting| waiting.due.max(self.resumes_at.unwrap_or(waiting.due)));
        let parts = parts.min().filter(|_| self.has_capacity());
        let resumes = self.resumes_at.filter(|_| self.out.is_empty());
        // A reader whose journal is closed wakes for no time.
        let troubles = self.troubles.next(self.woken_at).filter(|_| is_closing);
        [parts, resumes, troubles].into_iter().flatten().min()
    }

    /// A time has come.
    fn wake(&mut self) {
        self.woken_at = monotonic::now();
        self.resumes_at = self.resumes_at.filter(|resumes| *resumes > self.woken_at);
        self.is_drained = false;
    }

    /// The relay is to end, or an operator mended something: everything gets one more try at once.
    fn hurry(&mut self) {
        self.resumes_at = None;
        self.shorten(monotonic::now());
        self.is_drained = false;
    }

    fn send_due_parts(&mut self) {
        let now = monotonic::now();
        while self.may_send()
            && let Some(log) = self.divisions.iter().position(|waiting| waiting.due <= now)
        {
            let Waiting { mut division, .. } = self.divisions.swap_remove(log);
            match division.next() {
                Some(parts) => self.send(Sent::Part(division), parts, true),
                None => self.finish(*division),
            }
        }
    }

    fn send_lease(&mut self, lease: Lease) {
        let log = lease.log();
        self.rules.retain(|_, rule| rule.holds());
        let divided = if self.troubles.is_suspicious(log) {
            Ok(Division::of_suspects(lease))
        } else if let Some(bytes) = self.sizes.parts_of(lease.bytes) {
            Ok(Division::new(lease, bytes))
        } else if let Some(rule) = self.rules.get(&log) {
            Division::by_rule(lease, rule)
        } else {
            Err(lease)
        };
        let division = match divided {
            Ok(division) => division,
            Err(lease) => {
                let parts = lease.records.iter().map(|record| record.batch.bytes().clone()).collect();
                let is_retry = self.troubles.has(log) || !self.backoff.is_fresh();
                self.send(Sent::Lease(lease), parts, is_retry);
                return;
            }
        };
        self.note_divided(log);
        self.wait(division, monotonic::now());
    }

    /// Lets a division send its next part at this time; its destination waits until it is done.
    fn wait(&mut self, division: impl Into<Box<Division>>, due: Instant) {
        let division = division.into();
        self.reader.park(division.lease().log(), monotonic::now() + NEVER);
        self.divisions.push(Waiting { division, due });
    }

    fn send(&mut self, sent: Sent, parts: Vec<Bytes>, is_retry: bool) {
        let Some(mut endpoint) = self.idle.pop() else { return };
        self.health.count_request(is_retry, self.sizes.limits().bytes);
        let lease = match &sent {
            Sent::Lease(lease) => lease,
            Sent::Part(division) => division.lease(),
        };
        let destination = Arc::clone(&lease.destination);
        self.out.spawn(async move {
            let outcome = endpoint.write(&destination, parts).await;
            Ended::Request(Box::new(Request { endpoint, sent, outcome }))
        });
    }

    /// Does with what was sent what its outcome means.
    fn conclude(&mut self, request: Request, is_closing: bool) {
        let Request { endpoint, sent, outcome } = request;
        self.idle.push(endpoint);
        self.health.end_request();
        self.is_drained = false;
        match sent {
            Sent::Lease(lease) => match outcome.fate {
                Fate::Delivered => {
                    let log = lease.log();
                    self.ack(lease, &[]);
                    self.succeed(log);
                }
                Fate::Rejected { .. } | Fate::TooLarge => {
                    self.health.note_error(&outcome.text);
                    self.note_divided(lease.log());
                    let (division, step) = Division::of_refused(lease, &outcome);
                    self.go_on(division.into(), step, &outcome);
                }
                _ => {
                    if outcome.tells_missing_database() {
                        self.reader.note_missing(lease.destination.database());
                    }
                    self.fail(&lease, &outcome);
                    self.reader.requeue(lease);
                }
            },
            Sent::Part(mut division) => {
                let log = division.lease().log();
                division.allow_poison(self.troubles.poison_left(log));
                if outcome.fate == Fate::Delivered {
                    self.reader.note_partly(division.lease());
                }
                let before = division.poisoned();
                let step = division.conclude(&outcome);
                self.troubles.note_poison(log, division.poisoned() - before);
                self.go_on(division, step, &outcome);
            }
        }
        // What cannot be had soon is not waited for.
        let is_hopeless = matches!(outcome.fate, Fate::Down | Fate::Stalled | Fate::HoldBackend);
        self.is_over |= is_closing && is_hopeless;
        if is_closing {
            self.shorten(monotonic::now() + LAST_PAUSE);
        }
    }

    /// Goes on with a division after a part's outcome.
    fn go_on(&mut self, division: Box<Division>, step: Step, outcome: &Outcome) {
        let now = monotonic::now();
        match step {
            Step::Next => self.wait(division, now),
            Step::Pause => {
                self.health.note_error(&outcome.text);
                self.wait(division, now + PART_PAUSE);
            }
            Step::Done => self.finish(*division),
            Step::Fail | Step::Hold => {
                let has_progress = division.has_progress();
                if !has_progress {
                    self.note_undivided(division.lease().log());
                }
                let until = if step == Step::Hold {
                    self.fail_destination(division.lease(), State::Held, outcome)
                } else {
                    self.fail(division.lease(), outcome)
                };
                if has_progress {
                    self.wait(division, until);
                } else {
                    self.reader.requeue(division.into_lease());
                }
            }
        }
    }

    /// Every line of a division is delivered or refused. What is refused is kept before anything is acked.
    fn finish(&mut self, division: Division) {
        if division.refused().is_empty() {
            self.ack_division(division, Ok(()));
            return;
        }
        let (letters, backend) = (Arc::clone(&self.letters), self.told.backend().to_owned());
        self.out.spawn_blocking(move || {
            let kept = letters.keep(&backend, &division.lease().destination, division.refused());
            Ended::Kept(Box::new(division), kept)
        });
    }

    fn ack_division(&mut self, division: Division, kept: io::Result<()>) {
        if let Err(error) = kept {
            self.told.unkept(&error);
        }
        self.is_drained = false;
        if let Some(bytes) = division.learned_bytes()
            && self.sizes.learn(bytes)
        {
            self.told.shrunk(bytes);
        }
        let refused = division.refused();
        self.told.refused(&division.lease().destination, refused);
        let counts =
            Rejection::ALL.map(|class| (class, refused.iter().filter(|line| line.class == class).count() as u64));
        let (log, rule) = (division.lease().log(), Rule::of(refused));
        let lease = division.into_lease();
        match rule {
            Some(rule) => drop(self.rules.insert(log, rule)),
            // What it named is taken now, or something else was refused.
            None => drop(self.rules.remove(&log)),
        }
        self.note_undivided(log);
        self.ack(lease, &counts);
        self.succeed(log);
    }

    /// Acknowledges a lease. Letters that were sent again have served their purpose.
    fn ack(&mut self, lease: Lease, rejected: &[(Rejection, u64)]) {
        let letters = lease.letters.clone();
        self.reader.ack(lease, rejected.iter().copied());
        if let Some(ids) = letters {
            let letters = Arc::clone(&self.letters);
            let filter = Filter { ids: ids.iter().copied().collect(), ..Filter::default() };
            self.out.spawn_blocking(move || Ended::Removed(letters.remove(&filter, Why::Resent)));
        }
    }

    /// A destination's lines were taken, or refused for good.
    fn succeed(&mut self, log: LogId) {
        self.backoff.reset();
        self.is_proven = true;
        self.resumes_at = None;
        self.troubles.end(log);
        self.troubles.hold_backend(None);
        self.sizes.grow();
        let (now, since) = (self.troubles.state(), self.health.times().unwell_since);
        let before = self.health.succeed(now);
        self.health.set_held(self.troubles.held());
        self.told.recovered(before, now, since);
    }

    /// A request of the lease's destination failed; returns until when that waits. The lease is still the caller's.
    fn fail(&mut self, lease: &Lease, outcome: &Outcome) -> Instant {
        self.sizes.begin_small();
        if matches!(outcome.fate, Fate::HoldDestination) {
            return self.fail_destination(lease, State::Held, outcome);
        }
        let state = match outcome.fate {
            Fate::HoldBackend => State::Held,
            Fate::Down | Fate::Stalled => State::Down,
            _ => State::Retrying,
        };
        if matches!(outcome.fate, Fate::Down | Fate::HoldBackend) {
            self.troubles.hold_backend(Some(outcome).filter(|_| state == State::Held));
            self.tell_failure(state, outcome);
            return self.leave_alone();
        }
        self.fail_destination(lease, state, outcome)
    }

    /// The lease's destination waits; returns until when.
    fn fail_destination(&mut self, lease: &Lease, state: State, outcome: &Outcome) -> Instant {
        let (until, state) = self.troubles.fail(lease, state, outcome);
        if !self.is_divided(lease.log()) {
            self.reader.park(lease.log(), until);
        }
        self.tell_failure(state, outcome);
        until
    }

    /// The whole backend is left alone for a while. Requests that were under way when it was last do not make that longer.
    fn leave_alone(&mut self) -> Instant {
        self.is_proven = false;
        match self.resumes_at.filter(|resumes| *resumes > monotonic::now()) {
            Some(resumes) => resumes,
            None => {
                let pause = self.backoff.next_pause(self.longest_pause);
                self.health.note_pause(pause);
                *self.resumes_at.insert(monotonic::now() + pause)
            }
        }
    }

    /// Whether a lease of this destination is being divided: then nothing else of it is leased.
    fn is_divided(&self, log: LogId) -> bool {
        self.divided.contains_key(&log)
    }

    /// A lease is to be divided.
    fn note_divided(&mut self, log: LogId) {
        *self.divided.entry(log).or_default() += 1;
    }

    /// A lease is divided no more; after the last one its destination is leased again.
    fn note_undivided(&mut self, log: LogId) {
        let Some(count) = self.divided.get_mut(&log) else { return };
        *count -= 1;
        if *count == 0 {
            self.divided.remove(&log);
            self.reader.unpark(log);
        }
    }

    fn tell_failure(&mut self, state: State, outcome: &Outcome) {
        let before = self.health.fail(state, &outcome.text);
        self.health.set_held(self.troubles.held());
        self.told.failed(before, state, &outcome.text);
    }

    /// Lets nothing wait longer than this.
    fn shorten(&mut self, latest: Instant) {
        self.resumes_at = self.resumes_at.map(|resumes| resumes.min(latest));
        for waiting in &mut self.divisions {
            waiting.due = waiting.due.min(latest);
        }
        for (log, until) in self.troubles.shorten(latest) {
            if !self.is_divided(log) {
                self.reader.park(log, until);
            }
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::Script;
