//! Bringing a batch of entries to its outcomes: the ledger decides, everyone adopts, Redis is told.
//!
//! Each entry is inserted as issued. Where a unique index objects, the ledger says why: the issuance
//! is decided already (adopt that), the user holds as many as the limit allows (reject), this nth is
//! taken (take another), or another issuance has the unit (take a fresh one; it is not the user's
//! fault). A rejection is inserted the same way, before anything is given back.

use std::collections::HashSet;
use std::sync::Arc;

use super::limits::Limits;
use crate::Failure;
use crate::coupon::CouponStore;
use crate::issuance::ledger::{Held, Inserted, Unreadable, readable};
use crate::issuance::reassign::{Reassigned, reassign};
use crate::issuance::settle::{self, Settled, Settlement, settle};
use crate::issuance::{Decision, IssuanceId, Ledger, Outcome, Reason};
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::queue::Entry;

/// An entry meets a bounded number of conflicts in one go; then it waits for its next attempt.
const ROUNDS_MAX: usize = 8;

/// See the module's documentation.
pub struct Decider {
    partition: Arc<Partition>,
    ledger: Ledger,
    limits: Limits,
}

/// An entry on its way to being issued.
#[derive(Clone)]
struct Candidate<'a> {
    entry: &'a Entry,
    serial: u32,
    nth: u8,
}

/// Where a step left an entry.
enum Step<'a> {
    Decided(Settlement),
    /// Insert it as issued (again).
    Insert(Candidate<'a>),
    /// It is not in flight any more, or another epoch's: somebody else has it.
    Gone,
    /// It has no outcome yet.
    Left(Left),
}

/// Why an entry of a batch has no outcome yet, while others of it have.
#[derive(Debug)]
pub enum Left {
    /// MongoDB will not take this document, whatever happens: its own fault, and it uses up attempts.
    Refused(String),
    /// It is decided, and this version cannot read how: nobody can settle it before the record is mended.
    Unreadable(Unreadable),
    /// Nobody can tell yet: try again.
    Unclear(Failure),
}

/// What became of a batch.
#[derive(Debug)]
pub enum Processed {
    /// Settled, but for these.
    Here(Vec<(Entry, Left)>),
    /// Another epoch is open: the batch is somebody else's.
    AnotherEpoch,
}

/// The decisions of a batch.
#[derive(Debug, Default)]
pub struct Decided {
    pub settlements: Vec<Settlement>,
    pub left: Vec<(Entry, Left)>,
}

/// A batch, by how far its entries have come.
#[derive(Default)]
struct Sorted<'a> {
    decided: Decided,
    candidates: Vec<Candidate<'a>>,
}

impl<'a> Sorted<'a> {
    fn add(&mut self, entry: &Entry, step: Result<Step<'a>, Failure>) {
        match step {
            Ok(Step::Decided(settlement)) => self.decided.settlements.push(settlement),
            Ok(Step::Insert(candidate)) => self.candidates.push(candidate),
            Ok(Step::Gone) => {}
            Ok(Step::Left(why)) => self.leave(entry, why),
            Err(failure) => self.leave(entry, Left::Unclear(failure)),
        }
    }

    fn leave(&mut self, entry: &Entry, why: Left) {
        self.decided.left.push((entry.clone(), why));
    }
}

impl Decider {
    /// A decider on a partition and its ledger.
    pub fn new(partition: Arc<Partition>, ledger: Ledger, coupons: CouponStore) -> Self {
        Decider { partition, ledger, limits: Limits::new(coupons) }
    }

    /// Decides and settles a batch that was read under the epoch of `keys`, and returns what is left of
    /// it. May be repeated, and raced by another worker, without harm; an `Err` leaves open what was
    /// done.
    pub async fn process(&self, keys: &EpochKeys, entries: &[Entry]) -> Result<Processed, Failure> {
        let Decided { settlements, mut left } = self.decide(keys, entries).await?;
        let mut another_epoch = false;
        for batch in settlements.chunks(settle::BATCH_MAX) {
            let settled = settle(&self.partition, keys, batch).await?;
            another_epoch |= settled.contains(&Settled::AnotherEpoch);
            let unreadable = batch.iter().zip(settled).filter(|(_, settled)| *settled == Settled::Unreadable);
            for (settlement, _) in unreadable {
                let entry = entries.iter().find(|entry| entry.entry == settlement.entry);
                let why = Left::Refused("decided, but its in-flight value cannot be read".to_owned());
                left.extend(entry.cloned().map(|entry| (entry, why)));
            }
        }
        // Under another epoch the recovery has dealt with all of the batch.
        Ok(if another_epoch { Processed::AnotherEpoch } else { Processed::Here(left) })
    }

