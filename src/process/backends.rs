//! Connecting to Redis and MongoDB, and asserting that both are as the promise needs them. An error says what is wrong
//! and what to do, and the process does not start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{MongoConfig, RedisConfig};
use crate::coupon::CouponStore;
use crate::failure::SetUpError;
use crate::issuance::Ledger;
use crate::issuance::ledger::{Layout, indexes};
use crate::mongo::Database;
use crate::recovery::{Deployment, Durability, Fences, Lease, Loader, RecoverySupervisor};
use crate::redis::{Partition, Partitions, PerPartition, RedisNodes};
use crate::user::UserStore;
use crate::{Failure, mongo, recovery};

/// How long a process waits for servers that are starting.
const STARTUP_MAX: Duration = Duration::from_secs(30);
const STARTUP_RETRY: Duration = Duration::from_millis(250);
/// The partitions that coupons are spread over when a deployment first runs on a cluster: so many that each node has
/// about as many as another, and few enough that a process looks after all of them.
const CLUSTER_PARTITIONS: u16 = 64;

/// Redis and MongoDB, checked and ready to be used. Cheap to clone.
#[derive(Clone)]
pub struct Backends {
    pub nodes: Arc<RedisNodes>,
    pub partitions: Partitions,
    pub database: Database,
    pub ledger: Ledger,
    pub coupons: CouponStore,
    pub users: UserStore,
    /// What this deployment's processes may do; of a connection that was not checked, what the oldest may.
    pub deployment: Deployment,
    pub durability: Durability,
    fences: Fences,
}

/// Opens partition 0 and this many others. They connect with their first calls.
fn partitions(nodes: &Arc<RedisNodes>, fences: &Fences, others: u16) -> Partitions {
    Partitions::new(others, |id| {
        let partition = Partition::new(id, nodes);
        partition.fence_by(fences.of(id));
        partition
    })
}

/// Connects, without asserting anything yet; of the partitions to partition 0 only ([`Backends::spread`]).
///
/// # Errors
///
/// If one of the URLs is none.
pub async fn open(redis: &RedisConfig, mongodb: &MongoConfig) -> Result<Backends, SetUpError> {
    let nodes = RedisNodes::open(&redis.redis_url)?;
    nodes.acknowledge_by(redis.redis_acknowledged_by);
    let database = mongodb.connect().await?;
    let fences = Fences::start(&database);
    Ok(Backends {
        partitions: partitions(&nodes, &fences, 0),
        fences,
        nodes,
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
    let mut backends = connect_to_any(redis, mongodb).await?;
    let other = patiently("Redis or MongoDB does not answer", async || wrong_ledger(&backends).await).await?;
    if let Some(wrong) = other {
        return Err(SetUpError(vec![wrong]));
    }
    // Where there is one Redis, more partitions would only make its calls smaller. Only now is it certain that the two
    // belong together: a deployment never shrinks.
    if backends.nodes.is_cluster() && backends.deployment.partitions == 0 {
        let ledger = patiently("MongoDB does not take the number of partitions", async || {
            Deployment::grow(&backends.database, CLUSTER_PARTITIONS).await?;
            Lease::ledger(&backends.database).await
        });
        let ledger = ledger.await?;
        backends.deployment.partitions = CLUSTER_PARTITIONS;
        backends.open_partitions(&ledger);
    }
    Ok(backends)
}

/// A sentence for the operator if the data of a partition belongs to another ledger. Partitions that do not answer are
/// left out as long as one does: they are asked again before anything of theirs is used.
async fn wrong_ledger(backends: &Backends) -> Result<Option<String>, Failure> {
    let asked = backends.partitions.ask_any("read whose data this is", |partition| async move {
        recovery::wrong_ledger(&partition, &backends.database).await
    });
    let (answers, _) = asked.await?;
    Ok(answers.into_iter().flatten().next())
}

/// The same, but the data in Redis may belong to another database.
///
/// # Errors
///
/// Those of [`connect`].
pub async fn connect_to_any(redis: &RedisConfig, mongodb: &MongoConfig) -> Result<Backends, SetUpError> {
    let mut backends = open(redis, mongodb).await?;
    let no_redis = "Redis does not answer; start it, or point --redis-url at it";
    patiently(no_redis, async || backends.nodes.discover().await).await?;
    let findings = patiently(no_redis, async || {
        recovery::check_all_settings(&backends.nodes, backends.durability).await
    })
    .await?;
    for note in findings.notes {
        tracing::warn!("{note}");
    }
    let advice = "MongoDB does not answer as a writable replica set; start it (mongod --replSet rs0, then \
                  rs.initiate()), or point --mongodb-uri at it";
    let ledger = patiently(advice, async || Lease::ledger(&backends.database).await).await?;
    let unfit = patiently(advice, async || mongo::unfit_mongos(&backends.database).await).await?;
    let missing = patiently(advice, async || {
        let layout = backends.ledger.layout().await?;
        if layout == Layout::Mixed {
            tracing::info!(
                "an older version may have written to the ledger; once none of its processes runs, finish the upgrade \
                 with `couponctl ledger migrate`"
            );
        }
        indexes::ensure(&backends.database, layout).await
    })
    .await?;
    backends.deployment = patiently("MongoDB does not tell what this deployment may do", async || {
        Deployment::read(&backends.database).await
    })
    .await?;
    backends.open_partitions(&ledger);
    backends.users = backends.users.giving_secrets(backends.deployment.users_have_id_secrets);
    let wrong: Vec<_> = findings.wrong.into_iter().chain(unfit).chain(missing).collect();
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
    /// Opens the partitions that are known of the deployment, for a process that decides in this ledger.
    fn open_partitions(&mut self, ledger: &str) {
        self.partitions = partitions(&self.nodes, &self.fences, self.deployment.partitions);
        self.partitions.iter().for_each(|partition| partition.belongs_to(ledger));
    }

    /// Opens the partitions that the deployment has beside partition 0.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn spread(&mut self) -> Result<(), Failure> {
        self.deployment = Deployment::read(&self.database).await?;
        self.partitions = partitions(&self.nodes, &self.fences, self.deployment.partitions);
        Ok(())
    }

    /// Loaders of coupons for this process.
    pub fn loaders(&self) -> PerPartition<Loader> {
        self.partitions.each(|partition| Loader::new(Arc::clone(partition), &self.database))
    }

    /// A supervisor for each partition that keeps it certified, for this process.
    pub fn recovery_supervisors(&self) -> impl Iterator<Item = RecoverySupervisor> {
        let holder = format!("{}-{}", std::process::id(), crate::ids::random_id());
        self.partitions.iter().map(move |partition| {
            let (database, holder) = (self.database.clone(), holder.clone());
            let partition = Arc::clone(partition);
            RecoverySupervisor::sharing(&self.fences, partition, database, self.durability, holder)
        })
    }
}
