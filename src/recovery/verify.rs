//! Whether the data of the epoch that was open last is what was left there: then it is certified as it
//! is, and the outage is short. Reads only. Scripts are refused meanwhile; inserts of workers that had
//! entries in hand may still reach the ledger, and are seen by reading twice.
//!
//! Every loaded coupon is compared, but many at once: the outage is that of the units to count, not of the
//! coupons. One that is not loaded has no accounts; the next request for it loads it with what is in flight.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};

use super::RecoveryStep;
use super::progress::ProgressCallback;
use super::retire::loaded_members;
use super::survivors::{self, Survivor};
use crate::Failure;
use crate::coupon::{CouponStore, CouponTerms, UnitCounters};
use crate::ids::{CouponId, IssuanceId};
use crate::issuance::Ledger;
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;
use crate::redis::{Value, from_redis_value, pipe};

/// How often the ledger is read again because it changed meanwhile: workers stop soon, for their
/// settling is refused.
const ATTEMPTS_MAX: usize = 5;
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Coupons of one pipeline.
const BATCH: usize = 500;
/// Counts of the ledger at once.
const COUNTS_AT_ONCE: usize = 4;
/// Units, by Redis's account, and coupons that are counted with one question.
const COUNTED_UNITS_MAX: u64 = 100_000;
const COUNTED_COUPONS_MAX: usize = 1_000;

/// Whether the data can be certified as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VerifyOutcome {
    Intact {
        in_flight: usize,
        coupons: usize,
    },
    /// The data is damaged, for this reason, and must be built again.
    Damaged(String),
}

/// The counts of a loaded coupon.
struct CouponCounts {
    id: CouponId,
    units: UnitCounters,
    generation: i64,
    /// Fields of its dedupe.
    holders: u64,
}

/// Checks whether, for each loaded coupon, the ledger's issued units are those that Redis has settled
/// and those of them that it still has in flight, and whether its state is that of MongoDB.
pub(super) async fn verify(
    partition: &Partition,
    keys: &EpochKeys,
    ledger: &Ledger,
    coupons: &CouponStore,
    progress: &ProgressCallback,
) -> Result<VerifyOutcome, Failure> {
    let damaged = |why: String| Ok(VerifyOutcome::Damaged(why));
    let loaded = loaded_members(partition, keys).await?;
    if let Some(invalid) = loaded.invalid.first() {
        return damaged(format!("{invalid:?} is loaded, and is no coupon's id"));
    }
    let loaded = loaded.coupons;
    let found = survivors::read(partition, std::slice::from_ref(keys)).await?;
    progress(&RecoveryStep::Read { in_flight: found.survivors.len() });
    if let Some(key) = found.wrong_type.first() {
        return damaged(format!("{key} is no hash"));
    }
    if found.unknown_damage() > 0 {
        return damaged(format!("{} in-flight entries cannot be read", found.unknown_damage()));
    }
    let mut with_unit: HashMap<&CouponId, u64> = HashMap::new();
    for survivor in found.survivors.iter().filter(|survivor| survivor.in_flight.unit.is_some()) {
        *with_unit.entry(&survivor.in_flight.coupon).or_default() += 1;
    }
    let mut counts = Vec::with_capacity(loaded.len());
    for batch in loaded.chunks(BATCH) {
        let records = coupons.all_terms(batch).await?;
        for (coupon, held) in batch.iter().zip(read_counts(partition, keys, batch).await?) {
            let Some(held) = held else { return damaged(format!("coupon {coupon} is not complete")) };
            let record = match records.get(coupon) {
                Some(Ok(record)) => record,
                Some(Err(failure)) => return damaged(failure.chain()),
                None => return damaged(format!("coupon {coupon} has no record")),
            };
            if let Some(why) = compare_with_record(&held, record, with_unit.get(coupon).copied().unwrap_or(0))
            {
                return damaged(why);
            }
            counts.push(held);
        }
    }

    let ids: Vec<_> = found.survivors.iter().map(|survivor| survivor.id).collect();
    for attempt in 0..ATTEMPTS_MAX {
        if attempt > 0 {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        let before = survivors::taken(ledger, &ids).await?;
        let in_ledger = count_taken(ledger, &counts, progress).await?;
        // What is issued stays so.
        let rest: Vec<_> = ids.iter().copied().filter(|id| !before.contains(id)).collect();
        if !survivors::taken(ledger, &rest).await?.is_empty() {
            continue;
        }
        let issued_in_flight = by_coupon(&found.survivors, &before);
        if let Some(why) = compare_with_ledger(&counts, &issued_in_flight, &in_ledger) {
            return damaged(why);
        }
        return Ok(VerifyOutcome::Intact { in_flight: found.survivors.len(), coupons: loaded.len() });
    }
    damaged("the ledger went on changing".into())
}

/// Counts how many of these issuances belong to each coupon.
fn by_coupon<'a>(survivors: &'a [Survivor], which: &HashSet<IssuanceId>) -> HashMap<&'a CouponId, u64> {
    let mut counts = HashMap::new();
    for survivor in survivors.iter().filter(|survivor| which.contains(&survivor.id)) {
        *counts.entry(&survivor.in_flight.coupon).or_default() += 1;
    }
    counts
}

