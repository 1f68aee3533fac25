//! Computing what Redis must hold of a coupon, from the ledger and from what is in flight, and placing
//! it: one way for all who load. Bounded memory: a page of records, a bit a unit, and what is in flight.

use std::collections::{HashMap, HashSet};

use super::RecoveryStep;
use super::progress::ProgressCallback;
pub(super) use super::staging::{Destination, UnitCounts};
use super::staging::{PlacementOutcome, Staging};
use super::survivors::Survivor;
use crate::Failure;
use crate::coupon::{CouponTerms, UnitSet};
use crate::failure::Unreadable;
use crate::ids::{IssuanceId, Share, Unit, UserId};
use crate::issuance::Ledger;
use crate::issuance::ledger::{HeldUnit, IssuedRecords, MovedUnit, readable};
use crate::issuance::shares::Mark;
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;
use crate::runtime::damage::damaged;
use crate::user::Deletion;

/// What building a coupon's state works with, and where the state goes.
pub(super) struct BuildContext<'a> {
    pub partition: &'a Partition,
    pub keys: &'a EpochKeys,
    pub destination: Destination,
    pub progress: &'a ProgressCallback,
    /// Which of how many coupons it is, for the watch.
    pub number: usize,
    pub of: usize,
}

/// How often a coupon is computed anew because records may have been renamed under it.
const COMPUTED_MAX: usize = 5;

/// Loads a coupon, together with what is in flight for it: all of that, read before. One whose unit the
/// ledger, or another one in flight, has is left without: a worker finds it another.
///
/// An issuance in flight that the ledger has issued by now, for workers go on inserting, would be counted twice. While the epoch
/// is built, it is taken out of `survivors` and so out of the queue; in an open epoch it will be settled, and
/// is counted then.
///
/// The records of users who are being deleted move while they are read, from one name to another and so
/// from one page to another: they are left out of the pages, and read at the end.
pub(super) async fn build_and_place(
    context: &BuildContext<'_>,
    ledger: &Ledger,
    coupon: &CouponTerms,
    survivors: &mut Vec<Survivor>,
) -> Result<PlacementOutcome, Failure> {
    let here = context.partition.id();
    let share = coupon.shares.of(here).ok_or_else(|| Failure::Damaged {
        what: "the record of a coupon",
        why: format!("coupon {} has no share in partition {here}", coupon.id),
    })?;
    for _ in 0..COMPUTED_MAX {
        let (deletions, _) = ledger.users().deletions().await?;
        let mut builder = CouponStateBuilder::new(context, coupon, share, survivors);
        builder.moves(ledger).await?;
        builder.pages(ledger, &deletions).await?;
        let (fields, now) = ledger.users().deletions().await?;
        // Nothing of theirs is renamed before it is due.
        if fields.iter().any(|one| one.due <= now && !deletions.contains(one)) {
            continue;
        }
        builder.moving(ledger, &deletions).await?;
        return builder.finish(ledger, survivors).await;
    }
    Err(Failure::Overloaded { operation: "load the coupon while users are being deleted" })
}

/// The state of a coupon as far as it has been computed.
struct CouponStateBuilder<'a> {
    context: &'a BuildContext<'a>,
    coupon: &'a CouponTerms,
    staging: Staging<'a>,
    share: Share,
    /// Units that are issued, moved away, or in flight.
    taken: UnitSet,
    surviving: HashMap<UserId, Vec<IssuanceId>>,
    /// Those in flight that the ledger has issued or moved away, or of which it has an unreadable record, each with its unit
    /// where the record names it.
    decided: HashMap<IssuanceId, Option<Unit>>,
    issued: u32,
    moved: u32,
    /// Issued records that do not say which unit they hold, with their ids where these can be read.
    nameless: Vec<Option<IssuanceId>>,
}

impl<'a> CouponStateBuilder<'a> {
    fn new(
        context: &'a BuildContext<'a>,
        coupon: &'a CouponTerms,
        share: Share,
        survivors: &[Survivor],
    ) -> Self {
        let mut surviving: HashMap<UserId, Vec<IssuanceId>> = HashMap::new();
        for survivor in survivors {
            surviving.entry(survivor.in_flight.user.clone()).or_default().push(survivor.id);
        }
        CouponStateBuilder {
            context,
            coupon,
            staging: Staging::new(context.partition, context.keys, context.destination.clone()),
            share,
            taken: UnitSet::of(share, coupon.total),
            surviving,
            decided: HashMap::new(),
            issued: 0,
            moved: 0,
            nameless: Vec::new(),
        }
    }

    /// Whether it is loaded into an open epoch, where what is in flight and decided will be settled.
    fn is_open(&self) -> bool {
        matches!(self.context.destination, Destination::Open { .. })
    }

