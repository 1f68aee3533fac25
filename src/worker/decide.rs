//! Brings a batch of entries to its outcomes: the ledger decides, the worker adopts what it decided, and settles it
//! in Redis.
//!
//! The worker inserts each entry as issued. Where a unique index objects, it reads in the ledger why: the issuance
//! is decided already (it adopts that), the user holds as many as the limit allows (it rejects), this nth is taken
//! (it takes another), or another issuance has the unit (it takes a fresh one; it is not the user's fault). It
//! inserts a rejection the same way, before it gives a unit back.
//!
//! An entry that fails for itself leaves the others of its batch alone: they are decided, and it comes back with the
//! reason ([`Unsettled`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::join_all;

use super::coupon_limits::{CouponLimits, KnownLimit};
use crate::Failure;
use crate::coupon::{CouponLimit, CouponStore};
use crate::failure::Unreadable;
use crate::ids::{CouponId, IssuanceId, Unit};
use crate::issuance::ledger::{Inserted, id_of, readable};
use crate::issuance::reassign::{Reassigned, reassign};
use crate::issuance::reserve::QueueEntries;
use crate::issuance::settle::{Settled, Settlement, settle};
use crate::issuance::shares::{Refill, Refills, credit_moved};
use crate::issuance::{Decision, Ledger, Outcome, Reason, settle};
use crate::queue::{Entry, by_whole_entries, repair};
use crate::redis::keys::EpochKeys;
use crate::redis::{Partition, Partitions};

/// Inserts of one entry in one attempt at most, each after another conflict.
const ROUNDS_MAX: usize = 8;
/// Fresh units for one entry in one attempt, of which each but the last was another share's.
const FRESH_MAX: usize = 64;
/// How often units are moved here for one entry in one attempt: others may be faster.
const REFILLS_MAX: usize = 8;
/// Conflicts of one batch that are arbitrated at once.
const ARBITRATED_MAX: usize = 16;

/// Decides and settles batches of entries.
pub struct Decider {
    partition: Arc<Partition>,
    ledger: Ledger,
    limits: CouponLimits,
    /// Where units that were moved are credited; without it that is left to audits.
    receivers: Option<Partitions>,
    /// Moves units here where an issuance needs one and none is left.
    refills: Option<Refills>,
}

/// An entry on its way to being issued.
#[derive(Clone)]
struct Candidate<'a> {
    entry: &'a Entry,
    limit: CouponLimit,
    unit: Unit,
    nth: u8,
}

/// Where a step left an entry.
enum EntryStep<'a> {
    /// The ledger has its decision, and Redis is to be told.
    Decided(Settlement),
    /// To be inserted as issued, perhaps again.
    Insert(Candidate<'a>),
    /// It is not in flight any more, or belongs to another epoch.
    Gone,
    /// It has no decision yet, or one that cannot be read.
    Unsettled(Unsettled),
}

/// Why one entry of a batch is not settled, while others may be.
#[derive(Debug)]
pub enum Unsettled {
    /// MongoDB refuses its document for good. Counts as an attempt.
    Refused(String),
    /// It is decided, and this version cannot read how. It cannot be settled before the record is repaired.
    Unreadable(Unreadable),
    /// Its coupon has no record, for certain.
    NoCoupon,
    /// Its coupon's record, or what Redis holds of its coupon, cannot be read. All entries of the coupon share that.
    CouponDamaged(String),
    /// It is decided, and the in-flight value of its issuance does not name it: another worker settled it, or the
    /// value is damaged.
    GuardedOff,
    /// Its outcome could not be determined. To be tried again.
    Unclear(Failure),
}

