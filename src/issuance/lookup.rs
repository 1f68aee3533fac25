//! Answers what became of an issuance: from the outcome cache, else from Redis's in-flight hash, else from MongoDB.
//!
//! "Not found" is a strong word after a 202, so it takes a certified miss in flight *and* a linearizable read of the
//! ledger, *and* that no other Redis was opened meanwhile, where the issuance may have been accepted; any error on
//! the way is a [`Failure`] instead. The order matters: a decision is in the ledger before its issuance leaves the
//! in-flight hash.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::reserve::{QueueProgress, time};
use super::{Decision, InFlight, IssuanceId, Ledger};
use crate::redis::cmd;
use crate::redis::keys::damaged;
use crate::redis::{LuaScript, Partition, Partitions, PerPartition};
use crate::runtime::batch::{Batcher, Bounds};
use crate::user::PendingDeletions;
use crate::{Failure, metrics};

static LOOKUP: LuaScript = LuaScript::new(include_str!("lookup.lua"));

const REDIS_BOUNDS: Bounds = Bounds { batch: 256, calls: 2, waiting: 32_768, wait: Duration::from_secs(2) };
const LEDGER_BOUNDS: Bounds = Bounds { batch: 256, calls: 4, waiting: 32_768, wait: Duration::from_secs(2) };

/// Linearizable reads at once.
const CERTAIN_MAX: usize = 16;

/// Where an issuance is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum LookupResult {
    Queued { in_flight: InFlight, progress: QueueProgress },
    Decided(Arc<Decision>),
    Nowhere,
}

/// Looks issuances up in batches. Cheap to clone.
#[derive(Clone)]
pub struct Lookup {
    partitions: Partitions,
    ledger: Ledger,
    /// Decided outcomes only, so it is never stale.
    decided: Arc<Cache<IssuanceId, Arc<Decision>>>,
    deletions: Arc<PendingDeletions>,
    /// Bounds linearizable reads: they are dear, and requests for ids that never were must not crowd out others.
    certain: Arc<Semaphore>,
    redis: PerPartition<Batcher<IssuanceId, Option<(InFlight, QueueProgress)>>>,
    mongodb: Batcher<IssuanceId, Option<Decision>>,
}

impl Lookup {
    /// Starts the batchers, with an outcome cache for `cached` decisions. It keeps none of users who are being
    /// deleted, because their records are about to change.
    pub fn start(
        partitions: &Partitions,
        ledger: Ledger,
        deletions: Arc<PendingDeletions>,
        cached: usize,
    ) -> Self {
        let redis = partitions.each(|partition| {
            let partition = Arc::clone(partition);
            Batcher::start("look up", REDIS_BOUNDS, move |ids: Vec<IssuanceId>| {
                let partition = Arc::clone(&partition);
                async move { read_in_flight(&partition, &ids).await }
            })
        });
        let records = ledger.clone();
        let mongodb = Batcher::start("look up", LEDGER_BOUNDS, move |ids: Vec<IssuanceId>| {
            let ledger = records.clone();
            async move {
                let found = ledger.decisions(&ids).await?;
                Ok(ids.iter().map(|id| Ok(found.get(id).cloned().transpose()?)).collect())
            }
        });
        Lookup {
            partitions: partitions.clone(),
            ledger,
            decided: Arc::new(Cache::new(cached)),
            deletions,
            certain: Arc::new(Semaphore::new(CERTAIN_MAX)),
            redis,
            mongodb,
        }
    }

    /// The number of decisions in the outcome cache.
    pub fn cached(&self) -> usize {
        self.decided.len()
    }

    /// Finds an issuance.
    ///
    /// # Errors
    ///
    /// [`Failure::Unreadable`] if it is decided and this version cannot read how; [`Failure::Damaged`] if its
    /// in-flight value cannot be read; or if Redis or MongoDB fails.
    pub async fn find(&self, id: IssuanceId) -> Result<LookupResult, Failure> {
        if let Some(decision) = self.decided.get(&id) {
            metrics::OUTCOME_CACHE.hit();
            return Ok(LookupResult::Decided(decision));
        }
        metrics::OUTCOME_CACHE.miss();
        match self.redis.get(id.partition())?.ask(id).await {
            // A unit on its way is nobody's request.
            Ok(Some((in_flight, _))) if in_flight.user.share().is_some() => Ok(LookupResult::Nowhere),
            Ok(Some((in_flight, progress))) => Ok(LookupResult::Queued { in_flight, progress }),
            Ok(None) => match self.decided(id).await? {
                Some(decision) => Ok(LookupResult::Decided(decision)),
                None => self.nowhere(id).await,
            },
            // It is in flight, and may be decided already.
            Err(damaged) if matches!(damaged.root(), Failure::Damaged { .. }) => self
                .mongodb
                .ask(id)
                .await?
                .map(|found| LookupResult::Decided(self.learn(found)))
                .ok_or(damaged),
            Err(failure) => Err(failure),
        }
    }

