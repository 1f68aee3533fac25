//! How long recovery takes with a large coupon: `cargo bench --bench recovery [-- RECORDS]`.
//!
//! It uses real servers, Redis with fsync-always, and fills the ledger with issued records (default: a million). Then it
//! times a rebuild, the loading of the coupon, an audit, and two restarts of redis-server after `kill -9` with intact
//! data (before and after Redis has compacted its append-only file), each until the first accepted call. It prints the
//! peak of this process's memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coupon_system::audit::{Auditor, SettleMode};
use coupon_system::config::{MongoConfig, RedisConfig};
use coupon_system::coupon::{Coupon, stock};
use coupon_system::dev::servers::{MongoOptions, MongoServer, RedisOptions, RedisServer};
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::{Decision, Outcome};
use coupon_system::process;
use coupon_system::process::Backends;
use coupon_system::recovery::{Durability, ProgressCallback, RecoveryMode, RecoveryStep};
use futures::{TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

const RECORDS: u32 = 1_000_000;
/// Records in one insert, and inserts at once.
const BATCH: u32 = 5_000;
const AT_ONCE: usize = 4;
/// The pause between two checks whether Redis accepts calls again.
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let records = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(RECORDS);
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
    let coupon = coupon(records)?;
    backends.coupons.insert(&coupon).await?;

    let started = Instant::now();
    fill(&backends, &coupon, records).await?;
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

fn coupon(total: u32) -> anyhow::Result<Coupon> {
    let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond())?;
    let id = "bench".parse().map_err(anyhow::Error::msg)?;
    Ok(Coupon::new(id, total, now, now + SignedDuration::from_hours(1)))
}

async fn fill(backends: &Backends, coupon: &Coupon, records: u32) -> anyhow::Result<()> {
    let firsts = (1..=records).step_by(BATCH as usize);
    stream::iter(firsts.map(anyhow::Ok))
        .try_for_each_concurrent(AT_ONCE, async |first| {
            let serials = first..=records.min(first + BATCH - 1);
            let decisions: Vec<_> = serials.map(|serial| issued(coupon, serial)).collect::<Result<_, _>>()?;
            backends.ledger.insert(&decisions).await?;
            Ok(())
        })
        .await
}

fn issued(coupon: &Coupon, serial: u32) -> anyhow::Result<Decision> {
    Ok(Decision {
        id: IssuanceId::generate(PartitionId::ONE),
        coupon: coupon.id.clone(),
        user: format!("user-{serial}").parse().map_err(anyhow::Error::msg)?,
        outcome: Outcome::Issued { serial, nth: 1 },
        accepted_at: coupon.created_at,
        decided_at: coupon.created_at,
    })
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

/// The peak of this process's resident memory, in MB; 0 where the system does not report it.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