impl Unsettled {
    /// The reason in a word, for traces.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Unsettled::Refused(_) => "refused",
            Unsettled::Unreadable(_) => "unreadable",
            Unsettled::NoCoupon => "no-coupon",
            Unsettled::CouponDamaged(_) => "coupon-damaged",
            Unsettled::GuardedOff => "guarded-off",
            Unsettled::Unclear(_) => "unclear",
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub enum BatchOutcome {
    /// All are settled but these.
    Here(Vec<(Entry, Unsettled)>),
    /// Another epoch is open, and its recovery has dealt with the batch.
    AnotherEpoch,
}

/// The decisions of a batch.
#[derive(Debug, Default)]
pub struct BatchDecisions {
    pub settlements: Vec<Settlement>,
    pub left: Vec<(Entry, Unsettled)>,
}

/// A batch, by how far its entries have come.
#[derive(Default)]
struct BatchState<'a> {
    decided: BatchDecisions,
    candidates: Vec<Candidate<'a>>,
}

impl<'a> BatchState<'a> {
    fn add(&mut self, entry: &Entry, step: Result<EntryStep<'a>, Failure>) {
        match step {
            Ok(EntryStep::Decided(settlement)) => self.decided.settlements.push(settlement),
            Ok(EntryStep::Insert(candidate)) => self.candidates.push(candidate),
            Ok(EntryStep::Gone) => {}
            Ok(EntryStep::Unsettled(why)) => self.leave(entry, why),
            Err(damaged @ Failure::Damaged { .. }) => {
                self.leave(entry, Unsettled::CouponDamaged(damaged.chain()));
            }
            Err(failure) => self.leave(entry, Unsettled::Unclear(failure)),
        }
    }

    fn leave(&mut self, entry: &Entry, why: Unsettled) {
        self.decided.left.push((entry.clone(), why));
    }
}

impl Decider {
    /// A decider on a partition and its ledger.
    pub fn new(partition: Arc<Partition>, ledger: Ledger, coupons: CouponStore) -> Self {
        let (ledger, limits) = (ledger.within(partition.id()), CouponLimits::new(coupons));
        Decider { partition, ledger, limits, receivers: None, refills: None }
    }

    /// The same, which credits the units that it moves to other partitions, and moves units here that it needs.
    pub fn crediting(self, receivers: Partitions) -> Self {
        let ledger = self.ledger.of_all_shares();
        let refills = Refills::new(receivers.clone(), ledger, QueueEntries::default());
        Decider { receivers: Some(receivers), refills: Some(refills), ..self }
    }

    /// Decides and settles a batch that was read under the epoch of `keys`, and returns the entries that are left.
    /// It may be repeated, and raced by another worker, without harm.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails; that leaves open what was done.
    pub async fn process(&self, keys: &EpochKeys, entries: &[Entry]) -> Result<BatchOutcome, Failure> {
        let BatchDecisions { mut settlements, mut left } = self.decide(keys, entries).await?;
        let by_id: HashMap<(&str, IssuanceId), &Entry> =
            entries.iter().map(|entry| ((entry.entry.as_str(), entry.id), entry)).collect();
        let entry_of = |settlement: &Settlement| {
            by_id.get(&(settlement.entry.as_str(), settlement.decision.id)).copied()
        };
        if let Some(receivers) = &self.receivers {
            credit_moved(receivers, settlements.iter().map(|settlement| &settlement.decision)).await;
        }
        if settlements.len() > settle::BATCH_MAX {
            settlements.sort_by(|one, other| one.entry.cmp(&other.entry));
        }
        let mut answers = Vec::with_capacity(settlements.len());
        for batch in by_whole_entries(&settlements, settle::BATCH_MAX, |settlement| &settlement.entry) {
            for (settlement, mut settled) in batch.iter().zip(settle(&self.partition, keys, batch).await?) {
                if settled == Settled::Unreadable
                    && let Some(entry) = entry_of(settlement)
                    && repair(&self.partition, keys, &self.ledger, entry).await?
                {
                    let again = settle(&self.partition, keys, std::slice::from_ref(settlement)).await?;
                    settled = again.first().copied().unwrap_or(settled);
                }
                answers.push((settlement, settled));
            }
        }
        // Under another epoch the recovery has dealt with all of the batch.
        if answers.iter().any(|(_, settled)| *settled == Settled::AnotherEpoch) {
            return Ok(BatchOutcome::AnotherEpoch);
        }
        for (settlement, settled) in answers {
            let Some(entry) = entry_of(settlement) else { continue };
            match settled {
                Settled::Unreadable => {
                    let why = "decided, but its in-flight value cannot be read".to_owned();
                    left.push((entry.clone(), Unsettled::Refused(why)));
                }
                Settled::GuardedOff => left.push((entry.clone(), Unsettled::GuardedOff)),
                Settled::Now | Settled::AnotherEpoch => {}
            }
        }
        Ok(BatchOutcome::Here(left))
    }

