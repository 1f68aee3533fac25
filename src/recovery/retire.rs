//! Taking coupons that are over out of Redis: memory is for those that can be asked for. From then on
//! the ledger answers ([`crate::issuance::closed_coupon`]), and how many units were issued is kept with the
//! coupon's record, so that no request has to count them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::survivors;
use crate::Failure;
use crate::coupon::CouponStore;
use crate::ids::CouponId;
use crate::redis::cmd;
use crate::redis::keys::EpochKeys;
use crate::redis::turn::background_round;
use crate::redis::{EpochBound, LuaScript, Partition};
use crate::runtime::background::IsBusy;
use crate::runtime::damage::damaged;
use crate::runtime::tasks::Rounds;

static OVER: LuaScript = LuaScript::new(include_str!("over.lua"));
static RETIRE: LuaScript = LuaScript::new(include_str!("retire.lua"));

/// How often a process searches for coupons that are over.
const EVERY: Duration = Duration::from_secs(60);
/// A campaign that has just ended is still asked for a lot, and Redis answers that more cheaply.
pub const KEPT_AFTER_END: Duration = Duration::from_secs(3600);
/// Coupons in one script.
const BATCH: usize = 200;

/// Retires until `shutdown`, in the background. Idempotent and without input; every API process runs it, and they take
/// turns. Reads: loaded coupons, what is in flight. Writes: takes loaded coupons away, and keeps their final counts.
pub(crate) async fn keep_retiring(
    partition: Arc<Partition>,
    coupons: CouponStore,
    is_busy: IsBusy,
    shutdown: CancellationToken,
) {
    let mut rounds = Rounds::every(EVERY, &shutdown);
    while rounds.next().await {
        let (turn, round) = (partition.keys().retire_turn(), retire(&partition, &coupons, KEPT_AFTER_END));
        let round = background_round(&partition, turn, EVERY, &is_busy, round);
        // A count that is not kept because a round is broken off is counted by the first request that needs it.
        let Some(retired) = shutdown.run_until_cancelled(round).await else { return };
        match retired {
            Ok(retired) => {
                for coupon in retired.unwrap_or_default() {
                    tracing::info!(%coupon, "retired an ended coupon from Redis");
                }
            }
            Err(failure) => {
                tracing::debug!(error = failure.chain(), "coupons could not be retired; trying again")
            }
        }
    }
}

/// Retires the coupons that are archived, or ended so long ago, and have nothing in flight.
///
/// # Errors
///
/// If Redis or MongoDB fails.
pub async fn retire(
    partition: &Partition,
    coupons: &CouponStore,
    kept_after_end: Duration,
) -> Result<Vec<CouponId>, Failure> {
    let keys = partition.keys();
    let mut over = Vec::new();
    for batch in loaded_coupons(partition, &keys).await?.chunks(BATCH) {
        over.extend(at_rest(partition, &keys, batch, kept_after_end).await?);
    }
    if over.is_empty() {
        return Ok(Vec::new());
    }
    // Only now: what has come into flight before they were seen to be over is found.
    // A value that cannot be read keeps back its own coupon alone, by the unit that is neither free nor issued.
    let in_flight = match survivors::coupons_in_flight(partition, &keys).await {
        // What is in flight cannot be determined.
        Err(Failure::Damaged { .. }) => return Ok(Vec::new()),
        in_flight => in_flight?,
    };
    over.retain(|(coupon, _)| !in_flight.contains(coupon));
    let mut retired = Vec::new();
    for batch in over.chunks(BATCH) {
        for (coupon, generation, issued) in take_out(partition, &keys, batch).await? {
            // The first request that needs a count that is not kept counts.
            if let Some(issued) = issued
                && let Err(failure) = coupons.keep_final_count(&coupon, generation, issued).await
            {
                tracing::warn!(%coupon, error = failure.chain(), "the final count could not be stored");
            }
            retired.push(coupon);
        }
    }
    Ok(retired)
}

/// The coupons that are loaded in an epoch. What else the set holds is left out.
///
/// # Errors
///
/// If Redis fails.
pub async fn loaded_coupons(partition: &Partition, keys: &EpochKeys) -> Result<Vec<CouponId>, Failure> {
    let loaded_members = loaded_members(partition, keys).await?;
    for invalid in &loaded_members.invalid {
        damaged!(
            invalid; member = invalid,
            key = keys.loaded(),
            "a member of the loaded coupons is no coupon's id: SREM it"
        );
    }
    Ok(loaded_members.coupons)
}

/// The members of the set of loaded coupons.
pub(crate) struct LoadedMembers {
    pub coupons: Vec<CouponId>,
    /// Members that are not the id of a coupon.
    pub invalid: Vec<String>,
}

pub(crate) async fn loaded_members(
    partition: &Partition,
    keys: &EpochKeys,
) -> Result<LoadedMembers, Failure> {
    let ids: Vec<Vec<u8>> =
        partition.query("read which coupons are loaded", cmd("SMEMBERS").arg(keys.loaded())).await?;
    let mut loaded_members = LoadedMembers { coupons: Vec::with_capacity(ids.len()), invalid: Vec::new() };
    for id in ids {
        let id = String::from_utf8_lossy(&id);
        match id.parse() {
            Ok(coupon) => loaded_members.coupons.push(coupon),
            Err(_) => loaded_members.invalid.push(id.into_owned()),
        }
    }
    loaded_members.coupons.sort_unstable();
    Ok(loaded_members)
}

/// Returns those of these loaded coupons that are over and at rest, with their generations.
async fn at_rest(
    partition: &Partition,
    keys: &EpochKeys,
    coupons: &[CouponId],
    kept_after_end: Duration,
) -> Result<Vec<(CouponId, String)>, Failure> {
    let asked = partition.call_in_epoch(keys, &OVER, "find coupons that are over", |keys, call| {
        call.arg(u64::try_from(kept_after_end.as_millis()).unwrap_or(u64::MAX));
        for coupon in coupons {
            call.key(keys.coupon(coupon)).key(keys.free(coupon));
        }
    });
    let EpochBound::Epoch(mut reply) = asked.await? else { return Ok(Vec::new()) };
    let mut over = Vec::new();
    for coupon in coupons {
        let generation = reply.text()?;
        if !generation.is_empty() {
            over.push((coupon.clone(), generation));
        }
    }
    Ok(over)
}

/// Retires coupons. Returns those that were retired, with their generations and how many units of each were issued; `None`
/// of one that has other shares.
async fn take_out(
    partition: &Partition,
    keys: &EpochKeys,
    coupons: &[(CouponId, String)],
) -> Result<Vec<(CouponId, i64, Option<u64>)>, Failure> {
    let asked = partition.call_in_epoch(keys, &RETIRE, "retire coupons", |keys, call| {
        call.key(keys.counters()).key(keys.loaded());
        for (coupon, generation) in coupons {
            call.key(keys.coupon(coupon)).key(keys.holders(coupon)).key(keys.free(coupon)).arg(generation);
        }
    });
    let EpochBound::Epoch(mut reply) = asked.await? else { return Ok(Vec::new()) };
    let mut retired = Vec::new();
    for (coupon, generation) in coupons {
        let issued = reply.text()?;
        if !issued.is_empty() {
            let generation = generation.parse().map_err(|_| reply.wrong())?;
            let issued = match issued.as_str() {
                "-" => None,
                issued => Some(issued.parse().map_err(|_| reply.wrong())?),
            };
            retired.push((coupon.clone(), generation, issued));
        }
    }
    Ok(retired)
}
