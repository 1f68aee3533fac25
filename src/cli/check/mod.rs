//! `couponctl check`: whether the system can start in an environment, and what keeps it from that.

mod campaign;
mod probes;

use std::sync::Arc;

use clap::Args;
use futures::future::join_all;
use serde::Serialize;

use crate::config::{MongoConfig, RedisConfig};
use crate::failure::SetUpError;
use crate::issuance::ledger::{Layout, indexes};
use crate::mongo::Database;
use crate::process::Backends;
use crate::recovery::{OpeningStatus, SettingsReport, Writable};
use crate::redis::Partition;
use crate::{Failure, mongo, process, recovery};

/// Checks an environment: servers, versions, settings, indexes.
///
/// The command changes nothing. Its exit code is 0 if the system can start, else 5. Before a campaign it also warns of
/// what could slow the rush down: a rewrite of Redis's append-only file that would come in the middle of it, memory that
/// will not do for the coupons that open within 24 hours, coupons with more shares than are good for them, and settings of
/// the machine. A warning does not change the exit code.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl check
  couponctl check --redis-url redis://10.0.0.5:6379 --json")]
pub struct CheckArgs {
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    mongodb: MongoConfig,
    /// Print JSON: a list of {"check", "ok", "warning", "says"}
    #[arg(long)]
    json: bool,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct CheckResult {
    check: &'static str,
    ok: bool,
    /// Whether an operator should act upon it before a campaign.
    warning: bool,
    says: String,
}

impl CheckResult {
    fn verdict(&self) -> &'static str {
        match (self.ok, self.warning) {
            (false, _) => "WRONG",
            (true, true) => "WARN",
            (true, false) => "ok",
        }
    }
}

impl CheckArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut backends = process::open(&self.redis, &self.mongodb).await?;
        // Whatever fails now is found again below.
        let _ = backends.spread().await;
        let (mut lines, mongodb) = tokio::join!(redis(&backends), mongodb(&backends));
        lines.extend(mongodb);
        // Whatever fails now is wrong above.
        if let Ok(warnings) = campaign::warnings(&backends).await {
            lines.extend(warnings.into_iter().map(|(check, says)| warned(check, says)));
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&lines)?);
        } else {
            for line in &lines {
                println!("{:<5} {:<20} {}", line.verdict(), line.check, line.says);
            }
        }
        let wrong = lines.iter().filter(|line| !line.ok).count();
        if wrong > 0 {
            return Err(
                SetUpError(vec![format!("{wrong} of {} checks failed; see above", lines.len())]).into()
            );
        }
        Ok(())
    }
}

fn passed(check: &'static str, says: impl Into<String>) -> CheckResult {
    CheckResult { check, ok: true, warning: false, says: says.into() }
}

fn warned(check: &'static str, says: impl Into<String>) -> CheckResult {
    CheckResult { check, ok: true, warning: true, says: says.into() }
}

fn failed(check: &'static str, says: impl Into<String>) -> CheckResult {
    CheckResult { check, ok: false, warning: false, says: says.into() }
}

/// A server that does not answer: nothing else of it can be checked.
fn away(server: &'static str, failure: &Failure) -> Vec<CheckResult> {
    vec![failed(server, format!("{}; is it running?", failure.chain()))]
}

