//! Five times what the system can take: what is accepted is accepted as soon as at capacity, the rest
//! is turned away at once, memory stays bounded, and everything accepted is decided.
//!
//! Capacity is the rate at which one API process accepts while one worker process drains, as fast as it
//! goes. Requests come at random (Poisson) at that rate, then at five times that rate, each timed from
//! the moment it was planned for; nobody tries again.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::accept::to_service;
use super::bed::{Bed, USER_PREFIX};
use super::lab::Lab;
use super::program::Program;
use super::report::{Row, Target, row};
use super::spread::Spread;
use super::usage;
use crate::dev::servers::Persistence;
use crate::load::arrivals::Shape;
use crate::load::people::{Follow, Retry};
use crate::load::report::Percentiles;
use crate::load::rush::{self, Settings};

/// How many times capacity comes.
const TIMES: f64 = 5.0;
/// Connections, for each of a burst's: one that is turned away at once is free at once.
const CONNECTIONS_SHARE: usize = 8;
const ANSWER_MAX_MS: u64 = 30_000;
const DRAIN_MAX_MS: u64 = 120_000;
/// The same arrivals in every run.
const SEED: u64 = 1;
const MEMORY_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Times in milliseconds, each from the planned moment of the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overload {
    /// Accept latency at five times capacity over that at capacity, each at the 99th percentile. To be
    /// 2 or less.
    pub latency_ratio: f64,
    pub capacity_per_second: f64,
    pub at_capacity: Load,
    pub overloaded: Load,
}

/// What came of requests at one rate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    pub offered_per_second: f64,
    pub accepted_per_second: f64,
    pub accepted: u64,
    /// Turned away with 503.
    pub refused: u64,
    pub accept_p50_ms: f64,
    pub accept_p99_ms: f64,
    /// To the 503; 0 where there was none.
    pub refuse_p50_ms: f64,
    pub refuse_p99_ms: f64,
    /// To the moment of sending: what the generator itself adds to these.
    pub send_p99_ms: f64,
    /// The most resident memory of the API process meanwhile.
    pub api_bytes_max: u64,
    /// From the last request to the moment when everything accepted was issued.
    pub drain_seconds: f64,
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Overload> {
    let sizes = &lab.sizes;
    lab.say("overload: the capacity");
    let bed = Bed::make(lab, Persistence::FsyncAlways).await?;
    bed.register(sizes.burst).await?;
    let api = bed.api().await?;
    let worker = bed.worker().await?;
    let mut rates = Vec::new();
    // The first sees the users for the first time, and does not count.
    for _ in 0..=sizes.rounds {
        let coupon = bed.coupon(sizes.burst).await?;
        let burnt = to_service(lab, &bed, &api, None)?.send(coupon.as_str()).await?;
        bed.drained(&coupon, sizes.burst).await?;
        rates.push(burnt.accepted_per_second);
    }
    let capacity_per_second = Spread::of(rates.split_off(1)).median;
    lab.say(&format!("overload: {capacity_per_second:.0} per second"));
    let at_capacity = load(lab, &bed, &api, capacity_per_second).await?;
    lab.say(&format!("overload: {:.0} per second", capacity_per_second * TIMES));
    let overloaded = load(lab, &bed, &api, capacity_per_second * TIMES).await?;
    worker.stop().await?;
    api.stop().await?;
    bed.close().await?;
    let latency_ratio = overloaded.accept_p99_ms / at_capacity.accept_p99_ms;
    Ok(Overload { latency_ratio, capacity_per_second, at_capacity, overloaded })
}

