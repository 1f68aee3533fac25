//! What one measurement runs on: a redis-server (or a cluster of some) and a mongod of its own, empty and certified, and
//! the system's programs on them. No environment inherits the caches, files and checkpoints of the one before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use futures::future::try_join_all;
use jiff::SignedDuration;
use mongodb::bson::doc;
use redis::InfoDict;

use super::context::BenchContext;
use super::program::{ChildProgram, sibling};
use crate::config::{MongoConfig, RedisConfig};
use crate::coupon::{Coupon, Stock, stock};
use crate::dev::servers::{
    ClusterOptions, MongoServer, Persistence, RedisCluster, RedisOptions, RedisServer,
};
use crate::ids::{CouponId, PartitionId, Shares, UserId};
use crate::process::Backends;
use crate::recovery::{Durability, load_all};
use crate::rush::api::ServiceClient;
use crate::rush::connection::RawConnection;
use crate::rush::target::LoadTarget;
use crate::user::User;
use crate::{mongo, process};

/// Every environment has a mongod of its own.
const DATABASE: &str = "bench";
const REGISTERED_AGO: SignedDuration = SignedDuration::from_hours(1);
/// Users in one insert.
const REGISTER_BATCH: usize = 10_000;
/// A drain that moves nothing for this long has failed.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Memory is at rest when two samples at this distance are nearly the same.
const REST_SAMPLE_INTERVAL: Duration = Duration::from_millis(200);
const REST_SAMPLES_MAX: usize = 20;
const REST_BYTES: u64 = 16 * 1_024;
const READY_MAX: Duration = Duration::from_secs(30);

/// Redis and a mongod, connections to both, and what starts the programs on them.
pub(super) struct BenchEnv {
    /// One, or the primaries of a cluster.
    redis: Vec<RedisServer>,
    mongodb: MongoServer,
    pub backends: Backends,
    redis_config: RedisConfig,
    mongodb_config: MongoConfig,
    folder: PathBuf,
}

/// The name of the user with this number.
pub(super) fn user(number: u32) -> String {
    format!("{USER_PREFIX}{number}")
}

/// What users' names begin with.
pub(super) const USER_PREFIX: &str = "user-";

impl BenchEnv {
    /// Starts empty servers, and certifies the Redis.
    pub async fn make(context: &BenchContext<'_>, persistence: Persistence) -> anyhow::Result<Self> {
        let folder = context.next_folder();
        let redis = RedisOptions { persistence, ..RedisOptions::new(folder.join("redis")) };
        let redis = RedisServer::start(redis).await?;
        let redis_durability = match persistence {
            Persistence::FsyncAlways => Durability::Always,
            _ => Durability::None,
        };
        let redis_config = RedisConfig { redis_url: redis.url(), redis_durability, redis_acknowledged_by: 0 };
        Self::on(context, folder, vec![redis], redis_config).await
    }

    /// The same on a Redis Cluster of so many primaries, each with fsync-always, and all of its partitions certified.
    pub async fn make_cluster(context: &BenchContext<'_>, primaries: usize) -> anyhow::Result<Self> {
        let folder = context.next_folder();
        let cluster = RedisCluster::start(&ClusterOptions::new(folder.join("redis"), primaries)).await?;
        let redis_config = RedisConfig {
            redis_url: cluster.url(),
            redis_durability: Durability::Always,
            redis_acknowledged_by: 0,
        };
        Self::on(context, folder, cluster.nodes, redis_config).await
    }

    async fn on(
        context: &BenchContext<'_>,
        folder: PathBuf,
        redis: Vec<RedisServer>,
        redis_config: RedisConfig,
    ) -> anyhow::Result<Self> {
        let mongodb = MongoServer::start(context.mongod(folder.join("mongodb"))).await?;
        let mongodb_config = MongoConfig { mongodb_uri: mongodb.url(), mongodb_database: DATABASE.into() };
        let backends = process::connect(&redis_config, &mongodb_config).await?;
        let supervisors: Vec<_> = backends.recovery_supervisors().collect();
        let certified = try_join_all(supervisors.iter().map(|supervisor| supervisor.ensure())).await?;
        ensure!(certified.into_iter().all(|is_open| is_open), "an empty Redis could not be certified");
        Ok(BenchEnv { redis, mongodb, backends, redis_config, mongodb_config, folder })
    }

    /// Takes it down, with its data.
    pub async fn close(mut self) -> anyhow::Result<()> {
        mongo::close(&self.backends.database).await;
        try_join_all(self.redis.iter_mut().map(RedisServer::kill)).await?;
        self.mongodb.kill().await?;
        std::fs::remove_dir_all(&self.folder).context("cannot delete a folder of the bench")
    }

