//! `couponctl check`: whether the system can start in an environment, and what keeps it from that.

use clap::Args;
use serde::Serialize;

use crate::config::{MongoConfig, RedisConfig};
use crate::failure::SetUpError;
use crate::issuance::ledger::indexes;
use crate::process::Backends;
use crate::recovery::{OpeningStatus, Writable};
use crate::{mongo, process, recovery};

/// Checks an environment: servers, versions, settings, indexes.
///
/// The command changes nothing. Its exit code is 0 if the system can start, else 5.
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
    /// Print JSON: a list of {"check", "ok", "says"}
    #[arg(long)]
    json: bool,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct CheckResult {
    check: &'static str,
    ok: bool,
    says: String,
}

impl CheckArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let backends = process::open(&self.redis, &self.mongodb).await?;
        let (mut lines, mongodb) = tokio::join!(redis(&backends), mongodb(&backends));
        lines.extend(mongodb);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&lines)?);
        } else {
            for line in &lines {
                println!("{:<5} {:<20} {}", if line.ok { "ok" } else { "WRONG" }, line.check, line.says);
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

async fn redis(backends: &Backends) -> Vec<CheckResult> {
    let mut lines = Vec::new();
    match recovery::check_settings(&backends.partition, backends.durability).await {
        Err(failure) => {
            lines.push(CheckResult {
                check: "redis",
                ok: false,
                says: format!("{}; is it running?", failure.chain()),
            });
            return lines;
        }
        Ok(findings) => {
            lines.push(CheckResult { check: "redis", ok: true, says: "answers".into() });
            let fits = findings.wrong.is_empty();
            lines.extend(findings.wrong.into_iter().map(|says| CheckResult {
                check: "redis settings",
                ok: false,
                says,
            }));
            lines.extend(findings.notes.into_iter().map(|says| CheckResult {
                check: "redis settings",
                ok: true,
                says,
            }));
            if fits {
                let says = "version, persistence and memory policy fit".into();
                lines.push(CheckResult { check: "redis settings", ok: true, says });
            }
        }
    }
    lines.push(certificate(backends).await);
    lines
}

/// Whether the data may be used, and if not, why.
async fn certificate(backends: &Backends) -> CheckResult {
    let line = |ok, says: &str| CheckResult { check: "redis certificate", ok, says: says.to_owned() };
    let standing = recovery::opening_status(&backends.partition, &backends.database).await;
    match (standing, recovery::writable(&backends.partition).await) {
        (Err(failure), _) | (_, Err(failure)) => line(false, &failure.chain()),
        (Ok(OpeningStatus::Elsewhere(why)), _) => line(false, &why),
        (_, Ok(Writable::Yes)) => line(true, "the data is certified, and Redis takes writes"),
        (_, Ok(Writable::Refused)) => line(
            false,
            "the data is certified, but Redis refuses writes: it is a replica (READONLY), its disk or its memory is \
             full (MISCONF, OOM), or it lacks replicas (NOREPLICAS); its log says which",
        ),
        (Ok(OpeningStatus::OutOfDate), _) => line(
            true,
            "not certified: the data is older than that of another Redis, which serves no more; the first API or \
             worker to start builds it anew",
        ),
        (Ok(OpeningStatus::Current), _) => {
            line(true, "not certified yet: the first API or worker to start recovers it")
        }
    }
}

async fn mongodb(backends: &Backends) -> Vec<CheckResult> {
    let hello = match mongo::command(&backends.database, "say hello", "hello").await {
        Ok(hello) => hello,
        Err(failure) => {
            return vec![CheckResult {
                check: "mongodb",
                ok: false,
                says: format!("{}; is it running?", failure.chain()),
            }];
        }
    };
    let mut lines = vec![CheckResult { check: "mongodb", ok: true, says: "answers".into() }];
    lines.push(if hello.get_str("setName").is_ok() {
        CheckResult { check: "mongodb replica set", ok: true, says: "it is one".into() }
    } else {
        let says =
            "a standalone server cannot confirm writes by majority: start it with --replSet and initiate it";
        CheckResult { check: "mongodb replica set", ok: false, says: says.into() }
    });
    match indexes::check(&backends.database).await {
        Err(failure) => {
            lines.push(CheckResult { check: "mongodb indexes", ok: false, says: failure.chain() })
        }
        Ok(wrong) if wrong.is_empty() => {
            lines.push(CheckResult { check: "mongodb indexes", ok: true, says: "all there, exactly".into() });
        }
        Ok(wrong) => {
            lines.extend(wrong.into_iter().map(|says| CheckResult {
                check: "mongodb indexes",
                ok: false,
                says,
            }));
        }
    }
    lines
}