async fn redis(backends: &Backends) -> Vec<CheckResult> {
    const SETTINGS: &str = "redis settings";
    let findings = match settings(backends).await {
        Ok(findings) => findings,
        Err(failure) => return away("redis", &failure),
    };
    let mut lines = vec![passed("redis", "answers")];
    let fits = findings.wrong.is_empty();
    lines.extend(findings.wrong.into_iter().map(|says| failed(SETTINGS, says)));
    lines.extend(findings.notes.into_iter().map(|says| passed(SETTINGS, says)));
    if fits {
        lines.push(passed(SETTINGS, "version, persistence and memory policy fit"));
    }
    lines.extend(probes::probes(backends.partitions.first()).await);
    let of_partition = async |partition: &Arc<Partition>| certificate(partition, &backends.database).await;
    let mut certificates = join_all(backends.partitions.iter().map(of_partition)).await;
    if certificates.iter().any(|other| other.says != certificates[0].says) {
        for (partition, certificate) in backends.partitions.iter().zip(&mut certificates) {
            certificate.says = format!("partition {}: {}", partition.id(), certificate.says);
        }
    } else {
        // All of them say the same.
        certificates.truncate(1);
    }
    lines.extend(certificates);
    lines
}

async fn settings(backends: &Backends) -> Result<SettingsReport, Failure> {
    backends.nodes.discover().await?;
    recovery::check_all_settings(&backends.nodes, backends.durability).await
}

/// Whether the data may be used, and if not, why.
async fn certificate(partition: &Partition, database: &Database) -> CheckResult {
    const CERTIFICATE: &str = "redis certificate";
    let status = recovery::opening_status(partition, database).await;
    match (status, recovery::writable(partition).await) {
        (Err(failure), _) | (_, Err(failure)) => failed(CERTIFICATE, failure.chain()),
        (Ok(OpeningStatus::Elsewhere(why)), _) => failed(CERTIFICATE, why),
        (_, Ok(Writable::Yes)) => passed(CERTIFICATE, "the data is certified, and Redis takes writes"),
        (_, Ok(Writable::Refused)) => failed(
            CERTIFICATE,
            "the data is certified, but Redis refuses writes: it is a replica (READONLY), its disk or its memory is \
             full (MISCONF, OOM), or it lacks replicas (NOREPLICAS); its log says which",
        ),
        (Ok(OpeningStatus::OutOfDate), _) => passed(
            CERTIFICATE,
            "not certified: the data is older than that of another Redis, which serves no more; the first API or \
             worker to start builds it anew",
        ),
        (Ok(OpeningStatus::Current), _) => {
            passed(CERTIFICATE, "not certified yet: the first API or worker to start recovers it")
        }
    }
}

async fn mongodb(backends: &Backends) -> Vec<CheckResult> {
    const REPLICA_SET: &str = "mongodb replica set";
    const INDEXES: &str = "mongodb indexes";
    let hello = match mongo::command(&backends.database, "say hello", "hello").await {
        Ok(hello) => hello,
        Err(failure) => return away("mongodb", &failure),
    };
    let mut lines = vec![passed("mongodb", "answers")];
    lines.push(match (hello.get_str("setName"), hello.get_str("msg")) {
        (Ok(_), _) => passed(REPLICA_SET, "it is one"),
        (Err(_), Ok(_)) => match mongo::unfit_mongos(&backends.database).await {
            Ok(None) => passed(REPLICA_SET, "mongos leads to them"),
            Ok(Some(says)) => failed(REPLICA_SET, says),
            Err(failure) => failed(REPLICA_SET, failure.chain()),
        },
        (Err(_), Err(_)) => failed(
            REPLICA_SET,
            "a standalone server cannot confirm writes by majority: start it with --replSet and initiate it",
        ),
    });
    let missing = async {
        let layout = backends.ledger.layout().await?;
        Ok::<_, Failure>((layout, indexes::check(&backends.database, layout).await?))
    };
    match missing.await {
        Err(failure) => lines.push(failed(INDEXES, failure.chain())),
        Ok((Layout::Mixed, wrong)) if wrong.is_empty() => lines.push(passed(
            INDEXES,
            "those of an older version are all there; `couponctl ledger migrate` finishes the upgrade",
        )),
        Ok((_, wrong)) if wrong.is_empty() => lines.push(passed(INDEXES, "all there, exactly")),
        Ok((_, wrong)) => lines.extend(wrong.into_iter().map(|says| failed(INDEXES, says))),
    }
    lines
}
