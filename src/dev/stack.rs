//! The whole system on one machine: redis-server and mongod as children, API and workers in this
//! process, a demo coupon and users to try it with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures::future::try_join_all;
use jiff::ToSpan;
use tokio_util::sync::CancellationToken;

use super::servers::{
    ClusterOptions, MongoOptions, MongoServer, RedisCluster, RedisOptions, RedisServer, find_all,
};
use crate::access::KeyStore;
use crate::config::{AccessConfig, ApiConfig, ApiLimits, Concurrency, MongoConfig, RedisConfig, shown_url};
use crate::coupon::{Coupon, CouponTimeZone, Discount, Validity};
use crate::failure::SetUpError;
use crate::ids::{CouponId, UserId};
use crate::issuance::ledger::Layout;
use crate::issuance::ledger::migration::{OlderPrograms, migrate};
use crate::process::Backends;
use crate::recovery::{Durability, load_all};
use crate::runtime::{fd_limit, shutdown};
use crate::user::User;
use crate::worker::Worker;
use crate::{Failure, api, process};

/// Between two attempts to have Redis certified.
const CERTIFY_RETRY: Duration = Duration::from_millis(100);

/// The folders of a single Redis, and of clusters.
const REDIS_FOLDER: &str = "redis";
const CLUSTER_FOLDER: &str = "redis-cluster";

/// The options of `couponctl dev`. There are passwords in them, so that no log shows them.
#[derive(Args)]
pub struct StackOptions {
    /// Address on which the API serves HTTP
    #[arg(long, env = "COUPON_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,

    /// URL under which clients reach the API, if that is not the listen address; the API puts its path before every
    /// link
    #[arg(long, env = "COUPON_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,

    /// Seconds from the first signal until the API stops accepting requests
    #[arg(long, env = "COUPON_SHUTDOWN_DELAY", value_name = "SECONDS", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=3_600))]
    shutdown_delay: u32,

    /// Folder in which the two servers keep their data
    #[arg(long, env = "COUPON_DATA_DIR", value_name = "FOLDER", default_value = ".coupon/dev")]
    data_dir: PathBuf,

    /// Delete the data of earlier runs first
    #[arg(long, env = "COUPON_FRESH")]
    fresh: bool,

    /// Use this Redis instead of starting one
    #[arg(long, env = "COUPON_REDIS_URL", value_name = "URL")]
    redis_url: Option<String>,

    /// Redis servers to start, 1 to 16; several form a cluster
    #[arg(long, env = "COUPON_REDIS_NODES", value_name = "NUMBER", default_value_t = 1, conflicts_with = "redis_url",
        value_parser = clap::value_parser!(u8).range(1..=16))]
    redis_nodes: u8,

    /// Use this MongoDB replica set instead of starting one
    #[arg(long, env = "COUPON_MONGODB_URI", value_name = "URI")]
    mongodb_uri: Option<String>,

    /// Name of the ledger's database
    #[arg(long, env = "COUPON_MONGODB_DATABASE", value_name = "NAME", default_value = "coupon")]
    mongodb_database: String,

    /// Workers to run, 0 to 16
    #[arg(long, env = "COUPON_WORKERS", value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=16))]
    workers: u8,

    #[command(flatten)]
    concurrency: Concurrency,

    #[command(flatten)]
    access: AccessConfig,

    #[command(flatten)]
    limits: ApiLimits,
}

/// The servers that were started here; they stop when this is dropped.
#[derive(Default)]
struct StackServers {
    redis: Option<RedisServer>,
    cluster: Option<RedisCluster>,
    mongodb: Option<MongoServer>,
}

