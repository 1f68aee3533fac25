//! What an issuance costs Redis: processor time of its main thread, and memory.
//!
//! The scripts are called directly, two calls at once, as of two API processes. Everything is measured on a
//! Redis that syncs its append-only file before each answer, as shipped, and on one without a file.

use serde::Serialize;

use super::backlog::{BATCH_MAX, deliver, queue, settle_all};
use super::context::BenchContext;
use super::env::BenchEnv;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use crate::dev::servers::Persistence;
use crate::ids::{CouponId, IssuanceId};
use crate::issuance::lookup::read_in_flight;

/// Reservations in one call.
const BATCHES: [u32; 4] = [1, 8, 32, BATCH_MAX];
/// Users' names are as long as `user-123456` from here on.
const FIRST_USER: u32 = 100_000;

/// Processor time in microseconds, user and system, of Redis's main thread; memory in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisFigures {
    /// Of an issuance from its reservation to its settlement, in batches of 128 and 500, with fsync-always. To be 11 or
    /// less.
    pub redis_cpu_micros_per_issuance: f64,
    /// By batch size: 1, 8, 32, 128.
    pub reservation_cpu_micros: Vec<BatchFigures>,
    /// Of the delivery of an entry to a worker, in reads of 500.
    pub delivery_cpu_micros: ByPersistence,
    /// Of a settlement, issued, in batches of 500.
    pub settlement_cpu_micros: ByPersistence,
    /// Of looking up an issuance that is queued, in batches of 128.
    pub lookup_cpu_micros: ByPersistence,
    /// Memory of an entry that is queued. To be 300 or less.
    pub redis_bytes_per_queued: f64,
    /// Of one that was delivered and is pending.
    pub redis_bytes_per_pending: f64,
    /// Of a user whose issuance is settled. To be 90 or less.
    pub redis_bytes_per_settled: f64,
    /// Entries whose memory was weighed.
    pub entries: u32,
}

/// Batches of one size.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchFigures {
    pub batch: u32,
    /// Microseconds per reservation.
    #[serde(flatten)]
    pub micros: ByPersistence,
}

/// The same on two servers.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ByPersistence {
    pub fsync_always: f64,
    pub without_aof: f64,
}

