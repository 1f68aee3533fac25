//! The background task, in every API and worker process, that gets the partition certified again, and confirms
//! that its Redis is the one that was opened last. Idempotent and without input; woken by every call that was
//! refused, and once a second.
//! Reads: the certificate, and what MongoDB remembers of openings. Writes: what a [`Recovery`] writes, and that
//! this Redis serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mongo::Database;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::certificate::{self, Known, is_certified};
use super::fence::{CONFIRM_EVERY, Confirmed, Fence, Latest, SILENT_AFTER};
use super::lease::Lease;
use super::progress::{Step, Watch};
use super::recover::{How, Recovered, Recovery};
use super::{Durability, check_settings};
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::redis::Partition;
use crate::runtime::backoff::Backoff;
use crate::service::ServiceStore;
use crate::{Failure, metrics};

/// How often the certificate is looked at when nobody complains.
const EVERY: Duration = CONFIRM_EVERY;
/// The longest that MongoDB may take to say which Redis was opened last.
const CONFIRM_MAX: Duration = Duration::from_secs(2);
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
    fence: Fence,
    /// When the Redis that was opened last was last seen to serve, while this is another: since when it has
    /// been so.
    watched: Mutex<Option<(i64, Instant)>>,
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
    /// Another Redis was opened last. If nobody is seen to use that for a while, this one takes its place.
    Watching,
}

