//! The records of coupons, and of the service, against what Redis holds of them: a change that Redis missed,
//! and a coupon that Redis has and MongoDB has no record of, or none that can be read.

use std::collections::HashSet;
use std::time::Duration;

use super::finding::{Finding, FindingKind};
use super::{AuditAbort, Auditor};
use crate::coupon::{Coupon, admin_sync};
use crate::ids::CouponId;
use crate::redis::cmd;
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript};
use crate::service::Service;
use crate::{Failure, recovery};

static COUNTERS: LuaScript = LuaScript::new(include_str!("counters.lua"));

/// A change reaches Redis well within this.
const STEERING: Duration = Duration::from_secs(1);
/// Records that are read at once.
const BATCH: usize = 500;

/// Generation, total, the window and the flags of a coupon, as Redis keeps them.
type RawCouponState = [Option<Vec<u8>>; 6];

impl Auditor {
    /// Which of the coupons that are loaded, or `in_flight`, have no record that can be read.
    pub(super) async fn without_record<'a>(
        &self,
        keys: &EpochKeys,
        in_flight: impl Iterator<Item = &'a CouponId>,
    ) -> Result<Vec<Finding>, Failure> {
        let (mut ids, mut findings): (HashSet<CouponId>, _) = (in_flight.cloned().collect(), Vec::new());
        let loaded = recovery::loaded_members(&self.partition, keys).await?;
        ids.extend(loaded.coupons);
        findings.extend(loaded.invalid.into_iter().map(|member| Finding {
            detail: Some(format!("{member:?} is among the loaded coupons, and no coupon's id")),
            ..Finding::new(FindingKind::CouponUnreadable, None)
        }));
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable();
        for batch in ids.chunks(BATCH) {
            let mut records = self.coupons.records_of(batch).await?;
            for id in batch {
                match records.remove(id) {
                    Some(Ok(_)) => {}
                    Some(Err(failure)) => findings.push(Finding {
                        detail: Some(failure.chain()),
                        ..Finding::new(FindingKind::CouponRecordUnreadable, Some(id))
                    }),
                    None => findings.push(Finding::new(FindingKind::CouponRecordMissing, Some(id))),
                }
            }
        }
        Ok(findings)
    }

    /// Whether Redis missed a change of a coupon that is loaded: what it missed. One that is on its way is
    /// waited for.
    pub(super) async fn missed_change(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
    ) -> Result<Option<String>, AuditAbort> {
        if self.missed_change_now(keys, coupon).await?.is_none() {
            return Ok(None);
        }
        tokio::time::sleep(STEERING).await;
        self.missed_change_now(keys, coupon).await
    }

    async fn missed_change_now(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
    ) -> Result<Option<String>, AuditAbort> {
        // Redis first: its state is never newer than a record that is read later.
        let held: RawCouponState = self
            .partition
            .query(
                "read the state of the coupon",
                cmd("HMGET").arg(keys.coupon(coupon)).arg(&[
                    "generation",
                    "total",
                    "starts_at",
                    "ends_at",
                    "paused",
                    "archived",
                ]),
            )
            .await?;
        let Some(record) = self.coupons.get(coupon).await? else { return Ok(None) };
        Ok(difference(&held, &record))
    }

    /// Findings about the counts of the queue and the state of the service.
    pub(super) async fn service_findings(&self, keys: &EpochKeys) -> Result<Vec<Finding>, Failure> {
        let (_, damage) = self.services.checked().await?;
        let unreadable = Finding { detail: damage, ..Finding::new(FindingKind::ServiceUnreadable, None) };
        let mut findings: Vec<_> =
            Some(unreadable).filter(|finding| finding.detail.is_some()).into_iter().collect();
        findings.extend(self.missed_service_change(keys).await?);
        findings.extend(self.counters(keys, false).await?);
        Ok(findings)
    }

    /// Whether a count of the queue cannot be read. With `set` it is set anew.
    async fn counters(&self, keys: &EpochKeys, set: bool) -> Result<Option<Finding>, Failure> {
        let called =
            self.partition.call_in_epoch(keys, &COUNTERS, "read the counts of the queue", |keys, call| {
                call.key(keys.counters()).key(keys.in_flight()).arg(u8::from(set));
            });
        // The next audit checks those of another epoch.
        let EpochBound::Epoch(mut reply) = called.await? else { return Ok(None) };
        let mut damaged = Vec::new();
        while reply.len() > 0 {
            damaged.push(reply.text()?);
        }
        let finding = Finding {
            detail: Some(damaged.join(", ")),
            ..Finding::new(FindingKind::CountersUnreadable, None)
        };
        Ok((!damaged.is_empty()).then_some(finding))
    }

    /// Repairs what [`Self::service_findings`] found: Redis is brought to the state of the service, and its counts are
    /// set anew.
    pub(super) async fn repair_service(&self, keys: &EpochKeys, findings: &[Finding]) -> Result<(), Failure> {
        let is_found = |kind| findings.iter().any(|finding| finding.kind == kind);
        if is_found(FindingKind::CountersUnreadable) {
            self.counters(keys, true).await?;
        }
        if is_found(FindingKind::ServiceBehind) {
            if self.service_held(keys).await?.is_ahead_of(&self.services.get().await?) {
                // Changes are in the record before they are in Redis, so this is none of them.
                let mut forget = cmd("HDEL");
                forget.arg(keys.counters()).arg("service_generation");
                self.partition.query::<()>("repair the state of the service", &forget).await?;
            }
            self.catch_up(&[]).await?;
        }
        Ok(())
    }

    /// Whether Redis missed that the service was paused or resumed.
    async fn missed_service_change(&self, keys: &EpochKeys) -> Result<Option<Finding>, Failure> {
        if self.missed_service_change_now(keys).await?.is_none() {
            return Ok(None);
        }
        tokio::time::sleep(STEERING).await;
        let missed_change = self.missed_service_change_now(keys).await?;
        Ok(missed_change
            .map(|detail| Finding { detail: Some(detail), ..Finding::new(FindingKind::ServiceBehind, None) }))
    }

    async fn missed_service_change_now(&self, keys: &EpochKeys) -> Result<Option<String>, Failure> {
        let held = self.service_held(keys).await?;
        // Nothing can be held against a record that cannot be read.
        let (service, None) = self.services.checked().await? else { return Ok(None) };
        // No change has ever been made, and Redis knows of none.
        let is_new = service.generation == 0 && held.generation.is_none() && held.paused.is_none();
        let same = held.paused.as_deref() == Some(if service.paused { b"1" } else { b"0" });
        let is_wrong = held.number() != service.generation || !same;
        Ok((is_wrong && !is_new).then(|| {
            let text = |held: &Option<Vec<u8>>| {
                held.as_deref().map(|held| String::from_utf8_lossy(held).into_owned())
            };
            format!(
                "paused is {} in the record and {:?} in Redis, its generation {} and {:?}",
                service.paused,
                text(&held.paused),
                service.generation,
                text(&held.generation)
            )
        }))
    }

    async fn service_held(&self, keys: &EpochKeys) -> Result<RawServiceState, Failure> {
        let (generation, paused) = self
            .partition
            .query(
                "read the state of the service",
                cmd("HMGET").arg(keys.counters()).arg(&["service_generation", "paused"]),
            )
            .await?;
        Ok(RawServiceState { generation, paused })
    }

    /// Brings Redis up to the records of these coupons, and to the state of the service. Whether anything
    /// was behind.
    pub(super) async fn catch_up(&self, coupons: &[Coupon]) -> Result<bool, Failure> {
        let service = self.services.get().await?;
        Ok(admin_sync::apply(&self.partition, service, coupons).await? > 0)
    }
}