    /// Makes a coupon that is open, in partition 0, and loads it.
    pub async fn coupon(&self, total: u32) -> anyhow::Result<CouponId> {
        self.coupon_over(Shares::one(PartitionId::ONE), total).await
    }

    /// The same, with a share in each of these partitions.
    pub async fn coupon_over(&self, shares: Shares, total: u32) -> anyhow::Result<CouponId> {
        let now = crate::mongo::now_in_milliseconds();
        let id: CouponId =
            format!("bench-{}", crate::ids::random_id()).parse().map_err(anyhow::Error::msg)?;
        let (opened, ends_at) = (now - SignedDuration::from_secs(1), now + SignedDuration::from_hours(24));
        let coupon = Coupon { shares, ..Coupon::new(id.clone(), total, opened, ends_at) };
        self.backends.coupons.insert(&coupon).await?;
        load_all(&self.backends.loaders(), &coupon).await?;
        Ok(id)
    }

    /// Registers the users with the numbers 0 to `count`: long ago, so that an API reads them ahead when it
    /// starts, and never again.
    pub async fn register(&self, count: u32) -> anyhow::Result<()> {
        let created_at = crate::mongo::now_in_milliseconds() - REGISTERED_AGO;
        let users: Vec<User> = (0..count)
            .map(|number| {
                let id: UserId = user(number).parse()?;
                Ok(User { name: id.to_string(), id, created_at })
            })
            .collect::<Result<_, String>>()
            .map_err(anyhow::Error::msg)?;
        for users in users.chunks(REGISTER_BATCH) {
            self.backends.users.insert(users).await?;
        }
        Ok(())
    }

    /// Its folder, with the data of the servers.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Of the redis-server.
    pub fn redis_pid(&self) -> anyhow::Result<u32> {
        self.redis.first().and_then(RedisServer::pid).context("redis-server has ended")
    }

    /// Of mongod.
    pub fn mongodb_pid(&self) -> anyhow::Result<u32> {
        self.mongodb.pid().context("mongod has ended")
    }

    fn backing(&self) -> Vec<&str> {
        let durability = match self.redis_config.redis_durability {
            Durability::Always => "always",
            Durability::Everysec => "everysec",
            Durability::None => "none",
        };
        let MongoConfig { mongodb_uri, mongodb_database } = &self.mongodb_config;
        vec![
            "--redis-url",
            &self.redis_config.redis_url,
            "--redis-durability",
            durability,
            "--mongodb-uri",
            mongodb_uri,
            "--mongodb-database",
            mongodb_database,
            "--log-format",
            "json",
        ]
    }

    /// Starts an API process, with the settings of production, and waits until it is ready.
    pub async fn api(&self) -> anyhow::Result<ChildProgram> {
        self.api_with(&["--open"]).await
    }

    /// The same, for the users 0 to `count`, whom it has read ahead: as those of a campaign when it opens.
    pub async fn api_with_users(&self, count: u32) -> anyhow::Result<ChildProgram> {
        self.api_with_users_and(count, &[]).await
    }

    /// The same with more flags.
    pub async fn api_with_users_and(&self, count: u32, flags: &[&str]) -> anyhow::Result<ChildProgram> {
        self.register(count).await?;
        let api = self.api_with(&[&["--open"], flags].concat()).await?;
        remembers(&api, count).await?;
        Ok(api)
    }

    /// The same as [`BenchEnv::api`] with more flags, which say whom it lets in.
    pub async fn api_with(&self, flags: &[&str]) -> anyhow::Result<ChildProgram> {
        let mut arguments = self.backing();
        arguments.extend(["--listen", "127.0.0.1:0"]);
        arguments.extend(flags);
        let program = ChildProgram::start(&sibling("coupon-api")?, &arguments).await?;
        ready(&program).await?;
        Ok(program)
    }

    /// Starts a worker process, with the settings of production. It drains at once.
    pub async fn worker(&self) -> anyhow::Result<ChildProgram> {
        let mut arguments = self.backing();
        arguments.extend(["--metrics-listen", "127.0.0.1:0"]);
        ChildProgram::start(&sibling("coupon-worker")?, &arguments).await
    }

    /// The coupon's stock now.
    pub async fn stock(&self, coupon: &CouponId) -> anyhow::Result<Stock> {
        let (_, stocks) = stock::read(self.backends.partitions.first(), std::slice::from_ref(coupon)).await?;
        stocks.into_iter().next().transpose()?.flatten().context("the coupon is not loaded")
    }

