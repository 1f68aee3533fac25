//! `couponctl partition`: what the parts of the data do, and more of them.

use std::sync::Arc;

use anyhow::bail;
use clap::{Args, Subcommand};
use futures::future::join_all;
use serde::Serialize;
use serde_json::Value;

use super::action::{ReasonArgs, recorded};
use super::prompt::ConfirmArgs;
use super::table::{number, sentence, table};
use crate::access::ActionLog;
use crate::access::action::command_status;
use crate::config::{MongoConfig, RedisConfig};
use crate::ids::slot_of;
use crate::recovery::{Deployment, Writable};
use crate::redis::{PARTITIONS_MAX, Partition};
use crate::{mongo, process, queue, recovery};

/// Shows the partitions of the data, and adds more
///
/// A coupon lies in one partition, and a partition on one Redis node. Partition 0 is the only one of a deployment on
/// one Redis; new coupons of a deployment that has others are spread over those.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct PartitionArgs {
    #[command(subcommand)]
    verb: PartitionVerb,
}

#[derive(Debug, Subcommand)]
enum PartitionVerb {
    /// Lists the partitions: whether each serves, and what waits in it
    #[command(after_long_help = "Example:\n  couponctl partition list")]
    List {
        #[command(flatten)]
        redis: RedisConfig,
        #[command(flatten)]
        mongodb: MongoConfig,
        /// Print JSON: a list of {"partition", "slot", "state", "waiting", "deadLetters", "oldestSeconds"}
        #[arg(long)]
        json: bool,
    },
    /// Spreads coupons that are made from now on over more partitions
    ///
    /// Coupons stay where they are, and the number never shrinks. Every process learns of it when it is restarted:
    /// restart the workers first, then the APIs. Until then an API that was not restarted answers 503 to requests for
    /// coupons in the new partitions. No process of a version that does not know partitions may run: it would issue
    /// their units once more.
    #[command(after_long_help = "Example:\n  couponctl partition grow --to 64 --yes")]
    Grow {
        /// The number of partitions beside partition 0
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTITIONS_MAX)))]
        to: u16,
        #[command(flatten)]
        mongodb: MongoConfig,
        #[command(flatten)]
        why: ReasonArgs,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

/// What one partition does. A member is null where the partition does not answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PartitionState {
    partition: u16,
    /// Of a Redis Cluster.
    slot: u16,
    /// "serves", "warming-up", "refuses-writes", or why it does not answer.
    state: String,
    waiting: Option<u64>,
    dead_letters: Option<u64>,
    oldest_seconds: Option<u64>,
}

impl PartitionArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.verb {
            PartitionVerb::List { redis, mongodb, json } => list(&redis, &mongodb, json).await,
            PartitionVerb::Grow { to, mongodb, why, yes } => grow(to, &mongodb, &why, &yes).await,
        }
    }
}

async fn list(redis: &RedisConfig, mongodb: &MongoConfig, json: bool) -> anyhow::Result<()> {
    let mut backends = process::open(redis, mongodb).await?;
    backends.spread().await?;
    let states = join_all(backends.partitions.iter().map(PartitionState::read)).await;
    mongo::close(&backends.database).await;
    if json {
        println!("{}", serde_json::to_string_pretty(&states)?);
    } else {
        print!("{}", to_text(&states));
    }
    Ok(())
}

fn to_text(states: &[PartitionState]) -> String {
    let columns = [
        number("PARTITION"),
        number("SLOT"),
        number("WAITING"),
        number("DEAD LETTERS"),
        number("OLDEST S"),
        sentence("STATE"),
    ];
    let text = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
    let rows = states.iter().map(|state| {
        vec![
            state.partition.to_string(),
            state.slot.to_string(),
            text(state.waiting),
            text(state.dead_letters),
            text(state.oldest_seconds),
            state.state.clone(),
        ]
    });
    table(&columns, rows.collect(), "there is no partition")
}

impl PartitionState {
    async fn read(partition: &Arc<Partition>) -> Self {
        let state = match recovery::writable(partition).await {
            Ok(Writable::Yes) => "serves".to_owned(),
            Ok(Writable::Uncertified) => "warming-up".to_owned(),
            Ok(Writable::Refused) => "refuses-writes".to_owned(),
            Err(failure) => failure.chain(),
        };
        let backlog: Option<queue::Backlog> = queue::figures(partition).await.ok();
        PartitionState {
            partition: partition.id().number(),
            slot: slot_of(partition.id().tag()),
            state,
            waiting: backlog.map(|backlog| backlog.waiting()),
            dead_letters: backlog.map(|backlog| backlog.dead),
            oldest_seconds: backlog.map(|backlog| backlog.oldest_age().as_secs()),
        }
    }
}

async fn grow(to: u16, mongodb: &MongoConfig, why: &ReasonArgs, yes: &ConfirmArgs) -> anyhow::Result<()> {
    yes.or_ask("Does no process of an older version run any more, and will none be started again?")?;
    let database = mongodb.connect().await?;
    let input = recorded(Value::Null, why.reason.as_ref());
    let begun =
        ActionLog::begin_command(&database, "couponctl partition grow", to.to_string(), input).await?;
    let grown = async {
        let before = Deployment::grow(&database, to).await?;
        if before > to {
            bail!("there are {before} partitions beside partition 0, and they never become fewer");
        }
        println!("{before} → {to} partitions beside partition 0: restart the workers, then the APIs");
        Ok(())
    };
    let grown = begun.carry_out(grown, command_status).await;
    mongo::close(&database).await;
    grown
}
