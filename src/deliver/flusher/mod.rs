//! The loop of one backend: waits for lines, sends them, and acts on the answer.
//!
//! * **A failure concerns one destination.** Only its lines back off ([`troubles`]); others go on.
//!   Only a failure of the whole backend (no answer, or not InfluxDB's) delays everything.
//! * **A rejected request is divided** ([`Division`]) until each line is delivered or known to be
//!   the cause. Only its destination waits meanwhile.
//! * **A failure without a reason** is attributed to the backend at first. After several in a row,
//!   the flusher tests whether a line is the cause.
//! * Several requests may be in flight, each on its own connection. The reader hands out only what
//!   is full or has lingered, so concurrency causes no extra requests to a near backend. Only one
//!   request is in flight until the backend is known to accept lines.
//!
//! No loop is hot: after a failure, each path back to its head pauses or makes requests smaller.
//!
//! Never does: look at other backends. Bounds: one request per endpoint.

mod events;
mod sizes;
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
use events::Events;
use sizes::Sizes;
use troubles::Troubles;
pub(super) use troubles::advice;

/// Longest pause between tries during a shutdown.
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// Pause before the next part of a division after a failed one.
const PART_PAUSE: Duration = Duration::from_millis(200);
/// A time that never comes.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The flusher of one backend.
pub(super) struct Flusher {
    reader: Reader,
    sizes: Sizes,
    health: Arc<Health>,
    /// Changes when an operator asks for a try.
    asked: watch::Receiver<u64>,
    /// True once the relay shuts down.
    closing: watch::Receiver<bool>,
    /// Endpoints without a request in flight.
    idle: Vec<Endpoint>,
    tasks: JoinSet<Ended>,
    divisions: Vec<Waiting>,
    /// Number of leases being divided, by destination, whether or not a part of them is in flight.
    divided: HashMap<LogId, usize>,
    troubles: Troubles,
    /// What destinations rejected recently, by their log in the journal.
    rules: HashMap<LogId, Rule>,
    /// End of the back-off of the whole backend.
    resumes_at: Option<Instant>,
    backoff: Backoff,
    longest_pause: Duration,
    /// Time of the last wake-up. Everything due before it was handled.
    woken_at: Instant,
    /// Whether the backend accepted lines since it last failed.
    is_proven: bool,
    /// Whether the journal is closed and has nothing more to lease.
    is_drained: bool,
    /// Whether to give up trying.
    is_over: bool,
    letters: Arc<DeadLetters>,
    events: Events,
}

/// What a request sends.
enum Sent {
    Lease(Lease),
    Part(Box<Division>),
}

/// A task that has ended.
enum Ended {
    Request(Box<Request>),
    /// The lines that a division rejected were written to the dead letters, or could not be.
    Kept(Box<Division>, io::Result<()>),
    /// Resent letters were removed, or could not be.
    Removed(io::Result<u64>),
}

/// A finished request.
struct Request {
    endpoint: Endpoint,
    sent: Sent,
    outcome: Outcome,
}

struct Waiting {
    division: Box<Division>,
    due: Instant,
}

