//! `couponctl recover`: the recovery that API and worker processes do by themselves, by hand and with progress.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::action::{ReasonArgs, recorded};
use super::progress::ProgressLine;
use crate::access::ActionLog;
use crate::access::action::command_status;
use crate::config::{MongoConfig, RedisConfig};
use crate::failure::SetUpError;
use crate::ids::PartitionId;
use crate::process::Backends;
use crate::recovery::{
    CertifyOutcome, OpeningStatus, ProgressCallback, RecoveryMode, RecoveryOutcome, RecoveryStep,
    RecoverySupervisor, is_certified,
};
use crate::redis::Partition;
use crate::runtime::shutdown;
use crate::{Failure, process, recovery};

/// What came of one attempt at a partition.
enum Attempt {
    /// It is certified; by this attempt, if it recovered something.
    Ended(Option<RecoveryOutcome>),
    /// It must be tried again later, for this reason.
    Waits(&'static str),
}

/// The pause between two questions whether another process has finished.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Recovers the data in Redis by hand, until it is certified again.
///
/// API and worker processes recover by themselves, and may run meanwhile. The command certifies intact data as it is.
/// It rebuilds damaged data, or with --rebuild any data, from MongoDB and from what is still in flight. Until it ends,
/// the API answers requests with 503. You may interrupt the command and run it again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl recover
  couponctl recover --rebuild --redis-url redis://10.0.0.5:6379")]
pub struct RecoverArgs {
    /// Rebuild the data even if it is certified, if it belongs to another MongoDB database, or if another Redis serves
    /// the ledger
    #[arg(long)]
    rebuild: bool,
    #[command(flatten)]
    why: ReasonArgs,
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    mongodb: MongoConfig,
    /// Print JSON: {"result": "certified" | "verified" | "rebuilt", "inFlight", "decided", "coupons", "seconds",
    /// "unavailablePartitions": [NUMBER]}
    #[arg(long)]
    json: bool,
}

impl RecoverArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let backends = match self.rebuild {
            true => process::connect_to_any(&self.redis, &self.mongodb).await?,
            false => process::connect(&self.redis, &self.mongodb).await?,
        };
        let database = &backends.database;
        let asked = backends.partitions.ask_any("tell which Redis was opened last", |partition| async move {
            recovery::opening_status(&partition, database).await
        });
        // One that does not answer is told of when its turn comes.
        let opened = if self.rebuild { Vec::new() } else { asked.await?.0 };
        let elsewhere = opened.into_iter().find_map(|status| match status {
            OpeningStatus::Elsewhere(why) => Some(why),
            _ => None,
        });
        if let Some(why) = elsewhere {
            return Err(SetUpError(vec![why]).into());
        }
        let name = if self.rebuild { "couponctl recover --rebuild" } else { "couponctl recover" };
        let ids = backends.partitions.iter().map(|partition| partition.id().to_string());
        let target = ids.collect::<Vec<_>>().join(" ");
        let input = recorded(Value::Null, self.why.reason.as_ref());
        let begun = ActionLog::begin_command(&backends.database, name, target, input).await?;
        begun.carry_out(self.recover(&backends), command_status).await
    }

    async fn recover(&self, backends: &Backends) -> anyhow::Result<()> {
        let shutdown = shutdown::on_signal()?;
        let started = Instant::now();
        let progress = ProgressLine::start();
        let shown = progress.clone();
        let watch: ProgressCallback = Arc::new(move |step: &RecoveryStep| show(&shown, step));
        let mode = if self.rebuild { RecoveryMode::Rebuild } else { RecoveryMode::VerifyFirst };
        let (mut all, mut failed) = (None, BTreeMap::new());
        let mut left: VecDeque<_> = backends.partitions.iter().zip(backends.recovery_supervisors()).collect();
        // One that another process recovers, or that must be watched for a while, waits behind the others.
        let mut waiting = 0;
        while let Some((partition, supervisor)) = left.pop_front() {
            if !backends.partitions.is_one() && waiting == 0 {
                progress.say(&format!("partition {}", partition.id()));
            }
            match self.recover_one(partition, &supervisor, mode, &watch, &shutdown).await {
                Ok(Attempt::Ended(recovered)) => {
                    waiting = 0;
                    all = all.into_iter().chain(recovered).reduce(RecoveryOutcome::with);
                }
                Ok(Attempt::Waits(why)) => {
                    if waiting == 0 {
                        progress.say(&format!("partition {}: {why}", partition.id()));
                    }
                    left.push_back((partition, supervisor));
                    waiting += 1;
                    if waiting >= left.len() {
                        wait(&shutdown).await?;
                    }
                }
                Err(failure) => {
                    waiting = 0;
                    progress.say(&format!(
                        "partition {} stays as it is: {}",
                        partition.id(),
                        failure.chain()
                    ));
                    failed.insert(partition.id(), failure);
                }
            }
        }
        progress.finish();
        if failed.len() == backends.partitions.iter().count() {
            return Err(failed.into_values().next().unwrap_or(Failure::Uncertified).into());
        }
        self.print(all, &failed, started.elapsed());
        if failed.is_empty() {
            return Ok(());
        }
        let named: Vec<_> = failed.keys().map(ToString::to_string).collect();
        anyhow::bail!(
            "partitions {} could not be recovered; the others are certified. Run it again once their Redis answers",
            named.join(", ")
        )
    }

    /// Makes one attempt at a partition.
    async fn recover_one(
        &self,
        partition: &Partition,
        supervisor: &RecoverySupervisor,
        mode: RecoveryMode,
        watch: &ProgressCallback,
        shutdown: &CancellationToken,
    ) -> Result<Attempt, Failure> {
        if mode == RecoveryMode::VerifyFirst && is_certified(partition).await? {
            return Ok(Attempt::Ended(None));
        }
        Ok(match supervisor.recover(mode, watch, shutdown).await? {
            CertifyOutcome::ByAnother => Attempt::Waits("another process recovers it; waiting for that"),
            CertifyOutcome::Watching => {
                Attempt::Waits("another Redis was opened last; watching whether that still serves")
            }
            CertifyOutcome::Recovered(RecoveryOutcome::Superseded) => {
                Attempt::Waits("another process has taken over")
            }
            CertifyOutcome::Recovered(recovered) => Attempt::Ended(Some(recovered)),
            CertifyOutcome::Before => Attempt::Ended(None),
        })
    }

    /// `recovered`: the outcome of the partitions together that were not certified.
    fn print(
        &self,
        recovered: Option<RecoveryOutcome>,
        failed: &BTreeMap<PartitionId, Failure>,
        took: Duration,
    ) {
        let seconds = took.as_secs_f64();
        let (result, in_flight, decided, coupons, says) = match recovered {
            Some(RecoveryOutcome::Verified { in_flight, coupons }) => {
                let says = format!(
                    "The data was intact and is certified again: {coupons} coupons, {in_flight} in flight ({seconds:.1} s)."
                );
                ("verified", Some(in_flight), None, Some(coupons), says)
            }
            Some(RecoveryOutcome::Rebuilt { survivors, decided, coupons }) => {
                let says = format!(
                    "Rebuilt and certified: {coupons} coupons, {survivors} in flight, {decided} were decided already ({seconds:.1} s)."
                );
                ("rebuilt", Some(survivors), Some(decided), Some(coupons), says)
            }
            _ => {
                let says =
                    "The data is certified; there is nothing to recover (--rebuild builds it anew).".into();
                ("certified", None, None, None, says)
            }
        };
        if self.json {
            let body = json!({"result": result, "inFlight": in_flight, "decided": decided, "coupons": coupons, "seconds": seconds, "unavailablePartitions": failed.keys().map(|partition| partition.number()).collect::<Vec<_>>()});
            println!("{body}");
        } else {
            println!("{says}");
        }
    }
}

async fn wait(shutdown: &CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => anyhow::bail!("broken off; API and worker processes recover by themselves"),
        () = tokio::time::sleep(POLL_INTERVAL) => Ok(()),
    }
}

fn show(progress: &ProgressLine, step: &RecoveryStep) {
    match step {
        RecoveryStep::Closed => progress.say("closed: requests are answered 503 from here on"),
        RecoveryStep::Read { in_flight } => progress.say(&format!("{in_flight} in flight")),
        RecoveryStep::Compared { coupon, number, of } => {
            progress.at(&format!("comparing {coupon} with the ledger"), *number as u64, *of as u64);
        }
        RecoveryStep::Damaged { why } => progress.say(&format!("it must be built anew: {why}")),
        RecoveryStep::Sorted { undecided } => progress.say(&format!("{undecided} of them undecided")),
        RecoveryStep::Loading { coupon, number, of, records, of_records } => {
            progress.at(&format!("coupon {number} of {of}, {coupon}: issued units"), *records, *of_records);
        }
        RecoveryStep::Queueing { entries, of } => progress.at("queue entries", *entries as u64, *of as u64),
        RecoveryStep::Built => progress.say("built"),
        RecoveryStep::Opened => progress.say("open: requests are accepted again"),
    }
}
