//! What a run comes to: the one document that `--json` prints, and that the HTML report draws.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::expect::{Expectation, ExpectationResult};
use super::live::LatencyHistogram;
use super::plan::RequestKind;
use super::run::{RunResult, RunSettings};
use super::sample::TimelineSample;
use super::verdict::RunVerdict;

/// Where the report's data is put into its page.
const DATA: &str = "/*DATA*/";

/// The report. Times are milliseconds, rates per second; what was not measured is null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunReport {
    /// The version of this program.
    pub version: &'static str,
    /// When the first request was due, or would have been.
    pub started_at: Timestamp,
    /// Whether a signal ended the sending before its time.
    pub ended_early: bool,
    /// The verdict is good, and every expectation is met.
    pub ok: bool,
    pub settings: RunSettings,
    /// The coupon that was requested, and its units.
    pub coupon: String,
    pub total: u64,
    pub figures: RunFigures,
    pub latency: RunLatencies,
    /// Answers to requests by their meaning: `accepted`, `replayed`, a problem's code, or why there was
    /// none.
    pub answers: BTreeMap<&'static str, u64>,
    /// Outcomes of accepted requests: `issued`, or the code of the rejection.
    pub outcomes: BTreeMap<&'static str, u64>,
    pub verdict: RunVerdict,
    pub expectations: Vec<ExpectationResult>,
    /// Samples at equal distances.
    pub timeline: Vec<TimelineSample>,
}

/// Totals and rates.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunFigures {
    /// Requests that were planned: regular ones, second clicks, early birds.
    pub planned: u64,
    /// Requests that were sent, those that were tried again among them.
    pub sent: u64,
    /// Planned requests that the generator could not send in time.
    pub dropped: u64,
    /// Requests without an answer.
    pub faults: u64,
    pub retries: u64,
    /// Polls of an outcome.
    pub polls: u64,
    /// Users whose request was accepted.
    pub accepted: u64,
    /// Answers that only repeated an earlier one.
    pub replayed: u64,
    /// Requests that were refused: sold out, overloaded and so on.
    pub refused: u64,
    /// Users who were told that they hold a unit.
    pub issued: u64,
    /// Users who were told that their accepted request was rejected.
    pub rejected: u64,
    /// Planned requests over the time from the opening to the last of them.
    pub offered_per_second: Option<f64>,
    /// Accepted ones over the time from the opening to the last acceptance.
    pub accepted_per_second: Option<f64>,
    /// Issued units, as the service counts them, over the time until nothing was reserved.
    pub issued_per_second: Option<f64>,
    /// From the opening to the first answer that nothing is left.
    pub sell_out_ms: Option<f64>,
    /// Requests that were planned after the first answer that nothing is left, and accepted: none, unless units came back
    /// or were added.
    pub accepted_after_sold_out: u64,
    /// The most that waited to be decided, of all coupons.
    pub backlog_peak: Option<u64>,
    /// From the last acceptance until nothing of the coupon was reserved.
    pub drain_ms: Option<f64>,
    /// Processor time of the generator, all of its threads.
    pub generator_cpu_seconds: f64,
}

/// Times, each from the moment when the request was planned.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunLatencies {
    /// To the answer that it is accepted.
    pub accept: Option<Percentiles>,
    /// To any other answer.
    pub refuse: Option<Percentiles>,
    /// To the moment when the user knows the outcome.
    pub outcome: Option<Percentiles>,
    /// To the moment of sending: what the generator and a wait for a free connection add.
    pub send: Option<Percentiles>,
}

/// A histogram in a few numbers.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Percentiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Percentiles {
    pub(crate) fn of(latency: &LatencyHistogram) -> Option<Self> {
        let ms = |us: u64| us as f64 / 1_000.0;
        latency.read(|histogram| {
            let at = |quantile| ms(histogram.value_at_quantile(quantile));
            (!histogram.is_empty()).then(|| Percentiles {
                count: histogram.len(),
                mean_ms: histogram.mean() / 1_000.0,
                p50_ms: at(0.5),
                p90_ms: at(0.9),
                p99_ms: at(0.99),
                p999_ms: at(0.999),
                max_ms: ms(histogram.max()),
            })
        })
    }
}

impl RunReport {
    /// Puts a run and its judgement together.
    pub fn new(
        settings: RunSettings,
        measured: RunResult,
        verdict: RunVerdict,
        expected: &[Expectation],
    ) -> Self {
        let live = &measured.people.live;
        let latency = RunLatencies {
            accept: Percentiles::of(&live.accept),
            refuse: Percentiles::of(&live.refuse),
            outcome: Percentiles::of(&live.outcome),
            send: Percentiles::of(&live.send),
        };
        let figures = figures(&measured, &verdict);
        let expectations: Vec<ExpectationResult> =
            expected.iter().map(|one| one.hold(&figures, &latency)).collect();
        RunReport {
            version: env!("CARGO_PKG_VERSION"),
            started_at: measured.started_at,
            ended_early: measured.ended_early,
            ok: verdict.ok && expectations.iter().all(|met| met.ok),
            settings,
            coupon: measured.offer.id.clone(),
            total: verdict.stock.map_or(measured.offer.total, |stock| stock.total),
            latency,
            answers: live.answers(),
            outcomes: live.outcomes(),
            verdict,
            expectations,
            timeline: measured.samples,
            figures,
        }
    }

    /// A page that needs nothing but itself.
    pub fn html(&self) -> serde_json::Result<String> {
        // Nothing in the data may end the script that it stands in.
        let data = serde_json::to_string(self)?.replace('<', "\\u003c");
        Ok(include_str!("report.html").replace(DATA, &data))
    }
}

fn figures(measured: &RunResult, verdict: &RunVerdict) -> RunFigures {
    let (people, live) = (&measured.people, &measured.people.live);
    let opening = people.plan.opening;
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let rate = |count: u64, until: Option<Duration>| {
        let seconds = until?.checked_sub(opening)?.as_secs_f64();
        (count > 0 && seconds > 0.0).then(|| count as f64 / seconds)
    };
    let due = people.plan.due(measured.sending);
    let regular =
        people.plan.visits[..due].iter().filter(|visit| visit.click != RequestKind::Early).count() as u64;
    let last_due = due.checked_sub(1).map(|last| people.plan.moments[last]);
    let last_accept = live.last_accept.get();
    let decided_at = last_accept.zip(measured.drain).map(|(accepted, drain)| accepted + drain);
    let issued = verdict.stock.map_or(0, |stock| stock.issued.saturating_sub(measured.offer.taken));
    RunFigures {
        planned: people.plan.visits.len() as u64,
        sent: live.sent.get(),
        dropped: live.dropped.get(),
        faults: live.faults.get(),
        retries: live.retries.get(),
        polls: live.polls.get(),
        accepted: live.accepted.get(),
        replayed: live.replayed.get(),
        refused: live.refused.get(),
        issued: live.issued.get(),
        rejected: live.rejected.get(),
        offered_per_second: rate(regular, last_due),
        accepted_per_second: rate(live.accepted.get(), last_accept),
        issued_per_second: rate(issued, decided_at.or(live.last_outcome.get())),
        accepted_after_sold_out: live.accepted_after_sold_out.get(),
        sell_out_ms: live.first_sold_out.get().map(|at| ms(at.saturating_sub(opening))),
        backlog_peak: measured.samples.iter().filter_map(|sample| sample.backlog).max(),
        drain_ms: measured.drain.map(ms),
        generator_cpu_seconds: measured.cpu.as_secs_f64(),
    }
}