/// Runs everything until the first signal.
pub async fn run(mut options: StackOptions) -> anyhow::Result<()> {
    fd_limit::raise_limit();
    let shutdown = shutdown::on_signal()?;
    // Before anything is started, or emptied: a second copy must not disturb the first.
    let listener = process::bind(options.listen, "--listen")?;
    // Of port 0 it is known only now.
    options.listen = process::address(&listener)?;
    let mut servers = StackServers::default();
    let started = tokio::select! {
        started = start(&options, &mut servers) => Some(started),
        () = shutdown.cancelled() => None,
    };
    let ended = match started {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok((backends, access))) => serve(&options, access, listener, backends, shutdown).await,
    };
    // Last: the workers have drained by now.
    for stopped in [
        match &mut servers.redis {
            Some(redis) => redis.stop().await,
            None => Ok(()),
        },
        match &mut servers.cluster {
            Some(cluster) => cluster.stop().await,
            None => Ok(()),
        },
        match &mut servers.mongodb {
            Some(mongodb) => mongodb.stop().await,
            None => Ok(()),
        },
    ] {
        if let Err(error) = stopped {
            tracing::warn!("{error:#}");
        }
    }
    ended
}

async fn start(
    options: &StackOptions,
    servers: &mut StackServers,
) -> anyhow::Result<(Backends, AccessConfig)> {
    let data_dir = &options.data_dir;
    if options.fresh && data_dir.exists() {
        empty(data_dir)?;
    }
    if options.redis_url.is_none() || options.mongodb_uri.is_none() {
        find_all(|line| eprintln!("{line}")).await?;
    }
    let redis_url = match (&options.redis_url, options.redis_nodes) {
        (Some(url), _) => url.clone(),
        (None, 1) => {
            let redis = RedisServer::start(RedisOptions::new(data_dir.join(REDIS_FOLDER))).await?;
            servers.redis.insert(redis).url()
        }
        (None, nodes) => {
            // Of another number of nodes it would be another cluster.
            let folder = data_dir.join(CLUSTER_FOLDER).join(nodes.to_string());
            let cluster = RedisCluster::start(&ClusterOptions::new(folder, nodes.into())).await?;
            servers.cluster.insert(cluster).url()
        }
    };
    let mongodb_uri = match &options.mongodb_uri {
        Some(uri) => uri.clone(),
        None => {
            let mongodb = MongoServer::start(MongoOptions::new(data_dir.join("mongodb"))).await?;
            servers.mongodb.insert(mongodb).url()
        }
    };
    let redis = RedisConfig { redis_url, redis_durability: Durability::Always, redis_acknowledged_by: 0 };
    let mongodb = MongoConfig { mongodb_uri, mongodb_database: options.mongodb_database.clone() };
    let backends = process::connect(&redis, &mongodb).await?;
    if servers.mongodb.is_some() && backends.ledger.layout().await? == Layout::Mixed {
        // An earlier run of an older version left it, and no other process uses it.
        migrate(&backends.database, OlderPrograms::Refuse, |_| {}).await?;
    }
    let access = access(options, &backends).await?;
    // A Redis whose folder was deleted is built anew, once it is certain that no process uses another.
    let certified = backends.recovery_supervisors().map(async |supervisor| {
        while !supervisor.ensure().await? {
            tokio::time::sleep(CERTIFY_RETRY).await;
        }
        Ok::<_, Failure>(())
    });
    try_join_all(certified).await?;
    demo(&backends).await?;
    banner(options, &access, &redis, &mongodb);
    Ok((backends, access))
}

/// Without credentials the API is open; it is reachable from other machines only if the operator says so.
async fn access(options: &StackOptions, backends: &Backends) -> anyhow::Result<AccessConfig> {
    let mut access = options.access.clone();
    let has_credentials =
        access.tokens()?.is_some() || !KeyStore::new(&backends.database).active().await?.is_empty();
    if has_credentials || access.open {
        return Ok(access);
    }
    let others = [Some(options.listen), access.operator_listen];
    if let Some(reached) = others.into_iter().flatten().find(|address| !address.ip().is_loopback()) {
        let why = format!(
            "{reached} is reached from other machines, and `dev` asks nobody for credentials: listen on 127.0.0.1, \
             or say that you mean it with --open (COUPON_OPEN=true)"
        );
        return Err(SetUpError(vec![why]).into());
    }
    access.open = true;
    Ok(access)
}

/// Deletes the data of earlier runs: only what a run of ours has made.
fn empty(data_dir: &Path) -> anyhow::Result<()> {
    for name in [REDIS_FOLDER, CLUSTER_FOLDER, "mongodb"] {
        let folder = data_dir.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
    }
    Ok(())
}

