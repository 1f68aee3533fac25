//! Connecting to Redis and MongoDB, and asserting that both are as the promise needs them. An error says what is wrong
//! and what to do, and the process does not start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{MongoConfig, RedisConfig};
use crate::coupon::CouponStore;
use crate::failure::SetUpError;
use crate::ids::PartitionId;
use crate::issuance::Ledger;
use crate::issuance::ledger::indexes;
use crate::mongo::Database;
use crate::recovery::{Deployment, Durability, Fence, Lease, Loader, RecoverySupervisor};
use crate::redis::Partition;
use crate::user::UserStore;
use crate::{Failure, recovery};

/// How long a process waits for servers that are starting.
const STARTUP_MAX: Duration = Duration::from_secs(30);
const STARTUP_RETRY: Duration = Duration::from_millis(250);

/// Redis and MongoDB, checked and ready to be used. Cheap to clone.
#[derive(Clone)]
pub struct Backends {
    pub partition: Arc<Partition>,
    pub database: Database,
    pub ledger: Ledger,
    pub coupons: CouponStore,
    pub users: UserStore,
    /// What this deployment's processes may do; of a connection that was not checked, what the oldest may.
    pub deployment: Deployment,
    pub durability: Durability,
}

/// Connects, without asserting anything yet.
///
/// # Errors
///
/// If one of the URLs is none.
pub async fn open(redis: &RedisConfig, mongodb: &MongoConfig) -> Result<Backends, SetUpError> {
    // The message does not repeat the URL: it may hold a password.
    let partition = Partition::new(PartitionId::ONE, &redis.redis_url).map_err(|_| {
        SetUpError(vec![
            "--redis-url is no Redis URL, such as redis://USER:PASSWORD@HOST:6379/0; in user and password, characters \
             such as @ : / % must be percent-encoded"
                .into(),
        ])
    })?;
    let database = mongodb.connect().await?;
    partition.fence_by(Fence::new(&database, partition.id()));
    Ok(Backends {
        partition: Arc::new(partition),
        ledger: Ledger::new(&database),
        coupons: CouponStore::new(&database),
        users: UserStore::new(&database),
        deployment: Deployment::default(),
        database,
        durability: redis.redis_durability,
    })
}

/// Connects, waits up to 30 s for servers that are starting, and asserts settings and indexes, and that the two belong
/// together.
///
/// # Errors
///
/// A sentence for each thing that is wrong, which says what to do.
pub async fn connect(redis: &RedisConfig, mongodb: &MongoConfig) -> Result<Backends, SetUpError> {
    let backends = connect_to_any(redis, mongodb).await?;
    let other = patiently("Redis or MongoDB does not answer", async || {
        recovery::wrong_ledger(&backends.partition, &backends.database).await
    })
    .await?;
    match other {
        None => Ok(backends),
        Some(wrong) => Err(SetUpError(vec![wrong])),
    }
}

/// The same, but the data in Redis may belong to another database.
///
/// # Errors
///
/// Those of [`connect`].
pub async fn connect_to_any(redis: &RedisConfig, mongodb: &MongoConfig) -> Result<Backends, SetUpError> {
    let mut backends = open(redis, mongodb).await?;
    let findings = patiently("Redis does not answer; start it, or point --redis-url at it", async || {
        recovery::check_settings(&backends.partition, backends.durability).await
    })
    .await?;
    for note in findings.notes {
        tracing::warn!("{note}");
    }
    let missing = patiently(
        "MongoDB does not answer as a writable replica set; start it (mongod --replSet rs0, then rs.initiate()), \
         or point --mongodb-uri at it",
        async || indexes::ensure(&backends.database).await,
    )
    .await?;
    let ledger = patiently("MongoDB does not tell which ledger this is", async || {
        Lease::ledger(&backends.database, backends.partition.id()).await
    })
    .await?;
    backends.partition.belongs_to(&ledger);
    backends.deployment = patiently("MongoDB does not tell what this deployment may do", async || {
        Deployment::read(&backends.database, backends.partition.id()).await
    })
    .await?;
    backends.users = backends.users.giving_secrets(backends.deployment.users_have_id_secrets);
    let wrong: Vec<_> = findings.wrong.into_iter().chain(missing).collect();
    if wrong.is_empty() { Ok(backends) } else { Err(SetUpError(wrong)) }
}

async fn patiently<T>(advice: &str, attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T, SetUpError> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(failure) if started.elapsed() > STARTUP_MAX => {
                return Err(SetUpError(vec![format!("{advice} ({})", failure.chain())]));
            }
            Err(failure) => {
                if !told {
                    tracing::info!(error = failure.chain(), "waiting for up to {} s", STARTUP_MAX.as_secs());
                    told = true;
                }
                tokio::time::sleep(STARTUP_RETRY).await;
            }
        }
    }
}

impl Backends {
    /// A loader of coupons for this process.
    pub fn loader(&self) -> Loader {
        Loader::new(Arc::clone(&self.partition), &self.database)
    }

    /// A supervisor that keeps the partition certified, for this process.
    pub fn recovery_supervisor(&self) -> RecoverySupervisor {
        let holder = format!("{}-{}", std::process::id(), crate::ids::random_id());
        RecoverySupervisor::new(Arc::clone(&self.partition), self.database.clone(), self.durability, holder)
    }
}