/// One server's figures.
struct ServerFigures {
    reservation: [f64; BATCHES.len()],
    delivery: f64,
    settlement: f64,
    lookup: f64,
    bytes: [f64; 3],
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<RedisFigures> {
    context.say("redis: with fsync-always");
    let always = costs(context, Persistence::FsyncAlways).await?;
    context.say("redis: without an append-only file");
    let without = costs(context, Persistence::None).await?;
    let both = |one: fn(&ServerFigures) -> f64| ByPersistence {
        fsync_always: one(&always),
        without_aof: one(&without),
    };
    let reservation_cpu_micros: Vec<BatchFigures> = BATCHES
        .iter()
        .zip(always.reservation.iter().zip(without.reservation))
        .map(|(batch, (always, without))| BatchFigures {
            batch: *batch,
            micros: ByPersistence { fsync_always: *always, without_aof: without },
        })
        .collect();
    let [queued, pending, settled] = always.bytes;
    Ok(RedisFigures {
        redis_cpu_micros_per_issuance: always.reservation[BATCHES.len() - 1]
            + always.delivery
            + always.settlement,
        reservation_cpu_micros,
        delivery_cpu_micros: both(|costs| costs.delivery),
        settlement_cpu_micros: both(|costs| costs.settlement),
        lookup_cpu_micros: both(|costs| costs.lookup),
        redis_bytes_per_queued: queued,
        redis_bytes_per_pending: pending,
        redis_bytes_per_settled: settled,
        entries: context.sizes.weighed,
    })
}

async fn costs(context: &BenchContext<'_>, persistence: Persistence) -> anyhow::Result<ServerFigures> {
    let env = BenchEnv::make(context, persistence).await?;
    warm_up(&env).await?;
    let entries = context.sizes.weighed;
    let each = |from: f64, to: f64| (to - from) / f64::from(entries);
    let bytes = async || env.redis_bytes().await.map(|bytes| bytes as f64);

    let partition = env.backends.partitions.first();
    let coupon = env.coupon(entries).await?;
    let at_rest = bytes().await?;
    let queued = queue(partition, &coupon, users(entries), BATCH_MAX).await?;
    let with_queued = bytes().await?;
    let cpu_before_lookup = env.redis_cpu_us().await?;
    look_up(&env, &queued).await?;
    let cpu_before_delivery = env.redis_cpu_us().await?;
    let delivered = deliver(partition, entries).await?;
    let cpu_after_delivery = env.redis_cpu_us().await?;
    let with_pending = bytes().await?;
    let cpu_before_settling = env.redis_cpu_us().await?;
    settle_all(partition, delivered).await?;
    let cpu_after_settling = env.redis_cpu_us().await?;
    let with_settled = bytes().await?;

    let mut reservation = BATCHES.map(|_| Vec::new());
    for _ in 0..context.sizes.rounds {
        for (batch, rounds) in BATCHES.iter().zip(&mut reservation) {
            let count = context.sizes.reservations.min(batch * context.sizes.calls);
            rounds.push(reserve_micros(&env, count, *batch).await?);
        }
    }
    env.close().await?;
    Ok(ServerFigures {
        reservation: reservation.map(|rounds| Spread::of(rounds).median),
        delivery: each(cpu_before_delivery, cpu_after_delivery),
        settlement: each(cpu_before_settling, cpu_after_settling),
        lookup: each(cpu_before_lookup, cpu_before_delivery),
        bytes: [with_queued, with_pending, with_settled].map(|bytes| each(at_rest, bytes)),
    })
}

fn users(count: u32) -> std::ops::Range<u32> {
    FIRST_USER..FIRST_USER + count
}

/// Lets Redis read every script once.
async fn warm_up(env: &BenchEnv) -> anyhow::Result<()> {
    let partition = env.backends.partitions.first();
    let coupon = env.coupon(BATCH_MAX).await?;
    let queued = queue(partition, &coupon, users(BATCH_MAX), BATCH_MAX).await?;
    look_up(env, &queued).await?;
    let delivered = deliver(partition, BATCH_MAX).await?;
    settle_all(partition, delivered).await
}

async fn look_up(env: &BenchEnv, ids: &[IssuanceId]) -> anyhow::Result<()> {
    for ids in ids.chunks(BATCH_MAX as usize) {
        let found = read_in_flight(env.backends.partitions.first(), ids).await?;
        anyhow::ensure!(found.iter().all(|one| matches!(one, Ok(Some(_)))), "an issuance is not in flight");
    }
    Ok(())
}

/// The cost of a reservation, of a coupon of its own; what was queued is settled after.
async fn reserve_micros(env: &BenchEnv, count: u32, batch: u32) -> anyhow::Result<f64> {
    let partition = env.backends.partitions.first();
    let coupon: CouponId = env.coupon(count).await?;
    let before = env.redis_cpu_us().await?;
    queue(partition, &coupon, users(count), batch).await?;
    let micros = (env.redis_cpu_us().await? - before) / f64::from(count);
    let delivered = deliver(partition, count).await?;
    settle_all(partition, delivered).await?;
    Ok(micros)
}

impl RedisFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        let micros = self.redis_cpu_micros_per_issuance;
        let mut rows = vec![
            row("redisCpuMicrosPerIssuance", micros, "from reservation to settlement, fsync-always")
                .with_target(FigureTarget::AtMost(11.0)),
            row("redisBytesPerQueued", self.redis_bytes_per_queued, "")
                .with_target(FigureTarget::AtMost(300.0)),
            row("redisBytesPerPending", self.redis_bytes_per_pending, "in a worker's hands"),
            row("redisBytesPerSettled", self.redis_bytes_per_settled, "")
                .with_target(FigureTarget::AtMost(90.0)),
        ];
        let both = |name: &str, both: ByPersistence| {
            row(name, both.fsync_always, &format!("{:.1} without an append-only file", both.without_aof))
        };
        rows.extend(
            self.reservation_cpu_micros
                .iter()
                .map(|one| both(&format!("reservationCpuMicros, {}", one.batch), one.micros)),
        );
        rows.push(both("deliveryCpuMicros", self.delivery_cpu_micros));
        rows.push(both("settlementCpuMicros", self.settlement_cpu_micros));
        rows.push(both("lookupCpuMicros", self.lookup_cpu_micros));
        rows
    }
}