    async fn nowhere(&self, id: IssuanceId) -> Result<LookupResult, Failure> {
        let partition = self.partitions.get(id.partition())?;
        let _certain = self.certain.acquire().await;
        if is_kept_as_damaged(partition, id).await? {
            let why = format!("issuance {id}: a recovery of an earlier version could not read it");
            return Err(Failure::Damaged { what: "the in-flight value of this issuance", why });
        }
        if partition.is_latest().await? { Ok(LookupResult::Nowhere) } else { Err(Failure::Uncertified) }
    }

    /// The decision about an issuance that is not in flight; `None` if there is none, for certain.
    ///
    /// # Errors
    ///
    /// [`Failure::Unreadable`] if this version cannot read the decision; or if MongoDB fails.
    pub async fn decided(&self, id: IssuanceId) -> Result<Option<Arc<Decision>>, Failure> {
        if let Some(decision) = self.decided.get(&id) {
            return Ok(Some(decision));
        }
        let found = match self.mongodb.ask(id).await? {
            Some(decision) => Some(decision),
            None => {
                let _certain = self.certain.acquire().await;
                self.ledger.decision_linearizable(id).await?.transpose()?
            }
        };
        let of_request = found.filter(|decision| decision.user.share().is_none());
        Ok(of_request.map(|decision| self.learn(decision)))
    }

    /// Forgets the decisions that `gone` names.
    pub(crate) fn forget(&self, gone: impl Fn(&Decision) -> bool) {
        self.decided.retain(|_, decision| !gone(decision));
    }

    /// Remembers a decision that stands: it was read from the ledger, or a worker announced it.
    pub(super) fn learn(&self, decision: Decision) -> Arc<Decision> {
        let decision = Arc::new(decision);
        if !self.deletions.lists(&decision.user) {
            self.decided.insert(decision.id, Arc::clone(&decision));
        }
        decision
    }
}

/// Whether a rebuild of an earlier version kept the in-flight value among what is damaged, because it could not read
/// it: the issuance was accepted.
async fn is_kept_as_damaged(partition: &Partition, id: IssuanceId) -> Result<bool, Failure> {
    let mut ask = cmd("HEXISTS");
    ask.arg(damaged(partition.id())).arg(id.as_bytes().as_slice());
    match partition.query("look up", &ask).await {
        // The key is no hash: no rebuild wrote it.
        Err(Failure::Damaged { .. }) => Ok(false),
        is_kept => is_kept,
    }
}

/// Reads a batch of issuances from the in-flight hash: one call of `lookup.lua`. An issuance whose value cannot be
/// read gets [`Failure::Damaged`], and no other does.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn read_in_flight(
    partition: &Partition,
    ids: &[IssuanceId],
) -> Result<Vec<Result<Option<(InFlight, QueueProgress)>, Failure>>, Failure> {
    let mut reply = partition
        .call(&LOOKUP, "look up", |keys, call| {
            call.key(keys.in_flight()).key(keys.dead()).key(keys.counters());
            for id in ids {
                call.arg(id.as_bytes().as_slice());
            }
        })
        .await?;
    let (now, settled, dead) = (time(&mut reply)?, reply.number()?, reply.number()?);
    let found = |id: &IssuanceId, value: &[u8]| match (value, InFlight::parse(value)) {
        (b"", _) => Ok(None),
        (_, Some(held)) => {
            let progress = QueueProgress::new(now, held.sequence, settled, dead);
            Ok(Some((held, progress)))
        }
        (_, None) => Err(Failure::Damaged {
            what: "the in-flight value of this issuance",
            why: format!("issuance {id}: {:?}", String::from_utf8_lossy(value)),
        }),
    };
    ids.iter().map(|id| Ok(found(id, &reply.bytes()?))).collect()
}
