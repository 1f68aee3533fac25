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

use super::certificate::{self, CertificateFields, is_certified};
use super::fence::{CONFIRM_EVERY, ConfirmOutcome, Fence, Fences, LatestOpening, SILENT_AFTER};
use super::lease::Lease;
use super::progress::{ProgressCallback, RecoveryStep};
use super::recover::{Recovery, RecoveryMode, RecoveryOutcome};
use super::{Durability, check_settings};
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::redis::Partition;
use crate::runtime::backoff::Backoff;
use crate::runtime::tasks::{restarted, until_tick};
use crate::service::ServiceStore;
use crate::{Failure, metrics};

/// How often the supervisor checks the certificate while no call is refused.
const EVERY: Duration = CONFIRM_EVERY;
/// The longest that MongoDB may take to say which Redis was opened last.
const CONFIRM_MAX: Duration = Duration::from_secs(2);
/// The first pause when it is not certified, and this process cannot help it now.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// How often the log says how far a long recovery is.
const LOG_EVERY: Duration = Duration::from_secs(2);

/// Keeps a partition certified: it checks the certificate, confirms in MongoDB that its Redis serves, and recovers
/// under the lease where that is needed.
pub struct RecoverySupervisor {
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

/// The outcome of an attempt to certify the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertifyOutcome {
    /// The partition was certified.
    Before,
    /// This attempt recovered it, unless another process took over.
    Recovered(RecoveryOutcome),
    /// Another process recovers it.
    ByAnother,
    /// Another Redis was opened last. This one takes its place if no process confirms for a while that the other
    /// serves.
    Watching,
}

/// How a Redis stands to the latest opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpeningStatus {
    /// This Redis may be opened: it is the one that was opened last, or has its data.
    Current,
    /// Another Redis was opened since, and serves: this one must not be.
    Elsewhere(String),
    /// Another Redis was opened since, and does not serve any more: this one is to be built anew.
    OutOfDate,
}

impl RecoverySupervisor {
    /// A supervisor for one process; `holder` must be a name that no other process has.
    pub fn new(
        partition: Arc<Partition>,
        database: Database,
        durability: Durability,
        holder: String,
    ) -> Self {
        let fences = Fences::start(&database);
        Self::sharing(&fences, partition, database, durability, holder)
    }

    /// The same, for one of many partitions.
    pub(crate) fn sharing(
        fences: &Fences,
        partition: Arc<Partition>,
        database: Database,
        durability: Durability,
        holder: String,
    ) -> Self {
        let ledger = Ledger::new(&database).within(partition.id());
        let coupons = CouponStore::new(&database);
        let services = ServiceStore::new(&database);
        let fence = fences.of(partition.id());
        partition.fence_by(fence.clone());
        let watched = Mutex::new(None);
        RecoverySupervisor {
            partition,
            database,
            ledger,
            coupons,
            services,
            durability,
            holder,
            fence,
            watched,
        }
    }