    /// Brings the entries to their decisions, and returns those that are still this epoch's to settle.
    pub async fn decide(&self, keys: &EpochKeys, entries: &[Entry]) -> Result<Decided, Failure> {
        let mut sorted = Sorted::default();
        // Two entries of one issuance in one batch: the second finds the first's decision when its
        // turn comes again.
        let mut seen = HashSet::new();
        for entry in entries.iter().filter(|entry| seen.insert(entry.id)) {
            sorted.add(entry, self.with_unit(keys, entry, entry.serial, entry.nth).await);
        }
        for _ in 0..ROUNDS_MAX {
            let candidates = std::mem::take(&mut sorted.candidates);
            if candidates.is_empty() {
                return Ok(sorted.decided);
            }
            let decisions: Vec<_> = candidates.iter().map(issued).collect();
            let inserted = self.ledger.insert(&decisions).await?;
            let mut failed = Vec::new();
            for ((candidate, decision), inserted) in candidates.into_iter().zip(decisions).zip(inserted) {
                match inserted {
                    Inserted::Decided => sorted.add(candidate.entry, Ok(decided(candidate.entry, decision))),
                    Inserted::Conflict => failed.push((candidate, None)),
                    Inserted::Refused(why) => failed.push((candidate, Some(why))),
                }
            }
            if failed.is_empty() {
                continue;
            }
            // Whatever the reason, it may have been decided before.
            let ids: Vec<_> = failed.iter().map(|(candidate, _)| candidate.entry.id).collect();
            let mut winners = self.ledger.decisions(&ids).await?;
            for (candidate, refused) in failed {
                let entry = candidate.entry;
                match (winners.remove(&entry.id), refused) {
                    (Some(winner), _) => sorted.add(entry, self.adopt(entry, winner).await),
                    (None, Some(why)) => sorted.leave(entry, Left::Refused(why)),
                    (None, None) => sorted.add(entry, self.arbitrate(keys, candidate).await),
                }
            }
        }
        for candidate in std::mem::take(&mut sorted.candidates) {
            let why = unclear(candidate.entry, "it met one conflict after another");
            sorted.leave(candidate.entry, Left::Unclear(why));
        }
        Ok(sorted.decided)
    }