    /// Counts an issued record.
    async fn count(&mut self, held: &HeldUnit) -> Result<(), Failure> {
        self.issued += 1;
        self.taken.insert(held.unit);
        if let Some(ids) = self.surviving.get_mut(&held.user)
            && ids.contains(&held.id)
        {
            ids.retain(|id| *id != held.id);
            self.decided.insert(held.id, Some(held.unit));
        }
        // A new user with the same id must not be answered with an earlier user's issuance by its key.
        if held.user.is_pseudonym() && held.id.is_keyed() {
            self.staging.rejected(held.id).await?;
        }
        Ok(())
    }

    /// Counts an issued record that cannot be read: its unit is taken, and where it does not say which, some
    /// unit is, or more would be issued than there is.
    fn count_unreadable(&mut self, unreadable: &Unreadable) {
        self.issued += 1;
        self.take_unreadable(unreadable);
    }

    fn take_unreadable(&mut self, unreadable: &Unreadable) {
        damaged!(
            unreadable.record; coupon = %self.coupon.id, error = %unreadable,
            "a record cannot be read: a unit stays out of stock for it; couponctl audit --full names it"
        );
        let unit = unreadable.unit.filter(|unit| self.taken.insert(*unit));
        if unit.is_none() {
            self.nameless.push(unreadable.id);
        }
        if let Some(id) = unreadable.id {
            self.decided.insert(id, unit);
        }
    }

    /// Units that were moved to this share, and away from it. A move that is committed later finds the unit taken, or is
    /// credited when it comes.†
    async fn moves(&mut self, ledger: &Ledger) -> Result<(), Failure> {
        if self.share == Share::WHOLE {
            return Ok(());
        }
        let mut arrived =
            ledger.moved_to(&self.coupon.id, &self.coupon.shares, self.context.partition.id()).await?;
        loop {
            let page = arrived.next().await?;
            if page.is_empty() {
                break;
            }
            for moved in page.into_iter().filter_map(readable) {
                let Some(unit) = moved.unit.moved() else { continue };
                self.taken.arrive(unit);
                self.staging.moved(Mark::Credited, moved.id, Some(unit)).await?;
            }
        }
        let is_open = self.is_open();
        let mut left = ledger.moved_away(&self.coupon.id).await?;
        loop {
            let page = left.next().await?;
            if page.is_empty() {
                return Ok(());
            }
            for moved in page {
                match moved {
                    Ok(MovedUnit { id, unit, to }) => {
                        self.moved += 1;
                        self.taken.insert(unit);
                        let lent = self.surviving.get(&UserId::of_share(to));
                        let survives = lent.is_some_and(|ids| ids.contains(&id));
                        if survives {
                            self.decided.insert(id, Some(unit));
                        }
                        // One that survives in an open epoch will be settled.
                        if !(survives && is_open) {
                            self.staging.moved(Mark::MovedAway, id, Some(unit)).await?;
                        }
                    }
                    Err(unreadable) => {
                        self.moved += 1;
                        self.take_unreadable(&unreadable);
                        let Some(id) = unreadable.id else { continue };
                        let survives = self.surviving.values().any(|ids| ids.contains(&id));
                        if !(survives && is_open) {
                            self.staging.moved(Mark::MovedAway, id, unreadable.unit).await?;
                        }
                    }
                }
            }
        }
    }

    /// Everyone's records but those of `deletions`.
    async fn pages(&mut self, ledger: &Ledger, deletions: &[Deletion]) -> Result<(), Failure> {
        let names = deletions.iter().flat_map(|one| [one.user.clone(), one.pseudonym.clone()]);
        let left_out: HashSet<UserId> = names.collect();
        // One user's units come in a row, so their ids are complete when the next user begins.
        let mut holder: Option<(UserId, Vec<IssuanceId>)> = None;
        let mut next = read_ahead(ledger.issued_records(&self.coupon.id).await?);
        loop {
            let (records, page) = next
                .await
                .map_err(|join| Failure::MongoDb { operation: "read the ledger", source: join.into() })?;
            let page = page?;
            if page.is_empty() {
                break;
            }
            next = read_ahead(records);
            for held in page {
                let (user, id) = match &held {
                    Ok(held) if left_out.contains(&held.user) => continue,
                    Ok(held) => {
                        self.count(held).await?;
                        (&held.user, held.id)
                    }
                    Err(unreadable) => {
                        self.count_unreadable(unreadable);
                        match (&unreadable.user, unreadable.id) {
                            (Some(user), Some(id)) if !left_out.contains(user) => (user, id),
                            _ => continue,
                        }
                    }
                };
                if let Some(ids) = self.surviving.get_mut(user) {
                    ids.retain(|surviving| *surviving != id);
                }
                match &mut holder {
                    Some((of, ids)) if of == user => ids.push(id),
                    _ => {
                        if let Some((user, ids)) = holder.replace((user.clone(), vec![id])) {
                            let more = self.surviving.remove(&user);
                            self.staging.holder(&user, ids, more).await?;
                        }
                    }
                }
            }
            (self.context.progress)(&RecoveryStep::Loading {
                coupon: self.coupon.id.clone(),
                number: self.context.number,
                of: self.context.of,
                records: self.issued.into(),
                of_records: self.coupon.total.into(),
            });
        }
        if let Some((user, ids)) = holder {
            let more = self.surviving.remove(&user);
            self.staging.holder(&user, ids, more).await?;
        }
        Ok(())
    }

