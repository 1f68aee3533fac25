//! Five times what the system can take: what is accepted is accepted as soon as at capacity, the rest
//! is turned away at once, memory stays bounded, and everything accepted is decided.
//!
//! A handler that does nothing gets the same arrivals on the same cores: what it adds to the latency, the network stack
//! and the generator add.
//!
//! The generator has half of the cores and the system the others, so that it is the system that is
//! short of something. Requests come at random (Poisson), each timed from the moment it was planned for;
//! no user tries again. There are enough connections that every request finds a free one: else it would
//! wait in the generator, and not at the API. Each connection has read the coupon before. Capacity is
//! how many are accepted a second, by one API process while one worker process drains, of somewhat more
//! than can be: as many as a few connections have accepted that always ask. Then they come at that rate,
//! and at five times that rate.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::accept::{NO_COUPON, bare_handler, to_service};
use super::context::BenchContext;
use super::cores::{confine, halves};
use super::env::BenchEnv;
use super::paced::{self, PacedAnswers};
use super::program::ChildProgram;
use super::report::{FigureRow, FigureTarget as Wanted, row};
use super::spread::Spread;
use super::usage;
use crate::dev::servers::Persistence;

/// How many times capacity comes.
const TIMES: f64 = 5.0;
const MEMORY_SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Times in milliseconds, each from the planned moment of the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OverloadFigures {
    /// Accept latency at five times capacity over that at capacity, each at the 99th percentile. To be
    /// 2 or less.
    pub latency_ratio: f64,
    /// The same of the bare handler, at the same two rates.
    pub bare_latency_ratio: f64,
    /// Its accept latency at five times capacity, at the 99th percentile.
    pub bare_overloaded_p99_ms: f64,
    pub capacity_per_second: f64,
    pub at_capacity: RateFigures,
    pub overloaded: RateFigures,
}

/// What came of requests at one rate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateFigures {
    pub offered_per_second: f64,
    pub accepted_per_second: f64,
    pub accepted: u32,
    /// Turned away with 503.
    pub refused: u32,
    pub accept_p50_ms: f64,
    pub accept_p99_ms: f64,
    /// To the 503; 0 where there was none.
    pub refuse_p50_ms: f64,
    pub refuse_p99_ms: f64,
    /// To the moment of sending: what the generator itself adds to these, and how long requests wait
    /// for a connection.
    pub send_p99_ms: f64,
    /// The most resident memory of the API process meanwhile.
    pub api_bytes_max: u64,
    /// From the last answer to the moment when everything accepted was issued.
    pub drain_seconds: f64,
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<OverloadFigures> {
    context.say("overload: the capacity");
    let env = BenchEnv::make(context, Persistence::FsyncAlways).await?;
    let worker = env.worker().await?;
    let halves = halves()?;
    if let Some([system, generator]) = &halves {
        let redis = env.redis_pid()?;
        for pid in [worker.pid(), redis, env.mongodb_pid()?] {
            confine(pid, system)?;
        }
        confine(std::process::id(), generator)?;
    }
    let measured = confined(context, &env, halves.as_ref().map(|[system, _]| system)).await;
    if let Some([system, generator]) = &halves {
        confine(std::process::id(), &(system.start..generator.end))?;
    }
    let measured = measured?;
    worker.stop().await?;
    env.close().await?;
    Ok(measured)
}

/// With an API on these cores.
async fn confined(
    context: &BenchContext<'_>,
    env: &BenchEnv,
    cores: Option<&Range<usize>>,
) -> anyhow::Result<OverloadFigures> {
    let sizes = &context.sizes;
    let api = confined_api(env, sizes.burst, cores).await?;
    let mut rates = Vec::new();
    for _ in 0..sizes.rounds {
        let coupon = env.coupon(sizes.burst).await?;
        let result = to_service(context, env, &api, None)?.send(coupon.as_str()).await?;
        env.drained(&coupon, sizes.burst).await?;
        rates.push(result.accepted_per_second);
    }
    api.stop().await?;
    let more_than_capacity = Spread::of(rates).median;
    let capacity_per_second = load(context, env, more_than_capacity, cores).await?.accepted_per_second;
    context.say(&format!("overload: {capacity_per_second:.0} per second"));
    let at_capacity = load(context, env, capacity_per_second, cores).await?;
    context.say(&format!("overload: {:.0} per second", capacity_per_second * TIMES));
    let overloaded = load(context, env, capacity_per_second * TIMES, cores).await?;
    let bare_p99_ms = bare(context, capacity_per_second, cores).await?;
    let bare_overloaded_p99_ms = bare(context, capacity_per_second * TIMES, cores).await?;
    Ok(OverloadFigures {
        latency_ratio: overloaded.accept_p99_ms / at_capacity.accept_p99_ms,
        bare_latency_ratio: bare_overloaded_p99_ms / bare_p99_ms,
        bare_overloaded_p99_ms,
        capacity_per_second,
        at_capacity,
        overloaded,
    })
}

