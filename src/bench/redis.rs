//! What a reservation costs Redis: processor time of its main thread, and memory.
//!
//! The scripts are called directly, two calls at once as the API has them. Everything is measured on a
//! Redis that syncs its append-only file before each answer, as shipped, and on one without a file.

use serde::Serialize;

use super::backlog::{BATCH_MAX, deliver, queue, settle_all};
use super::bed::Bed;
use super::lab::Lab;
use super::report::{Row, Target, row};
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
pub struct Redis {
    /// In batches of 128, with fsync-always. To be 6 or less.
    pub redis_cpu_micros_per_reservation: f64,
    /// By batch size: 1, 8, 32, 128.
    pub reservation_cpu_micros: Vec<Batch>,
    /// Of the delivery of an entry to a worker, in reads of 500.
    pub delivery_cpu_micros: Both,
    /// Of a settlement, issued, in batches of 500.
    pub settlement_cpu_micros: Both,
    /// Of looking up an issuance that is queued, in batches of 128.
    pub lookup_cpu_micros: Both,
    /// Memory of an entry that is queued. To be 450 or less.
    pub redis_bytes_per_queued: f64,
    /// Of one that was delivered and is pending.
    pub redis_bytes_per_pending: f64,
    /// Of a user whose issuance is settled. To be 120 or less.
    pub redis_bytes_per_settled: f64,
    /// Entries whose memory was weighed.
    pub entries: u32,
}

/// Batches of one size.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    pub batch: u32,
    /// Microseconds per reservation.
    #[serde(flatten)]
    pub micros: Both,
}

/// The same on two servers.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Both {
    pub fsync_always: f64,
    pub without_aof: f64,
}

/// One server's figures.
struct Costs {
    reservation: [f64; BATCHES.len()],
    delivery: f64,
    settlement: f64,
    lookup: f64,
    bytes: [f64; 3],
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Redis> {
    lab.say("redis: with fsync-always");
    let always = costs(lab, Persistence::FsyncAlways).await?;
    lab.say("redis: without an append-only file");
    let without = costs(lab, Persistence::None).await?;
    let both = |one: fn(&Costs) -> f64| Both { fsync_always: one(&always), without_aof: one(&without) };
    let reservation_cpu_micros: Vec<Batch> = BATCHES
        .iter()
        .zip(always.reservation.iter().zip(without.reservation))
        .map(|(batch, (always, without))| Batch {
            batch: *batch,
            micros: Both { fsync_always: *always, without_aof: without },
        })
        .collect();
    let [queued, pending, settled] = always.bytes;
    Ok(Redis {
        redis_cpu_micros_per_reservation: always.reservation[BATCHES.len() - 1],
        reservation_cpu_micros,
        delivery_cpu_micros: both(|costs| costs.delivery),
        settlement_cpu_micros: both(|costs| costs.settlement),
        lookup_cpu_micros: both(|costs| costs.lookup),
        redis_bytes_per_queued: queued,
        redis_bytes_per_pending: pending,
        redis_bytes_per_settled: settled,
        entries: lab.sizes.weighed,
    })
}

async fn costs(lab: &Lab<'_>, persistence: Persistence) -> anyhow::Result<Costs> {
    let bed = Bed::make(lab, persistence).await?;
    warm_up(&bed).await?;
    let entries = lab.sizes.weighed;
    let each = |from: f64, to: f64| (to - from) / f64::from(entries);
    let bytes = async || bed.redis_bytes().await.map(|bytes| bytes as f64);

    let coupon = bed.coupon(entries).await?;
    let at_rest = bytes().await?;
    let queued = queue(&bed, &coupon, users(entries), BATCH_MAX).await?;
    let with_queued = bytes().await?;
    let cpu_before_lookup = bed.redis_cpu_us().await?;
    look_up(&bed, &queued).await?;
    let cpu_before_delivery = bed.redis_cpu_us().await?;
    let delivered = deliver(&bed, entries).await?;
    let cpu_after_delivery = bed.redis_cpu_us().await?;
    let with_pending = bytes().await?;
    let cpu_before_settling = bed.redis_cpu_us().await?;
    settle_all(&bed, delivered).await?;
    let cpu_after_settling = bed.redis_cpu_us().await?;
    let with_settled = bytes().await?;

    let mut reservation = BATCHES.map(|_| Vec::new());
    for _ in 0..lab.sizes.rounds {
        for (batch, rounds) in BATCHES.iter().zip(&mut reservation) {
            let count = lab.sizes.reservations.min(batch * lab.sizes.calls);
            rounds.push(reserve_micros(&bed, count, *batch).await?);
        }
    }
    bed.close().await?;
    Ok(Costs {
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
async fn warm_up(bed: &Bed) -> anyhow::Result<()> {
    let coupon = bed.coupon(BATCH_MAX).await?;
    let queued = queue(bed, &coupon, users(BATCH_MAX), BATCH_MAX).await?;
    look_up(bed, &queued).await?;
    let delivered = deliver(bed, BATCH_MAX).await?;
    settle_all(bed, delivered).await
}

async fn look_up(bed: &Bed, ids: &[IssuanceId]) -> anyhow::Result<()> {
    for ids in ids.chunks(BATCH_MAX as usize) {
        let found = read_in_flight(&bed.backends.partition, ids).await?;
        anyhow::ensure!(found.iter().all(|one| matches!(one, Ok(Some(_)))), "an issuance is not in flight");
    }
    Ok(())
}

/// The cost of a reservation, of a coupon of its own; what was queued is settled after.
async fn reserve_micros(bed: &Bed, count: u32, batch: u32) -> anyhow::Result<f64> {
    let coupon: CouponId = bed.coupon(count).await?;
    let before = bed.redis_cpu_us().await?;
    queue(bed, &coupon, users(count), batch).await?;
    let micros = (bed.redis_cpu_us().await? - before) / f64::from(count);
    let delivered = deliver(bed, count).await?;
    settle_all(bed, delivered).await?;
    Ok(micros)
}

impl Redis {
    pub(super) fn rows(&self) -> Vec<Row> {
        let micros = self.redis_cpu_micros_per_reservation;
        let mut rows = vec![
            row("redisCpuMicrosPerReservation", micros, "in batches of 128, fsync-always")
                .with_target(Target::AtMost(6.0)),
            row("redisBytesPerQueued", self.redis_bytes_per_queued, "").with_target(Target::AtMost(450.0)),
            row("redisBytesPerPending", self.redis_bytes_per_pending, "in a worker's hands"),
            row("redisBytesPerSettled", self.redis_bytes_per_settled, "").with_target(Target::AtMost(120.0)),
        ];
        let both = |name: &str, both: Both| {
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
