//! How soon users know, at half of what the system can take.
//!
//! First the saturated rate: a burst of requests while one worker process drains, over the time from
//! the first request to the last durable issuance; nobody asks for outcomes. Then requests come at
//! random (Poisson) at half that rate, each timed from the moment it was planned for, and followed to
//! its outcome: once with `?wait`, once by polling when the service says. Who is turned away comes again
//! when told to, and has waited since the first time.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::accept::to_service;
use super::bed::{Bed, USER_PREFIX};
use super::lab::Lab;
use super::program::Program;
use super::report::{Row, Target, row};
use super::spread::Spread;
use crate::dev::servers::Persistence;
use crate::load::arrivals::Shape;
use crate::load::people::{Follow, Retry};
use crate::load::report::Percentiles;
use crate::load::rush::{self, Settings};

/// The longest that an answer, and the drain, are waited for.
const ANSWER_MAX_MS: u64 = 30_000;
/// Connections, for each of a burst's. Half as many follow the requests, in turn, and someone who waits
/// holds one: so many that it is free again when its turn comes.
const CONNECTIONS_SHARE: usize = 4;
/// The same arrivals in every run.
const SEED: u64 = 1;

/// Times in milliseconds, each from the planned moment of the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Issued per second, from first request to last issuance, as fast as it goes.
    pub saturated_per_second: Spread,
    /// Half of it: what came per second.
    pub offered_per_second: f64,
    /// To the 202.
    pub accept_p50_ms: f64,
    pub accept_p99_ms: f64,
    /// To the outcome, followed with `?wait`. To be 100 or less at the 99th percentile.
    pub outcome_p50_ms: f64,
    pub outcome_p99_ms: f64,
    /// To the outcome, followed by polling when `pollAfterMs` says.
    pub polled_outcome_p50_ms: f64,
    pub polled_outcome_p99_ms: f64,
    /// To the moment of sending: what the generator itself adds to all of these.
    pub send_p99_ms: f64,
    /// Requests whose outcome was measured, of each kind.
    pub requests: u64,
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Latency> {
    let sizes = &lab.sizes;
    lab.say("latency: the saturated rate");
    let bed = Bed::make(lab, Persistence::FsyncAlways).await?;
    let api = bed.api_with_users(sizes.burst).await?;
    let worker = bed.worker().await?;
    let mut saturated = Vec::new();
    for _ in 0..sizes.rounds {
        let coupon = bed.coupon(sizes.burst).await?;
        let began = std::time::Instant::now();
        to_service(lab, &bed, &api, None)?.send(coupon.as_str()).await?;
        bed.drained(&coupon, sizes.burst).await?;
        saturated.push(f64::from(sizes.burst) / began.elapsed().as_secs_f64());
    }
    let saturated_per_second = Spread::of(saturated);
    let rate = saturated_per_second.median / 2.0;
    let requests = (rate * f64::from(sizes.latency_seconds)).ceil() as usize;
    api.stop().await?;
    let api = bed.api_with_users(u32::try_from(requests)?).await?;
    lab.say(&format!("latency: {rate:.0} per second, followed with ?wait"));
    let waited = half(lab, &api, requests, Follow::Wait).await?;
    lab.say(&format!("latency: {rate:.0} per second, followed by polling"));
    let polled = half(lab, &api, requests, Follow::Poll).await?;
    worker.stop().await?;
    api.stop().await?;
    bed.close().await?;
    Ok(Latency {
        saturated_per_second,
        offered_per_second: rate,
        accept_p50_ms: waited.accept.p50_ms,
        accept_p99_ms: waited.accept.p99_ms,
        outcome_p50_ms: waited.outcome.p50_ms,
        outcome_p99_ms: waited.outcome.p99_ms,
        polled_outcome_p50_ms: polled.outcome.p50_ms,
        polled_outcome_p99_ms: polled.outcome.p99_ms,
        send_p99_ms: waited.send.p99_ms,
        requests: waited.outcome.count,
    })
}

struct Times {
    accept: Percentiles,
    outcome: Percentiles,
    send: Percentiles,
}

/// Sends requests at random moments, and follows them all.
async fn half(lab: &Lab<'_>, api: &Program, requests: usize, follow: Follow) -> anyhow::Result<Times> {
    let settings = Settings {
        url: api.url(),
        token: None,
        arrivals: Shape::Poisson,
        requests,
        users: requests,
        duration_ms: u64::from(lab.sizes.latency_seconds) * 1_000,
        user_prefix: Some(USER_PREFIX.into()),
        coupon: None,
        total: requests as u64,
        double_clicks: 0.0,
        early_birds: 0.0,
        retry: Retry::Patient,
        follow,
        seed: SEED,
        connections: lab.sizes.connections * CONNECTIONS_SHARE,
        in_flight_max: usize::MAX,
        answer_max_ms: ANSWER_MAX_MS,
        drain_max_ms: ANSWER_MAX_MS,
    };
    let measured = rush::run(&settings, &CancellationToken::new(), &|_, _| {}).await?;
    let live = &measured.people.live;
    let all = [&live.accept, &live.outcome, &live.send].map(Percentiles::of);
    match all {
        [Some(accept), Some(outcome), Some(send)] if outcome.count == requests as u64 => {
            Ok(Times { accept, outcome, send })
        }
        _ => anyhow::bail!("not every request was issued: {:?} {:?}", live.answers(), live.outcomes()),
    }
}

impl Latency {
    pub(super) fn rows(&self) -> Vec<Row> {
        vec![
            row("outcomeP99Ms", self.outcome_p99_ms, "at half load, followed with ?wait")
                .with_target(Target::AtMost(100.0)),
            row("outcomeP50Ms", self.outcome_p50_ms, ""),
            row("polledOutcomeP99Ms", self.polled_outcome_p99_ms, "followed by polling"),
            row("polledOutcomeP50Ms", self.polled_outcome_p50_ms, ""),
            row("acceptP99Ms", self.accept_p99_ms, "to the 202"),
            row("acceptP50Ms", self.accept_p50_ms, ""),
            row("sendP99Ms", self.send_p99_ms, "of these, before it was even sent"),
            row("saturatedPerSecond", self.saturated_per_second.median, "accepted and issued")
                .over(&self.saturated_per_second),
            row("offeredPerSecond", self.offered_per_second, "half of it"),
        ]
    }
}
