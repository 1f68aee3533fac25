//! Loading a coupon into the open epoch: when it is made, and when somebody asks for one that Redis
//! does not have.

use std::sync::Arc;

use mongodb::Database;
use redis::AsyncCommands;
use tokio::sync::Mutex;

use super::picture::{Place, load_into};
use super::progress::unwatched;
use super::staging::Placed;
use crate::Failure;
use crate::coupon::{Coupon, CouponId, CouponStore, steer, stock};
use crate::issuance::Ledger;
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::service::ServiceStore;

/// How often a load begins anew, because a coupon was retired or another epoch opened under it.
const ATTEMPTS_MAX: usize = 5;

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    Now,
    /// It was there.
    Before,
    /// There is no such coupon.
    Unknown,
}

/// Loads coupons, one at a time: a load is dear. Cheap to clone.
#[derive(Clone)]
pub struct Loader {
    partition: Arc<Partition>,
    ledger: Ledger,
    coupons: CouponStore,
    services: ServiceStore,
    turn: Arc<Mutex<()>>,
}

impl Loader {
    /// A loader for one process.
    pub fn new(partition: Arc<Partition>, database: &Database) -> Self {
        Loader {
            partition,
            ledger: Ledger::new(database),
            coupons: CouponStore::new(database),
            services: ServiceStore::new(database),
            turn: Arc::default(),
        }
    }

    /// Loads a coupon, if Redis does not have it. Nothing of it can be in flight then: only what is
    /// loaded can be reserved, a rebuild loads all that has something in flight, and nothing that has
    /// is retired. Runs to its end even if the caller goes: half of a load is garbage.
    pub async fn load(&self, id: &CouponId) -> Result<Loaded, Failure> {
        let (loader, id) = (self.clone(), id.clone());
        let task = tokio::spawn(async move {
            let _turn = loader.turn.lock().await;
            loader.load_now(&id).await
        });
        task.await.map_err(|join| Failure::Redis { operation: "load the coupon", source: join.into() })?
    }

    async fn load_now(&self, id: &CouponId) -> Result<Loaded, Failure> {
        let (_, stocks) = stock::read(&self.partition, std::slice::from_ref(id)).await?;
        if !matches!(stocks.as_slice(), [Ok(None)]) {
            return Ok(Loaded::Before);
        }
        for _ in 0..ATTEMPTS_MAX {
            let keys = self.partition.keys();
            let retired = self.retired(&keys).await?;
            let Some(coupon) = self.coupons.get(id).await? else { return Ok(Loaded::Unknown) };
            let place = Place {
                partition: &self.partition,
                keys: &keys,
                building: false,
                retired,
                watch: &unwatched(),
                number: 1,
                of: 1,
            };
            match load_into(&place, &self.ledger, &coupon, &mut Vec::new()).await? {
                Placed::Now => {
                    tracing::info!(coupon = %id, "loaded the coupon");
                    self.catch_up(&coupon).await?;
                    return Ok(Loaded::Now);
                }
                Placed::Before => return Ok(Loaded::Before),
                Placed::Outdated => {}
            }
        }
        Err(Failure::Redis { operation: "load the coupon", source: "others are retired all the time".into() })
    }

    async fn retired(&self, keys: &EpochKeys) -> Result<u64, Failure> {
        let retired: Option<u64> = self
            .partition
            .connection()
            .hget(keys.counters(), "retired")
            .await
            .map_err(Failure::redis("load the coupon"))?;
        Ok(retired.unwrap_or(0))
    }

    /// A change made during the load found nothing in Redis to change.
    async fn catch_up(&self, loaded: &Coupon) -> Result<(), Failure> {
        match self.coupons.get(&loaded.id).await? {
            Some(now) if now.generation != loaded.generation => {
                steer::apply(&self.partition, self.services.get().await?, &[now]).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}
