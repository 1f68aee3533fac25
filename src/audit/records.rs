//! The ledger's side of a coupon: each unit once, each user within the limit, each record counted.

use std::collections::{HashMap, HashSet};

use super::AuditAbort;
use super::coupon_audit::CouponAudit;
use super::figures::figures;
use super::finding::{Finding, FindingKind};
use super::queue_snapshot::PAGE;
use super::recheck::{ConfirmedSuspicion, Suspicion};
use crate::coupon::MAX_TOTAL;
use crate::coupon::UnitSet;
use crate::failure::Unreadable;
use crate::ids::{IssuanceId, Shares, Unit, UserId};
use crate::issuance::ledger::{HeldUnit, parted, readable};
use crate::redis::cmd;

impl CouponAudit<'_> {
    /// Every issued record: its unit, its user's limit, and that Redis counts it.
    pub(super) async fn ledger(&mut self) -> Result<(), AuditAbort> {
        let shares = self.auditor.ledger.shares_of(&self.coupon.id).await?;
        self.misrouted(&shares).await?;
        let mut issued = UnitSet::of(self.share, MAX_TOTAL);
        self.moves(&shares, &mut issued).await?;
        let mut twice = HashSet::new();
        let (mut beyond, mut elsewhere) = (Vec::new(), Vec::new());
        let mut over: Vec<UserId> = Vec::new();
        let mut user: Vec<HeldUnit> = Vec::new();
        let mut records = self.auditor.ledger.issued_records(&self.coupon.id).await?;
        let mut uncounted = Vec::new();
        loop {
            let page = records.next().await?;
            if page.is_empty() {
                break;
            }
            let (page, unreadable) = parted(page);
            self.unreadable(unreadable, &mut issued);
            for held in &page {
                if shares.of(held.id.partition()).is_none() {
                    self.misrouted_record(Some(held.unit), Some(held.id), Some(held.user.clone()));
                }
                if held.unit.serial() > self.coupon.total {
                    beyond.push(held.clone());
                } else if !issued.has_room_for(held.unit) {
                    elsewhere.push(held.clone());
                } else if !issued.insert(held.unit) {
                    twice.insert(held.unit);
                }
                if user.first().is_some_and(|first| first.user != held.user) {
                    user.clear();
                }
                // One more than the limit is enough to tell.
                if user.len() <= usize::from(self.coupon.per_user) {
                    user.push(held.clone());
                }
                let too_many = user.len() > usize::from(self.coupon.per_user);
                let same_nth = user.iter().filter(|other| other.nth == held.nth).count() > 1;
                if (too_many || same_nth || held.nth > self.coupon.per_user)
                    && over.last() != Some(&held.user)
                {
                    over.push(held.user.clone());
                }
            }
            if self.figures.is_some() {
                uncounted.extend(self.uncounted(page).await?);
            }
        }
        self.found.occupied = Some(issued);
        self.units_elsewhere(elsewhere).await?;
        let broken = self.broken(twice, beyond, over).await?;
        self.found.not_counted = uncounted.len() as u64;
        let adoptable: Vec<_> =
            uncounted.into_iter().filter(|confirmed| !broken.contains(&confirmed.suspicion.id)).collect();
        self.add(&adoptable);
        Ok(())
    }

    /// What lies in another partition than its id and its coupon say: in flight here, or in the ledger.
    async fn misrouted(&mut self, shares: &Shares) -> Result<(), AuditAbort> {
        let here = self.auditor.partition.id();
        let is_here = shares.of(here).is_some();
        let mut strays: Vec<_> =
            self.in_flight.keys().copied().filter(|id| !is_here || id.partition() != here).collect();
        strays.sort_unstable();
        if !strays.is_empty() {
            let detail = Some(format!("in flight in partition {here}"));
            self.found.add([Finding { issuances: strays, detail, ..self.finding(FindingKind::Misrouted) }]);
        }
        for record in self.auditor.ledger.misplaced(&self.coupon.id).await? {
            match record {
                Ok(held) => self.misrouted_record(Some(held.unit), Some(held.id), Some(held.user)),
                Err(one) => self.misrouted_record(one.unit, one.id, one.user),
            }
        }
        Ok(())
    }

    fn misrouted_record(&mut self, unit: Option<Unit>, id: Option<IssuanceId>, user: Option<UserId>) {
        let detail =
            Some("its record, or the partition that the record's id names, is not the coupon's".into());
        let issuances = id.into_iter().collect();
        let finding = self.finding(FindingKind::Misrouted);
        self.found.add([Finding { unit, issuances, user, detail, ..finding }]);
    }

    /// Issued records, or those of moved units, that cannot be read. Each holds a unit, whether it says which or not.
    pub(super) fn unreadable(&mut self, unreadable: Vec<Unreadable>, issued: &mut UnitSet) {
        for one in unreadable {
            // One that is in flight is found with what is decided.
            let in_flight = one.id.is_some_and(|id| self.in_flight.contains_key(&id));
            match one.unit.filter(|unit| unit.serial() <= self.coupon.total) {
                Some(unit) => drop(issued.insert(unit)),
                None => self.found.nameless += u64::from(!in_flight),
            }
            if !in_flight {
                let finding = Finding {
                    unit: one.unit,
                    issuances: one.id.into_iter().collect(),
                    user: one.user.clone(),
                    detail: Some(one.to_string()),
                    ..self.finding(FindingKind::RecordUnreadable)
                };
                self.found.add([finding]);
            }
        }
    }

    /// Rejections that cannot be read.
    pub(super) async fn rejections(&mut self) -> Result<(), AuditAbort> {
        let mut records = self.auditor.ledger.rejected_records(&self.coupon.id).await?;
        loop {
            let page = records.next().await?;
            if page.is_empty() {
                return Ok(());
            }
            for one in page.into_iter().filter_map(Result::err) {
                // One that is in flight is found with what is decided.
                if one.id.is_none_or(|id| !self.in_flight.contains_key(&id)) {
                    self.found.add([Finding {
                        issuances: one.id.into_iter().collect(),
                        user: one.user.clone(),
                        detail: Some(one.to_string()),
                        ..self.finding(FindingKind::RecordUnreadable)
                    }]);
                }
            }
        }
    }

    /// Of some records, those that Redis does not count.
    async fn uncounted(&self, page: Vec<HeldUnit>) -> Result<Vec<ConfirmedSuspicion>, AuditAbort> {
        let page: Vec<_> = page.into_iter().filter(|held| !self.in_flight.contains_key(&held.id)).collect();
        let mut suspicions = Vec::new();
        for chunk in page.chunks(PAGE) {
            let mut command = cmd("HMGET");
            command.arg(self.keys.holders(&self.coupon.id));
            for held in chunk {
                command.arg(held.user.as_str());
            }
            let counted: Vec<Option<Vec<u8>>> =
                self.auditor.partition.query("read who holds the coupon", &command).await?;
            for (held, counted) in chunk.iter().zip(counted) {
                let is_counted = counted.is_some_and(|ids| ids.chunks(16).any(|id| id == held.id.as_bytes()));
                if !is_counted {
                    suspicions.push(Suspicion {
                        user: Some(held.user.clone()),
                        unit: Some(held.unit),
                        ..Suspicion::of(FindingKind::RecordNotCounted, held.id)
                    });
                }
            }
        }
        self.confirm(suspicions).await
    }

    /// Issued units that were not in this share when its moves were read, and are not now.
    async fn units_elsewhere(&mut self, records: Vec<HeldUnit>) -> Result<(), AuditAbort> {
        for held in records {
            if !self.auditor.has_arrived(self.coupon, held.unit).await? {
                let (unit, issuances, user) = (Some(held.unit), vec![held.id], Some(held.user));
                self.found.add([Finding {
                    unit,
                    issuances,
                    user,
                    ..self.finding(FindingKind::UnitElsewhere)
                }]);
            }
        }
        Ok(())
    }

    /// Broken promises, read once more from the ledger. Returns the issuances that are concerned.
    async fn broken(
        &mut self,
        twice: HashSet<Unit>,
        beyond: Vec<HeldUnit>,
        over: Vec<UserId>,
    ) -> Result<HashSet<IssuanceId>, AuditAbort> {
        let mut findings = Vec::new();
        let twice: Vec<_> = twice.into_iter().collect();
        for units in twice.chunks(PAGE) {
            let mut by_unit: HashMap<Unit, Vec<HeldUnit>> = HashMap::new();
            let holders = self.auditor.ledger.holders_of(&self.coupon.id, units).await?;
            for held in holders.into_iter().filter_map(readable) {
                by_unit.entry(held.unit).or_default().push(held);
            }
            for (unit, held) in by_unit.into_iter().filter(|(_, held)| held.len() > 1) {
                let issuances = held.iter().map(|held| held.id).collect();
                findings.push(Finding {
                    unit: Some(unit),
                    issuances,
                    ..self.finding(FindingKind::UnitIssuedTwice)
                });
            }
        }
        if !beyond.is_empty() {
            // The record is read after the ledger: it may have grown meanwhile.
            let total = self.auditor.coupons.get(&self.coupon.id).await?.map_or(0, |coupon| coupon.total);
            for held in beyond.into_iter().filter(|held| held.unit.serial() > total) {
                findings.push(Finding {
                    unit: Some(held.unit),
                    issuances: vec![held.id],
                    user: Some(held.user),
                    ..self.finding(FindingKind::SerialBeyondTotal)
                });
            }
        }
        for user in over {
            let held = self.auditor.ledger.held_by(&self.coupon.id, &user).await?;
            let held: Vec<HeldUnit> = held.into_iter().filter_map(readable).collect();
            let places: HashSet<_> = held.iter().map(|held| held.nth).collect();
            let limit = self.coupon.per_user;
            if held.len() > limit.into() || places.len() < held.len() || places.iter().any(|nth| *nth > limit)
            {
                let issuances = held.iter().map(|held| held.id).collect();
                findings.push(Finding {
                    user: Some(user),
                    issuances,
                    ..self.finding(FindingKind::LimitExceeded)
                });
            }
        }
        let ids = findings.iter().flat_map(|finding| finding.issuances.iter().copied()).collect();
        self.found.add(findings);
        Ok(ids)
    }

    /// A coupon that Redis does not have can have nothing in flight.
    pub(super) async fn not_loaded(&mut self) -> Result<(), AuditAbort> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let again = self.auditor.in_flight_of(&self.keys, &self.coupon.id).await?;
        let now = figures(&self.auditor.partition, &self.keys, std::slice::from_ref(&self.coupon.id)).await?;
        let mut ids: Vec<_> = again.into_keys().filter(|id| self.in_flight.contains_key(id)).collect();
        ids.sort_unstable();
        if now.coupons == [None] && !ids.is_empty() {
            self.found.add([Finding { issuances: ids, ..self.finding(FindingKind::InFlightNotLoaded) }]);
        }
        Ok(())
    }

    /// Redis must not be ahead of the record, which is changed first, nor have missed a change.
    pub(super) async fn record(&mut self) -> Result<(), AuditAbort> {
        let Some(figures) = self.figures else { return Ok(()) };
        if let Some(missed_change) = self.auditor.missed_change(&self.keys, &self.coupon.id).await? {
            self.found
                .add([Finding { detail: Some(missed_change), ..self.finding(FindingKind::CouponBehind) }]);
        }
        if figures.units.shares != u64::from(self.share.count()) {
            let detail = Some(format!("the field shares is {}", figures.units.shares));
            self.found.add([Finding { detail, ..self.finding(FindingKind::CouponUnreadable) }]);
        }
        let Some(record) = self.auditor.coupons.get(&self.coupon.id).await? else { return Ok(()) };
        if figures.units.total > record.total.into() || figures.generation > record.generation {
            let detail = format!(
                "total {} in Redis and {} in the record, generation {} and {}",
                figures.units.total, record.total, figures.generation, record.generation
            );
            self.found.add([Finding { detail: Some(detail), ..self.finding(FindingKind::CouponAhead) }]);
        }
        Ok(())
    }
}