/// Sends requests at a rate, by users who are known to the API, and waits until all that were accepted
/// are issued.
async fn load(lab: &Lab<'_>, bed: &Bed, api: &Program, rate: f64) -> anyhow::Result<Load> {
    let sizes = &lab.sizes;
    let seconds = f64::from(sizes.overload_seconds);
    let requests = (rate * seconds).ceil() as usize;
    let total = u32::try_from(requests)?;
    bed.register(total).await?;
    let coupon = bed.coupon(total).await?;
    let settings = Settings {
        url: api.url(),
        token: None,
        arrivals: Shape::Poisson,
        requests,
        users: requests,
        duration_ms: u64::from(sizes.overload_seconds) * 1_000,
        user_prefix: Some(USER_PREFIX.into()),
        coupon: Some(coupon.to_string()),
        total: requests as u64,
        double_clicks: 0.0,
        early_birds: 0.0,
        retry: Retry::None,
        follow: Follow::None,
        seed: SEED,
        connections: sizes.connections * CONNECTIONS_SHARE,
        in_flight_max: usize::MAX,
        answer_max_ms: ANSWER_MAX_MS,
        drain_max_ms: DRAIN_MAX_MS,
    };
    let over = CancellationToken::new();
    let memory = tokio::spawn(most_memory(api.pid(), over.clone()));
    let measured = rush::run(&settings, &CancellationToken::new(), &|_, _| {}).await?;
    over.cancel();
    let live = &measured.people.live;
    let (accepted, refused) = (live.accepted.get(), live.refused.get());
    let answers = live.answers();
    ensure!(accepted + refused == requests as u64, "not every request was answered 202 or 503: {answers:?}");
    let drained = Instant::now();
    bed.drained(&coupon, u32::try_from(accepted)?).await?;
    let stock = bed.stock(&coupon).await?;
    ensure!(u64::from(stock.issued) == accepted, "{accepted} were accepted, and {} issued", stock.issued);
    let accept = Percentiles::of(&live.accept).context("nothing was accepted")?;
    let refuse = Percentiles::of(&live.refuse);
    let drain = measured.drain.unwrap_or_else(|| drained.elapsed());
    Ok(Load {
        offered_per_second: rate,
        accepted_per_second: accepted as f64 / measured.sending.as_secs_f64(),
        accepted,
        refused,
        accept_p50_ms: accept.p50_ms,
        accept_p99_ms: accept.p99_ms,
        refuse_p50_ms: refuse.as_ref().map_or(0.0, |refuse| refuse.p50_ms),
        refuse_p99_ms: refuse.as_ref().map_or(0.0, |refuse| refuse.p99_ms),
        send_p99_ms: Percentiles::of(&live.send).context("nothing was sent")?.p99_ms,
        api_bytes_max: memory.await??,
        drain_seconds: drain.as_secs_f64(),
    })
}

async fn most_memory(pid: u32, over: CancellationToken) -> anyhow::Result<u64> {
    let mut most = 0;
    while !over.is_cancelled() {
        most = most.max(usage::resident_bytes(pid)?);
        tokio::time::sleep(MEMORY_LOOK_EVERY).await;
    }
    Ok(most)
}

impl Overload {
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            row(
                "latencyRatio",
                self.latency_ratio,
                "accept p99 at five times capacity over that at capacity",
            )
            .with_target(Target::AtMost(2.0)),
            row("capacityPerSecond", self.capacity_per_second, "accepted while one worker drains"),
        ];
        for (name, load) in [("atCapacity", &self.at_capacity), ("overloaded", &self.overloaded)] {
            let row = |field: &str, value: f64, says: &str| row(&format!("{name}.{field}"), value, says);
            rows.extend([
                row("acceptedPerSecond", load.accepted_per_second, "all of them issued after"),
                row("refused", load.refused as f64, &format!("503; {} accepted", load.accepted)),
                row("acceptP50Ms", load.accept_p50_ms, "to the 202"),
                row("acceptP99Ms", load.accept_p99_ms, ""),
                row("refuseP99Ms", load.refuse_p99_ms, "to the 503"),
                row("sendP99Ms", load.send_p99_ms, "of these, before it was even sent"),
                row("apiBytesMax", load.api_bytes_max as f64, "resident"),
                row("drainSeconds", load.drain_seconds, "after the last request"),
            ]);
        }
        rows
    }
}