    /// Takes over what was decided before.
    async fn adopt<'a>(
        &self,
        entry: &Entry,
        winner: Result<Decision, Unreadable>,
    ) -> Result<Step<'a>, Failure> {
        let winner = match winner {
            Ok(winner) => winner,
            Err(unreadable) => return Ok(Step::Left(Left::Unreadable(unreadable))),
        };
        let holds = match winner.outcome {
            Outcome::Rejected { reason: Reason::AlreadyIssued, .. } => {
                let held = self.ledger.held_by(&entry.coupon, &entry.user).await?;
                held.into_iter().filter_map(readable).collect()
            }
            _ => Vec::new(),
        };
        Ok(Step::Decided(Settlement { entry: entry.entry.clone(), decision: winner, holds }))
    }

    /// Makes an entry a candidate, with a unit that there is.
    async fn with_unit<'a>(
        &self,
        keys: &EpochKeys,
        entry: &'a Entry,
        serial: Option<u32>,
        nth: u8,
    ) -> Result<Step<'a>, Failure> {
        match serial {
            Some(serial) if self.limits.has_unit(&entry.coupon, serial).await? => {
                Ok(Step::Insert(Candidate { entry, serial, nth }))
            }
            old => self.with_fresh_unit(keys, entry, old, nth).await,
        }
    }

    /// Gives an entry another unit than `old`, which it cannot have; or rejects it, if none is free.
    async fn with_fresh_unit<'a>(
        &self,
        keys: &EpochKeys,
        entry: &'a Entry,
        old: Option<u32>,
        nth: u8,
    ) -> Result<Step<'a>, Failure> {
        match reassign(&self.partition, keys, &entry.coupon, entry.id, &entry.entry, old).await? {
            Reassigned::To(serial) => Ok(Step::Insert(Candidate { entry, serial, nth })),
            Reassigned::NoneFree => self.reject(entry, Reason::SoldOut, old, true).await,
            Reassigned::Gone => Ok(Step::Gone),
        }
    }

    /// Finds out why the ledger did not take a candidate that is not decided: first by user, then by
    /// serial.
    async fn arbitrate<'a>(&self, keys: &EpochKeys, candidate: Candidate<'a>) -> Result<Step<'a>, Failure> {
        let Candidate { entry, serial, nth } = candidate;
        let holder = self.ledger.holder_of(&entry.coupon, serial).await?;
        let is_lost = holder.is_some_and(|held| id_of(&held) != Some(entry.id));
        let held = self.ledger.held_by(&entry.coupon, &entry.user).await?;
        if held.iter().any(|held| id_of(held) == Some(entry.id)) {
            // Decided since we looked by id: read it there, next round.
            return Ok(Step::Insert(candidate));
        }
        let limit = self.limits.of(&entry.coupon).await?.per_user;
        // A unit whose record cannot be read is held all the same.
        let is_free = |nth: u8| held.iter().flatten().all(|held| held.nth != nth);
        let free = (1..=limit).find(|nth| is_free(*nth)).filter(|_| held.len() < limit.into());
        let Some(free) = free else {
            return self.reject(entry, Reason::AlreadyIssued, Some(serial), is_lost).await;
        };
        let nth = if is_free(nth) { nth } else { free };
        if is_lost {
            return self.with_fresh_unit(keys, entry, Some(serial), nth).await;
        }
        // With nothing of this visible to a majority yet, it is unknown: insert again and see.
        Ok(Step::Insert(Candidate { entry, serial, nth }))
    }

    /// Writes the rejection, or adopts what was decided before.
    async fn reject<'a>(
        &self,
        entry: &'a Entry,
        reason: Reason,
        serial: Option<u32>,
        lost: bool,
    ) -> Result<Step<'a>, Failure> {
        let decision = decision(entry, Outcome::Rejected { reason, serial, lost });
        match self.ledger.insert(std::slice::from_ref(&decision)).await?.pop() {
            Some(Inserted::Decided) => {
                tracing::warn!(
                    issuance = %entry.id, coupon = %entry.coupon, partition = %self.partition.id(),
                    reason = reason.as_str(), serial, lost,
                    "an accepted request was rejected"
                );
                self.adopt(entry, Ok(decision)).await
            }
            Some(Inserted::Conflict) => match self.ledger.decisions(&[entry.id]).await?.remove(&entry.id) {
                Some(winner) => self.adopt(entry, winner).await,
                None => Err(unclear(entry, "its decision is not visible yet")),
            },
            Some(Inserted::Refused(why)) => Err(unclear(entry, &why)),
            None => Err(unclear(entry, "the insert answered nothing")),
        }
    }
}

fn id_of(held: &Result<Held, Unreadable>) -> Option<IssuanceId> {
    match held {
        Ok(held) => Some(held.id),
        Err(unreadable) => unreadable.id,
    }
}

fn issued(candidate: &Candidate) -> Decision {
    decision(candidate.entry, Outcome::Issued { serial: candidate.serial, nth: candidate.nth })
}

fn decided<'a>(entry: &Entry, decision: Decision) -> Step<'a> {
    Step::Decided(Settlement { entry: entry.entry.clone(), decision, holds: Vec::new() })
}

fn decision(entry: &Entry, outcome: Outcome) -> Decision {
    Decision {
        id: entry.id,
        coupon: entry.coupon.clone(),
        user: entry.user.clone(),
        outcome,
        accepted_at: entry.accepted_at,
        decided_at: crate::now_in_milliseconds(),
    }
}

fn unclear(entry: &Entry, why: &str) -> Failure {
    Failure::MongoDb {
        operation: "decide an issuance",
        source: format!("issuance {} of coupon {}: {why}", entry.id, entry.coupon).into(),
    }
}