impl Flusher {
    /// Creates a flusher that uses these endpoints, one per request in flight.
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
            tasks: JoinSet::new(),
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
            events: Events::new(name),
        }
    }

    /// Runs until the journal is closed and everything deliverable is delivered.
    pub(super) async fn run(mut self) {
        let mut is_closing = *self.closing.borrow();
        while !self.is_over {
            self.send_due_parts();
            let due = self.due(is_closing);
            let is_done = self.is_drained && due.is_none() || is_closing && self.health.is_held_back();
            if is_done && self.tasks.is_empty() {
                break;
            }
            let (may_lease, limits) = (self.may_send() && !self.is_drained, self.sizes.limits());
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(Ended::Request(request)) => self.conclude(*request, is_closing),
                    Ok(Ended::Kept(division, kept)) => self.ack_division(*division, kept),
                    Ok(Ended::Removed(removed)) => drop(removed.map_err(|error| self.events.unkept(&error))),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                _ = self.closing.changed(), if !is_closing => {
                    is_closing = true;
                    self.retry_now();
                }
                Ok(()) = self.asked.changed() => self.retry_now(),
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

    /// Whether an endpoint is free, and no operator holds the backend.
    fn has_capacity(&self) -> bool {
        !self.idle.is_empty() && !self.health.is_held_back() && (self.is_proven || self.tasks.is_empty())
    }

    /// Returns when to wake up without a request's end or a new line.
    fn due(&self, is_closing: bool) -> Option<Instant> {
        let parts = self.divisions.iter().map(|waiting| waiting.due.max(self.resumes_at.unwrap_or(waiting.due)));
        let parts = parts.min().filter(|_| self.has_capacity());
        let resumes = self.resumes_at.filter(|_| self.tasks.is_empty());
        // A reader whose journal is closed does not wake up by itself.
        let troubles = self.troubles.next(self.woken_at).filter(|_| is_closing);
        [parts, resumes, troubles].into_iter().flatten().min()
    }

    /// Handles a wake-up.
    fn wake(&mut self) {
        self.woken_at = monotonic::now();
        self.resumes_at = self.resumes_at.filter(|resumes| *resumes > self.woken_at);
        self.is_drained = false;
    }

    /// Ends all pauses once: the relay shuts down, or an operator asked for a try.
    fn retry_now(&mut self) {
        self.resumes_at = None;
        self.shorten(monotonic::now());
        self.is_drained = false;
    }

    fn send_due_parts(&mut self) {
        let now = monotonic::now();
        while self.may_send()
            && let Some(index) = self.divisions.iter().position(|waiting| waiting.due <= now)
        {
            let Waiting { mut division, .. } = self.divisions.swap_remove(index);
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
        } else if let Some(bytes) = self.sizes.part_bytes(lease.bytes) {
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

    /// Schedules the division's next part. Its destination waits until the division is done.
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
        self.tasks.spawn(async move {
            let outcome = endpoint.write(&destination, parts).await;
            Ended::Request(Box::new(Request { endpoint, sent, outcome }))
        });
    }

    /// Applies the outcome of a request to its lease or division.
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
        // During a shutdown, gives up on a backend that will not recover soon.
        let is_hopeless = matches!(outcome.fate, Fate::Down | Fate::Stalled | Fate::HoldBackend);
        self.is_over |= is_closing && is_hopeless;
        if is_closing {
            self.shorten(monotonic::now() + LAST_PAUSE);
        }
    }

    /// Continues a division after a part's outcome.
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

    /// Ends a division. Writes rejected lines to the dead letters before anything is acked.
    fn finish(&mut self, division: Division) {
        if division.refused().is_empty() {
            self.ack_division(division, Ok(()));
            return;
        }
        let (letters, backend) = (Arc::clone(&self.letters), self.events.backend().to_owned());
        self.tasks.spawn_blocking(move || {
            let kept = letters.keep(&backend, &division.lease().destination, division.refused());
            Ended::Kept(Box::new(division), kept)
        });
    }

    fn ack_division(&mut self, division: Division, kept: io::Result<()>) {
        if let Err(error) = kept {
            self.events.unkept(&error);
        }
        self.is_drained = false;
        if let Some(bytes) = division.learned_bytes()
            && self.sizes.learn(bytes)
        {
            self.events.shrunk(bytes);
        }
        let refused = division.refused();
        self.events.refused(&division.lease().destination, refused);
        let counts =
            Rejection::ALL.map(|class| (class, refused.iter().filter(|line| line.class == class).count() as u64));
        let (log, rule) = (division.lease().log(), Rule::of(refused));
        let lease = division.into_lease();
        match rule {
            Some(rule) => drop(self.rules.insert(log, rule)),
            // The rule's lines are accepted now, or were rejected for another reason.
            None => drop(self.rules.remove(&log)),
        }
        self.note_undivided(log);
        self.ack(lease, &counts);
        self.succeed(log);
    }

    /// Acks a lease. Letters that it resent are removed.
    fn ack(&mut self, lease: Lease, rejected: &[(Rejection, u64)]) {
        let letters = lease.letters.clone();
        self.reader.ack(lease, rejected.iter().copied());
        if let Some(ids) = letters {
            let letters = Arc::clone(&self.letters);
            let filter = Filter { ids: ids.iter().copied().collect(), ..Filter::default() };
            self.tasks.spawn_blocking(move || Ended::Removed(letters.remove(&filter, Why::Resent)));
        }
    }

    /// Records that a destination's lines were accepted, or rejected for good.
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
        self.events.recovered(before, now, since);
    }

    /// Records a failed request; the caller keeps the lease. Returns the end of the back-off.
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
            self.record_failure(state, outcome);
            return self.back_off();
        }
        self.fail_destination(lease, state, outcome)
    }

    /// Pauses the lease's destination. Returns the end of the pause.
    fn fail_destination(&mut self, lease: &Lease, state: State, outcome: &Outcome) -> Instant {
        let (until, state) = self.troubles.fail(lease, state, outcome);
        if !self.is_divided(lease.log()) {
            self.reader.park(lease.log(), until);
        }
        self.record_failure(state, outcome);
        until
    }

    /// Pauses the whole backend. Requests already in flight do not extend a pause.
    fn back_off(&mut self) -> Instant {
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

    /// Whether a lease of this destination is being divided. If so, the destination is not leased.
    fn is_divided(&self, log: LogId) -> bool {
        self.divided.contains_key(&log)
    }

    fn note_divided(&mut self, log: LogId) {
        *self.divided.entry(log).or_default() += 1;
    }

    /// Counts the end of a division. After the last one, the destination is leased again.
    fn note_undivided(&mut self, log: LogId) {
        let Some(count) = self.divided.get_mut(&log) else { return };
        *count -= 1;
        if *count == 0 {
            self.divided.remove(&log);
            self.reader.unpark(log);
        }
    }

    fn record_failure(&mut self, state: State, outcome: &Outcome) {
        let before = self.health.fail(state, &outcome.text);
        self.health.set_held(self.troubles.held());
        self.events.failed(before, state, &outcome.text);
    }

    /// Ends all pauses at this time at the latest.
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