/// The state of the service as Redis keeps it.
struct RawServiceState {
    generation: Option<Vec<u8>>,
    paused: Option<Vec<u8>>,
}

impl RawServiceState {
    /// Its generation; before all others if it cannot be read, as `update.lua` takes it.
    fn number(&self) -> i64 {
        let text = self.generation.as_deref().and_then(|text| std::str::from_utf8(text).ok());
        text.filter(|text| text.len() < 16).and_then(|text| text.parse().ok()).unwrap_or(-1)
    }

    fn is_ahead_of(&self, record: &Service) -> bool {
        self.number() > record.generation
    }
}

/// Which changes of its record a loaded coupon has missed; `None` if none. A generation that cannot be read is another
/// finding.
fn difference(held: &RawCouponState, record: &Coupon) -> Option<String> {
    const NAMES: [&str; 6] = ["generation", "total", "starts_at", "ends_at", "paused", "archived"];
    let text = |place: usize| std::str::from_utf8(held[place].as_deref()?).ok();
    let generation: i64 = text(0)?.parse().ok()?;
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
        let total = text(place).and_then(|total| total.parse::<u32>().ok());
        place == 1 && total.is_some_and(|total| total > record.total)
    };
    let missed_change =
        (0..NAMES.len()).filter(|place| text(*place) != Some(&*wanted[*place]) && !is_ahead(*place));
    let missed_change: Vec<_> = missed_change
        .map(|place| {
            let held = held[place].as_deref().map_or("nothing".into(), String::from_utf8_lossy);
            format!("{} is {} in the record and {held} in Redis", NAMES[place], wanted[place])
        })
        .collect();
    (!missed_change.is_empty()).then(|| missed_change.join(", "))
}
