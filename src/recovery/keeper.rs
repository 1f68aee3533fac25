//! The background task, in every API and worker process, that gets the partition certified again.
//! Idempotent and without input; woken by every call that was refused, and once a second.
//! Reads: the certificate. Writes: what a [`Recovery`] writes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mongodb::Database;
use tokio_util::sync::CancellationToken;

use super::certificate::{self, is_certified};
use super::lease::Lease;
use super::progress::{Step, Watch};
use super::recover::{How, Recovered, Recovery};
use super::{Durability, check_settings};
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
/// How often a long recovery says in the log how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);

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

/// What an attempt to have the partition certified came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was certified.
    Before,
    /// It is now.
    Recovered(Recovered),
    /// Another process recovers it.
    ByAnother,
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
            match self.ensure_until(&shutdown).await {
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
            if shutdown.is_cancelled() {
                return;
            }
            // Nobody is helped by asking without a pause: not whoever recovers, nor the log.
            retry.wait(&shutdown).await;
        }
    }

    /// Looks once, and recovers if that is needed and nobody else does. Whether it is certified now.
    pub async fn ensure(&self) -> Result<bool, Failure> {
        self.ensure_until(&CancellationToken::new()).await
    }

    async fn ensure_until(&self, shutdown: &CancellationToken) -> Result<bool, Failure> {
        if is_certified(&self.partition).await? {
            return Ok(true);
        }
        let told = Mutex::new(Instant::now());
        let watch: Watch = Arc::new(move |step: &Step| tell(step, &told));
        let kept = self.recover(How::VerifyFirst, &watch, shutdown).await?;
        Ok(!matches!(kept, Kept::ByAnother | Kept::Recovered(Recovered::Superseded)))
    }

    /// Recovers the partition, unless it is certified already ([`How::Rebuild`] rebuilds it all the same)
    /// or another process recovers it. Broken off by `shutdown`, which changes nothing: another process
    /// begins anew.
    pub async fn recover(
        &self,
        how: How,
        watch: &Watch,
        shutdown: &CancellationToken,
    ) -> Result<Kept, Failure> {
        let findings = check_settings(&self.partition, self.durability).await?;
        if let Some(wrong) = findings.wrong.first() {
            return Err(Failure::Redis { operation: "be certified", source: wrong.clone().into() });
        }
        if how == How::VerifyFirst
            && let Some(wrong) = wrong_ledger(&self.partition, &self.database).await?
        {
            return Err(Failure::Redis { operation: "be certified", source: wrong.into() });
        }
        // Should MongoDB have forgotten terms that Redis remembers, the next one must still be later.
        let known = certificate::read(&self.partition).await?.term;
        let Some(lease) = Lease::take(&self.database, self.partition.id(), &self.holder, known).await? else {
            return Ok(Kept::ByAnother);
        };
        self.partition.belongs_to(&lease.ledger);
        // Somebody may have recovered between our look and our lease.
        if how == How::VerifyFirst && is_certified(&self.partition).await? {
            give_back(lease).await;
            return Ok(Kept::Before);
        }
        let recovery = Recovery {
            partition: &self.partition,
            ledger: &self.ledger,
            coupons: &self.coupons,
            services: &self.services,
            lease: &lease,
            watch,
        };
        let (started, partition) = (Instant::now(), self.partition.id());
        tracing::info!(%partition, term = lease.term, epoch = %lease.epoch, "recovering");
        let recovered = tokio::select! {
            recovered = recovery.run(how) => recovered,
            () = shutdown.cancelled() => Ok(Recovered::Superseded),
        };
        count(started, &recovered);
        give_back(lease).await;
        let recovered = recovered?;
        match recovered {
            Recovered::Verified { in_flight, coupons } => tracing::info!(
                %partition, in_flight, coupons, seconds = started.elapsed().as_secs_f64(),
                "the data was intact; the partition is open again"
            ),
            Recovered::Rebuilt { survivors, decided, coupons } => tracing::info!(
                %partition, survivors, decided, coupons, seconds = started.elapsed().as_secs_f64(),
                "the partition was rebuilt and is open under a new epoch"
            ),
            Recovered::Superseded => tracing::info!(%partition, "somebody else recovers"),
        }
        Ok(Kept::Recovered(recovered))
    }
}

/// What is wrong if the data in Redis belongs to another ledger than this database's.
pub async fn wrong_ledger(partition: &Partition, database: &Database) -> Result<Option<String>, Failure> {
    let Some(held) = certificate::read(partition).await?.ledger else { return Ok(None) };
    let ours = Lease::ledger(database, partition.id()).await?;
    Ok((ours != held).then(|| {
        "the data in Redis belongs to another MongoDB database than --mongodb-database: point --redis-url and \
         --mongodb-uri at a pair, or, if this database is to take that Redis over, run `couponctl recover --rebuild`"
            .to_owned()
    }))
}

/// Logs the steps; those that are told again and again now and then.
fn tell(step: &Step, told: &Mutex<Instant>) {
    if let Step::Compared { .. } | Step::Loading { .. } | Step::Queueing { .. } = step {
        let mut told = told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if told.elapsed() < TELL_EVERY {
            return;
        }
        *told = Instant::now();
    }
    match step {
        Step::Damaged { why } => {
            tracing::warn!(why, "the data in Redis is not what was left there; rebuilding")
        }
        step => tracing::info!(?step, "recovering"),
    }
}

fn count(started: Instant, recovered: &Result<Recovered, Failure>) {
    metrics::RECOVERY_SECONDS.record(started.elapsed());
    metrics::RECOVERIES.count(match recovered {
        Ok(Recovered::Verified { .. }) => "verified",
        Ok(Recovered::Rebuilt { .. }) => "rebuilt",
        Ok(Recovered::Superseded) => "superseded",
        Err(_) => "failed",
    });
}

/// What was done under the lease is done, whether it can be given back or runs out by itself.
async fn give_back(lease: Lease) {
    if let Err(failure) = lease.release().await {
        tracing::warn!(error = failure.chain(), "the recovery lease will run out by itself");
    }
}
