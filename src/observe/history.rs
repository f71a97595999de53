//! Earlier figures: minutes for rates and recent latencies, an hour and a day for plots.
//!
//! Owns rings of samples, one sample each [`STEP`]. Never takes the samples itself. Bounds: `PLOT`
//! values for each series of the hour and of the day, four series for each backend, and `MINUTES`
//! histograms for each backend (27 KB each).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::protocol::Refusal;

/// Interval between samples.
pub const STEP: Duration = Duration::from_secs(10);
/// Samples in a minute, the period of rates.
const RATE: usize = 6;
/// Minutes covered by recent latencies and losses.
const MINUTES: usize = 5;
/// Values in a plot.
const PLOT: usize = 360;
/// Samples in a value of the day's plots.
const DAY_STEP: u32 = 24;

/// The figures at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) accepted: u64,
    pub(super) memory_bytes: u64,
    pub(super) disk_bytes: u64,
    /// In the order of the listeners.
    pub(super) listeners: Vec<ListenerSample>,
    /// Lines that found the ring to the journal full.
    pub(super) ring_full: u64,
    /// In the order of the backends.
    pub(super) backends: Vec<BackendSample>,
}

/// A listener's figures at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListenerSample {
    /// Indexed by [`Refusal::index`].
    pub(super) refused: [u64; Refusal::COUNT],
    pub(super) kernel_dropped: u64,
}

/// A backend's figures at one moment.
#[derive(Clone, Debug)]
pub(super) struct BackendSample {
    pub(super) delivered: u64,
    pub(super) pending: u64,
    pub(super) oldest_seconds: f64,
    /// Dead letters evicted for lack of space.
    pub(super) evicted: u64,
    /// Latencies since the start, in microseconds.
    pub(super) latency: Histogram<u64>,
}

/// The rings, shared behind a lock.
#[derive(Debug)]
pub struct History(Mutex<Rings>);

#[derive(Debug)]
struct Rings {
    names: Vec<String>,
    /// The last sample, with its histograms.
    last: Option<Arc<Sample>>,
    /// Samples of the last minute, without histograms.
    steps: VecDeque<Arc<Sample>>,
    /// A sample of each of the last minutes, newest last.
    minutes: VecDeque<Arc<Sample>>,
    samples: u32,
    hour: Plots,
    day: Plots,
}

/// All series over one span of time.
#[derive(Debug)]
struct Plots {
    series: Vec<Series>,
    /// Samples in the next value of each series.
    count: u32,
}

#[derive(Debug)]
struct Series {
    kind: Kind,
    /// The next value so far: the sum of a rate, or the maximum of a level.
    next: f32,
    values: VecDeque<f32>,
}

/// The plots, as the page gets them.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    hour: ShownPlots,
    day: ShownPlots,
}

#[derive(Debug, Serialize)]
struct ShownPlots {
    /// Seconds between values.
    step: u64,
    /// Time of the newest value, in seconds since 1970.
    until: u64,
    /// Values by name, oldest first; the name of a backend's series ends with a colon and the
    /// backend's name.
    series: BTreeMap<String, Vec<f32>>,
}

/// The meaning of a series' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A rate a second; a longer period shows the mean.
    Rate,
    /// A level; a longer period shows the maximum.
    Level,
}

/// Series of the relay.
const RELAY: [(&str, Kind); 5] = [
    ("accepted", Kind::Rate),
    ("refused", Kind::Rate),
    ("kernel_dropped", Kind::Rate),
    ("memory_bytes", Kind::Level),
    ("disk_bytes", Kind::Level),
];
/// Series of each backend.
const BACKEND: [(&str, Kind); 4] =
    [("delivered", Kind::Rate), ("pending", Kind::Level), ("oldest_seconds", Kind::Level), ("p99_ms", Kind::Level)];

