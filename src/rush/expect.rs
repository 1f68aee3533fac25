//! Thresholds that a run is held to: `accept.p99<50ms`, `dropped<=0`, `rate.accepted>5000`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::report::{Percentiles, RunFigures, RunLatencies};

/// One threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    metric: ExpectedMetric,
    comparison: Comparison,
    /// In milliseconds where the metric is a time.
    bound: f64,
    /// As it was written.
    text: String,
}

/// Whether a run met an expectation.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectationResult {
    /// As it was written.
    pub expected: String,
    pub ok: bool,
    /// In milliseconds where it is a time; null if nothing was measured, which meets nothing.
    pub measured: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpectedMetric {
    Latency(LatencyKind, Percentile),
    Dropped,
    Faults,
    Offered,
    Accepted,
    Issued,
    Backlog,
    SellOut,
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LatencyKind {
    Accept,
    Refuse,
    Outcome,
    Send,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Percentile {
    P50,
    P90,
    P99,
    P999,
    Max,
}

const METRICS: &str = "accept, refuse, outcome or send with .p50, .p90, .p99, .p999 or .max; dropped; faults; \
                       rate.offered, rate.accepted, rate.issued; backlog.peak; sellout; drain";

impl ExpectedMetric {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "dropped" => ExpectedMetric::Dropped,
            "faults" => ExpectedMetric::Faults,
            "rate.offered" => ExpectedMetric::Offered,
            "rate.accepted" => ExpectedMetric::Accepted,
            "rate.issued" => ExpectedMetric::Issued,
            "backlog.peak" => ExpectedMetric::Backlog,
            "sellout" => ExpectedMetric::SellOut,
            "drain" => ExpectedMetric::Drain,
            _ => {
                let (which, percentile) = text.split_once('.')?;
                let which = match which {
                    "accept" => LatencyKind::Accept,
                    "refuse" => LatencyKind::Refuse,
                    "outcome" => LatencyKind::Outcome,
                    "send" => LatencyKind::Send,
                    _ => return None,
                };
                ExpectedMetric::Latency(
                    which,
                    match percentile {
                        "p50" => Percentile::P50,
                        "p90" => Percentile::P90,
                        "p99" => Percentile::P99,
                        "p999" => Percentile::P999,
                        "max" => Percentile::Max,
                        _ => return None,
                    },
                )
            }
        })
    }

    fn is_time(self) -> bool {
        matches!(self, ExpectedMetric::Latency(..) | ExpectedMetric::SellOut | ExpectedMetric::Drain)
    }

    fn of(self, figures: &RunFigures, latencies: &RunLatencies) -> Option<f64> {
        match self {
            ExpectedMetric::Dropped => Some(figures.dropped as f64),
            ExpectedMetric::Faults => Some(figures.faults as f64),
            ExpectedMetric::Offered => figures.offered_per_second,
            ExpectedMetric::Accepted => figures.accepted_per_second,
            ExpectedMetric::Issued => figures.issued_per_second,
            ExpectedMetric::Backlog => figures.backlog_peak.map(|peak| peak as f64),
            ExpectedMetric::SellOut => figures.sell_out_ms,
            ExpectedMetric::Drain => figures.drain_ms,
            ExpectedMetric::Latency(which, percentile) => {
                let Percentiles { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = match which {
                    LatencyKind::Accept => latencies.accept,
                    LatencyKind::Refuse => latencies.refuse,
                    LatencyKind::Outcome => latencies.outcome,
                    LatencyKind::Send => latencies.send,
                }?;
                Some(match percentile {
                    Percentile::P50 => p50_ms,
                    Percentile::P90 => p90_ms,
                    Percentile::P99 => p99_ms,
                    Percentile::P999 => p999_ms,
                    Percentile::Max => max_ms,
                })
            }
        }
    }
}

impl Expectation {
    /// Whether a run met it.
    pub fn hold(&self, figures: &RunFigures, latencies: &RunLatencies) -> ExpectationResult {
        let measured = self.metric.of(figures, latencies);
        let ok = measured.is_some_and(|measured| match self.comparison {
            Comparison::Less => measured < self.bound,
            Comparison::AtMost => measured <= self.bound,
            Comparison::More => measured > self.bound,
            Comparison::AtLeast => measured >= self.bound,
        });
        ExpectationResult { expected: self.text.clone(), ok, measured }
    }
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['<', '>']).ok_or("must compare with <, <=, > or >=, such as accept.p99<50ms")?;
        let (name, rest) = text.split_at(at);
        let (comparison, value) = match (rest.strip_prefix("<="), rest.strip_prefix(">=")) {
            (Some(value), _) => (Comparison::AtMost, value),
            (_, Some(value)) => (Comparison::AtLeast, value),
            _ if rest.starts_with('<') => (Comparison::Less, &rest[1..]),
            _ => (Comparison::More, &rest[1..]),
        };
        let metric =
            ExpectedMetric::parse(name.trim()).ok_or_else(|| format!("must name one of: {METRICS}"))?;
        let bound = if metric.is_time() { milliseconds(value.trim())? } else { number(value.trim())? };
        Ok(Expectation { metric, comparison, bound, text: text.to_owned() })
    }
}

