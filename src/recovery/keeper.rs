//! The background task, in every API and worker process, that gets the partition certified again.
//! Idempotent and without input; woken by every call that was refused, and once a second.
//! Reads: the certificate. Writes: what a [`rebuild`] writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::Database;
use tokio_util::sync::CancellationToken;

use super::check::is_certified;
use super::lease::Lease;
use super::rebuild::certified_term;
use super::{Durability, Rebuilt, check_settings, rebuild};
use crate::backoff::Backoff;
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::partition::Partition;
use crate::service::ServiceStore;
use crate::{Failure, metrics};

/// How often the certificate is looked at when nobody complains.
const EVERY: Duration = Duration::from_secs(1);
/// The first pause when it is not certified, and this process cannot help it now.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// See the module's documentation.
pub struct Keeper {
    partition: Arc<Partition>,
    database: Database,
    ledger: Ledger,
    coupons: CouponStore,
    services: ServiceStore,
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
        let services = ServiceStore::new(&database);
        Keeper { partition, database, ledger, coupons, services, durability, holder }
    }

    /// Keeps the partition certified until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut retry = Backoff::new(RETRY_FIRST, EVERY);
        loop {
            let ensured = tokio::select! {
                // A rebuild that is broken off changes nothing; another process begins it anew.
                () = shutdown.cancelled() => return,
                ensured = self.ensure() => ensured,
            };
            match ensured {
                Ok(true) => {
                    retry.reset();
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(EVERY) => {}
                        () = self.partition.uncertified.notified() => {}
                    }
                    continue;
                }
                Ok(false) => {}
                Err(failure) => tracing::warn!(
                    partition = %self.partition.id(),
                    error = failure.chain(),
                    "the partition could not be certified; trying again"
                ),
            }
            // Nobody is helped by asking without a pause: not whoever recovers, nor the log.
            retry.wait(&shutdown).await;
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
        // Should MongoDB have forgotten terms that Redis remembers, the next one must still be later.
        let known = certified_term(&self.partition).await?;
        let Some(lease) = Lease::take(&self.database, self.partition.id(), &self.holder, known).await? else {
            return Ok(false);
        };
        // Somebody may have recovered between our look and our lease.
        if is_certified(&self.partition).await? {
            give_back(lease).await;
            return Ok(true);
        }
        tracing::info!(partition = %self.partition.id(), term = lease.term, epoch = %lease.epoch, "rebuilding");
        let started = Instant::now();
        let rebuilt = rebuild(&self.partition, &self.ledger, &self.coupons, &self.services, &lease).await;
        count(started, &rebuilt);
        give_back(lease).await;
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

fn count(started: Instant, rebuilt: &Result<Rebuilt, Failure>) {
    metrics::RECOVERY_SECONDS.record(started.elapsed());
    metrics::RECOVERIES.count(match rebuilt {
        Ok(Rebuilt::Opened { .. }) => "opened",
        Ok(Rebuilt::Superseded) => "superseded",
        Err(_) => "failed",
    });
}

/// What was done under the lease is done, whether it can be given back or runs out by itself.
async fn give_back(lease: Lease) {
    if let Err(failure) = lease.release().await {
        tracing::warn!(error = failure.chain(), "the recovery lease will run out by itself");
    }
}