impl History {
    /// Creates an empty history for these backends.
    pub fn new(names: Vec<String>) -> Self {
        let kinds: Vec<Kind> =
            RELAY.into_iter().chain(names.iter().flat_map(|_| BACKEND)).map(|(_, kind)| kind).collect();
        let series = || kinds.iter().map(|kind| Series { kind: *kind, next: 0.0, values: VecDeque::new() }).collect();
        let plots = || Plots { series: series(), count: 0 };
        Self(Mutex::new(Rings {
            names,
            last: None,
            steps: VecDeque::new(),
            minutes: VecDeque::new(),
            samples: 0,
            hour: plots(),
            day: plots(),
        }))
    }

    /// Records a sample.
    pub(super) fn note(&self, sample: Sample) {
        let mut rings = self.lock();
        let sample = Arc::new(sample);
        if let Some(before) = rings.last.replace(Arc::clone(&sample)) {
            let values = values(&before, &sample);
            rings.hour.push(&values, 1);
            rings.day.push(&values, DAY_STEP);
        }
        if rings.samples.is_multiple_of(u32::try_from(RATE).unwrap_or(1)) {
            keep(&mut rings.minutes, Arc::clone(&sample), MINUTES);
        }
        rings.samples = rings.samples.wrapping_add(1);
        let bare = |one: &BackendSample| BackendSample { latency: empty(), ..one.clone() };
        let backends = sample.backends.iter().map(bare).collect();
        keep(&mut rings.steps, Arc::new(Sample { backends, ..(*sample).clone() }), RATE + 1);
    }

    /// Returns the oldest sample of the last minute, for rates.
    pub(super) fn minute_ago(&self) -> Option<Arc<Sample>> {
        self.lock().steps.front().cloned()
    }

    /// Returns the oldest sample of the last five minutes, with histograms.
    pub(super) fn minutes_ago(&self) -> Option<Arc<Sample>> {
        self.lock().minutes.front().cloned()
    }