/// Counts how many units of each coupon the ledger has issued, or moved away from here. Small coupons are counted together.
async fn count_taken(
    ledger: &Ledger,
    counts: &[CouponCounts],
    progress: &ProgressCallback,
) -> Result<HashMap<CouponId, u64>, Failure> {
    let of = counts.len();
    let mut groups: Vec<(Vec<CouponId>, u64)> = Vec::new();
    for held in counts {
        match groups.last_mut() {
            Some((group, units))
                if group.len() < COUNTED_COUPONS_MAX
                    && units.saturating_add(held.units.settled) <= COUNTED_UNITS_MAX =>
            {
                group.push(held.id.clone());
                *units = units.saturating_add(held.units.settled);
            }
            _ => groups.push((vec![held.id.clone()], held.units.settled)),
        }
    }
    let in_shares = counts.iter().filter(|held| held.units.shares > 1).map(|held| held.id.clone());
    let in_shares: Vec<CouponId> = in_shares.collect();
    let mut counts = HashMap::with_capacity(of);
    let counted = groups.into_iter().map(|(group, _)| async move { ledger.issued_counts(&group).await });
    let mut counted = stream::iter(counted).buffer_unordered(COUNTS_AT_ONCE);
    while let Some(group) = counted.try_next().await? {
        let last = group.keys().next().cloned();
        counts.extend(group);
        if let Some(coupon) = last {
            progress(&RecoveryStep::Compared { coupon, number: counts.len(), of });
        }
    }
    for coupon in in_shares {
        let moved = ledger.moved_away_count(&coupon).await?;
        *counts.entry(coupon).or_default() += moved;
    }
    Ok(counts)
}

/// What is read of a coupon; the last three are missing of one in one share.
const FIELDS: [&str; 7] = ["total", "generation", "next", "settled", "shares", "credited", "moved"];

/// Reads what Redis holds of some coupons; `None` for one of which something is missing or cannot be read.
async fn read_counts(
    partition: &Partition,
    keys: &EpochKeys,
    coupons: &[CouponId],
) -> Result<Vec<Option<CouponCounts>>, Failure> {
    let mut pipeline = pipe();
    for coupon in coupons {
        pipeline.cmd("HMGET").arg(keys.coupon(coupon)).arg(&FIELDS);
        pipeline.cmd("SCARD").arg(keys.free(coupon));
        pipeline.cmd("HLEN").arg(keys.holders(coupon));
    }
    let replies: Vec<Value> = partition.query_all("read what Redis holds of the coupons", &pipeline).await?;
    let (replies, _) = replies.as_chunks::<3>();
    let read = |(coupon, [held, free, holders]): (&CouponId, &[Value; 3])| {
        let held: Vec<Option<u64>> = from_redis_value(held.clone()).ok()?;
        let [Some(total), Some(generation), Some(next), Some(settled), shares, credited, moved] = held[..]
        else {
            return None;
        };
        let (shares, credited, moved) = (shares.unwrap_or(1), credited.unwrap_or(0), moved.unwrap_or(0));
        Some(CouponCounts {
            id: coupon.clone(),
            units: UnitCounters {
                total,
                next,
                settled,
                free: from_redis_value(free.clone()).ok()?,
                shares,
                credited,
                moved,
            },
            generation: i64::try_from(generation).unwrap_or(i64::MAX),
            holders: from_redis_value(holders.clone()).ok()?,
        })
    };
    Ok(coupons.iter().zip(replies).map(read).collect())
}

