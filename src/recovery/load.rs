//! Loading a coupon into the open epoch: when it is made, and when a request asks for one that Redis
//! does not have. Several at a time; a request for one that is being loaded waits for that load.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::mongo::Database;
use futures::future::join_all;
use tokio::sync::Semaphore;

use super::coupon_state::{BuildContext, Destination, build_and_place};
use super::progress::ignore_progress;
use super::staging::PlacementOutcome;
use super::survivors::{self, Survivor};
use crate::Failure;
use crate::coupon::{Coupon, CouponStore, CouponTerms, admin_sync, stock};
use crate::ids::CouponId;
use crate::issuance::Ledger;
use crate::redis::cmd;
use crate::redis::keys::EpochKeys;
use crate::redis::{Partition, PerPartition};
use crate::runtime::batch::{Answers, Batcher, Bounds};
use crate::runtime::shared_work::SharedWork;
use crate::service::ServiceStore;

/// Loads of one process at once: a load is dear for MongoDB.
pub(super) const LOADS_AT_ONCE: usize = 8;
/// How often a load begins anew, because a coupon was retired, something in flight for this one was settled,
/// or another epoch opened under it.
const ATTEMPTS_MAX: usize = 20;
/// Between two attempts: a worker that is settling what is in flight is soon done.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// One walk through what is in flight serves all who wait for one.
const WALKS: Bounds = Bounds { batch: 4_096, calls: 1, waiting: 32_768, wait: Duration::from_secs(10) };

/// The outcome of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadOutcome {
    Now,
    /// Redis had the coupon.
    Before,
    /// There is no such coupon in this partition.
    Unknown,
}

/// Loads coupons into a partition. Cheap to clone.
#[derive(Clone)]
pub struct Loader {
    partition: Arc<Partition>,
    ledger: Ledger,
    coupons: CouponStore,
    services: ServiceStore,
    /// Reads what is in flight of a coupon in an epoch.
    in_flight: Batcher<(EpochKeys, CouponId), Vec<Survivor>>,
    room: Arc<Semaphore>,
    under_way: SharedWork<CouponId, LoadOutcome>,
}

/// What Redis has of a coupon before it is loaded.
struct PreLoadState {
    present: bool,
    retired: Vec<u8>,
    settled_unloaded: Vec<u8>,
}

impl Loader {
    /// A loader for one process.
    pub fn new(partition: Arc<Partition>, database: &Database) -> Self {
        let walked = Arc::clone(&partition);
        let in_flight = Batcher::start("read what is in flight", WALKS, move |asked: Vec<_>| {
            let partition = Arc::clone(&walked);
            async move { walk(&partition, asked).await }
        });
        let ledger = Ledger::new(database).within(partition.id());
        Loader {
            partition,
            ledger,
            coupons: CouponStore::new(database),
            services: ServiceStore::new(database),
            in_flight,
            room: Arc::new(Semaphore::new(LOADS_AT_ONCE)),
            under_way: SharedWork::new("load the coupon"),
        }
    }

    /// Where it loads coupons into.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Loads a coupon, if Redis does not have it, together with what is in flight for it. Runs to its end even
    /// if the caller goes: half of a load is garbage.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails, the coupon's record cannot be read, or other changes outdated every attempt.
    pub async fn load(&self, id: &CouponId) -> Result<LoadOutcome, Failure> {
        let begin = || {
            let (loader, id) = (self.clone(), id.clone());
            async move {
                // The semaphore is never closed.
                let _room = loader.room.acquire().await;
                loader.load_now(&id).await
            }
        };
        self.under_way.join(id, begin).await
    }

