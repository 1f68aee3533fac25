//! How soon users know, at half of what the system can take.
//!
//! First the saturated rate: all requests come at once, each is followed to its outcome with `?wait`, and
//! one worker process drains, over the time from the start to the last outcome. Then requests come at
//! random (Poisson) at half that rate, each timed from the moment it was planned for, and followed to
//! its outcome: once with `?wait`, once by polling when the service says. A user who is refused tries again
//! when told to, and has waited since the first time.
//!
//! Those who follow are nearly half of the load. So there is a second, larger rate: what is accepted and
//! issued while no client asks for outcomes. Half of that, followed, is far more than half a load.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::accept::to_service;
use super::context::BenchContext;
use super::env::{BenchEnv, USER_PREFIX};
use super::program::ChildProgram;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use crate::dev::servers::Persistence;
use crate::rush::arrivals::ArrivalShape;
use crate::rush::report::Percentiles;
use crate::rush::run;
use crate::rush::run::RunSettings;
use crate::rush::virtual_users::{FollowMode, RetryPolicy};

/// The longest that an answer, and the drain, are waited for.
const ANSWER_MAX_MS: u64 = 30_000;
/// Connections, for each of a burst's. Half as many follow the requests, in turn, and a user who waits holds one: with
/// this many, each is free again when its turn comes.
const CONNECTIONS_SHARE: usize = 4;
/// The same arrivals in every run.
const SEED: u64 = 1;

/// Times in milliseconds, each from the planned moment of the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyFigures {
    /// Outcomes told per second, from the first request to the last outcome, as fast as it goes.
    pub saturated_per_second: Spread,
    /// Half of it: what came per second.
    pub offered_per_second: f64,
    /// To the 202.
    pub accept_p50_ms: f64,
    pub accept_p99_ms: f64,
    /// To the outcome, followed with `?wait`. To be 50 or less at the 99th percentile.
    pub outcome_p50_ms: f64,
    pub outcome_p99_ms: f64,
    /// To the outcome, followed by polling when `pollAfterMs` says.
    pub polled_outcome_p50_ms: f64,
    pub polled_outcome_p99_ms: f64,
    /// To the moment of sending: what the generator itself adds, while followed with `?wait`.
    pub send_p99_ms: f64,
    /// Requests whose outcome was measured, of either kind.
    pub requests: u64,
    /// Issued per second, from first request to last issuance, as fast as it goes while no client asks for outcomes.
    pub unfollowed_per_second: Spread,
    /// To the outcome, followed with `?wait`, while half of that comes per second.
    pub crowded_outcome_p50_ms: f64,
    pub crowded_outcome_p99_ms: f64,
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<LatencyFigures> {
    let sizes = &context.sizes;
    let burst = sizes.burst as usize;
    context.say("latency: the saturated rates");
    let env = BenchEnv::make(context, Persistence::FsyncAlways).await?;
    let api = env.api_with_users(sizes.burst).await?;
    let worker = env.worker().await?;
    let (mut saturated, mut unfollowed) = (Vec::new(), Vec::new());
    for _ in 0..sizes.rounds {
        let coupon = env.coupon(sizes.burst).await?;
        let began = Instant::now();
        to_service(context, &env, &api, None)?.send(coupon.as_str()).await?;
        env.drained(&coupon, sizes.burst).await?;
        unfollowed.push(f64::from(sizes.burst) / began.elapsed().as_secs_f64());
        let all = followed(context, &api, burst, Duration::ZERO, FollowMode::Wait).await?;
        saturated.push(f64::from(sizes.burst) / all.until.as_secs_f64());
    }
    let (saturated, unfollowed) = (Spread::of(saturated), Spread::of(unfollowed));
    let time = Duration::from_secs(sizes.latency_seconds.into());
    let half = |rate: &Spread| (rate.median / 2.0 * time.as_secs_f64()).ceil() as usize;
    let (half, crowd) = (half(&saturated), half(&unfollowed));
    api.stop().await?;
    let api = env.api_with_users(u32::try_from(half.max(crowd))?).await?;
    let spread = async |requests: usize, follow: FollowMode, how: &str| {
        let rate = requests as f64 / time.as_secs_f64();
        context.say(&format!("latency: {rate:.0} per second, followed {how}"));
        followed(context, &api, requests, time, follow).await
    };
    let waited = spread(half, FollowMode::Wait, "with ?wait").await?;
    let polled = spread(half, FollowMode::Poll, "by polling").await?;
    let crowded = spread(crowd, FollowMode::Wait, "with ?wait, which is a crowd").await?;
    worker.stop().await?;
    api.stop().await?;
    env.close().await?;
    Ok(LatencyFigures {
        offered_per_second: saturated.median / 2.0,
        saturated_per_second: saturated,
        accept_p50_ms: waited.accept.p50_ms,
        accept_p99_ms: waited.accept.p99_ms,
        outcome_p50_ms: waited.outcome.p50_ms,
        outcome_p99_ms: waited.outcome.p99_ms,
        polled_outcome_p50_ms: polled.outcome.p50_ms,
        polled_outcome_p99_ms: polled.outcome.p99_ms,
        send_p99_ms: waited.send.p99_ms,
        requests: waited.outcome.count,
        unfollowed_per_second: unfollowed,
        crowded_outcome_p50_ms: crowded.outcome.p50_ms,
        crowded_outcome_p99_ms: crowded.outcome.p99_ms,
    })
}