    /// Decides the entries, and returns the decisions to settle under the epoch of `keys`.
    ///
    /// # Errors
    ///
    /// If MongoDB or Redis fails; that leaves open what was decided.
    pub async fn decide(&self, keys: &EpochKeys, entries: &[Entry]) -> Result<BatchDecisions, Failure> {
        let mut sorted = BatchState::default();
        let limits = self.limits.learn(entries).await?;
        let strays = self.strays(entries).await?;
        let foreign = self.foreign(entries).await?;
        let mut without_limit = Vec::new();
        // Two entries of one issuance in one batch: the second finds the first's decision when its
        // turn comes again.
        let mut seen = HashSet::new();
        for entry in entries.iter().filter(|entry| seen.insert(entry.id)) {
            if strays.contains(&entry.id) {
                without_limit.push((entry, Unsettled::Refused(self.stray(entry))));
                continue;
            }
            match limits.get(&entry.coupon) {
                Some(KnownLimit::Limit(limit)) => {
                    let is_foreign = foreign.contains(&entry.id);
                    sorted.add(entry, self.with_unit(keys, entry, *limit, is_foreign).await);
                }
                Some(KnownLimit::Damaged(why)) => {
                    without_limit.push((entry, Unsettled::CouponDamaged(why.clone())));
                }
                Some(KnownLimit::Missing) | None => without_limit.push((entry, Unsettled::NoCoupon)),
            }
        }
        if !without_limit.is_empty() {
            // What was decided before needs neither a limit nor its place.
            let winners = self.winners(without_limit.iter().map(|(entry, _)| entry.id)).await?;
            self.adopt_or(&mut sorted, winners, without_limit).await;
        }
        for _ in 0..ROUNDS_MAX {
            let candidates = std::mem::take(&mut sorted.candidates);
            if candidates.is_empty() {
                return Ok(sorted.decided);
            }
            let decisions: Vec<_> = candidates.iter().map(wanted).collect();
            let inserted = self.ledger.insert(&decisions).await?;
            let (mut conflicts, mut others) = (Vec::new(), Vec::new());
            for ((candidate, decision), inserted) in candidates.into_iter().zip(decisions).zip(inserted) {
                let entry = candidate.entry;
                match inserted {
                    Inserted::Decided => sorted.add(entry, Ok(decided(entry, decision))),
                    Inserted::Conflict => conflicts.push(candidate),
                    Inserted::Refused(why) => others.push((entry, Unsettled::Refused(why))),
                    Inserted::Unknown(why) => others.push((entry, Unsettled::Unclear(unclear(entry, &why)))),
                }
            }
            if conflicts.is_empty() && others.is_empty() {
                continue;
            }
            // Whatever the reason, it may have been decided before.
            let ids = conflicts.iter().map(|candidate| candidate.entry.id);
            let mut winners = self.winners(ids.chain(others.iter().map(|(entry, _)| entry.id))).await?;
            let mut undecided = Vec::new();
            for candidate in conflicts {
                match winners.remove(&candidate.entry.id) {
                    Some(winner) => sorted.add(candidate.entry, self.adopt(candidate.entry, winner).await),
                    None => undecided.push(candidate),
                }
            }
            self.adopt_or(&mut sorted, winners, others).await;
            for undecided in undecided.chunks(ARBITRATED_MAX) {
                let steps = join_all(undecided.iter().map(|one| self.arbitrate(keys, one.clone()))).await;
                for (candidate, step) in undecided.iter().zip(steps) {
                    sorted.add(candidate.entry, step);
                }
            }
        }
        for candidate in std::mem::take(&mut sorted.candidates) {
            let why = unclear(candidate.entry, "it met one conflict after another");
            sorted.leave(candidate.entry, Unsettled::Unclear(why));
        }
        Ok(sorted.decided)
    }

