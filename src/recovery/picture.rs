//! Computing what Redis must hold of a coupon, from the ledger and from what is in flight, and placing
//! it. Bounded memory: a page of records, a bit a unit, and what is in flight.

use std::collections::{HashMap, HashSet};

use super::Step;
use super::progress::Watch;
use super::staging::{Accounts, Placed, Staging};
use super::survivors::Survivor;
use super::units::Units;
use crate::Failure;
use crate::coupon::Coupon;
use crate::issuance::ledger::{Held, IssuedRecords, Unreadable, readable};
use crate::issuance::{IssuanceId, Ledger};
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::user::{Deletion, UserId};

/// Where a coupon is to be placed.
pub(super) struct Place<'a> {
    pub partition: &'a Partition,
    pub keys: &'a EpochKeys,
    /// The epoch is being built, not open.
    pub building: bool,
    /// How often coupons had been retired before the ledger was read.
    pub retired: u64,
    pub watch: &'a Watch,
    /// Which of how many coupons it is, for the watch.
    pub number: usize,
    pub of: usize,
}

/// How often a coupon is computed anew because records may have been renamed under it.
const COMPUTED_MAX: usize = 5;

/// Loads a coupon. A survivor whose unit the ledger, or another survivor, has is left without one: a
/// worker finds it another. A survivor that the ledger has decided by now (workers go on inserting
/// during a rebuild) is no survivor: it is taken out of `survivors`, or it would be counted twice.
///
/// The records of users who are being deleted move while they are read, from one name to another and so
/// from one page to another: they are left out of the pages, and read at the end.
pub(super) async fn load_into(
    place: &Place<'_>,
    ledger: &Ledger,
    coupon: &Coupon,
    survivors: &mut Vec<Survivor>,
) -> Result<Placed, Failure> {
    for _ in 0..COMPUTED_MAX {
        let (deletions, _) = ledger.users().deletions().await?;
        let mut picture = Picture::new(place, coupon, survivors);
        picture.pages(ledger, &deletions).await?;
        let (known, now) = ledger.users().deletions().await?;
        // Nothing of theirs is renamed before it is due.
        if known.iter().any(|one| one.due <= now && !deletions.contains(one)) {
            continue;
        }
        picture.moving(ledger, &deletions).await?;
        return picture.finish(ledger, survivors).await;
    }
    Err(Failure::Overloaded { operation: "load the coupon while users are being deleted" })
}

/// What is known of a coupon so far.
struct Picture<'a> {
    place: &'a Place<'a>,
    coupon: &'a Coupon,
    staging: Staging<'a>,
    units: Units,
    surviving: HashMap<UserId, Vec<IssuanceId>>,
    /// Survivors that the ledger has decided.
    decided: HashSet<IssuanceId>,
    issued: u32,
}

impl<'a> Picture<'a> {
    fn new(place: &'a Place<'a>, coupon: &'a Coupon, survivors: &[Survivor]) -> Self {
        let mut surviving: HashMap<UserId, Vec<IssuanceId>> = HashMap::new();
        for survivor in survivors {
            surviving.entry(survivor.in_flight.user.clone()).or_default().push(survivor.id);
        }
        Picture {
            place,
            coupon,
            staging: Staging::new(place.partition, place.keys),
            units: Units::new(coupon.total),
            surviving,
            decided: HashSet::new(),
            issued: 0,
        }
    }

    /// Counts an issued record.
    async fn count(&mut self, held: &Held) -> Result<(), Failure> {
        self.issued += 1;
        self.units.take(held.serial);
        if let Some(ids) = self.surviving.get_mut(&held.user)
            && ids.contains(&held.id)
        {
            ids.retain(|id| *id != held.id);
            self.decided.insert(held.id);
        }
        // Whoever has the user's id now must not get an issuance of before by its key.
        if held.user.is_pseudonym() && held.id.is_keyed() {
            self.staging.rejected(held.id).await?;
        }
        Ok(())
    }

    /// Counts an issued record that cannot be read: its unit is taken. Whose it is, nobody can tell.
    fn count_unreadable(&mut self, unreadable: &Unreadable) {
        tracing::error!(coupon = %self.coupon.id, error = %unreadable, "counted, and in no user's dedupe");
        if let Some(unit) = unreadable.unit {
            self.issued += 1;
            self.units.take(unit);
        }
        self.decided.extend(unreadable.id);
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
                let held = match held {
                    Ok(held) => held,
                    Err(unreadable) => {
                        self.count_unreadable(&unreadable);
                        continue;
                    }
                };
                if !left_out.is_empty() && left_out.contains(&held.user) {
                    continue;
                }
                self.count(&held).await?;
                match &mut holder {
                    Some((user, ids)) if *user == held.user => ids.push(held.id),
                    _ => {
                        if let Some((user, ids)) = holder.replace((held.user, vec![held.id])) {
                            let more = self.surviving.remove(&user);
                            self.staging.holder(&user, ids, more).await?;
                        }
                    }
                }
            }
            (self.place.watch)(&Step::Loading {
                coupon: self.coupon.id.clone(),
                number: self.place.number,
                of: self.place.of,
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
    /// placed under both: whichever it has when somebody compares, it is there.
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
            // What cannot be read was counted with the pages, whosever it is.
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

    /// What is in flight, rejections and free units; then all of it is put in place.
    async fn finish(mut self, ledger: &Ledger, survivors: &mut Vec<Survivor>) -> Result<Placed, Failure> {
        for (user, ids) in self.surviving.into_iter().filter(|(_, ids)| !ids.is_empty()) {
            self.staging.holder(&user, ids, None).await?;
        }
        survivors.retain(|survivor| !self.decided.contains(&survivor.id));
        for survivor in survivors {
            survivor.in_flight.serial = survivor.in_flight.serial.filter(|serial| self.units.take(*serial));
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
        let (next, free) = self.units.rest();
        for serial in free {
            self.staging.free(serial).await?;
        }
        let accounts = Accounts { next, issued: self.issued };
        self.staging.finish(self.place.building, self.coupon, accounts, self.place.retired).await
    }
}

type ReadAhead = tokio::task::JoinHandle<(IssuedRecords, Result<Vec<Result<Held, Unreadable>>, Failure>)>;

/// Reads the next page while the one before is written.
fn read_ahead(mut records: IssuedRecords) -> ReadAhead {
    tokio::spawn(async move {
        let page = records.next().await;
        (records, page)
    })
}