struct FollowedLatencies {
    accept: Percentiles,
    outcome: Percentiles,
    send: Percentiles,
    /// From the start to the last outcome.
    until: Duration,
}

/// Sends requests at random moments of a time, and follows them all.
async fn followed(
    context: &BenchContext<'_>,
    api: &ChildProgram,
    requests: usize,
    within: Duration,
    follow: FollowMode,
) -> anyhow::Result<FollowedLatencies> {
    let settings = RunSettings {
        url: api.url(),
        token: None,
        arrivals: ArrivalShape::Poisson,
        requests,
        users: requests,
        duration_ms: u64::try_from(within.as_millis())?,
        user_prefix: Some(USER_PREFIX.into()),
        coupon: None,
        total: requests as u64,
        shares: None,
        double_clicks: 0.0,
        early_birds: 0.0,
        retry: RetryPolicy::Patient,
        follow,
        seed: SEED,
        connections: context.sizes.connections * CONNECTIONS_SHARE,
        in_flight_max: usize::MAX,
        answer_max_ms: ANSWER_MAX_MS,
        drain_max_ms: ANSWER_MAX_MS,
    };
    let measured = run::run(&settings, &CancellationToken::new(), &|_, _| {}).await?;
    let live = &measured.people.live;
    let all = [&live.accept, &live.outcome, &live.send].map(Percentiles::of);
    match (all, live.last_outcome.get()) {
        ([Some(accept), Some(outcome), Some(send)], Some(until)) if outcome.count == requests as u64 => {
            Ok(FollowedLatencies { accept, outcome, send, until })
        }
        _ => anyhow::bail!("not every request was issued: {:?} {:?}", live.answers(), live.outcomes()),
    }
}

impl LatencyFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        vec![
            row("outcomeP99Ms", self.outcome_p99_ms, "at half of what is saturated, followed with ?wait")
                .with_target(FigureTarget::AtMost(50.0)),
            row("outcomeP50Ms", self.outcome_p50_ms, ""),
            row("polledOutcomeP99Ms", self.polled_outcome_p99_ms, "followed by polling"),
            row("polledOutcomeP50Ms", self.polled_outcome_p50_ms, ""),
            row("acceptP99Ms", self.accept_p99_ms, "to the 202"),
            row("acceptP50Ms", self.accept_p50_ms, ""),
            row("sendP99Ms", self.send_p99_ms, "of these, before it was even sent"),
            row("saturatedPerSecond", self.saturated_per_second.median, "issued, and every outcome told")
                .over(&self.saturated_per_second),
            row("offeredPerSecond", self.offered_per_second, "half of it"),
            row(
                "unfollowedPerSecond",
                self.unfollowed_per_second.median,
                "issued while no client asks for outcomes",
            )
            .over(&self.unfollowed_per_second),
            row("crowdedOutcomeP99Ms", self.crowded_outcome_p99_ms, "at half of that, followed with ?wait"),
            row("crowdedOutcomeP50Ms", self.crowded_outcome_p50_ms, ""),
        ]
    }
}
