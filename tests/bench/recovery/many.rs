//! How long recovery takes with many partitions on a Redis Cluster: all of them after all nodes were restarted with their
//! data, all of them after all nodes lost it, and one of them while the others serve.
//!
//! Each of 64 partitions has a coupon, a share of the records, and 500 requests in flight. What is timed ends with the
//! first accepted reservation of each partition.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use coupon_system::config::{MongoConfig, RedisConfig};
use coupon_system::coupon::Coupon;
use coupon_system::dev::servers::{ClusterOptions, MongoOptions, MongoServer, RedisCluster, RedisServer};
use coupon_system::ids::IssuanceId;
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use coupon_system::process::{self, Backends};
use coupon_system::recovery::Durability;
use coupon_system::redis::{Partition, keys};
use futures::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use super::{coupon, fill, peak_megabytes};

/// Partitions of a deployment that first runs on a cluster, beside partition 0, which nothing lies on.
const PARTITIONS: u32 = 64;
/// Requests in flight in each partition, in calls of so many.
const IN_FLIGHT: u32 = 500;
const CALL: u32 = 100;
/// Units of each coupon that nobody holds.
const FREE: u32 = 100_000;
const BACKLOG_MAX: u64 = 1 << 40;
/// How long the reservations of the quiet time are timed, and how long one partition stays closed at least.
const TIMED: Duration = Duration::from_secs(5);
const RECOVERED_WAIT_MAX: Duration = Duration::from_secs(120);
/// The pause between two tries, and between two timed reservations of a partition.
const PAUSE: Duration = Duration::from_millis(20);

pub async fn measure(records: u32) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mongodb = MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await?;
    let mut cluster = RedisCluster::start(&ClusterOptions::new(folder.path().join("redis"), 3)).await?;
    let redis = RedisConfig {
        redis_url: cluster.url(),
        redis_durability: Durability::Always,
        redis_acknowledged_by: 0,
    };
    let mongo = MongoConfig { mongodb_uri: mongodb.url(), mongodb_database: "bench".into() };
    let started = Instant::now();
    let backends = process::connect(&redis, &mongo).await?;
    let stop = CancellationToken::new();
    let supervisors =
        backends.recovery_supervisors().map(|supervisor| tokio::spawn(supervisor.run(stop.clone())));
    let supervisors: Vec<_> = supervisors.collect();
    let coupons = coupons(&backends, records / PARTITIONS).await?;
    let all: Vec<_> =
        backends.partitions.iter().skip(1).zip(&coupons).map(|(p, c)| (p.as_ref(), c)).collect();
    ensure!(all.len() == PARTITIONS as usize, "there are {} partitions", all.len());
    fill_all(&backends, &coupons, records / PARTITIONS).await?;
    serving(&backends, &all).await?;
    println!(
        "{} records, {PARTITIONS} partitions: made in {:.1} s",
        records,
        started.elapsed().as_secs_f64()
    );
    try_join_all(all.iter().map(|(partition, coupon)| queue(partition, coupon))).await?;

    let (before, began) = (peak_megabytes(), Instant::now());
    try_join_all(cluster.nodes.iter_mut().map(restart)).await?;
    let restarted = began.elapsed();
    serving(&backends, &all).await?;
    println!(
        "all nodes killed and restarted: {:.2} s until every partition serves, of which the nodes took {:.2} s; peak \
         memory {} MB, {before} MB before it",
        began.elapsed().as_secs_f64(),
        restarted.as_secs_f64(),
        peak_megabytes()
    );

    let began = Instant::now();
    try_join_all(cluster.nodes.iter().map(flush)).await?;
    serving(&backends, &all).await?;
    println!(
        "all nodes flushed: {:.2} s until every partition serves; peak memory {} MB",
        began.elapsed().as_secs_f64(),
        peak_megabytes()
    );

    one_of_many(&backends, &all).await?;
    stop.cancel();
    join_all(supervisors).await;
    cluster.stop().await
}

