//! Operators' changes: MongoDB first, then Redis. A change that is in MongoDB and did not reach Redis
//! (it was away, or the process died in between) is brought there by [`reconcile`], which every API
//! process runs; generations decide the order, so it does not matter who comes first, or twice.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::store::ChangesSince;
use super::{Coupon, CouponStore};
use crate::Failure;
use crate::redis::{LuaScript, Partition};
use crate::runtime::damage::damaged;
use crate::runtime::tasks::Rounds;
use crate::service::{Service, ServiceStore};

static UPDATE: LuaScript = LuaScript::new(include_str!("update.lua"));

/// How often records and Redis are compared.
const EVERY: Duration = Duration::from_secs(2);
/// A change is stamped before it can be read; those this much older than the last reading are read again.
const MARGIN: SignedDuration = SignedDuration::from_secs(30);
/// How far back before its start a process reads changes first.
const FIRST_READING: SignedDuration = SignedDuration::from_hours(24);
/// Coupons in one script.
const BATCH: usize = 200;

/// Brings coupons that are loaded up to their records, and Redis up to the state of the service.
/// Returns how many were behind. A coupon whose state in Redis cannot be read is left alone, and named.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn apply(partition: &Partition, service: Service, coupons: &[Coupon]) -> Result<u64, Failure> {
    let mut changed = 0;
    let mut batches = coupons.chunks(BATCH);
    // Without coupons there is still the service.
    let mut batch = Some(batches.next().unwrap_or_default());
    while let Some(coupons) = batch {
        let mut reply = partition
            .call(&UPDATE, "bring the coupons up to date", |keys, call| {
                call.key(keys.counters()).arg(service.generation).arg(u8::from(service.paused));
                for coupon in coupons {
                    call.key(keys.coupon(&coupon.id));
                    call.arg(coupon.generation)
                        .arg(coupon.total)
                        .arg(coupon.starts_at.as_millisecond())
                        .arg(coupon.ends_at.as_millisecond())
                        .arg(u8::from(coupon.paused))
                        .arg(u8::from(coupon.archived));
                }
            })
            .await?;
        changed += reply.number()?;
        while reply.len() > 0 {
            let place = usize::try_from(reply.number()?).map_err(|_| reply.wrong())?;
            let coupon = coupons.get(place.wrapping_sub(1)).ok_or_else(|| reply.wrong())?;
            damaged!(
                coupon.id; coupon = %coupon.id,
                "an operator's change cannot reach Redis: its generation or total there cannot be read; \
                 couponctl audit says what to do"
            );
        }
        batch = batches.next();
    }
    Ok(changed)
}

/// Reconciles until `shutdown`. Reads: records that changed lately, the state of the service. Writes:
/// loaded coupons. All times are MongoDB's, which stamps the changes: clocks of processes differ.
pub async fn reconcile(
    partition: Arc<Partition>,
    coupons: CouponStore,
    services: ServiceStore,
    shutdown: CancellationToken,
) {
    let mut since = ChangesSince::Ago(FIRST_READING);
    let mut rounds = Rounds::now_and_every(EVERY, &shutdown);
    while rounds.next().await {
        match catch_up(&partition, &coupons, &services, &mut since).await {
            Ok(changed) if changed > 0 => {
                tracing::info!(changed, "wrote operators' changes to Redis that it lacked");
            }
            Ok(_) => {}
            Err(failure) => {
                tracing::debug!(
                    error = failure.chain(),
                    "operators' changes could not be compared with Redis; trying again"
                )
            }
        }
    }
}

/// Applies the changes since `since`, however many there are, and moves it on: only as far as they were
/// applied.
async fn catch_up(
    partition: &Partition,
    coupons: &CouponStore,
    services: &ServiceStore,
    since: &mut ChangesSince,
) -> Result<u64, Failure> {
    let service = services.get().await?;
    let mut changes = coupons.changed_since(*since).await?;
    let mut changed = apply(partition, service, &[]).await?;
    while let Some(mut page) = changes.next().await? {
        page.coupons.retain(|coupon| coupon.partition == partition.id());
        if !page.coupons.is_empty() {
            changed += apply(partition, service, &page.coupons).await?;
        }
        // One from the future, by a clock that was ahead, must not hide those that come before it.
        if let Some(changed_at) = page.changed_at {
            *since = ChangesSince::Moment(changed_at.min(changes.began_at) - MARGIN);
        }
    }
    *since = ChangesSince::Moment(changes.began_at - MARGIN);
    Ok(changed)
}

/// How often coupons are searched for that would be issued beyond their validity.
const VALIDITY_EVERY: Duration = Duration::from_secs(60);

/// Ends coupons with their validity, until `shutdown`: no unit is issued that can no longer be used. None is
/// made so any more; an older version beside this one may still make them. Writes: records, which
/// [`reconcile`] brings to Redis.
pub(crate) async fn keep_within_validity(coupons: CouponStore, shutdown: CancellationToken) {
    let mut rounds = Rounds::now_and_every(VALIDITY_EVERY, &shutdown);
    while rounds.next().await {
        match coupons.end_with_validity().await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(
                ended,
                "coupons whose endsAt was after their validUntil now end at validUntil: `couponctl coupon list` shows them"
            ),
            Err(failure) => {
                tracing::debug!(
                    error = failure.chain(),
                    "the ends of coupons could not be compared with their validity; trying again"
                );
            }
        }
    }
}
