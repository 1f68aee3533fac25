//! Injects faults of every kind, one after another, while users request coupons: `cargo bench --bench chaos`.
//!
//! The system runs as an operator would run it: two API and two worker processes, a MongoDB replica set of
//! three members, a Redis with a replica behind one address. A seeded sequence of faults kills, freezes and demotes
//! them and fills their disks; every half minute the bench plants one damaged record of each kind. Users request
//! coupons all the while and follow accepted requests to their outcomes.
//!
//! Exit code 0: no unit was issued twice or beyond the total, each accepted request was decided or is named by
//! a dead letter or a finding of the audit, and the service answered again after each fault. Exit code 4: something was
//! violated, and the bench prints it. It prints the seed first; `--seed` repeats the choices, not the timing.
//!
//! # Layout
//!
//! - `stack`: the servers and processes
//! - `instance`: one API or worker process
//! - `faults`: the kinds of faults
//! - `damage`: the kinds of damaged records
//! - `load`: the users
//! - `verdict`: what must hold at the end
//! - `cluster`: a program of its own, with the faults of a Redis Cluster

mod cluster;
mod damage;
mod faults;
mod instance;
mod load;
mod stack;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;

use damage::DamageLog;
use load::ChaosLoad;
use stack::Stack;

/// The time between two plantings of damaged records.
const DAMAGE_EVERY: Duration = Duration::from_secs(30);

/// Injects faults while users request coupons, and judges the result.
#[derive(Debug, Parser)]
#[command(
    name = "chaos",
    after_help = "\
Examples:
  cargo bench --bench chaos
  cargo bench --bench chaos -- --seconds 60 --seed 7
  cargo bench --bench chaos -- --other-programs ../last-release/target/release
  cargo bench --bench chaos -- --redis-nodes 3"
)]
struct Arguments {
    /// Seconds during which faults happen
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The seed of an earlier run, to repeat its choices
    #[arg(long)]
    seed: Option<u64>,
    /// A folder with coupon-api and coupon-worker of another release: the faults are then upgrades and
    /// rollbacks of single processes, and kills of them
    #[arg(long, value_name = "FOLDER", conflicts_with = "redis_nodes")]
    other_programs: Option<PathBuf>,
    /// Plant no damaged records
    #[arg(long)]
    without_damage: bool,
    #[command(flatten)]
    cluster: cluster::ClusterArguments,
    /// Keep the folder with data and logs, and print its path
    #[arg(long)]
    keep: bool,
    /// What cargo passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(4),
        Err(error) => {
            eprintln!("chaos could not be run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the bench. Returns whether nothing was violated.
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}: --seed {seed} repeats the choices");
    let mut chance = StdRng::seed_from_u64(seed);
    let mut folder = tempfile::Builder::new().prefix("coupon-chaos-").tempdir()?;
    if arguments.keep {
        folder.disable_cleanup(true);
        println!("data and logs are kept in {}", folder.path().display());
    }
    if let Some(primaries) = arguments.cluster.redis_nodes {
        return cluster::run(&arguments.cluster, primaries, folder.path(), chance).await;
    }
    let mut stack = Stack::start(folder.path(), arguments.other_programs.as_deref()).await?;
    let load = Arc::new(ChaosLoad::new(&stack)?);
    let stop = load.stopping();
    let users = tokio::spawn(Arc::clone(&load).run(StdRng::seed_from_u64(seed ^ 1)));

    load.accepts_again("the start").await;
    anyhow::ensure!(load.violations().is_empty(), "nothing is to be broken: see {}", folder.path().display());
    let mut damage = DamageLog::new(seed);
    let started = Instant::now();
    let over = Duration::from_secs(arguments.seconds);
    let plants = !arguments.without_damage && arguments.other_programs.is_none();
    let mut planted_at: Option<Instant> = None;
    while started.elapsed() < over {
        if plants && planted_at.is_none_or(|at| at.elapsed() >= DAMAGE_EVERY) {
            planted_at = Some(Instant::now());
            damage.plant(&stack, &load).await;
        }
        faults::next(&mut stack, &load, &mut chance).await?;
    }

    stack.heal().await?;
    if stack.has_other_release() {
        stack.finish_upgrade().await?;
    }
    stop.cancel();
    users.await?;
    let holds = verdict::judge(&stack, &load, &damage, started.elapsed()).await?;
    stack.stop().await?;
    Ok(holds)
}
