//! What it costs that there is much already: reservations beside more and more users of the same
//! coupon who are settled. The cost must not grow.
//!
//! On a Redis without an append-only file: a sync costs the same whatever is in memory, and would hide
//! what is looked for.

use std::time::Duration;

use serde::Serialize;

use super::backlog::{BATCH_MAX, deliver, queue, settle_all};
use super::bed::Bed;
use super::lab::Lab;
use super::report::{Row, row};
use super::spread::Spread;
use crate::dev::servers::Persistence;
use crate::ids::CouponId;

/// Settled users that are made in one go: what is queued in between stays small.
const STEP: u32 = 50_000;
/// Rounds of a point. Their users settle too: few enough that they stay below the next point.
const ROUNDS: u32 = 3;

/// In order of data size.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    pub curve: Vec<Point>,
    /// Processor time of a reservation beside most data over that beside none.
    pub growth_ratio: f64,
}

/// Reservations in batches of 128 beside so many settled users.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    pub settled: u32,
    /// Processor time of Redis's main thread per reservation, in microseconds: the median of the
    /// rounds.
    pub redis_cpu_micros: f64,
    /// Of a whole call, in milliseconds, over all rounds.
    pub call_p50_ms: f64,
    pub call_p99_ms: f64,
    /// Redis's memory with them, in bytes.
    pub redis_bytes: u64,
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Size> {
    let bed = Bed::make(lab, Persistence::None).await?;
    let most = lab.sizes.settled.iter().copied().max().unwrap_or(0);
    let measured = ROUNDS * lab.sizes.settled.len() as u32 * lab.sizes.reservations;
    let coupon = bed.coupon(most + measured + BATCH_MAX).await?;
    let mut there = 0;
    // So that the first point does not pay for the scripts' first use.
    settle_more(&bed, &coupon, &mut there, BATCH_MAX).await?;
    let mut curve = Vec::new();
    for settled in lab.sizes.settled {
        lab.say(&format!("size: beside {settled} settled users"));
        while there < *settled {
            let step = STEP.min(*settled - there);
            settle_more(&bed, &coupon, &mut there, step).await?;
        }
        curve.push(point(lab, &bed, &coupon, &mut there).await?);
    }
    bed.close().await?;
    let [first, last] =
        [curve.first(), curve.last()].map(|point| point.map_or(f64::NAN, |p| p.redis_cpu_micros));
    Ok(Size { curve, growth_ratio: last / first })
}

async fn settle_more(
    bed: &Bed,
    coupon: &CouponId,
    there: &mut u32,
    count: u32,
) -> anyhow::Result<Vec<Duration>> {
    let queued = queue(bed, coupon, *there..*there + count, BATCH_MAX).await?;
    let delivered = deliver(bed, count).await?;
    settle_all(bed, delivered).await?;
    *there += count;
    Ok(queued.calls)
}

async fn point(lab: &Lab<'_>, bed: &Bed, coupon: &CouponId, there: &mut u32) -> anyhow::Result<Point> {
    let (settled, count) = (*there, lab.sizes.reservations);
    let redis_bytes = bed.redis_bytes().await?;
    let (mut micros, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = bed.redis_cpu_us().await?;
        let queued = queue(bed, coupon, *there..*there + count, BATCH_MAX).await?;
        micros.push((bed.redis_cpu_us().await? - before) / f64::from(count));
        calls.extend(queued.calls);
        let delivered = deliver(bed, count).await?;
        settle_all(bed, delivered).await?;
        *there += count;
    }
    calls.sort_unstable();
    let at = |share: f64| {
        let place = (calls.len() as f64 * share) as usize;
        calls.get(place.min(calls.len() - 1)).map_or(f64::NAN, |call| call.as_secs_f64() * 1e3)
    };
    Ok(Point {
        settled,
        redis_cpu_micros: Spread::of(micros).median,
        call_p50_ms: at(0.5),
        call_p99_ms: at(0.99),
        redis_bytes,
    })
}

impl Size {
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows =
            vec![row("growthRatio", self.growth_ratio, "processor time beside most over beside none")];
        rows.extend(self.curve.iter().map(|point| {
            let says = format!("call {:.2} ms, p99 {:.2} ms", point.call_p50_ms, point.call_p99_ms);
            row(&format!("redisCpuMicros, {}", point.settled), point.redis_cpu_micros, &says)
        }));
        rows
    }
}