/// The accept latency of the bare handler at a rate, in milliseconds at the 99th percentile.
async fn bare(context: &BenchContext<'_>, rate: f64, cores: Option<&Range<usize>>) -> anyhow::Result<f64> {
    let handler = bare_handler().await?;
    if let Some(cores) = cores {
        confine(handler.pid(), cores)?;
    }
    let (requests, time) = arrivals(context, rate);
    let coupon = NO_COUPON.parse().map_err(anyhow::Error::msg)?;
    let answers = paced::send(&handler, &coupon, requests, time, context.sizes.callers).await?;
    handler.stop().await?;
    Ok(answers.accept.context("nothing was accepted")?.p99_ms)
}

/// The number of requests at a rate, and the time that they come in.
fn arrivals(context: &BenchContext<'_>, rate: f64) -> (u32, Duration) {
    let time = Duration::from_secs(context.sizes.overload_seconds.into());
    ((rate * time.as_secs_f64()).ceil() as u32, time)
}

/// Starts an API process on these cores, and waits until it remembers `users` users.
async fn confined_api(
    env: &BenchEnv,
    users: u32,
    cores: Option<&Range<usize>>,
) -> anyhow::Result<ChildProgram> {
    let api = env.api_with_users(users).await?;
    if let Some(cores) = cores {
        confine(api.pid(), cores)?;
    }
    Ok(api)
}

/// Sends requests at a rate, and waits until all that were accepted are issued.
async fn load(
    context: &BenchContext<'_>,
    env: &BenchEnv,
    rate: f64,
    cores: Option<&Range<usize>>,
) -> anyhow::Result<RateFigures> {
    let (requests, time) = arrivals(context, rate);
    let api = confined_api(env, requests, cores).await?;
    let coupon = env.coupon(requests).await?;
    let over = CancellationToken::new();
    let memory = tokio::spawn(most_memory(api.pid(), over.clone()));
    let answers = paced::send(&api, &coupon, requests, time, context.sizes.callers).await?;
    let answered = Instant::now();
    over.cancel();
    let PacedAnswers { accepted, refused, .. } = answers;
    ensure!(
        accepted + refused == requests,
        "some were answered neither 202 nor 503: {:?}",
        answers.otherwise
    );
    env.drained(&coupon, accepted).await?;
    let drain_seconds = answered.elapsed().as_secs_f64();
    let issued = env.stock(&coupon).await?.issued;
    let api_bytes_max = memory.await??;
    api.stop().await?;
    ensure!(issued == accepted, "{accepted} were accepted, and {issued} issued");
    let accept = answers.accept.context("nothing was accepted")?;
    let refuse = answers.refuse;
    Ok(RateFigures {
        offered_per_second: rate,
        accepted_per_second: f64::from(accepted) / answers.took.as_secs_f64(),
        accepted,
        refused,
        accept_p50_ms: accept.p50_ms,
        accept_p99_ms: accept.p99_ms,
        refuse_p50_ms: refuse.as_ref().map_or(0.0, |refuse| refuse.p50_ms),
        refuse_p99_ms: refuse.as_ref().map_or(0.0, |refuse| refuse.p99_ms),
        send_p99_ms: answers.send.context("nothing was sent")?.p99_ms,
        api_bytes_max,
        drain_seconds,
    })
}

async fn most_memory(pid: u32, over: CancellationToken) -> anyhow::Result<u64> {
    let mut most = 0;
    while !over.is_cancelled() {
        most = most.max(usage::resident_bytes(pid)?);
        tokio::time::sleep(MEMORY_SAMPLE_INTERVAL).await;
    }
    Ok(most)
}

impl OverloadFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        let mut rows = vec![
            row(
                "latencyRatio",
                self.latency_ratio,
                "accept p99 at five times capacity over that at capacity",
            )
            .with_target(Wanted::AtMost(2.0)),
            row("bareLatencyRatio", self.bare_latency_ratio, "the same of a handler that does nothing"),
            row(
                "bareOverloadedP99Ms",
                self.bare_overloaded_p99_ms,
                "and its accept p99 at five times capacity",
            ),
            row("capacityPerSecond", self.capacity_per_second, "accepted while one worker drains"),
        ];
        for (name, load) in [("atCapacity", &self.at_capacity), ("overloaded", &self.overloaded)] {
            let row = |field: &str, value: f64, says: &str| row(&format!("{name}.{field}"), value, says);
            rows.extend([
                row("acceptedPerSecond", load.accepted_per_second, "all of them issued after"),
                row("refused", load.refused.into(), &format!("503; {} accepted", load.accepted)),
                row("acceptP50Ms", load.accept_p50_ms, "to the 202"),
                row("acceptP99Ms", load.accept_p99_ms, ""),
                row("refuseP99Ms", load.refuse_p99_ms, "to the 503"),
                row("sendP99Ms", load.send_p99_ms, "of these, before it was even sent"),
                row("apiBytesMax", load.api_bytes_max as f64, "resident"),
                row("drainSeconds", load.drain_seconds, "after the last answer"),
            ]);
        }
        rows
    }
}