    async fn load_now(&self, id: &CouponId) -> Result<LoadOutcome, Failure> {
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            // Under a certificate, and with the epoch that is open now.
            stock::read(&self.partition, &[]).await?;
            let keys = self.partition.keys();
            let before = self.before(&keys, id).await?;
            if before.present {
                return Ok(LoadOutcome::Before);
            }
            // Where its units lie is fixed for ever: loaded elsewhere, each would be issued twice.
            let is_here = |terms: &CouponTerms| terms.shares.of(self.partition.id()).is_some();
            let terms = self.coupons.terms(id).await?.filter(is_here);
            let Some(coupon) = terms else { return Ok(LoadOutcome::Unknown) };
            // From here on what is in flight for it only grows less: only what is loaded can be reserved.
            let mut survivors = self.in_flight.ask((keys.clone(), id.clone())).await?;
            let settled_unloaded = (!survivors.is_empty()).then_some(before.settled_unloaded);
            let context = BuildContext {
                partition: &self.partition,
                keys: &keys,
                destination: Destination::Open { retired: before.retired, settled_unloaded },
                progress: &ignore_progress(),
                number: 1,
                of: 1,
            };
            match build_and_place(&context, &self.ledger, &coupon, &mut survivors).await? {
                PlacementOutcome::Now => {
                    tracing::info!(coupon = %id, in_flight = survivors.len(), "loaded the coupon");
                    self.catch_up(&coupon).await?;
                    return Ok(LoadOutcome::Now);
                }
                PlacementOutcome::Before => return Ok(LoadOutcome::Before),
                PlacementOutcome::Outdated => {}
            }
        }
        Err(Failure::Overloaded {
            operation: "load the coupon while others are retired, or its own are settled",
        })
    }

    async fn before(&self, keys: &EpochKeys, id: &CouponId) -> Result<PreLoadState, Failure> {
        let mut counts = cmd("HMGET");
        counts.arg(keys.counters()).arg(&["retired", "settled_unloaded"]);
        let (retired, settled_unloaded): (Option<Vec<u8>>, Option<Vec<u8>>) =
            self.partition.query("load the coupon", &counts).await?;
        let mut exists = cmd("HEXISTS");
        exists.arg(keys.coupon(id)).arg("id");
        let present = match self.partition.query("load the coupon", &exists).await {
            Ok(present) => present,
            // It is no hash: `load.lua` replaces it.
            Err(Failure::Damaged { .. }) => false,
            Err(failure) => return Err(failure),
        };
        let or_none = |count: Option<Vec<u8>>| count.unwrap_or_else(|| b"0".to_vec());
        Ok(PreLoadState { present, retired: or_none(retired), settled_unloaded: or_none(settled_unloaded) })
    }

    /// A change made during the load found nothing in Redis to change.
    async fn catch_up(&self, loaded: &CouponTerms) -> Result<(), Failure> {
        match self.coupons.terms(&loaded.id).await? {
            Some(now) if now.generation != loaded.generation => {
                let now = self.coupons.get(&loaded.id).await?;
                admin_sync::apply(&self.partition, self.services.get().await?, now.as_slice()).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// Loads each share of a coupon, if Redis does not have it.
///
/// # Errors
///
/// Those of [`Loader::load`], of any share, or if this process does not know its partition; the others are loaded all the
/// same.
pub async fn load_all(loaders: &PerPartition<Loader>, coupon: &Coupon) -> Result<(), Failure> {
    let loads =
        coupon.shares.partitions().iter().map(async |share| loaders.get(*share)?.load(&coupon.id).await);
    join_all(loads).await.into_iter().try_for_each(|loaded| loaded.map(drop))
}

/// Reads what is in flight of some coupons, all at once.
async fn walk(partition: &Partition, asked: Vec<(EpochKeys, CouponId)>) -> Answers<Vec<Survivor>> {
    let Some((keys, _)) = asked.first().cloned() else { return Ok(Vec::new()) };
    let coupons: HashSet<CouponId> = asked.iter().map(|(_, coupon)| coupon.clone()).collect();
    let mut found = survivors::of_coupons(partition, &keys, &coupons).await?;
    let answer = |(of, coupon): (EpochKeys, CouponId)| match of == keys {
        true => Ok(found.remove(&coupon).unwrap_or_default()),
        // Another epoch was opened while they came.
        false => Err(Failure::Uncertified),
    };
    Ok(asked.into_iter().map(answer).collect())
}