    /// The entries that do not belong into this partition. The unique indexes hold within one alone.
    async fn strays(&self, entries: &[Entry]) -> Result<HashSet<IssuanceId>, Failure> {
        let here = self.partition.id();
        let coupons: HashSet<CouponId> = entries.iter().map(|entry| entry.coupon.clone()).collect();
        let coupons: Vec<CouponId> = coupons.into_iter().collect();
        let elsewhere = self.ledger.not_in(here, &coupons).await?;
        let is_stray = |entry: &&Entry| entry.id.partition() != here || elsewhere.contains(&entry.coupon);
        Ok(entries.iter().filter(is_stray).map(|entry| entry.id).collect())
    }

    /// The entries whose unit was not born in this partition's share of the coupon, nor moved there by a move that the ledger
    /// has.
    async fn foreign(&self, entries: &[Entry]) -> Result<HashSet<IssuanceId>, Failure> {
        let mut by_coupon: HashMap<&CouponId, Vec<(IssuanceId, Unit)>> = HashMap::new();
        for entry in entries {
            let Some(unit) = entry.unit else { continue };
            by_coupon.entry(&entry.coupon).or_default().push((entry.id, unit));
        }
        let mut foreign = HashSet::new();
        for (coupon, entries) in by_coupon {
            // The shares of a coupon whose record cannot be read are not known: it has no limit either.
            let Ok(shares) = self.ledger.shares_of(coupon).await else { continue };
            let units: Vec<Unit> = entries.iter().map(|(_, unit)| *unit).collect();
            let others = self.ledger.foreign_among(coupon, &shares, self.partition.id(), &units).await?;
            foreign.extend(entries.into_iter().filter(|(_, unit)| others.contains(unit)).map(|(id, _)| id));
        }
        Ok(foreign)
    }

    fn stray(&self, entry: &Entry) -> String {
        format!(
            "it is queued in partition {}, which is not that of its id ({}), or none of its coupon's; discard it",
            self.partition.id(),
            entry.id.partition()
        )
    }

    async fn winners(
        &self,
        ids: impl Iterator<Item = IssuanceId>,
    ) -> Result<HashMap<IssuanceId, Result<Decision, Unreadable>>, Failure> {
        self.ledger.decisions(&ids.collect::<Vec<_>>()).await
    }

    /// Adopts the decisions that were made before, and leaves the other entries for their reasons.
    async fn adopt_or(
        &self,
        sorted: &mut BatchState<'_>,
        mut winners: HashMap<IssuanceId, Result<Decision, Unreadable>>,
        entries: Vec<(&Entry, Unsettled)>,
    ) {
        for (entry, why) in entries {
            match winners.remove(&entry.id) {
                Some(winner) => sorted.add(entry, self.adopt(entry, winner).await),
                None => sorted.leave(entry, why),
            }
        }
    }

