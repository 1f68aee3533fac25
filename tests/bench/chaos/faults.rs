//! The kinds of faults. Each begins, lasts for a while, and ends; then the service must accept again.

use std::time::Duration;

use mongodb::bson::doc;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use rustix::process::Signal;

use super::load::ChaosLoad;
use super::stack::{DiskFiller, Stack, admin};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ApiKilled,
    ApiFrozen,
    ApiRestarted,
    WorkerKilled,
    /// Sometimes for longer than a heartbeat stays fresh.
    WorkerFrozen,
    WorkerRestarted,
    RedisKilled,
    RedisFrozen,
    RedisReplicaKilled,
    /// The replica is promoted, the primary demoted, and the address follows late.
    RedisDemoted,
    RedisDiskFull,
    MongodbPrimaryKilled,
    MongodbPrimaryFrozen,
    MongodbSecondaryKilled,
    MongodbSteppedDown,
    MongodbWritesBlocked,
    MongodbDiskFull,
    /// A process is replaced by the other release's.
    Released,
}

const ALL: [Fault; 17] = [
    Fault::ApiKilled,
    Fault::ApiFrozen,
    Fault::ApiRestarted,
    Fault::WorkerKilled,
    Fault::WorkerFrozen,
    Fault::WorkerRestarted,
    Fault::RedisKilled,
    Fault::RedisFrozen,
    Fault::RedisReplicaKilled,
    Fault::RedisDemoted,
    Fault::RedisDiskFull,
    Fault::MongodbPrimaryKilled,
    Fault::MongodbPrimaryFrozen,
    Fault::MongodbSecondaryKilled,
    Fault::MongodbSteppedDown,
    Fault::MongodbWritesBlocked,
    Fault::MongodbDiskFull,
];
/// Between two releases: mostly replacements, and what must not hurt while both run.
const RELEASES: [Fault; 6] = [
    Fault::Released,
    Fault::Released,
    Fault::Released,
    Fault::WorkerKilled,
    Fault::ApiKilled,
    Fault::RedisKilled,
];

/// Makes the next fault, and waits until the service accepts again.
pub async fn next(stack: &mut Stack, load: &ChaosLoad, chance: &mut StdRng) -> anyhow::Result<()> {
    let kinds: &[Fault] = if stack.has_other_release() { &RELEASES } else { &ALL };
    let fault = loop {
        let fault = *kinds.choose(chance).expect("there are some");
        let needs_disks = matches!(fault, Fault::RedisDiskFull | Fault::MongodbDiskFull);
        if stack.has_disks || !needs_disks {
            break fault;
        }
    };
    let lasts = Duration::from_millis(chance.random_range(200..=6_000));
    let which = chance.random_range(0..2);
    println!("{:>7.1} s  {fault:?} {which}, for {lasts:?}", load.seconds());
    make(stack, fault, which, lasts, chance).await?;
    stack.heal().await?;
    load.accepts_again(&format!("{fault:?}")).await;
    tokio::time::sleep(Duration::from_millis(chance.random_range(0..=2_000))).await;
    Ok(())
}

async fn make(
    stack: &mut Stack,
    fault: Fault,
    which: usize,
    lasts: Duration,
    chance: &mut impl Rng,
) -> anyhow::Result<()> {
    match fault {
        Fault::ApiKilled => stack.apis[which].kill().await?,
        Fault::ApiFrozen => stack.apis[which].signal(Signal::STOP),
        Fault::ApiRestarted => stack.apis[which].end().await?,
        Fault::WorkerKilled => stack.workers[which].kill().await?,
        Fault::WorkerFrozen => {
            stack.workers[which].signal(Signal::STOP);
            tokio::time::sleep(lasts).await;
        }
        Fault::WorkerRestarted => stack.workers[which].end().await?,
        Fault::RedisKilled => stack.redis[stack.primary].kill().await?,
        Fault::RedisFrozen => stack.redis[stack.primary].pause().await?,
        Fault::RedisReplicaKilled => stack.redis[1 - stack.primary].kill().await?,
        Fault::RedisDemoted => stack.fail_over(lasts / 4).await?,
        Fault::RedisDiskFull => {
            let _full = DiskFiller::fill(&stack.redis_folder())?;
            tokio::time::sleep(lasts).await;
        }
        Fault::MongodbPrimaryKilled => {
            let primary = stack.mongodb_primary().await?;
            stack.members[primary].kill().await?;
        }
        Fault::MongodbPrimaryFrozen => {
            let primary = stack.mongodb_primary().await?;
            stack.members[primary].pause().await?;
        }
        Fault::MongodbSecondaryKilled => {
            let secondary = (stack.mongodb_primary().await? + 1 + which) % stack.members.len();
            stack.members[secondary].kill().await?;
        }
        Fault::MongodbSteppedDown => {
            let primary = stack.mongodb_primary().await?;
            let down = doc! {"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 5, "force": true};
            // The connection may go with it.
            let _ = admin(stack.members[primary].port(), down).await;
        }
        Fault::MongodbWritesBlocked => {
            stack.block_writes(true).await?;
            tokio::time::sleep(lasts * 4).await;
            stack.block_writes(false).await?;
        }
        Fault::MongodbDiskFull => {
            let primary = stack.mongodb_primary().await?;
            let _full = DiskFiller::fill(&stack.member_folder(primary))?;
            tokio::time::sleep(lasts).await;
        }
        Fault::Released => {
            let instances = if chance.random_bool(0.5) { &mut stack.apis } else { &mut stack.workers };
            let instance = &mut instances[which];
            instance.end().await?;
            instance.choose(!instance.runs_other());
        }
    }
    tokio::time::sleep(lasts).await;
    Ok(())
}
