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
use crate::issuance::ledger::Held;
use crate::issuance::{IssuanceId, Ledger};
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::user::UserId;

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

/// Loads a coupon. A survivor whose unit the ledger, or another survivor, has is left without one: a
/// worker finds it another. A survivor that the ledger has decided by now (workers go on inserting
/// during a rebuild) is no survivor: it is taken out of `survivors`, or it would be counted twice.
pub(super) async fn load_into(
    place: &Place<'_>,
    ledger: &Ledger,
    coupon: &Coupon,
    survivors: &mut Vec<Survivor>,
) -> Result<Placed, Failure> {
    let mut staging = Staging::new(place.partition, place.keys);
    let mut units = Units::new(coupon.total);
    let mut surviving: HashMap<UserId, Vec<IssuanceId>> = HashMap::new();
    for survivor in survivors.iter() {
        surviving.entry(survivor.in_flight.user.clone()).or_default().push(survivor.id);
    }
    let mut decided: HashSet<IssuanceId> = HashSet::new();

    // One user's units come in a row, so their ids are complete when the next user begins.
    let mut issued = 0_u32;
    let mut holder: Option<(UserId, Vec<IssuanceId>)> = None;
    let mut next = read_ahead(ledger, coupon, None);
    loop {
        let page = next
            .await
            .map_err(|join| Failure::MongoDb { operation: "read the ledger", source: join.into() })??;
        let Some(last) = page.last() else { break };
        next = read_ahead(ledger, coupon, Some(last.clone()));
        for held in page {
            issued += 1;
            units.take(held.serial);
            if let Some(ids) = surviving.get_mut(&held.user)
                && ids.contains(&held.id)
            {
                ids.retain(|id| *id != held.id);
                decided.insert(held.id);
            }
            match &mut holder {
                Some((user, ids)) if *user == held.user => ids.push(held.id),
                _ => {
                    if let Some((user, ids)) = holder.replace((held.user, vec![held.id])) {
                        staging.holder(&user, ids, surviving.remove(&user)).await?;
                    }
                }
            }
        }
        (place.watch)(&Step::Loading {
            coupon: coupon.id.clone(),
            number: place.number,
            of: place.of,
            records: issued.into(),
            of_records: coupon.total.into(),
        });
    }
    if let Some((user, ids)) = holder {
        staging.holder(&user, ids, surviving.remove(&user)).await?;
    }
    for (user, ids) in surviving.into_iter().filter(|(_, ids)| !ids.is_empty()) {
        staging.holder(&user, ids, None).await?;
    }
    survivors.retain(|survivor| !decided.contains(&survivor.id));
    for survivor in survivors {
        survivor.in_flight.serial = survivor.in_flight.serial.filter(|serial| units.take(*serial));
    }

    let mut last = None;
    loop {
        let page = ledger.rejected_page(&coupon.id, last).await?;
        last = page.last().copied();
        if last.is_none() {
            break;
        }
        for id in page.into_iter().filter(IssuanceId::is_keyed) {
            staging.rejected(id).await?;
        }
    }
    let (next, free) = units.rest();
    for serial in free {
        staging.free(serial).await?;
    }
    staging.finish(place.building, coupon, Accounts { next, issued }, place.retired).await
}

type Page = tokio::task::JoinHandle<Result<Vec<Held>, Failure>>;

/// Reads the next page while the one before is written.
fn read_ahead(ledger: &Ledger, coupon: &Coupon, after: Option<Held>) -> Page {
    let (ledger, coupon) = (ledger.clone(), coupon.id.clone());
    tokio::spawn(async move { ledger.issued_page(&coupon, after.as_ref()).await })
}