fn milliseconds(text: &str) -> Result<f64, String> {
    // The longest unit first: "ms" ends with "s" too.
    for (unit, ms) in [("us", 0.001), ("ms", 1.0), ("s", 1_000.0)] {
        if let Some(value) = text.strip_suffix(unit) {
            return Ok(number(value.trim())? * ms);
        }
    }
    Err("must be a time with its unit: us, ms or s".into())
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("must be a number from 0 on".into()),
    }
}

impl fmt::Display for ExpectationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.measured {
            Some(measured) => write!(f, "{} (measured: {measured:.3})", self.expected),
            None => write!(f, "{} (not measured)", self.expected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_written() {
        let accept = |percentile| ExpectedMetric::Latency(LatencyKind::Accept, percentile);
        for (text, metric, comparison, bound) in [
            ("accept.p99<50ms", accept(Percentile::P99), Comparison::Less, 50.0),
            ("accept.p999 <= 1.5s", accept(Percentile::P999), Comparison::AtMost, 1_500.0),
            (
                "outcome.max>=200us",
                ExpectedMetric::Latency(LatencyKind::Outcome, Percentile::Max),
                Comparison::AtLeast,
                0.2,
            ),
            (
                "refuse.p50<1ms",
                ExpectedMetric::Latency(LatencyKind::Refuse, Percentile::P50),
                Comparison::Less,
                1.0,
            ),
            (
                "send.p90<1ms",
                ExpectedMetric::Latency(LatencyKind::Send, Percentile::P90),
                Comparison::Less,
                1.0,
            ),
            ("dropped<=0", ExpectedMetric::Dropped, Comparison::AtMost, 0.0),
            ("faults<1", ExpectedMetric::Faults, Comparison::Less, 1.0),
            ("rate.accepted>5000", ExpectedMetric::Accepted, Comparison::More, 5_000.0),
            ("rate.offered>1e3", ExpectedMetric::Offered, Comparison::More, 1_000.0),
            ("rate.issued>=0.5", ExpectedMetric::Issued, Comparison::AtLeast, 0.5),
            ("backlog.peak<1000", ExpectedMetric::Backlog, Comparison::Less, 1_000.0),
            ("sellout<10s", ExpectedMetric::SellOut, Comparison::Less, 10_000.0),
            ("drain<2s", ExpectedMetric::Drain, Comparison::Less, 2_000.0),
        ] {
            let read: Expectation = text.parse().unwrap();
            assert_eq!(read, Expectation { metric, comparison, bound, text: text.into() });
        }
        for wrong in [
            "",
            "accept.p99",
            "accept.p99=50ms",
            "accept.p99<50",
            "accept.p99<ms",
            "accept.p98<5ms",
            "accept<5ms",
            "dropped<5ms",
            "dropped<-1",
            "dropped<",
            "<5",
            "drain<5",
            "rate.lost>1",
            "accept.p99<NaNms",
            "accept.p99<<5ms",
        ] {
            assert!(wrong.parse::<Expectation>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_was_not_measured_meets_nothing_and_bounds_are_exact() {
        let percentiles = Percentiles {
            count: 1,
            mean_ms: 5.0,
            p50_ms: 1.0,
            p90_ms: 2.0,
            p99_ms: 50.0,
            p999_ms: 60.0,
            max_ms: 70.0,
        };
        let latencies = RunLatencies { accept: Some(percentiles), ..RunLatencies::default() };
        let ok =
            |text: &str| text.parse::<Expectation>().unwrap().hold(&RunFigures::default(), &latencies).ok;
        assert!(ok("accept.p99<=50ms") && !ok("accept.p99<50ms") && ok("accept.p99>=50ms"));
        assert!(ok("accept.max>69ms") && !ok("accept.max>70ms"));
        assert!(!ok("outcome.p99<50ms") && !ok("outcome.p99>0ms") && !ok("sellout<1s"));
        assert!(ok("dropped<=0") && !ok("dropped>0"));
    }
}