/// Has one partition recovered while reservations of all others are timed.
async fn one_of_many(backends: &Backends, all: &[(&Partition, &Coupon)]) -> anyhow::Result<()> {
    let Some(((partition, coupon), others)) = all.split_first() else { bail!("there is no partition") };
    let quiet = p99_ms(others, tokio::time::sleep(TIMED)).await?;
    let began = Instant::now();
    let recovery = async {
        let mut connection = partition.connection();
        let deleted: Result<(), _> =
            redis::cmd("DEL").arg(keys::certificate(partition.id())).query_async(&mut connection).await;
        let served = serving(backends, &[(*partition, *coupon)]).await;
        let took = began.elapsed();
        tokio::time::sleep(TIMED.saturating_sub(took)).await;
        (deleted, served, took)
    };
    let mut outcome = None;
    let p99 = p99_ms(others, async { outcome = Some(recovery.await) }).await?;
    let Some((deleted, served, took)) = outcome else { bail!("the recovery was broken off") };
    deleted?;
    served?;
    println!(
        "one partition of {PARTITIONS} lost its certificate: {:.2} s until it serves again; reservations of the others, \
         99th percentile: {p99:.1} ms, {quiet:.1} ms before",
        took.as_secs_f64()
    );
    Ok(())
}

/// A coupon in each partition, made but not loaded.
async fn coupons(backends: &Backends, records: u32) -> anyhow::Result<Vec<Coupon>> {
    let mut coupons = Vec::new();
    for partition in backends.partitions.iter().skip(1) {
        let id = format!("bench-{}", partition.id());
        let coupon = coupon(&id, partition.id(), records + FREE)?;
        backends.coupons.insert(&coupon).await?;
        coupons.push(coupon);
    }
    Ok(coupons)
}

async fn fill_all(backends: &Backends, coupons: &[Coupon], records: u32) -> anyhow::Result<()> {
    for coupon in coupons {
        fill(backends, coupon, 1..=records).await?;
    }
    Ok(())
}

async fn restart(node: &mut RedisServer) -> anyhow::Result<()> {
    node.kill().await?;
    node.restart().await
}

async fn flush(node: &RedisServer) -> anyhow::Result<()> {
    let client = redis::Client::open(node.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("FLUSHALL").query_async(&mut connection).await?)
}

/// Reserves units of a coupon for users who have none.
async fn attempt(partition: &Partition, coupon: &Coupon, count: u32) -> anyhow::Result<Vec<Reserved>> {
    let requests = (0..count).map(|_| {
        let id = IssuanceId::generate(partition.id());
        let user = format!("user-{id}").parse().map_err(anyhow::Error::msg)?;
        Ok(Request { id, coupon: coupon.id.clone(), user, key: None, trace: None })
    });
    let requests: Vec<_> = requests.collect::<anyhow::Result<_>>()?;
    Ok(reserve(partition, &requests, BACKLOG_MAX, QueueEntries::OfMany).await?)
}

async fn queue(partition: &Partition, coupon: &Coupon) -> anyhow::Result<()> {
    for _ in 0..IN_FLIGHT / CALL {
        let answers = attempt(partition, coupon, CALL).await?;
        ensure!(answers.iter().all(|answer| matches!(answer, Reserved::Accepted(_))), "{answers:?}");
    }
    Ok(())
}

/// Waits until each of these partitions accepts a reservation. Coupons are loaded when they are missing, as an API does.
async fn serving(backends: &Backends, all: &[(&Partition, &Coupon)]) -> anyhow::Result<()> {
    let loaders = backends.loaders();
    let waited = all.iter().map(async |(partition, coupon)| {
        loop {
            match attempt(partition, coupon, 1).await {
                Ok(answers) if matches!(answers[..], [Reserved::Accepted(_)]) => return anyhow::Ok(()),
                Ok(_) => drop(loaders.get(partition.id())?.load(&coupon.id).await),
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    tokio::time::timeout(RECOVERED_WAIT_MAX, try_join_all(waited)).await??;
    Ok(())
}

/// Times reservations of these partitions, one after another in each, until `until`. Returns the 99th percentile, in
/// milliseconds; a reservation that fails is an error.
async fn p99_ms(all: &[(&Partition, &Coupon)], until: impl Future<Output = ()>) -> anyhow::Result<f64> {
    let over = CancellationToken::new();
    let timed = all.iter().map(async |(partition, coupon)| {
        let mut times = Vec::new();
        while !over.is_cancelled() {
            let began = Instant::now();
            let answers = attempt(partition, coupon, 1).await?;
            ensure!(matches!(answers[..], [Reserved::Accepted(_)]), "{answers:?}");
            times.push(began.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(times)
    });
    let timed = try_join_all(timed);
    let (times, ()) = tokio::join!(timed, async {
        until.await;
        over.cancel();
    });
    let mut times = times?.concat();
    times.sort_unstable();
    let place = (times.len() * 99 / 100).min(times.len().saturating_sub(1));
    Ok(times.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3))
}