async fn serve(
    options: &StackOptions,
    access: AccessConfig,
    listener: tokio::net::TcpListener,
    backends: Backends,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let public_url = options.public_url.clone();
    let config = ApiConfig {
        listen: options.listen,
        public_url,
        shutdown_delay: options.shutdown_delay,
        access,
        limits: options.limits.clone(),
    };
    let workers = (0..options.workers).map(|_| {
        let (backends, concurrency, shutdown) = (backends.clone(), options.concurrency, shutdown.clone());
        tokio::spawn(async move { Worker::run_all(&backends, concurrency, shutdown).await })
    });
    let workers: Vec<_> = workers.collect();
    let served = api::run(listener, backends, &config, shutdown).await;
    for worker in workers {
        worker.await.context("a worker panicked")?;
    }
    served
}

/// Makes the demo coupon and users, unless an earlier run did.
async fn demo(backends: &Backends) -> anyhow::Result<()> {
    let now = crate::mongo::now_in_milliseconds();
    let id = demo_coupon()?;
    let coupon = Coupon {
        name: "여름 할인 · Summer".into(),
        total: 100,
        per_user: 1,
        starts_at: now,
        ends_at: now + (24 * 365).hours(),
        discount: Some(Discount::Fixed {
            amount: 5_000,
            currency: "KRW".parse().map_err(anyhow::Error::msg)?,
        }),
        min_order_amount: Some(20_000),
        validity: Validity::For("P30D".parse().map_err(anyhow::Error::msg)?),
        time_zone: CouponTimeZone::UTC,
        paused: false,
        archived: false,
        generation: 1,
        created_at: now,
        shares: backends.partitions.place(&id, 1).context("there is a partition")?,
        id,
    };
    backends.coupons.insert(&coupon).await?;
    load_all(&backends.loaders(), &coupon).await?;
    let users: Vec<_> = (1..=10)
        .map(|number| {
            let id: UserId = format!("u{number}").parse()?;
            Ok(User { name: id.to_string(), id, created_at: now })
        })
        .collect::<Result<_, String>>()
        .map_err(anyhow::Error::msg)?;
    backends.users.insert(&users).await?;
    Ok(())
}

fn demo_coupon() -> anyhow::Result<CouponId> {
    "summer".parse().map_err(anyhow::Error::msg)
}

fn banner(options: &StackOptions, access: &AccessConfig, redis: &RedisConfig, mongodb: &MongoConfig) {
    let url = format!("http://{}", options.listen);
    let data = match (&options.redis_url, &options.mongodb_uri) {
        (Some(_), Some(_)) => "in the servers given".to_owned(),
        _ => format!("{} (kept; --fresh empties it)", options.data_dir.display()),
    };
    let (who, token) = match access.open {
        true if options.listen.ip().is_loopback() => (
            "open to everyone on this machine, until a first API key is made: no credentials are asked for",
            "",
        ),
        true => (
            "OPEN TO EVERYONE who reaches it, until a first API key is made: no credentials are asked for",
            "",
        ),
        false => (
            "for who has an API key (`couponctl key create` on this MongoDB) or a user's token",
            "-H \"authorization: Bearer $COUPON_TOKEN\" ",
        ),
    };
    println!(
        "
  Coupon System is ready. Ctrl-C stops it.

  Try it     {url}/
  Swagger    {url}/docs/
  API        {url}
  Redis      {}
  MongoDB    {}
  Data       {data}
  Access     {who}

  Request the coupon \"summer\" for the user \"u1\", ask what became of it, and try again:

  curl -si {url}/user-coupons {token}-H 'content-type: application/json' -d '{{\"userId\":\"u1\",\"couponId\":\"summer\"}}'
  curl -s {token}{url}/user-coupons/u1
  curl -si {url}/user-coupons {token}-H 'content-type: application/json' -d '{{\"userId\":\"u1\",\"couponId\":\"summer\"}}'
",
        shown_url(&redis.redis_url),
        shown_url(&mongodb.mongodb_uri),
    );
}
