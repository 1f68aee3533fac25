//! Whether the data of the epoch that was open last is what was left there: then it is certified as it
//! is, and the outage is short. Reads only. Scripts are refused meanwhile; inserts of workers that had
//! entries in hand may still reach the ledger, and are seen by reading twice.

use std::collections::HashMap;
use std::time::Duration;

use super::Step;
use super::progress::Watch;
use super::retire::loaded;
use super::survivors::{self, Survivor};
use crate::Failure;
use crate::coupon::{Coupon, CouponId, CouponStore};
use crate::issuance::ledger::Unreadable;
use crate::issuance::{Decision, IssuanceId, Ledger, Outcome};
use crate::keys::EpochKeys;
use crate::partition::Partition;

/// How often the ledger is read again because it changed meanwhile: workers stop soon, for their
/// settling is refused.
const ATTEMPTS_MAX: usize = 5;
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What the look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verified {
    Intact {
        in_flight: usize,
        coupons: usize,
    },
    /// It is not, for this reason: it must be built again.
    Damaged(String),
}

/// The counts of a loaded coupon.
struct Held {
    total: u64,
    generation: i64,
    next: u64,
    settled: u64,
    free: u64,
}

/// Looks whether, for each loaded coupon, the ledger's issued units are those that Redis has settled
/// and those of them that it still has in flight, and whether its state is that of MongoDB.
pub(super) async fn verify(
    partition: &Partition,
    keys: &EpochKeys,
    ledger: &Ledger,
    coupons: &CouponStore,
    watch: &Watch,
) -> Result<Verified, Failure> {
    let damaged = |why: String| Ok(Verified::Damaged(why));
    let loaded = loaded(partition, keys).await?;
    let found = survivors::read(partition, std::slice::from_ref(keys)).await?;
    watch(&Step::Read { in_flight: found.survivors.len() });
    if !found.damaged.is_empty() {
        return damaged(format!("{} in-flight entries cannot be read", found.damaged.len()));
    }
    let mut with_unit: HashMap<CouponId, u64> = loaded.iter().map(|coupon| (coupon.clone(), 0)).collect();
    for survivor in &found.survivors {
        let Some(count) = with_unit.get_mut(&survivor.in_flight.coupon) else {
            return damaged(format!(
                "coupon {} has something in flight and is not loaded",
                survivor.in_flight.coupon
            ));
        };
        *count += u64::from(survivor.in_flight.serial.is_some());
    }
    let mut helds = Vec::with_capacity(loaded.len());
    for coupon in &loaded {
        let Some(held) = read_held(partition, keys, coupon).await? else {
            return damaged(format!("coupon {coupon} is not complete"));
        };
        let Some(record) = coupons.get(coupon).await? else {
            return damaged(format!("coupon {coupon} has no record"));
        };
        if let Some(why) = differs(&held, &record, with_unit[coupon]) {
            return damaged(why);
        }
        helds.push(held);
    }

    for attempt in 0..ATTEMPTS_MAX {
        if attempt > 0 {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        let before = decided(ledger, &found.survivors, &HashMap::new()).await?;
        let mut in_ledger = Vec::with_capacity(loaded.len());
        for (number, coupon) in loaded.iter().enumerate() {
            in_ledger.push(ledger.issued_count(coupon).await?);
            watch(&Step::Compared { coupon: coupon.clone(), number: number + 1, of: loaded.len() });
        }
        if decided(ledger, &found.survivors, &before).await?.len() != before.len() {
            continue;
        }
        let mut issued_in_flight: HashMap<&CouponId, u64> = HashMap::new();
        for survivor in &found.survivors {
            let issued = before.get(&survivor.id).is_some_and(|decision| match decision {
                Ok(decision) => matches!(decision.outcome, Outcome::Issued { .. }),
                Err(unreadable) => unreadable.unit.is_some(),
            });
            if issued {
                *issued_in_flight.entry(&survivor.in_flight.coupon).or_default() += 1;
            }
        }
        for ((coupon, held), in_ledger) in loaded.iter().zip(&helds).zip(in_ledger) {
            let known = held.settled + issued_in_flight.get(coupon).copied().unwrap_or(0);
            if known != in_ledger {
                return damaged(format!(
                    "coupon {coupon}: Redis knows of {known} issued units, the ledger of {in_ledger}"
                ));
            }
        }
        return Ok(Verified::Intact { in_flight: found.survivors.len(), coupons: loaded.len() });
    }
    damaged("the ledger went on changing".into())
}

/// What Redis holds of a coupon, if it is all there.
async fn read_held(
    partition: &Partition,
    keys: &EpochKeys,
    coupon: &CouponId,
) -> Result<Option<Held>, Failure> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("HMGET").arg(keys.coupon(coupon)).arg(&["total", "generation", "next", "settled"]);
    pipeline.cmd("SCARD").arg(keys.free(coupon));
    let (held, free): (Vec<Option<String>>, u64) = pipeline
        .query_async(&mut partition.connection())
        .await
        .map_err(Failure::redis("read what Redis holds of a coupon"))?;
    let held: Vec<Option<u64>> = held.into_iter().map(|text| text?.parse().ok()).collect();
    let [Some(total), Some(generation), Some(next), Some(settled)] = held[..] else { return Ok(None) };
    Ok(Some(Held { total, generation: i64::try_from(generation).unwrap_or(i64::MAX), next, settled, free }))
}

/// How what Redis holds of a coupon contradicts its record, or itself.
fn differs(held: &Held, record: &Coupon, in_flight: u64) -> Option<String> {
    let id = &record.id;
    if (held.total, held.generation) != (record.total.into(), record.generation) {
        return Some(format!(
            "coupon {id}: Redis has total {} of generation {}, its record {} of {}",
            held.total, held.generation, record.total, record.generation
        ));
    }
    let taken = (held.next - 1).saturating_sub(held.free);
    (taken != held.settled + in_flight).then(|| {
        format!("coupon {id}: {taken} units are taken, {} settled and {in_flight} in flight", held.settled)
    })
}

/// What the ledger has decided about survivors, given what was known to be.
async fn decided(
    ledger: &Ledger,
    survivors: &[Survivor],
    known: &HashMap<IssuanceId, Result<Decision, Unreadable>>,
) -> Result<HashMap<IssuanceId, Result<Decision, Unreadable>>, Failure> {
    let unknown: Vec<_> =
        survivors.iter().map(|survivor| survivor.id).filter(|id| !known.contains_key(id)).collect();
    let mut decided = survivors::decisions(ledger, &unknown).await?;
    decided.extend(known.iter().map(|(id, decision)| (*id, decision.clone())));
    Ok(decided)
}