    /// Returns the plots.
    pub(super) fn shown(&self) -> Shown {
        let rings = self.lock();
        let until = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let names: Vec<String> = RELAY
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .chain(rings.names.iter().flat_map(|backend| BACKEND.map(|(name, _)| format!("{name}:{backend}"))))
            .collect();
        let shown = |plots: &Plots, steps: u32| ShownPlots {
            step: STEP.as_secs() * u64::from(steps),
            until,
            series: names
                .iter()
                .cloned()
                .zip(plots.series.iter().map(|one| one.values.iter().copied().collect()))
                .collect(),
        };
        Shown { hour: shown(&rings.hour, 1), day: shown(&rings.day, DAY_STEP) }
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plots {
    /// Adds a sample's values; `steps` samples make one value.
    fn push(&mut self, values: &[f32], steps: u32) {
        for (series, value) in self.series.iter_mut().zip(values) {
            series.next = match series.kind {
                Kind::Rate => series.next + *value,
                Kind::Level => series.next.max(*value),
            };
        }
        self.count += 1;
        if self.count < steps {
            return;
        }
        for series in &mut self.series {
            #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
            let value = if series.kind == Kind::Rate { series.next / self.count as f32 } else { series.next };
            keep(&mut series.values, value, PLOT);
            series.next = 0.0;
        }
        self.count = 0;
    }
}

/// Returns the latencies recorded between two cumulative histograms; `None` if there are none.
pub(super) fn between(before: &Histogram<u64>, now: &Histogram<u64>) -> Option<Histogram<u64>> {
    let mut between = now.clone();
    between.subtract(before).ok()?;
    (!between.is_empty()).then_some(between)
}

/// Returns a counter's growth a second.
pub(super) fn rate(before: u64, now: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { now.saturating_sub(before) as f64 / time.as_secs_f64() }
}

/// Computes the values of all series between two samples.
fn values(before: &Sample, now: &Sample) -> Vec<f32> {
    let time = now.at.saturating_duration_since(before.at);
    let sum = |sample: &Sample, value: fn(&ListenerSample) -> u64| sample.listeners.iter().map(value).sum::<u64>();
    let grown = |value: fn(&ListenerSample) -> u64| rate(sum(before, value), sum(now, value), time);
    let mut values = vec![
        rate(before.accepted, now.accepted, time),
        grown(|listener| listener.refused.iter().sum()),
        grown(|listener| listener.kernel_dropped),
        now.memory_bytes as f64,
        now.disk_bytes as f64,
    ];
    for (before, now) in before.backends.iter().zip(&now.backends) {
        let recent = between(&before.latency, &now.latency);
        let p99 = recent.map_or(0.0, |recent| recent.value_at_quantile(0.99) as f64 / 1000.0);
        values.extend([rate(before.delivered, now.delivered, time), now.pending as f64, now.oldest_seconds, p99]);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a plot needs no more")]
    values.into_iter().map(|value| value as f32).collect()
}

fn keep<T>(ring: &mut VecDeque<T>, value: T, most: usize) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(value);
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 2, 0).expect("BUG: constant bounds are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: Instant, step: u32, accepted: u64, pending: u64) -> Sample {
        let mut latency = Histogram::new(2).expect("bounds");
        latency.record_n(1000, u64::from(step) + 1).expect("in range");
        Sample {
            at: start + STEP * step,
            accepted,
            memory_bytes: 7,
            disk_bytes: 8,
            listeners: vec![ListenerSample { refused: [u64::from(step); Refusal::COUNT], kernel_dropped: 0 }],
            ring_full: 0,
            backends: vec![BackendSample {
                delivered: accepted / 2,
                pending,
                oldest_seconds: 1.5,
                evicted: 0,
                latency,
            }],
        }
    }

    #[test]
    fn plots_have_rates_and_levels_of_the_last_hour_and_day() {
        let (history, start) = (History::new(vec!["a".to_owned()]), Instant::now());
        for step in 0..=400 {
            history.note(sample(start, step, u64::from(step) * 1000, u64::from(step)));
        }
        let shown = serde_json::to_value(history.shown()).expect("JSON");
        let series = |span: &str, name: &str| {
            let values = shown[span]["series"][name].as_array().expect("a series");
            values.iter().map(|value| value.as_f64().expect("a number")).collect::<Vec<_>>()
        };
        assert_eq!((shown["hour"]["step"].as_u64(), shown["day"]["step"].as_u64()), (Some(10), Some(240)));
        assert_eq!(series("hour", "accepted"), vec![100.0; PLOT]);
        assert_eq!(series("hour", "refused")[0], series("hour", "refused")[PLOT - 1]);
        assert_eq!(series("hour", "delivered:a"), vec![50.0; PLOT]);
        assert_eq!(series("hour", "pending:a").last(), Some(&400.0));
        assert_eq!(series("day", "accepted"), vec![100.0; 16], "400 samples are 16 values of 24");
        // The maximum over the period of a value.
        assert_eq!(series("day", "pending:a")[..2], [24.0, 48.0]);
        // Covers the lines between two samples, not those since the start: one millisecond, within
        // the histogram's precision.
        assert!(series("hour", "p99_ms:a").iter().all(|value| (0.9..1.1).contains(value)));
        assert_eq!((series("day", "memory_bytes")[0], series("day", "oldest_seconds:a")[0]), (7.0, 1.5));
    }

    #[test]
    fn rates_are_of_the_last_minute_and_latencies_of_the_last_five() {
        let (history, start) = (History::new(vec!["a".to_owned()]), Instant::now());
        assert!(history.minute_ago().is_none());
        for step in 0..100 {
            history.note(sample(start, step, 0, 0));
        }
        assert_eq!(history.minute_ago().expect("a sample").at, start + STEP * 93);
        let old = history.minutes_ago().expect("a sample");
        assert_eq!(old.at, start + STEP * 72);
        let recent = between(&old.backends[0].latency, &sample(start, 99, 0, 0).backends[0].latency);
        assert_eq!(recent.expect("some").len(), 27);
        assert!(between(&old.backends[0].latency, &old.backends[0].latency).is_none());
    }

    /// The promised bound; two backends stay far below 4 MiB.
    #[test]
    fn a_full_history_is_small() {
        let values = 2 * PLOT * (RELAY.len() + BACKEND.len() * 2) * size_of::<f32>();
        let histogram = crate::journal::Ledger::default().latency;
        let histograms = (MINUTES + 1) * 2 * histogram.distinct_values() * size_of::<u64>();
        assert!(values + histograms < 512 << 10, "{values} and {histograms} bytes");
    }
}
