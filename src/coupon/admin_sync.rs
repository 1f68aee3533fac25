//! Operators' changes: MongoDB first, then Redis. A change that is in MongoDB and did not reach Redis
//! (it was away, or the process died in between) is brought there by [`reconcile`], which every API
//! process runs; generations decide the order, so it does not matter who comes first, or twice.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::by_share;
use super::store::ChangesSince;
use super::{Coupon, CouponStore};
use crate::Failure;
use crate::ids::PartitionId;
use crate::redis::{LuaScript, Partition, Partitions};
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

/// Reconciles all partitions until `shutdown`. Reads: records that changed lately, the state of the service. Writes:
/// loaded coupons. All times are MongoDB's, which stamps the changes: clocks of processes differ.
pub async fn reconcile(
    partitions: Partitions,
    coupons: CouponStore,
    services: ServiceStore,
    shutdown: CancellationToken,
) {
    let since = partitions.iter().map(|_| None).collect();
    let mut reconciler = Reconciler { partitions, coupons, services, since };
    let mut rounds = Rounds::now_and_every(EVERY, &shutdown);
    while rounds.next().await {
        match reconciler.catch_up().await {
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

/// Reads what changed once for all partitions.
struct Reconciler {
    partitions: Partitions,
    coupons: CouponStore,
    services: ServiceStore,
    /// Up to when the changes of each partition were applied, in their order; `None` if none was yet.
    since: Vec<Option<Timestamp>>,
}

impl Reconciler {
    /// Applies the changes since the last round, however many there are, and remembers how far: only as far as they were
    /// applied. A partition that does not answer gets its own in a later round.
    async fn catch_up(&mut self) -> Result<u64, Failure> {
        let service = self.services.get().await?;
        let since = self.since.iter().copied().min().flatten();
        let since = since.map_or(ChangesSince::Ago(FIRST_READING), ChangesSince::Moment);
        let mut changes = self.coupons.changed_since(since).await?;
        let applied = self.partitions.ask_all("bring the coupons up to date", |partition| async move {
            apply(&partition, service, &[]).await
        });
        let mut changed = 0;
        // Those that answer, each with its place in `since`.
        let mut answering = HashMap::new();
        for ((place, partition), applied) in self.partitions.iter().enumerate().zip(applied.await) {
            match applied {
                Ok(of_service) => {
                    changed += of_service;
                    answering.insert(partition.id(), place);
                }
                Err(failure) => away(partition, &failure),
            }
        }
        while let Some(page) = changes.next().await? {
            let (groups, _) = by_share(&self.partitions, page.coupons);
            for (partition, coupons) in groups {
                if !answering.contains_key(&partition.id()) {
                    continue;
                }
                match apply(partition, service, &coupons).await {
                    Ok(of_coupons) => changed += of_coupons,
                    Err(failure) => {
                        away(partition, &failure);
                        answering.remove(&partition.id());
                    }
                }
            }
            // One from the future, by a clock that was ahead, must not hide those that come before it.
            if let Some(changed_at) = page.changed_at {
                self.applied(&answering, changed_at.min(changes.began_at));
            }
        }
        self.applied(&answering, changes.began_at);
        Ok(changed)
    }

    /// All changes of these partitions up to a moment were applied.
    fn applied(&mut self, partitions: &HashMap<PartitionId, usize>, moment: Timestamp) {
        for place in partitions.values() {
            self.since[*place] = self.since[*place].max(Some(moment - MARGIN));
        }
    }
}

fn away(partition: &Partition, failure: &Failure) {
    tracing::debug!(
        partition = %partition.id(),
        error = failure.chain(),
        "operators' changes could not be compared with Redis; trying again"
    );
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
