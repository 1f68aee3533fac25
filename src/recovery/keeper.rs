//! The background task, in every API and worker process, that gets the partition certified again.
//! Idempotent and without input; woken by every call that was refused, and once a second.
//! Reads: the certificate. Writes: what a [`rebuild`] writes.

use std::sync::Arc;
use std::time::Duration;

use mongodb::Database;
use tokio_util::sync::CancellationToken;

use super::check::is_certified;
use super::lease::Lease;
use super::{Durability, Rebuilt, check_settings, rebuild};
use crate::Failure;
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::partition::Partition;

/// How often the certificate is looked at when nobody complains.
const EVERY: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct Keeper {
    partition: Arc<Partition>,
    database: Database,
    ledger: Ledger,
    coupons: CouponStore,
    durability: Durability,
    /// Names this process in the lease.
    holder: String,
}

impl Keeper {
    /// A keeper for one process; `holder` must be no other's name.
    pub fn new(
        partition: Arc<Partition>,
        database: Database,
        durability: Durability,
        holder: String,
    ) -> Self {
        let (ledger, coupons) = (Ledger::new(&database), CouponStore::new(&database));
        Keeper { partition, database, ledger, coupons, durability, holder }
    }

    /// Keeps the partition certified until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            if let Err(failure) = self.ensure().await {
                tracing::warn!(
                    partition = %self.partition.id(),
                    error = failure.chain(),
                    "the partition could not be certified; trying again"
                );
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
                () = self.partition.uncertified.notified() => {
                    // Whoever was refused before us may be at it; the lease tells.
                }
            }
        }
    }

    /// Looks once, and recovers if that is needed and nobody else does. Whether it is certified now.
    pub async fn ensure(&self) -> Result<bool, Failure> {
        if is_certified(&self.partition).await? {
            return Ok(true);
        }
        let findings = check_settings(&self.partition, self.durability).await?;
        if let Some(wrong) = findings.wrong.first() {
            return Err(Failure::Redis { operation: "be certified", source: wrong.clone().into() });
        }
        let Some(lease) = Lease::take(&self.database, self.partition.id(), &self.holder).await? else {
            return Ok(false);
        };
        // Somebody may have recovered between our look and our lease.
        if is_certified(&self.partition).await? {
            lease.release().await?;
            return Ok(true);
        }
        tracing::info!(partition = %self.partition.id(), term = lease.term, epoch = %lease.epoch, "rebuilding");
        let rebuilt = rebuild(&self.partition, &self.ledger, &self.coupons, &lease).await;
        lease.release().await?;
        match rebuilt? {
            Rebuilt::Opened { survivors, decided, coupons } => {
                tracing::info!(
                    partition = %self.partition.id(), survivors, decided, coupons,
                    "the partition is open under a new epoch"
                );
                Ok(true)
            }
            Rebuilt::Superseded => Ok(false),
        }
    }
}
