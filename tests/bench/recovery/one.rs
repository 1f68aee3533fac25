//! How long recovery takes with one large coupon on one Redis.
//!
//! The ledger is filled with issued records. Then it times a rebuild, the loading of the coupon, an audit, and two
//! restarts of redis-server after `kill -9` with intact data (before and after Redis has compacted its append-only
//! file), each until the first accepted call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coupon_system::audit::{Auditor, SettleMode};
use coupon_system::config::{MongoConfig, RedisConfig};
use coupon_system::coupon::{Coupon, stock};
use coupon_system::dev::servers::{MongoOptions, MongoServer, RedisOptions, RedisServer};
use coupon_system::ids::PartitionId;
use coupon_system::process;
use coupon_system::process::Backends;
use coupon_system::recovery::{Durability, ProgressCallback, RecoveryMode, RecoveryStep};
use tokio_util::sync::CancellationToken;

use super::{coupon, fill, peak_megabytes};

/// The pause between two checks whether Redis accepts calls again.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub async fn measure(records: u32) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mongodb = MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await?;
    let mut redis = RedisServer::start(RedisOptions::new(folder.path().join("redis"))).await?;
    let backends = process::connect(
        &RedisConfig {
            redis_url: redis.url(),
            redis_durability: Durability::Always,
            redis_acknowledged_by: 0,
        },
        &MongoConfig { mongodb_uri: mongodb.url(), mongodb_database: "bench".into() },
    )
    .await?;
    let keeper = backends.recovery_supervisors().next().expect("that of partition 0");
    keeper.ensure().await?;
    let coupon = coupon("bench", PartitionId::ONE, records)?;
    backends.coupons.insert(&coupon).await?;

    let started = Instant::now();
    fill(&backends, &coupon, 1..=records).await?;
    println!("{records} records inserted: {:.1} s", started.elapsed().as_secs_f64());

    let watch: ProgressCallback = Arc::new(|step: &RecoveryStep| {
        if !matches!(step, RecoveryStep::Loading { .. }) {
            println!("  {step:?}");
        }
    });
    let before = peak_megabytes();
    let started = Instant::now();
    keeper.recover(RecoveryMode::Rebuild, &watch, &CancellationToken::new()).await?;
    println!("rebuild: {:.1} s: nothing is in flight", started.elapsed().as_secs_f64());
    let started = Instant::now();
    backends.loaders().first().load(&coupon.id).await?;
    println!(
        "load on demand: {:.1} s; peak memory {} MB, {before} MB before it",
        started.elapsed().as_secs_f64(),
        peak_megabytes()
    );

    audit(&backends, &coupon).await?;

    let stop = CancellationToken::new();
    let keeping = tokio::spawn(keeper.run(stop.clone()));
    for compacted in [false, true] {
        if compacted {
            compact(&backends).await?;
        }
        let epoch = backends.partitions.first().keys().epoch();
        let started = Instant::now();
        redis.kill().await?;
        redis.restart().await?;
        let restarted = started.elapsed();
        while stock::read(backends.partitions.first(), std::slice::from_ref(&coupon.id)).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        println!(
            "intact restart{}: {:.2} s of 503, of which redis-server took {:.2} s; same epoch: {}",
            if compacted { ", compacted" } else { "" },
            started.elapsed().as_secs_f64(),
            restarted.as_secs_f64(),
            backends.partitions.first().keys().epoch() == epoch
        );
    }
    stop.cancel();
    keeping.await?;
    Ok(())
}

async fn audit(backends: &Backends, coupon: &Coupon) -> anyhow::Result<()> {
    let Backends { partitions, ledger, coupons, .. } = backends.clone();
    let auditor = Auditor::new(partitions.first().clone(), ledger, coupons);
    let started = Instant::now();
    let bracket = auditor.bracket(&coupon.id).await?;
    println!("bracket: {:.2} s; holds: {:?}", started.elapsed().as_secs_f64(), bracket.map(|b| b.holds()));
    let started = Instant::now();
    let report = auditor.full(std::slice::from_ref(coupon), SettleMode::ReadOnly, |_| {}).await?;
    println!(
        "full audit: {:.1} s; {} findings; peak memory {} MB",
        started.elapsed().as_secs_f64(),
        report.findings().count(),
        peak_megabytes()
    );
    Ok(())
}

/// Has Redis rewrite its append-only file, and waits until it has.
async fn compact(backends: &Backends) -> anyhow::Result<()> {
    let mut connection = backends.partitions.first().connection();
    redis::cmd("BGREWRITEAOF").query_async::<()>(&mut connection).await?;
    loop {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut connection).await?;
        if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
