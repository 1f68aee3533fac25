//! What a process does when a share of a coupon is empty: it moves units there from a share that has some, or finds out
//! that none has.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{sleep, timeout};

use super::credit::{Credited, credit, credit_moved};
use super::lend::{Lent, lend};
use super::look::{Looked, Sight, all_seen, look, look_again};
use super::{Mark, without_mark};
use crate::ids::{CouponId, PartitionId, Shares, Unit};
use crate::issuance::ledger::{Inserted, readable};
use crate::issuance::reserve::QueueEntries;
use crate::issuance::settle::{Settlement, settle};
use crate::issuance::{Decision, IssuanceId, Ledger};
use crate::redis::turn::alone_at;
use crate::redis::{Partition, Partitions};
use crate::runtime::shared_work::SharedWork;
use crate::{Failure, metrics};

/// What all of it is called in failures.
const MOVE_UNITS: &str = "move units to a share of the coupon";
/// One process at a time moves units to a share; one that was killed keeps the others out for this long.
const TURN: Duration = Duration::from_millis(250);
/// Before another look, where somebody else moves units.
const PAUSE: Duration = Duration::from_millis(10);
/// Units of a coupon that are on their way at once, before more are lent: while the ledger takes no moves, their shares' own
/// users are to have the others.
const LENT_MAX: u64 = 1_024;
/// What takes longer is given up.
const WORK_MAX: Duration = Duration::from_secs(3);

/// What is to be done about a share that is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refill {
    /// Ask the share again: it has got units, may get some, or may say now that all are sold out.
    AskAgain,
    /// No share that answers has units, and these do not answer.
    Unreachable(Arc<[PartitionId]>),
    /// The coupon is not loaded in these partitions.
    NotLoaded(Arc<[PartitionId]>),
}

/// What looking at all shares showed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// These have units: how many, each with its partition.
    Units(Arc<[(u64, PartitionId)]>),
    Nothing(Refill),
}

/// Refills empty shares, for all requests of this process that wait for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Refills {
    partitions: Partitions,
    ledger: Ledger,
    queue_entries: QueueEntries,
    /// One look at a coupon's shares at a time.
    looks: SharedWork<CouponId, Found>,
    /// One move to a share at a time.
    moves: SharedWork<(CouponId, PartitionId), ()>,
}

/// Ends work that takes too long. Meanwhile all who need it wait.
async fn bounded<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(WORK_MAX, work).await.unwrap_or(Err(Failure::Overloaded { operation: MOVE_UNITS }))
}

impl Refills {
    /// Nothing is under way.
    pub(crate) fn new(partitions: Partitions, ledger: Ledger, queue_entries: QueueEntries) -> Self {
        let (looks, moves) = (SharedWork::new(MOVE_UNITS), SharedWork::new(MOVE_UNITS));
        Refills { partitions, ledger, queue_entries, looks, moves }
    }

    /// Moves units to the empty share in `to`, or finds out that every share is empty.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails, or is too slow.
    pub(crate) async fn refill(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        to: PartitionId,
    ) -> Result<Refill, Failure> {
        let donors = match self.find(coupon, shares).await? {
            Found::Nothing(refill) => return Ok(refill),
            Found::Units(donors) => donors,
        };
        let donor = donors.iter().max().map(|(_, donor)| *donor);
        // Otherwise the share has got units meanwhile.
        if let Some(donor) = donor.filter(|_| donors.iter().all(|(_, donor)| *donor != to)) {
            let begin = || {
                let (refills, coupon, shares) = (self.clone(), coupon.clone(), shares.clone());
                async move { bounded(refills.move_units(&coupon, &shares, donor, to)).await }
            };
            self.moves.join(&(coupon.clone(), to), begin).await?;
        }
        Ok(Refill::AskAgain)
    }

    /// Looks at all shares before the last look that found all of them empty is too long ago, so that no request has to
    /// wait for it.
    pub(crate) fn renew(&self, coupon: &CouponId, shares: &Shares) {
        if !self.looks.is_under_way(coupon) {
            let (refills, coupon, shares) = (self.clone(), coupon.clone(), shares.clone());
            tokio::spawn(async move { drop(refills.find(&coupon, &shares).await) });
        }
    }

    async fn find(&self, coupon: &CouponId, shares: &Shares) -> Result<Found, Failure> {
        let begin = || {
            let (refills, coupon, shares) = (self.clone(), coupon.clone(), shares.clone());
            async move { bounded(refills.look_for_units(&coupon, &shares)).await }
        };
        self.looks.join(coupon, begin).await
    }

