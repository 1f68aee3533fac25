//! Faults of a Redis Cluster while twelve coupons are sold on it: `cargo bench --bench chaos -- --redis-nodes 3`.
//!
//! A Valkey Cluster whose primaries have a replica each, two API and two worker processes. Users arrive at an even rate
//! while there are faults, one of each kind, in an order and at nodes that the seed chooses. Then all others come at
//! once, until everything is sold and each user has a last word. In the middle, all processes are started again with
//! `--redis-acknowledged-by`: from then on no failover may lose what was accepted.
//!
//! Beside the promise it holds that a fault concerns the coupons of its own partitions and no others: their requests
//! are not refused, and the 99th percentile of the time to their 202 stays near that of the quiet time before.
//!
//! # Layout
//!
//! - `stack`: the servers and processes
//! - `faults`: the faults, and how other coupons fared
//! - `load`: the users
//! - `verdict`: what must hold at the end

mod faults;
mod load;
mod stack;
mod verdict;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use load::ClusterLoad;
use stack::ClusterStack;

/// How large the cluster and its sale are.
#[derive(Debug, Args)]
pub struct ClusterArguments {
    /// Primaries of a cluster, each with a replica: the faults are then those of a cluster
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(3..=16))]
    pub redis_nodes: Option<u8>,
    /// Users, each of whom requests each of twelve coupons
    #[arg(long, default_value_t = 20_000, requires = "redis_nodes")]
    users: usize,
    /// Units of each coupon
    #[arg(long, default_value_t = 5_000, requires = "redis_nodes")]
    units: u32,
    /// Users who arrive in a second while there are faults
    #[arg(long, default_value_t = 200.0, requires = "redis_nodes")]
    rate: f64,
    /// Seconds without a fault before each, to compare with
    #[arg(long, default_value_t = 15, requires = "redis_nodes")]
    quiet_seconds: u64,
    /// The 99th percentile, in milliseconds, that the requests for other coupons may have during a fault, even if that
    /// is more than three times that of the quiet time before
    #[arg(long, default_value_t = 250, requires = "redis_nodes")]
    others_p99_ms: u64,
}

/// Runs the program. Returns whether nothing was violated.
pub async fn run(
    arguments: &ClusterArguments,
    primaries: u8,
    folder: &Path,
    mut chance: StdRng,
) -> anyhow::Result<bool> {
    let mut stack = ClusterStack::start(folder, primaries.into()).await?;
    let ClusterArguments { users, units, rate, .. } = *arguments;
    let load = Arc::new(ClusterLoad::start(&stack, users, units, rate, &mut chance).await?);
    let stopping = CancellationToken::new();
    let arriving = Arc::clone(&load).arrive(load::beside(&mut chance), stopping.clone());
    let arriving = tokio::spawn(arriving);

    let quiet = Duration::from_secs(arguments.quiet_seconds);
    let faults = faults::UNACKNOWLEDGED.to_vec();
    let mut windows = faults::make_all(&mut stack, &load, faults, false, quiet, &mut chance).await?;
    println!("{:>7.1} s  from here on replicas acknowledge what is accepted", load.seconds());
    stack.acknowledge().await?;
    let faults = faults::ACKNOWLEDGED.to_vec();
    windows.extend(faults::make_all(&mut stack, &load, faults, true, quiet, &mut chance).await?);

    if let Some(early) = load.told().samples.iter().find(|sample| !sample.is_accepted) {
        let coupon = &load.coupons[early.coupon].id;
        anyhow::bail!("{coupon} is sold out before the faults are over: lower --rate, or raise --units");
    }
    println!("{:>7.1} s  all others come at once", load.seconds());
    stopping.cancel();
    load.rush(arriving.await?).await;
    let p99_anyway = Duration::from_millis(arguments.others_p99_ms);
    let holds = verdict::judge(&stack, &load, &windows, p99_anyway).await?;
    stack.stop().await?;
    Ok(holds)
}