/// How a Redis stands to the latest opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may be opened: it is the one that was, or has its data.
    Current,
    /// Another Redis was opened since, and serves: this one must not be.
    Elsewhere(String),
    /// Another Redis was opened since, and does not serve any more: this one is to be built anew.
    OutOfDate,
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
        let fence = Fence::new(&database, partition.id());
        partition.fence_by(fence.clone());
        let watched = Mutex::new(None);
        Keeper { partition, database, ledger, coupons, services, durability, holder, fence, watched }
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
            // The address may lead elsewhere by now.
            self.partition.client().reconnect();
            // Nobody is helped by asking without a pause: not whoever recovers, nor the log.
            retry.wait(&shutdown).await;
        }
    }

    /// Looks once, and recovers if that is needed and nobody else does. Whether it is certified now.
    pub async fn ensure(&self) -> Result<bool, Failure> {
        self.ensure_until(&CancellationToken::new()).await
    }

    async fn ensure_until(&self, shutdown: &CancellationToken) -> Result<bool, Failure> {
        if self.stands().await? {
            return Ok(true);
        }
        let told = Mutex::new(Instant::now());
        let watch: Watch = Arc::new(move |step: &Step| tell(step, &told));
        let kept = self.recover(How::VerifyFirst, &watch, shutdown).await?;
        Ok(matches!(
            kept,
            Kept::Before | Kept::Recovered(Recovered::Verified { .. } | Recovered::Rebuilt { .. })
        ))
    }

    /// Whether the certificate fits and is that of the latest opening, as far as MongoDB can be asked: while it
    /// is away nobody can open another.
    async fn stands(&self) -> Result<bool, Failure> {
        let opening = self.partition.opening();
        match is_certified(&self.partition).await {
            Ok(true) => {}
            otherwise => {
                // Another may be opened before this one can be used again.
                self.partition.doubt(opening);
                return otherwise;
            }
        }
        let opening = self.partition.opening();
        let confirmed = match tokio::time::timeout(CONFIRM_MAX, self.fence.confirm(opening)).await {
            Ok(Ok(confirmed)) => confirmed,
            Ok(Err(failure)) => {
                tracing::debug!(error = failure.chain(), "it cannot be confirmed that Redis serves");
                return Ok(true);
            }
            Err(_) => return Ok(true),
        };
        match confirmed {
            Confirmed::Latest => Ok(true),
            Confirmed::NotRemembered => {
                let known = certificate::read(&self.partition).await?;
                if known.term == opening.term {
                    self.fence.remember(opening, &known.instance).await?;
                }
                Ok(true)
            }
            Confirmed::Superseded => {
                self.partition.doubt(opening);
                is_certified(&self.partition).await
            }
        }
    }

    /// Whether this Redis may be opened. `false`: not yet.
    ///
    /// # Errors
    ///
    /// If another serves, with what to do.
    async fn may_open(&self, known: &Known) -> Result<bool, Failure> {
        let latest = self.fence.latest().await;
        let mut watched = self.watched.lock();
        let latest = match latest {
            Ok(Some(latest)) if !has_its_place(known, &latest) => latest,
            other => {
                *watched = None;
                return other.map(|_| true);
            }
        };
        // Seen with one's own eyes: nobody could say that it serves while MongoDB was away.
        let since = match *watched {
            Some((at, since)) if at == latest.served_at => since,
            _ => watched.insert((latest.served_at, Instant::now())).1,
        };
        if latest.silent < SILENT_AFTER {
            return Err(Failure::Misconfigured {
                operation: "certify this Redis",
                why: serves_elsewhere(&latest),
            });
        }
        Ok(since.elapsed() >= SILENT_AFTER)
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
            return Err(Failure::Misconfigured { operation: "certify this Redis", why: wrong.clone() });
        }
        if how == How::VerifyFirst
            && let Some(wrong) = wrong_ledger(&self.partition, &self.database).await?
        {
            return Err(Failure::Misconfigured { operation: "certify this Redis", why: wrong });
        }
        // Should MongoDB have forgotten terms that Redis remembers, the next one must still be later.
        let known = certificate::read(&self.partition).await?;
        if how == How::VerifyFirst && !self.may_open(&known).await? {
            return Ok(Kept::Watching);
        }
        let lease = Lease::take(&self.database, self.partition.id(), &self.holder, known.term).await?;
        let Some(lease) = lease else { return Ok(Kept::ByAnother) };
        self.partition.belongs_to(&lease.ledger);
        // Somebody may have recovered between our look and our lease, here or on another Redis.
        if how == How::VerifyFirst {
            let held_back = match self.may_open(&known).await {
                Ok(true) if !is_certified(&self.partition).await? => None,
                Ok(true) => Some(Ok(Kept::Before)),
                Ok(false) => Some(Ok(Kept::Watching)),
                Err(failure) => Some(Err(failure)),
            };
            if let Some(kept) = held_back {
                give_back(lease).await;
                return kept;
            }
        }
        let recovery = Recovery {
            partition: &self.partition,
            ledger: &self.ledger,
            coupons: &self.coupons,
            services: &self.services,
            lease: &lease,
            watch,
            how,
        };
        let (started, partition) = (Instant::now(), self.partition.id());
        tracing::info!(%partition, term = lease.term, epoch = %lease.epoch, "recovering");
        let recovered = tokio::select! {
            recovered = recovery.run() => recovered,
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

/// How the partition's Redis stands to the latest opening that MongoDB remembers. Changes nothing.
pub async fn standing(partition: &Partition, database: &Database) -> Result<Standing, Failure> {
    let known = certificate::read(partition).await?;
    let latest = Fence::new(database, partition.id()).latest().await?;
    Ok(match latest {
        Some(latest) if has_its_place(&known, &latest) => Standing::Current,
        Some(latest) if latest.silent < SILENT_AFTER => Standing::Elsewhere(serves_elsewhere(&latest)),
        Some(_) => Standing::OutOfDate,
        None => Standing::Current,
    })
}

/// Whether a Redis is the one that was opened last, though it may have lost its data, or has the data of that
/// one: it was restarted, or is a replica that takes its place.
fn has_its_place(known: &Known, latest: &Latest) -> bool {
    known.instance == latest.instance || (known.term >= latest.term && !known.out_of_date)
}

fn serves_elsewhere(latest: &Latest) -> String {
    format!(
        "another Redis (run_id {}) serves this ledger, and was seen to {} s ago: point --redis-url of every process \
         at one Redis. If this one is to take its place, let its queue drain, stop every process that uses it, and \
         run `couponctl recover --rebuild` on this one: what is still in flight on the other is lost",
        latest.instance,
        latest.silent.as_secs()
    )
}

/// Logs the steps; those that are told again and again now and then.
fn tell(step: &Step, told: &Mutex<Instant>) {
    if let Step::Compared { .. } | Step::Loading { .. } | Step::Queueing { .. } = step {
        let mut told = told.lock();
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