    /// The records of users who are being deleted, each counted once. What was seen under the old name is
    /// placed under both, so that an audit finds it under either.
    async fn moving(&mut self, ledger: &Ledger, deletions: &[Deletion]) -> Result<(), Failure> {
        if deletions.is_empty() {
            return Ok(());
        }
        let (mut seen, mut placed) = (HashSet::new(), HashMap::<&UserId, Vec<IssuanceId>>::new());
        let pseudonyms: HashMap<_, _> = deletions.iter().map(|one| (&one.user, &one.pseudonym)).collect();
        // In this order: records move this way only, so none is missed.
        let before: Vec<_> = deletions.iter().map(|one| &one.user).collect();
        let after: Vec<_> = deletions.iter().map(|one| &one.pseudonym).collect();
        for names in [before, after] {
            let by_name: HashMap<_, _> = names.iter().map(|name| ((*name).clone(), *name)).collect();
            // A record that cannot be read was counted with the pages, whichever user it names.
            let held = ledger.held_by_any(&self.coupon.id, &names).await?;
            for held in held.into_iter().filter_map(readable) {
                if !seen.insert(held.id) {
                    continue;
                }
                self.count(&held).await?;
                let Some(name) = by_name.get(&held.user) else { continue };
                for name in [Some(name), pseudonyms.get(name)].into_iter().flatten() {
                    placed.entry(name).or_default().push(held.id);
                }
            }
        }
        for (user, ids) in placed {
            let more = self.surviving.remove(user);
            self.staging.holder(user, ids, more).await?;
        }
        Ok(())
    }

    /// Adds what is in flight, rejections and free units, and puts the coupon in place.
    async fn finish(
        mut self,
        ledger: &Ledger,
        survivors: &mut Vec<Survivor>,
    ) -> Result<PlacementOutcome, Failure> {
        let open = self.is_open();
        for (user, mut ids) in std::mem::take(&mut self.surviving) {
            // A move that will not be settled here is not on its way any more: nobody would ever be told "sold out".†
            if !open && user.share().is_some() {
                ids.retain(|id| !self.decided.contains_key(id));
            }
            if !ids.is_empty() {
                self.staging.holder(&user, ids, None).await?;
            }
        }
        if !open {
            survivors.retain(|survivor| !self.decided.contains_key(&survivor.id));
        }
        let mut without_unit = Vec::new();
        for survivor in survivors.iter_mut() {
            let decided = self.decided.get(&survivor.id);
            // What is decided will be settled, and is counted then.
            let counted = match survivor.in_flight.user.share() {
                Some(_) => &mut self.moved,
                None => &mut self.issued,
            };
            // A damaged record may say that it is of the other kind.
            *counted = counted.saturating_sub(decided.is_some().into());
            let Some(unit) = survivor.in_flight.unit else { continue };
            if decided != Some(&Some(unit)) && !self.taken.insert(unit) {
                survivor.in_flight.unit = None;
                without_unit.push(survivor.id);
            }
        }
        // One in flight has a unit, or gets one.
        let in_flight: HashSet<_> = survivors.iter().map(|survivor| survivor.id).collect();
        let nameless = self.nameless.iter().filter(|id| id.is_none_or(|id| !in_flight.contains(&id)));
        for _ in 0..nameless.count() {
            self.taken.insert_lowest_missing();
        }
        let mut last = None;
        loop {
            let page = ledger.rejected_page(&self.coupon.id, last).await?;
            last = page.last().copied();
            if last.is_none() {
                break;
            }
            for id in page.into_iter().filter(IssuanceId::is_keyed) {
                self.staging.rejected(id).await?;
            }
        }
        for unit in self.taken.missing() {
            self.staging.free(unit).await?;
        }
        let accounts = UnitCounts {
            share: self.share,
            next: self.taken.next(),
            settled: self.issued,
            credited: self.taken.arrived().len() as u32,
            moved: self.moved,
        };
        self.staging.finish(self.coupon, accounts, &without_unit).await
    }
}

type ReadAhead = tokio::task::JoinHandle<(IssuedRecords, Result<Vec<Result<HeldUnit, Unreadable>>, Failure>)>;

/// Reads the next page while the one before is written.
fn read_ahead(mut records: IssuedRecords) -> ReadAhead {
    tokio::spawn(async move {
        let page = records.next().await;
        (records, page)
    })
}
