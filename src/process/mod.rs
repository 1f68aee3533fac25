//! What every process does before its work: connect, and assert that Redis and MongoDB are as the
//! promise needs them. What is wrong is told with what to do, and the process does not start.

pub mod gauges;
pub mod health;
pub(crate) mod metrics_route;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mongo::Database;
use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::{MongoConfig, RedisConfig};
use crate::coupon::CouponStore;
use crate::failure::{Fault, SetUpError};
use crate::ids::PartitionId;
use crate::issuance::Ledger;
use crate::issuance::ledger::indexes;
use crate::recovery::{Durability, Fence, IdSecrets, Lease, Loader, RecoverySupervisor};
use crate::redis::Partition;
use crate::user::{IdSecret, UserStore};
use crate::{Failure, mongo, recovery};

/// Servers that are only starting are waited for this long.
const STARTUP_MAX: Duration = Duration::from_secs(30);
/// Connections that are made and not yet accepted. The system keeps fewer if it is not allowed more
/// (Linux: net.core.somaxconn), and what comes beyond that is tried again by the client's system only
/// after a second.
const CONNECTS_WAITING_MAX: u32 = 65_535;
const STARTUP_RETRY: Duration = Duration::from_millis(250);

/// Redis and MongoDB, checked and ready to be used. Cheap to clone.
#[derive(Clone)]
pub struct Backends {
    pub partition: Arc<Partition>,
    pub database: Database,
    pub ledger: Ledger,
    pub coupons: CouponStore,
    pub users: UserStore,
    /// What keyed issuances of users without a document are named with.
    pub id_secret: Option<IdSecret>,
    pub durability: Durability,
}

/// Connects, without asserting anything yet.
pub async fn open(redis: &RedisConfig, mongodb: &MongoConfig) -> Result<Backends, SetUpError> {
    // Nothing of it is repeated: it may have a password in it.
    let partition = Partition::new(PartitionId::ONE, &redis.redis_url).map_err(|_| {
        SetUpError(vec![
            "--redis-url is no Redis URL, such as redis://USER:PASSWORD@HOST:6379/0; in user and password, characters \
             such as @ : / % must be percent-encoded"
                .into(),
        ])
    })?;
    let database = mongo::connect(&mongodb.mongodb_uri, &mongodb.mongodb_database)
        .await
        .map_err(|why| SetUpError(vec![format!("--mongodb-uri: {why}")]))?;
    partition.fence_by(Fence::new(&database, partition.id()));
    Ok(Backends {
        partition: Arc::new(partition),
        ledger: Ledger::new(&database),
        coupons: CouponStore::new(&database),
        users: UserStore::new(&database),
        id_secret: None,
        database,
        durability: redis.redis_durability,
    })
}

/// Connects, waits for servers that are starting, and asserts settings and indexes, and that the two
/// belong together.
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
    let secrets = patiently("MongoDB does not tell what ids are made with", async || {
        IdSecrets::read(&backends.database, backends.partition.id()).await
    })
    .await?;
    backends.id_secret = secrets.of_ledger;
    backends.users = backends.users.giving_secrets(secrets.of_users);
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
    /// The one way to load coupons, for this process.
    pub fn loader(&self) -> Loader {
        Loader::new(Arc::clone(&self.partition), &self.database)
    }

    /// The task that keeps the partition certified, for this process.
    pub fn recovery_supervisor(&self) -> RecoverySupervisor {
        let holder = format!("{}-{}", std::process::id(), crate::ids::random_id());
        RecoverySupervisor::new(Arc::clone(&self.partition), self.database.clone(), self.durability, holder)
    }
}

/// Binds a listener, or says what to do.
pub fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, SetUpError> {
    listen(address).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program serves there (a second copy?); stop it",
            std::io::ErrorKind::PermissionDenied => "it needs more rights",
            _ => "it is no address of this machine",
        };
        SetUpError(vec![format!(
            "cannot listen on {address}: {advice}, or give another with {flag} ({error})"
        )])
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(CONNECTS_WAITING_MAX)
}

/// Turns a process's end into its exit code: 0 ok, 1 failed, 2 usage, 3 threshold, 4 invariant,
/// 5 set-up.
pub fn exit(ended: anyhow::Result<()>) -> ExitCode {
    const FAILED: u8 = 1;
    const USAGE: u8 = 2;
    const THRESHOLD: u8 = 3;
    const INVARIANT: u8 = 4;
    const SET_UP: u8 = 5;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What only shows itself to be wrong usage once the work has begun.
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                eprint!("{usage}");
                return ExitCode::from(USAGE);
            }
            eprintln!("error: {error:#}");
            ExitCode::from(match error.downcast_ref::<Fault>() {
                Some(Fault::Threshold(_)) => THRESHOLD,
                Some(Fault::Invariant(_)) => INVARIANT,
                None if error.is::<SetUpError>() => SET_UP,
                None => FAILED,
            })
        }
    }
}

/// The address that a listener is bound to.
pub fn address(listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    listener.local_addr().context("the listener has no address")
}