/// How what Redis holds of a coupon contradicts its record, or itself. `in_flight`: how many in flight have a unit.
fn compare_with_record(held: &CouponCounts, record: &CouponTerms, in_flight: u64) -> Option<String> {
    let (id, units) = (&record.id, held.units);
    if (units.total, held.generation) != (record.total.into(), record.generation) {
        return Some(format!(
            "coupon {id}: Redis has total {} of generation {}, its record {} of {}",
            units.total, held.generation, record.total, record.generation
        ));
    }
    if !units.are_possible() {
        return Some(format!("coupon {id}: {} units are free below serial {}", units.free, units.next));
    }
    let taken = units.taken();
    let settled = units.decided();
    if settled.checked_add(in_flight) != Some(taken) {
        return Some(format!(
            "coupon {id}: {taken} units are taken, {settled} settled and {in_flight} in flight"
        ));
    }
    (taken > 0 && held.holders == 0)
        .then(|| format!("coupon {id}: {taken} units are taken, and nobody is known to have one"))
}

/// How what Redis holds of some coupons contradicts the ledger. `issued_in_flight`: how many in flight the ledger
/// has issued, of each coupon; `in_ledger`: how many it has issued in all.
fn compare_with_ledger(
    counts: &[CouponCounts],
    issued_in_flight: &HashMap<&CouponId, u64>,
    in_ledger: &HashMap<CouponId, u64>,
) -> Option<String> {
    counts.iter().find_map(|held| {
        let known = held.units.decided() + issued_in_flight.get(&held.id).copied().unwrap_or(0);
        let in_ledger = in_ledger.get(&held.id).copied().unwrap_or(0);
        (known != in_ledger).then(|| {
            format!("coupon {}: Redis knows of {known} issued units, the ledger of {in_ledger}", held.id)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupon::Coupon;
    use jiff::Timestamp;

    const TOTAL: u32 = 10;

    fn record() -> CouponTerms {
        let id: CouponId = "c".parse().unwrap();
        CouponTerms::from(&Coupon::new(id, TOTAL, Timestamp::UNIX_EPOCH, Timestamp::MAX))
    }

    /// A coupon of which `next - 1` units were handed out and `free` given back.
    fn held(next: u64, settled: u64, free: u64) -> CouponCounts {
        let units = UnitCounters { total: TOTAL.into(), next, settled, free, ..UnitCounters::default() };
        CouponCounts { id: record().id, units, generation: record().generation, holders: 1 }
    }

    #[test]
    fn redis_agrees_with_the_record_while_each_unit_that_is_taken_is_settled_or_in_flight() {
        for (next, settled, free, in_flight) in [(1, 0, 0, 0), (8, 3, 2, 2), (11, 10, 0, 0)] {
            assert_eq!(compare_with_record(&held(next, settled, free), &record(), in_flight), None);
        }
        let why = |held, in_flight| compare_with_record(&held, &record(), in_flight).unwrap();
        assert!(why(held(8, 3, 2), 3).contains("5 units are taken, 3 settled and 3 in flight"));
        assert!(why(CouponCounts { holders: 0, ..held(2, 1, 0) }, 0).contains("nobody is known"));
        assert!(why(CouponCounts { generation: 9, ..held(1, 0, 0) }, 0).contains("of generation 9"));
        let larger = UnitCounters { total: 11, ..held(1, 0, 0).units };
        assert!(why(CouponCounts { units: larger, ..held(1, 0, 0) }, 0).contains("total 11"));
    }

    #[test]
    fn counts_that_no_coupon_can_have_are_damage_and_overflow_nothing() {
        for damaged in [held(0, 0, 0), held(0, 0, u64::MAX), held(3, 0, 3), held(2, u64::MAX, 0)] {
            assert!(compare_with_record(&damaged, &record(), 1).is_some(), "{:?}", damaged.units);
        }
    }

    #[test]
    fn redis_agrees_with_the_ledger_if_all_that_is_issued_is_settled_or_in_flight() {
        let (coupon, counts) = (record().id, [held(6, 3, 0)]);
        let in_flight = HashMap::from([(&coupon, 2)]);
        let ledger = |issued| HashMap::from([(coupon.clone(), issued)]);
        assert_eq!(compare_with_ledger(&counts, &in_flight, &ledger(5)), None);
        assert!(compare_with_ledger(&counts, &in_flight, &ledger(4)).is_some());
        assert!(compare_with_ledger(&counts, &HashMap::new(), &ledger(5)).is_some());
        assert_eq!(compare_with_ledger(&[held(1, 0, 0)], &HashMap::new(), &HashMap::new()), None);
    }
}