    /// Adopts a decision that was made before.
    async fn adopt<'a>(
        &self,
        entry: &Entry,
        winner: Result<Decision, Unreadable>,
    ) -> Result<EntryStep<'a>, Failure> {
        let winner = match winner {
            Ok(winner) => winner,
            Err(unreadable) => return Ok(EntryStep::Unsettled(Unsettled::Unreadable(unreadable))),
        };
        let holds = match winner.outcome {
            Outcome::Rejected { reason: Reason::AlreadyIssued, .. } => {
                let held = self.ledger.held_by(&entry.coupon, &entry.user).await?;
                held.into_iter().filter_map(readable).collect()
            }
            _ => Vec::new(),
        };
        Ok(EntryStep::Decided(Settlement {
            entry: entry.entry.clone(),
            of: entry.of,
            decision: winner,
            holds,
        }))
    }

    /// Makes an entry a candidate, with a unit within the coupon's total that is this partition's. A unit that cannot be
    /// moved, or only to where the coupon has no other share, stays: the move is rejected, and another one is made where
    /// units are missed.
    async fn with_unit<'a>(
        &self,
        keys: &EpochKeys,
        entry: &'a Entry,
        limit: CouponLimit,
        is_foreign: bool,
    ) -> Result<EntryStep<'a>, Failure> {
        let goes_astray = match entry.user.share() {
            Some(to) => {
                let shares = self.ledger.shares_of(&entry.coupon).await?;
                to == self.partition.id() || shares.of(to).is_none()
            }
            None => false,
        };
        match entry.unit {
            Some(unit) if unit.serial() <= limit.total && !is_foreign && !goes_astray => {
                Ok(EntryStep::Insert(Candidate { entry, limit, unit, nth: entry.nth }))
            }
            unit if entry.user.share().is_some() => {
                self.reject(entry, Reason::SoldOut, unit, is_foreign).await
            }
            old => self.with_fresh_unit(keys, entry, limit, old, entry.nth).await,
        }
    }

    /// Gives an entry another unit than `old`, which it cannot have; or rejects it, if none is free.
    async fn with_fresh_unit<'a>(
        &self,
        keys: &EpochKeys,
        entry: &'a Entry,
        limit: CouponLimit,
        mut old: Option<Unit>,
        nth: u8,
    ) -> Result<EntryStep<'a>, Failure> {
        let again =
            async |old| reassign(&self.partition, keys, &entry.coupon, entry.id, &entry.entry, old).await;
        let mut reassigned = match again(old).await? {
            Reassigned::Unreadable if repair(&self.partition, keys, &self.ledger, entry).await? => {
                again(old).await?
            }
            reassigned => reassigned,
        };
        let mut refills = 0;
        for _ in 0..FRESH_MAX {
            match reassigned {
                // Where the free units or the number of shares are damaged, a fresh one need not be this share's.
                Reassigned::To(unit) if self.is_foreign(&entry.coupon, unit).await? => old = Some(unit),
                Reassigned::Dry if refills < REFILLS_MAX && self.refill(entry).await? => refills += 1,
                _ => break,
            }
            reassigned = again(old).await?;
        }
        match reassigned {
            Reassigned::To(unit) if self.is_foreign(&entry.coupon, unit).await? => {
                Err(unclear(entry, "what is free in its share are units of others"))
            }
            Reassigned::To(unit) => Ok(EntryStep::Insert(Candidate { entry, limit, unit, nth })),
            Reassigned::NoneFree => self.reject(entry, Reason::SoldOut, old, true).await,
            Reassigned::Dry => Err(unclear(entry, "its share has no unit left, and another may have one")),
            Reassigned::Gone => Ok(EntryStep::Gone),
            Reassigned::Unreadable => Err(unclear(entry, "its in-flight value was damaged a moment ago")),
            Reassigned::Unloaded => Err(unclear(entry, "its coupon is not loaded, and is to be")),
        }
    }

    /// Whether a unit was neither born in this partition's share of a coupon nor moved there by a move that the ledger has.
    async fn is_foreign(&self, coupon: &CouponId, unit: Unit) -> Result<bool, Failure> {
        let (shares, here) = (self.ledger.shares_of(coupon).await?, self.partition.id());
        Ok(!self.ledger.foreign_among(coupon, &shares, here, &[unit]).await?.is_empty())
    }

    /// Moves units here for an entry, or finds out that no share has any. `false` if that cannot be done now.
    async fn refill(&self, entry: &Entry) -> Result<bool, Failure> {
        let Some(refills) = &self.refills else { return Ok(false) };
        let shares = self.ledger.shares_of(&entry.coupon).await?;
        let refill = refills.refill(&entry.coupon, &shares, self.partition.id()).await?;
        Ok(refill == Refill::AskAgain)
    }

    /// Finds out why the ledger did not take a candidate that is not decided: first by user, then by
    /// serial.
    async fn arbitrate<'a>(
        &self,
        keys: &EpochKeys,
        candidate: Candidate<'a>,
    ) -> Result<EntryStep<'a>, Failure> {
        let Candidate { entry, limit, unit, nth } = candidate.clone();
        let is_lost = self.ledger.is_lost(&entry.coupon, unit, entry.id).await?;
        if entry.user.share().is_some() {
            return match is_lost {
                true => self.reject(entry, Reason::SoldOut, Some(unit), true).await,
                // Its own record, or one that a majority does not know yet: the next insert shows it.
                false => Ok(EntryStep::Insert(candidate)),
            };
        }
        let held = self.ledger.held_by(&entry.coupon, &entry.user).await?;
        if held.iter().any(|held| id_of(held) == Some(entry.id)) {
            // It was decided since the read by id. The next round reads it.
            return Ok(EntryStep::Insert(candidate));
        }
        // A unit whose record cannot be read is held all the same.
        let is_free = |nth: u8| held.iter().flatten().all(|held| held.nth != nth);
        let free = (1..=limit.per_user).find(|nth| is_free(*nth));
        let Some(free) = free.filter(|_| held.len() < limit.per_user.into()) else {
            return self.reject(entry, Reason::AlreadyIssued, Some(unit), is_lost).await;
        };
        let nth = if is_free(nth) { nth } else { free };
        if is_lost {
            return self.with_fresh_unit(keys, entry, limit, Some(unit), nth).await;
        }
        // The reason is not visible to a majority yet: the next insert shows it.
        Ok(EntryStep::Insert(Candidate { entry, limit, unit, nth }))
    }

    /// Writes the rejection, or adopts the decision that was made before.
    async fn reject<'a>(
        &self,
        entry: &'a Entry,
        reason: Reason,
        unit: Option<Unit>,
        lost: bool,
    ) -> Result<EntryStep<'a>, Failure> {
        let decision = decision(entry, Outcome::Rejected { reason, unit, lost });
        match self.ledger.insert(std::slice::from_ref(&decision)).await?.pop() {
            Some(Inserted::Decided) if entry.user.share().is_some() => self.adopt(entry, Ok(decision)).await,
            Some(Inserted::Decided) => {
                tracing::warn!(
                    issuance = %entry.id, coupon = %entry.coupon, partition = %self.partition.id(),
                    reason = reason.as_str(), serial = unit.map(Unit::serial), lost,
                    "an accepted request was rejected"
                );
                self.adopt(entry, Ok(decision)).await
            }
            Some(Inserted::Conflict) => match self.ledger.decisions(&[entry.id]).await?.remove(&entry.id) {
                Some(winner) => self.adopt(entry, winner).await,
                None => Err(unclear(entry, "its decision is not visible yet")),
            },
            Some(Inserted::Refused(why)) => Ok(EntryStep::Unsettled(Unsettled::Refused(why))),
            Some(Inserted::Unknown(why)) => Err(unclear(entry, &why)),
            None => Err(unclear(entry, "the insert answered nothing")),
        }
    }
}

/// What the candidate is to become: issued to a user, or moved to another share.
fn wanted(candidate: &Candidate) -> Decision {
    let Candidate { entry, unit, nth, .. } = *candidate;
    decision(
        entry,
        match entry.user.share() {
            Some(to) => Outcome::Moved { unit, to },
            None => Outcome::Issued { unit, nth },
        },
    )
}

fn decided<'a>(entry: &Entry, decision: Decision) -> EntryStep<'a> {
    EntryStep::Decided(Settlement { entry: entry.entry.clone(), of: entry.of, decision, holds: Vec::new() })
}

fn decision(entry: &Entry, outcome: Outcome) -> Decision {
    Decision {
        id: entry.id,
        coupon: entry.coupon.clone(),
        user: entry.user.clone(),
        outcome,
        accepted_at: entry.accepted_at,
        decided_at: crate::mongo::now_in_milliseconds(),
    }
}

fn unclear(entry: &Entry, why: &str) -> Failure {
    Failure::Contended {
        operation: "decide an issuance",
        why: format!("issuance {} of coupon {}: {why}", entry.id, entry.coupon),
    }
}
