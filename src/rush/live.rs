//! Figures of a run while it goes on: totals, four histograms, and violations.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Violations of a kind that are named; the others are only counted.
const NAMED_MAX: usize = 5;
const SIGNIFICANT_DIGITS: u8 = 3;
const LATENCY_MAX_US: u64 = 24 * 3_600 * 1_000_000;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first or the last moment of something, after the start.
#[derive(Debug)]
pub(crate) struct AtomicMoment(AtomicU64);

impl AtomicMoment {
    const NEVER: u64 = u64::MAX;

    /// Keeps this moment if it is the earliest.
    pub fn first(&self, at: Duration) {
        self.0.fetch_min(nanoseconds(at), Ordering::Relaxed);
    }

    /// Keeps this moment if it is the latest.
    pub fn last(&self, at: Duration) {
        let at = nanoseconds(at);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| {
            (known == Self::NEVER || known < at).then_some(at)
        });
    }

    /// The moment that was kept; `None` if there was none.
    pub fn get(&self) -> Option<Duration> {
        let at = self.0.load(Ordering::Relaxed);
        (at != Self::NEVER).then(|| Duration::from_nanos(at))
    }
}

impl Default for AtomicMoment {
    fn default() -> Self {
        AtomicMoment(AtomicU64::new(Self::NEVER))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// Durations in microseconds, to three digits.
#[derive(Debug)]
pub struct LatencyHistogram(Mutex<Histogram<u64>>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        // From a microsecond to a day: a fixed size, which three digits fit into.
        let histogram = Histogram::new_with_max(LATENCY_MAX_US, SIGNIFICANT_DIGITS);
        LatencyHistogram(Mutex::new(histogram.unwrap_or_else(|_| unreachable!("3 digits are allowed"))))
    }
}

impl LatencyHistogram {
    pub(crate) fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        self.0.lock().saturating_record(us);
    }

    /// Reads the histogram.
    pub fn read<T>(&self, read: impl FnOnce(&Histogram<u64>) -> T) -> T {
        read(&self.0.lock())
    }
}

/// Violations of one kind: how many, and the first few by name.
#[derive(Debug, Clone, Default)]
pub struct Violation {
    pub count: u64,
    pub named: Vec<String>,
}

impl Violation {
    pub(super) fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(name());
        }
    }
}

/// The figures of a run while it goes on; every connection counts in them.
#[derive(Debug, Default)]
pub struct LiveMetrics {
    /// Requests written, those that are tried again among them.
    pub sent: Counter,
    pub dropped: Counter,
    /// Users whose request was accepted.
    pub accepted: Counter,
    /// Answers that only repeated what was known.
    pub replayed: Counter,
    pub refused: Counter,
    /// Requests without an answer.
    pub faults: Counter,
    pub retries: Counter,
    pub polls: Counter,
    /// Users who were told of their outcome.
    pub issued: Counter,
    pub rejected: Counter,
    /// Planned moment to the answer that it is accepted.
    pub accept: LatencyHistogram,
    /// Planned moment to any other answer.
    pub refuse: LatencyHistogram,
    /// Planned moment to the moment when the user knows the outcome.
    pub outcome: LatencyHistogram,
    /// Planned moment to the moment of sending: what the generator itself adds, and how long requests
    /// wait for a connection.
    pub send: LatencyHistogram,
    pub(super) last_accept: AtomicMoment,
    pub(super) first_sold_out: AtomicMoment,
    /// Users whose request was sent after somebody was told that the coupon is sold out, and accepted.
    pub accepted_after_sold_out: Counter,
    pub(crate) last_outcome: AtomicMoment,
    answers: Mutex<BTreeMap<&'static str, u64>>,
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) unexpected: Mutex<Violation>,
    pub(super) lost: Mutex<Violation>,
}

impl LiveMetrics {
    pub(super) fn answer(&self, name: &'static str) {
        *self.answers.lock().entry(name).or_default() += 1;
    }

    pub(super) fn outcome_of(&self, name: &'static str) {
        *self.outcomes.lock().entry(name).or_default() += 1;
    }

    /// Answers to requests, by what they said.
    pub fn answers(&self) -> BTreeMap<&'static str, u64> {
        self.answers.lock().clone()
    }

    /// Outcomes of accepted requests, by what they were.
    pub fn outcomes(&self) -> BTreeMap<&'static str, u64> {
        self.outcomes.lock().clone()
    }

    pub(super) fn unexpected(&self, what: impl FnOnce() -> String) {
        self.unexpected.lock().add(what);
    }

    pub(super) fn lost(&self, what: impl FnOnce() -> String) {
        self.lost.lock().add(what);
    }
}