    async fn look_for_units(&self, coupon: &CouponId, shares: &Shares) -> Result<Found, Failure> {
        let looks = look(&self.partitions, coupon, shares).await;
        let looked = || shares.partitions().iter().copied().zip(&looks);
        let units = looked().filter_map(|(share, looked)| match looked {
            Looked::Seen(sight) if sight.free > 0 => Some((sight.free, share)),
            _ => None,
        });
        let units: Arc<[(u64, PartitionId)]> = units.collect();
        let lending = |looked: &Looked| match looked {
            Looked::Seen(sight) => sight.lending,
            _ => 0,
        };
        if looks.iter().map(lending).sum::<u64>() >= LENT_MAX {
            sleep(PAUSE).await;
            return Ok(Found::Nothing(Refill::AskAgain));
        }
        if !units.is_empty() {
            return Ok(Found::Units(units));
        }
        let Some(first) = all_seen(&looks) else {
            let those = |is: fn(&Looked) -> bool| -> Arc<[PartitionId]> {
                looked().filter(|(_, looked)| is(looked)).map(|(share, _)| share).collect()
            };
            let unloaded = those(|looked| matches!(looked, Looked::NotLoaded));
            let unreachable = those(|looked| matches!(looked, Looked::Unreachable(_)));
            return Ok(Found::Nothing(match unloaded.is_empty() {
                true => Refill::Unreachable(unreachable),
                false => Refill::NotLoaded(unloaded),
            }));
        };
        if first.iter().any(|sight| sight.lending > 0) {
            sleep(PAUSE).await;
        } else if !self.bring_what_is_on_its_way(coupon, shares, &first).await?
            && look_again(&self.partitions, coupon, shares, &first).await
        {
            metrics::DRAINED.increment(1);
        }
        Ok(Found::Nothing(Refill::AskAgain))
    }

    /// Moves units from one share to another, if no other process moves some there now.
    async fn move_units(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        donor: PartitionId,
        to: PartitionId,
    ) -> Result<(), Failure> {
        let (receiver, donor) = (self.partitions.get(to)?, self.partitions.get(donor)?);
        let moving = self.move_now(coupon, shares, donor, to);
        if alone_at(receiver, receiver.keys().refill_turn(coupon), TURN, moving).await?.is_none() {
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn move_now(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        donor: &Arc<Partition>,
        to: PartitionId,
    ) -> Result<(), Failure> {
        let keys = donor.keys();
        let mut lent = lend(donor, coupon, to, self.queue_entries).await?;
        // Moved on, a unit that is not the donor's would be another's beside it; a worker rejects its move.†
        let units: Vec<Unit> = lent.iter().filter_map(Lent::unit).collect();
        let foreign = self.ledger.foreign_among(coupon, shares, donor.id(), &units).await?;
        lent.retain(|lent| lent.unit().is_some_and(|unit| !foreign.contains(&unit)));
        if lent.is_empty() {
            // Others were faster; or what is free there is no unit, or must not be moved.
            sleep(PAUSE).await;
            return Ok(());
        }
        let decisions: Vec<Decision> = lent.iter().map(|lent| lent.decision.clone()).collect();
        let inserted = self.ledger.insert(&decisions).await?;
        // What another process decides first, it brings to its end.
        let is_mine = |(_, inserted): &(Lent, Inserted)| *inserted == Inserted::Decided;
        let moved: Vec<Lent> = lent.into_iter().zip(inserted).filter(is_mine).map(|(lent, _)| lent).collect();
        credit_moved(&self.partitions, moved.iter().map(|lent| &lent.decision)).await;
        let settlements: Vec<Settlement> = moved.into_iter().map(Settlement::from).collect();
        let (donor, coupon) = (Arc::clone(donor), coupon.clone());
        // The units have arrived: nobody waits for this. A worker settles what is left.
        tokio::spawn(async move {
            if let Err(failure) = settle(&donor, &keys, &settlements).await {
                tracing::debug!(%coupon, error = failure.chain(), "moves are left to be settled by a worker");
            }
        });
        Ok(())
    }

    /// Credits units that the ledger says were moved, and that their shares do not have. Returns whether there were some.
    async fn bring_what_is_on_its_way(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        sights: &[&Sight],
    ) -> Result<bool, Failure> {
        let moved = self.ledger.moved_counts(coupon, shares).await?;
        let lacking = shares.partitions().iter().zip(sights);
        let lacking =
            lacking.filter(|(share, sight)| moved.get(share).copied().unwrap_or(0) > sight.credited);
        let lacking: Vec<PartitionId> = lacking.map(|(share, _)| *share).collect();
        let brought = lacking.iter().map(|share| self.credit_missing(coupon, shares, *share));
        let mut some = false;
        for brought in join_all(brought).await {
            let brought = brought?;
            if brought > 0 {
                some = true;
                tracing::info!(%coupon, units = brought, "credited units whose mover had stopped on the way");
            }
        }
        // What was credited by others meanwhile, the second look sees. What cannot be credited, for its record is damaged, or
        // a count is, is on its way to nobody: it must not keep the last answer from everybody.
        Ok(some)
    }

    /// Credits the share of a partition with the units that the ledger says were moved to it, but for those that it has
    /// been credited with. Returns how many these were.
    async fn credit_missing(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        to: PartitionId,
    ) -> Result<u64, Failure> {
        let partition = self.partitions.get(to)?;
        let mut records = self.ledger.moved_to(coupon, shares, to).await?;
        let mut credited = 0;
        loop {
            let page = records.next().await?;
            if page.is_empty() {
                return Ok(credited);
            }
            let page = page.into_iter().filter_map(readable).collect();
            let missing = without_mark(partition, &partition.keys(), coupon, Mark::Credited, page).await?;
            let missing: Vec<(IssuanceId, _)> =
                missing.into_iter().filter_map(|moved| Some((moved.id, moved.unit.moved()?))).collect();
            match credit(partition, coupon, &missing).await? {
                Credited::Here(now) => credited += now,
                Credited::NotLoaded => return Ok(credited),
            }
        }
    }
}
