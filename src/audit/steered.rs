//! The records of coupons, and of the service, against what Redis holds of them: a change that Redis missed,
//! and a coupon that Redis has and MongoDB has no record of, or none that can be read.

use std::collections::HashSet;
use std::time::Duration;

use super::finding::{Finding, Kind};
use super::{Auditor, Stop};
use crate::Failure;
use crate::coupon::{Coupon, CouponId, steer};
use crate::keys::EpochKeys;

/// A change reaches Redis well within this.
const STEERING: Duration = Duration::from_secs(1);
/// Records that are read at once.
const BATCH: usize = 500;

/// Generation, total, the window and the flags of a coupon, as Redis keeps them.
type Steered = [Option<String>; 6];

impl Auditor {
    /// Which of the coupons that are loaded, or `in_flight`, have no record that can be read.
    pub(super) async fn without_record<'a>(
        &self,
        keys: &EpochKeys,
        in_flight: impl Iterator<Item = &'a CouponId>,
    ) -> Result<Vec<Finding>, Failure> {
        let (mut ids, mut findings): (HashSet<CouponId>, _) = (in_flight.cloned().collect(), Vec::new());
        let loaded: Vec<Vec<u8>> = redis::cmd("SMEMBERS")
            .arg(keys.loaded())
            .query_async(&mut self.partition.connection())
            .await
            .map_err(Failure::redis("read which coupons are loaded"))?;
        for member in loaded {
            match std::str::from_utf8(&member).ok().and_then(|id| id.parse().ok()) {
                Some(id) => drop(ids.insert(id)),
                None => findings.push(Finding {
                    detail: Some(format!(
                        "{:?} is among the loaded coupons, and no coupon's id",
                        String::from_utf8_lossy(&member)
                    )),
                    ..Finding::new(Kind::CouponUnreadable, None)
                }),
            }
        }
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        for batch in ids.chunks(BATCH) {
            let mut records = self.coupons.records_of(batch).await?;
            for id in batch {
                match records.remove(id) {
                    Some(Ok(_)) => {}
                    Some(Err(failure)) => findings.push(Finding {
                        detail: Some(failure.chain()),
                        ..Finding::new(Kind::CouponRecordUnreadable, Some(id))
                    }),
                    None => findings.push(Finding::new(Kind::CouponRecordMissing, Some(id))),
                }
            }
        }
        Ok(findings)
    }

    /// Whether Redis missed a change of a coupon that is loaded: what it missed. One that is on its way is
    /// waited for.
    pub(super) async fn missed(&self, keys: &EpochKeys, coupon: &CouponId) -> Result<Option<String>, Stop> {
        if self.missed_now(keys, coupon).await?.is_none() {
            return Ok(None);
        }
        tokio::time::sleep(STEERING).await;
        self.missed_now(keys, coupon).await
    }

    async fn missed_now(&self, keys: &EpochKeys, coupon: &CouponId) -> Result<Option<String>, Stop> {
        // Redis first: its state is never newer than a record that is read later.
        let held: Steered = redis::cmd("HMGET")
            .arg(keys.coupon(coupon))
            .arg(&["generation", "total", "starts_at", "ends_at", "paused", "archived"])
            .query_async(&mut self.partition.connection())
            .await
            .map_err(Failure::redis("read the state of the coupon"))?;
        let Some(record) = self.coupons.get(coupon).await? else { return Ok(None) };
        Ok(difference(&held, &record))
    }

    /// Whether Redis missed that the service was paused or resumed.
    pub(super) async fn missed_service(&self, keys: &EpochKeys) -> Result<Option<Finding>, Failure> {
        if self.missed_service_now(keys).await?.is_none() {
            return Ok(None);
        }
        tokio::time::sleep(STEERING).await;
        let missed = self.missed_service_now(keys).await?;
        Ok(missed.map(|detail| Finding { detail: Some(detail), ..Finding::new(Kind::ServiceBehind, None) }))
    }

    async fn missed_service_now(&self, keys: &EpochKeys) -> Result<Option<String>, Failure> {
        let (generation, paused): (Option<String>, Option<String>) = redis::cmd("HMGET")
            .arg(keys.counters())
            .arg(&["service_generation", "paused"])
            .query_async(&mut self.partition.connection())
            .await
            .map_err(Failure::redis("read the state of the service"))?;
        let service = self.services.get().await?;
        let held = generation.as_deref().and_then(|generation| generation.parse::<i64>().ok()).unwrap_or(-1);
        // No change has ever been made, and Redis knows of none.
        let is_new = service.generation == 0 && generation.is_none() && paused.is_none();
        let same = paused.as_deref() == Some(if service.paused { "1" } else { "0" });
        let behind = held < service.generation || (held == service.generation && !same);
        Ok((behind && !is_new)
            .then(|| format!("paused is {} in the record and {paused:?} in Redis", service.paused)))
    }

    /// Brings Redis up to the records of these coupons, and to the state of the service. Whether anything
    /// was behind.
    pub(super) async fn catch_up(&self, coupons: &[Coupon]) -> Result<bool, Failure> {
        let service = self.services.get().await?;
        Ok(steer::apply(&self.partition, service, coupons).await? > 0)
    }
}

/// What a loaded coupon has missed of its record; `None` if nothing. One whose generation cannot be read is
/// another finding's.
fn difference(held: &Steered, record: &Coupon) -> Option<String> {
    const NAMES: [&str; 6] = ["generation", "total", "starts_at", "ends_at", "paused", "archived"];
    let generation: i64 = held[0].as_ref()?.parse().ok()?;
    if generation > record.generation {
        return None;
    }
    let flag = |flag| u8::from(flag).to_string();
    let wanted = [
        record.generation.to_string(),
        record.total.to_string(),
        record.starts_at.as_millisecond().to_string(),
        record.ends_at.as_millisecond().to_string(),
        flag(record.paused),
        flag(record.archived),
    ];
    // A larger total than the record's is no missed change: it is ahead.
    let is_ahead = |place: usize| {
        let total = held[place].as_ref().and_then(|total| total.parse::<u32>().ok());
        place == 1 && total.is_some_and(|total| total > record.total)
    };
    let missed =
        (0..NAMES.len()).filter(|place| held[*place].as_ref() != Some(&wanted[*place]) && !is_ahead(*place));
    let missed: Vec<_> = missed
        .map(|place| {
            let held = held[place].as_deref().unwrap_or("nothing");
            format!("{} is {} in the record and {held} in Redis", NAMES[place], wanted[place])
        })
        .collect();
    (!missed.is_empty()).then(|| missed.join(", "))
}