    /// Waits until `issued` units are issued and none is reserved. Returns how many were issued when the first were
    /// seen, and the time from then on.
    pub async fn drained(&self, coupon: &CouponId, issued: u32) -> anyhow::Result<(u32, Duration)> {
        let mut first = None;
        let mut last = (0, Instant::now());
        loop {
            let stock = self.stock(coupon).await?;
            if stock.issued > 0 && first.is_none() {
                first = Some((stock.issued, Instant::now()));
            }
            if stock.issued >= issued && stock.reserved == 0 {
                let (seen, at) = first.unwrap_or((issued, Instant::now()));
                return Ok((seen, at.elapsed()));
            }
            if stock.issued != last.0 {
                last = (stock.issued, Instant::now());
            }
            if last.1.elapsed() > STANDSTILL_MAX {
                bail!("the drain stands still: {stock:?}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Starts a worker, lets it drain, and ends it. MongoDB has then written to its files what it will have
    /// to: nothing of it is left to be done beside what is measured next.
    pub async fn drain(&self, coupon: &CouponId, issued: u32) -> anyhow::Result<()> {
        let worker = self.worker().await?;
        self.drained(coupon, issued).await?;
        worker.stop().await?;
        let admin = self.backends.database.client().database("admin");
        mongo::run("write a checkpoint", async move { admin.run_command(doc! {"fsync": 1}).await }).await?;
        Ok(())
    }

    /// What each redis-server tells of itself.
    async fn info(&self, section: &str) -> anyhow::Result<Vec<InfoDict>> {
        let asked = self.backends.nodes.primaries();
        let command = redis::cmd("INFO").arg(section).take();
        try_join_all(asked.iter().map(|primary| primary.ask(&command)))
            .await
            .context("Redis tells nothing of itself")
    }

    /// The processor time, in microseconds, of Redis's main thread, which runs all scripts; of a cluster that of all
    /// nodes together.
    pub async fn redis_cpu_us(&self) -> anyhow::Result<f64> {
        let of = |info: &InfoDict| {
            let seconds = |name: &str| info.get::<f64>(name);
            let main = seconds("used_cpu_user_main_thread").zip(seconds("used_cpu_sys_main_thread"));
            main.or_else(|| seconds("used_cpu_user").zip(seconds("used_cpu_sys")))
        };
        let times: Option<Vec<_>> = self.info("cpu").await?.iter().map(of).collect();
        let times = times.context("Redis does not tell its processor time")?;
        Ok(times.into_iter().map(|(user, system)| (user + system) * 1e6).sum())
    }

    /// The memory, in bytes, that Redis uses when it has come to rest.
    pub async fn redis_bytes(&self) -> anyhow::Result<u64> {
        let mut last = 0;
        for _ in 0..REST_SAMPLES_MAX {
            let used = self.info("memory").await?.iter().map(|info| info.get::<u64>("used_memory")).sum();
            let used: u64 = Option::context(used, "Redis tells no used_memory")?;
            if used.abs_diff(last) <= REST_BYTES {
                break;
            }
            last = used;
            tokio::time::sleep(REST_SAMPLE_INTERVAL).await;
        }
        Ok(last)
    }
}

/// Waits until an API remembers `users` users.
async fn remembers(program: &ChildProgram, users: u32) -> anyhow::Result<()> {
    let target = Arc::new(LoadTarget::new(&program.url()).map_err(anyhow::Error::msg)?);
    let mut request = Vec::new();
    target.write("GET", "/metrics", "", b"", &mut request);
    let mut connection = RawConnection::new(target);
    let started = Instant::now();
    loop {
        let answer = connection.exchange(&request, READY_MAX).await.map_err(|fault| anyhow!("{fault}"))?;
        let remembered = std::str::from_utf8(answer.body)?
            .lines()
            .find_map(|line| line.strip_prefix("coupon_cache_entries{cache=\"users\"} "))
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        if remembered >= users {
            return Ok(());
        }
        ensure!(started.elapsed() < READY_MAX, "{remembered} of {users} users are remembered");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits until `GET /readyz` of a program answers 200.
async fn ready(program: &ChildProgram) -> anyhow::Result<()> {
    let target = LoadTarget::new(&program.url()).map_err(anyhow::Error::msg)?;
    let mut api = ServiceClient::new(Arc::new(target));
    let started = Instant::now();
    loop {
        match api.try_get("/readyz", READY_MAX).await {
            Ok((200, _)) => return Ok(()),
            answer if started.elapsed() > READY_MAX => {
                bail!("{} is not ready: {answer:?}", program.url());
            }
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