    /// Keeps the partition certified until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let what = format!("keep partition {} certified", self.partition.id());
        restarted(&what, &shutdown, || self.keep_certified(&shutdown)).await;
    }

    async fn keep_certified(&self, shutdown: &CancellationToken) {
        let mut retry = Backoff::new(RETRY_FIRST, EVERY);
        loop {
            match self.ensure_until(shutdown).await {
                Ok(true) => {
                    retry.reset();
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        // All partitions at the same time, so that what they ask of MongoDB is one query.
                        () = tokio::time::sleep(until_tick(EVERY)) => {}
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
            self.partition.client().find_again();
            // Asking without a pause would slow the recovering process down and flood the log.
            retry.wait(shutdown).await;
        }
    }

    /// Checks the certificate once, and recovers if that is needed and no other process does. Returns whether the
    /// partition is certified now.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB cannot be reached, their settings are wrong, or another Redis serves this ledger.
    pub async fn ensure(&self) -> Result<bool, Failure> {
        self.ensure_until(&CancellationToken::new()).await
    }

    async fn ensure_until(&self, shutdown: &CancellationToken) -> Result<bool, Failure> {
        if self.is_current().await? {
            return Ok(true);
        }
        let logged_at = Mutex::new(Instant::now());
        let progress: ProgressCallback = Arc::new(move |step: &RecoveryStep| log_step(step, &logged_at));
        let outcome = self.recover(RecoveryMode::VerifyFirst, &progress, shutdown).await?;
        Ok(matches!(
            outcome,
            CertifyOutcome::Before
                | CertifyOutcome::Recovered(
                    RecoveryOutcome::Verified { .. } | RecoveryOutcome::Rebuilt { .. }
                )
        ))
    }

    /// Whether the certificate fits and is that of the latest opening, as far as MongoDB can be asked: while it
    /// is away no process can open another.
    async fn is_current(&self) -> Result<bool, Failure> {
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
                tracing::debug!(error = failure.chain(), "MongoDB could not record that this Redis serves");
                return Ok(true);
            }
            Err(_) => return Ok(true),
        };
        match confirmed {
            ConfirmOutcome::Latest => Ok(true),
            ConfirmOutcome::NotRemembered => {
                let fields = certificate::read(&self.partition).await?;
                if fields.term == opening.term {
                    self.fence.remember(opening, &fields.instance).await?;
                }
                Ok(true)
            }
            ConfirmOutcome::Superseded => {
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
    async fn may_open(&self, fields: &CertificateFields) -> Result<bool, Failure> {
        let latest = self.fence.latest().await;
        let mut watched = self.watched.lock();
        let latest = latest.inspect_err(|_| *watched = None)?;
        let status = resolve(fields, latest.as_ref());
        let Some(latest) = latest.filter(|_| status != OpeningStatus::Current) else {
            *watched = None;
            return Ok(true);
        };
        // By this process's own clock: no process could record that the other serves while MongoDB was away.
        let since = match *watched {
            Some((at, since)) if at == latest.served_at => since,
            _ => watched.insert((latest.served_at, Instant::now())).1,
        };
        match status {
            OpeningStatus::Elsewhere(why) => {
                Err(Failure::Misconfigured { operation: "certify this Redis", why })
            }
            _ => Ok(since.elapsed() >= SILENT_AFTER),
        }
    }

    /// Recovers the partition, unless it is certified already ([`RecoveryMode::Rebuild`] rebuilds it all the same)
    /// or another process recovers it. Broken off by `shutdown`, which changes nothing: another process
    /// begins anew.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails, their settings are wrong, or another Redis serves this ledger.
    pub async fn recover(
        &self,
        mode: RecoveryMode,
        progress: &ProgressCallback,
        shutdown: &CancellationToken,
    ) -> Result<CertifyOutcome, Failure> {
        let findings = check_settings(&self.partition, self.durability).await?;
        if let Some(wrong) = findings.wrong.first() {
            return Err(Failure::Misconfigured { operation: "certify this Redis", why: wrong.clone() });
        }
        if mode == RecoveryMode::VerifyFirst
            && let Some(wrong) = wrong_ledger(&self.partition, &self.database).await?
        {
            return Err(Failure::Misconfigured { operation: "certify this Redis", why: wrong });
        }
        // Should MongoDB have forgotten terms that Redis remembers, the next one must still be later.
        let fields = certificate::read(&self.partition).await?;
        if mode == RecoveryMode::VerifyFirst && !self.may_open(&fields).await? {
            return Ok(CertifyOutcome::Watching);
        }
        let lease = Lease::take(&self.database, self.partition.id(), &self.holder, fields.term).await?;
        let Some(lease) = lease else { return Ok(CertifyOutcome::ByAnother) };
        self.partition.belongs_to(&lease.ledger);
        // Another process may have recovered between the check and the lease, here or on another Redis.
        if mode == RecoveryMode::VerifyFirst {
            let held_back = match self.may_open(&fields).await {
                Ok(true) if !is_certified(&self.partition).await? => None,
                Ok(true) => Some(Ok(CertifyOutcome::Before)),
                Ok(false) => Some(Ok(CertifyOutcome::Watching)),
                Err(failure) => Some(Err(failure)),
            };
            if let Some(outcome) = held_back {
                give_back(lease).await;
                return outcome;
            }
        }
        let recovery = Recovery {
            partition: &self.partition,
            ledger: &self.ledger,
            coupons: &self.coupons,
            services: &self.services,
            lease: &lease,
            progress,
            mode,
        };
        let (started, partition) = (Instant::now(), self.partition.id());
        tracing::info!(%partition, term = lease.term, epoch = %lease.epoch, "recovering");
        let recovered = tokio::select! {
            recovered = recovery.run() => recovered,
            () = shutdown.cancelled() => Ok(RecoveryOutcome::Superseded),
        };
        count(started, &recovered);
        give_back(lease).await;
        let recovered = recovered?;
        match recovered {
            RecoveryOutcome::Verified { in_flight, coupons } => tracing::info!(
                %partition, in_flight, coupons, seconds = started.elapsed().as_secs_f64(),
                "the data was intact; opened the partition again"
            ),
            RecoveryOutcome::Rebuilt { survivors, decided, coupons } => tracing::info!(
                %partition, survivors, decided, coupons, seconds = started.elapsed().as_secs_f64(),
                "rebuilt the partition and opened it under a new epoch"
            ),
            RecoveryOutcome::Superseded => tracing::info!(%partition, "another process recovers"),
        }
        Ok(CertifyOutcome::Recovered(recovered))
    }
}

/// A sentence for the operator if the data in Redis belongs to another ledger than this database's.
///
/// # Errors
///
/// If Redis or MongoDB fails.
pub(crate) async fn wrong_ledger(
    partition: &Partition,
    database: &Database,
) -> Result<Option<String>, Failure> {
    let Some(held) = certificate::read(partition).await?.ledger else { return Ok(None) };
    let ours = Lease::ledger(database).await?;
    Ok((ours != held).then(|| {
        "the data in Redis belongs to another MongoDB database than --mongodb-database: point --redis-url and \
         --mongodb-uri at a pair, or, if this database is to take that Redis over, run `couponctl recover --rebuild`"
            .to_owned()
    }))
}

/// How the partition's Redis stands to the latest opening that MongoDB remembers. Changes nothing.
///
/// # Errors
///
/// If Redis or MongoDB fails.
pub(crate) async fn opening_status(
    partition: &Partition,
    database: &Database,
) -> Result<OpeningStatus, Failure> {
    let fields = certificate::read(partition).await?;
    let latest = Fences::start(database).of(partition.id()).latest().await?;
    Ok(resolve(&fields, latest.as_ref()))
}

/// How a Redis with this certificate stands to the latest opening. It is the one that was opened last if it is that
/// instance, though it may have lost its data, or if it has the data of that one: a replica that takes its place.
fn resolve(fields: &CertificateFields, latest: Option<&LatestOpening>) -> OpeningStatus {
    match latest {
        Some(latest)
            if fields.instance != latest.instance && (fields.term < latest.term || fields.out_of_date) =>
        {
            if latest.silent < SILENT_AFTER {
                OpeningStatus::Elsewhere(serves_elsewhere(latest))
            } else {
                OpeningStatus::OutOfDate
            }
        }
        _ => OpeningStatus::Current,
    }
}

fn serves_elsewhere(latest: &LatestOpening) -> String {
    format!(
        "another Redis (run_id {}) serves this ledger, and was seen to {} s ago: point --redis-url of every process \
         at one Redis. If this one is to take its place, let its queue drain, stop every process that uses it, and \
         run `couponctl recover --rebuild` on this one: what is still in flight on the other is lost",
        latest.instance,
        latest.silent.as_secs()
    )
}

/// Logs each step; of those that repeat, one in [`LOG_EVERY`].
fn log_step(step: &RecoveryStep, logged_at: &Mutex<Instant>) {
    if let RecoveryStep::Compared { .. } | RecoveryStep::Loading { .. } | RecoveryStep::Queueing { .. } = step
    {
        let mut logged_at = logged_at.lock();
        if logged_at.elapsed() < LOG_EVERY {
            return;
        }
        *logged_at = Instant::now();
    }
    match step {
        RecoveryStep::Damaged { why } => {
            tracing::warn!(why, "the data in Redis is not intact; rebuilding")
        }
        step => tracing::info!(?step, "recovering"),
    }
}

fn count(started: Instant, recovered: &Result<RecoveryOutcome, Failure>) {
    metrics::RECOVERY_SECONDS.record(started.elapsed());
    metrics::RECOVERIES.count(match recovered {
        Ok(RecoveryOutcome::Verified { .. }) => "verified",
        Ok(RecoveryOutcome::Rebuilt { .. }) => "rebuilt",
        Ok(RecoveryOutcome::Superseded) => "superseded",
        Err(_) => "failed",
    });
}

/// Gives the lease back. If that fails, the lease runs out by itself.
async fn give_back(lease: Lease) {
    if let Err(failure) = lease.release().await {
        tracing::warn!(error = failure.chain(), "the recovery lease could not be given back; it will expire");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(instance: &str, term: i64, out_of_date: bool) -> CertificateFields {
        CertificateFields { term, ledger: None, out_of_date, instance: instance.into() }
    }

    #[test]
    fn a_redis_may_be_opened_if_it_is_the_latest_or_has_its_data_or_the_latest_is_silent() {
        let serving = LatestOpening { term: 7, instance: "a".into(), served_at: 0, silent: Duration::ZERO };
        for current in [redis("a", 7, false), redis("a", 0, true), redis("b", 7, false), redis("b", 8, false)]
        {
            assert_eq!(resolve(&current, Some(&serving)), OpeningStatus::Current, "{current:?}");
        }
        let silent = LatestOpening { silent: SILENT_AFTER, ..serving.clone() };
        for other in [redis("b", 6, false), redis("b", 0, false), redis("b", 7, true), redis("b", 9, true)] {
            let status = resolve(&other, Some(&serving));
            assert!(
                matches!(&status, OpeningStatus::Elsewhere(why) if why.contains("run_id a")),
                "{status:?}"
            );
            assert_eq!(resolve(&other, Some(&silent)), OpeningStatus::OutOfDate, "{other:?}");
            assert_eq!(resolve(&other, None), OpeningStatus::Current, "no opening is remembered");
        }
    }
}
