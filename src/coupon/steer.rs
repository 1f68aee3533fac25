//! Operators' changes: MongoDB first, then Redis. A change that is in MongoDB and did not reach Redis
//! (it was away, or the process died in between) is brought there by [`reconcile`], which every API
//! process runs; generations decide the order, so it does not matter who comes first, or twice.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use redis::Script;
use tokio_util::sync::CancellationToken;

use super::{Coupon, CouponStore};
use crate::Failure;
use crate::partition::{Partition, script};
use crate::service::{Service, ServiceStore};

static UPDATE: LazyLock<Script> = LazyLock::new(|| script(include_str!("update.lua")));

/// How often records and Redis are compared.
const EVERY: Duration = Duration::from_secs(2);
/// Clocks of processes differ; changes this much older than the last look are looked at again.
const MARGIN: SignedDuration = SignedDuration::from_secs(30);
/// Changes before the start of a process that its first look goes back to.
const FIRST_LOOK: SignedDuration = SignedDuration::from_hours(24);
/// Coupons in one script.
const BATCH: usize = 200;

/// Brings coupons that are loaded up to their records, and Redis up to the state of the service.
/// Returns how many were behind.
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
        batch = batches.next();
    }
    Ok(changed)
}

/// Reconciles until `shutdown`. Reads: records that changed lately, the state of the service. Writes:
/// loaded coupons.
pub async fn reconcile(
    partition: Arc<Partition>,
    coupons: CouponStore,
    services: ServiceStore,
    shutdown: CancellationToken,
) {
    let mut since = Timestamp::now() - FIRST_LOOK;
    loop {
        let now = Timestamp::now();
        let looked = async {
            let changed = coupons.changed_since(since - MARGIN).await?;
            apply(&partition, services.get().await?, &changed).await
        };
        match looked.await {
            Ok(changed) => {
                since = now;
                if changed > 0 {
                    tracing::info!(changed, "brought Redis up to operators' changes");
                }
            }
            Err(failure) => {
                tracing::debug!(error = failure.chain(), "operators' changes cannot be compared now")
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
