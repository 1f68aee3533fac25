//! The offers: coupons as they are stored, loaded and shown.

use std::collections::HashMap;
use std::sync::Arc;

use super::coupon_reader::{self, CouponReader};
use super::coupon_snapshot::CouponSnapshot;
use super::issued_counts::IssuedCounts;
use super::placements::PlacementReader;
use crate::Failure;
use crate::api::wire::coupon as wire;
use crate::coupon::{Coupon, CouponStore};
use crate::ids::{CouponId, PartitionId};
use crate::process::Backends;
use crate::recovery::{LoadOutcome, Loader};
use crate::redis::{Partitions, PerPartition};
use crate::service::ServiceStore;

/// Reads, changes and loads coupons.
pub(crate) struct CouponCatalog {
    pub partitions: Partitions,
    pub store: CouponStore,
    pub loaders: PerPartition<Loader>,
    /// Whether anything is accepted.
    pub services: ServiceStore,
    /// Reads one coupon for all who ask for it at the same time.
    readers: PerPartition<CouponReader>,
    placements: Arc<PlacementReader>,
    pub issued_counts: IssuedCounts,
}

impl CouponCatalog {
    /// Starts the batchers.
    pub fn start(backends: &Backends, placements: &Arc<PlacementReader>) -> Self {
        let Backends { partitions, coupons, ledger, database, .. } = backends;
        let loaders = backends.loaders();
        CouponCatalog {
            partitions: partitions.clone(),
            store: coupons.clone(),
            readers: partitions.each(|_| coupon_reader::start(coupons.clone(), loaders.clone())),
            placements: Arc::clone(placements),
            loaders,
            services: ServiceStore::new(database),
            issued_counts: IssuedCounts::start(coupons.clone(), ledger.clone()),
        }
    }

    /// Loads a coupon in one of its partitions, if Redis does not have it there.
    ///
    /// # Errors
    ///
    /// Those of [`Loader::load`], or if this process does not know the partition.
    pub async fn load(&self, coupon: &CouponId, partition: PartitionId) -> Result<LoadOutcome, Failure> {
        self.loaders.get(partition)?.load(coupon).await
    }

    /// A coupon beside what Redis knows of it; `None` if no coupon has this id.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the coupon's record cannot be read.
    pub async fn read(&self, id: CouponId) -> Result<Option<CouponSnapshot>, Failure> {
        match self.placements.of(&id).await? {
            // One that lies in several is read through the first.
            Some(shares) => self.readers.get(shares.partitions()[0])?.ask(id).await,
            None => Ok(None),
        }
    }

    /// A coupon with its live stock; `None` if no coupon has this id.
    pub async fn get(&self, id: CouponId) -> Result<Option<wire::Coupon>, Failure> {
        let Some(snapshot) = self.read(id).await? else { return Ok(None) };
        let issued = match snapshot.is_not_loaded() {
            true => Some(self.issued_counts.of(&snapshot.coupon).await?),
            false => None,
        };
        Ok(Some(snapshot.into_wire(issued)))
    }

    /// Adds stock and status to a coupon that an operator created or changed. That is done, so nothing fails here:
    /// a stock that cannot be read is null.
    pub async fn changed(&self, coupon: Coupon) -> wire::Coupon {
        let snapshot = CouponSnapshot::of_one(&self.partitions, coupon).await;
        let issued = match snapshot.is_not_loaded() {
            true => self.issued_counts.of(&snapshot.coupon).await.ok(),
            false => None,
        };
        snapshot.into_wire(issued)
    }

    /// Coupons beside their stock.
    pub async fn snapshots(&self, coupons: Vec<Coupon>) -> Vec<CouponSnapshot> {
        CouponSnapshot::of_any(&self.loaders, coupons).await
    }

    /// The units that were issued of the coupons that Redis does not have, as far as they are known without
    /// counting.
    pub async fn issued_of(&self, snapshots: &[CouponSnapshot]) -> HashMap<CouponId, u32> {
        let not_loaded = snapshots.iter().filter(|snapshot| snapshot.is_not_loaded());
        let not_loaded: Vec<_> = not_loaded.map(|snapshot| &snapshot.coupon).collect();
        self.issued_counts.known(&not_loaded).await
    }

    /// Adds stock and status to coupons. Nothing is counted for it: where a count would be needed, the stock is
    /// null.
    pub async fn with_stock(&self, coupons: Vec<Coupon>) -> Vec<wire::Coupon> {
        let snapshots = self.snapshots(coupons).await;
        let issued = self.issued_of(&snapshots).await;
        let shown = snapshots.into_iter().map(|snapshot| {
            let issued = issued.get(&snapshot.coupon.id).copied();
            snapshot.into_wire(issued)
        });
        shown.collect()
    }
}
