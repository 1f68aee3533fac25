//! `couponctl check`: what is wrong with an environment.

use clap::Args;
use mongodb::bson::doc;
use serde::Serialize;

use crate::boot::{self, Backends, SetUpError};
use crate::config::{MongoConfig, RedisConfig};
use crate::issuance::ledger::indexes;
use crate::{mongo, recovery};

/// Tells what is wrong with an environment: servers, versions, settings, indexes.
///
/// Changes nothing. Ends with 0 when the system could start, else with 5.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    mongodb: MongoConfig,
    /// Print JSON: a list of {"check", "ok", "says"}
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Line {
    check: &'static str,
    ok: bool,
    says: String,
}

impl Check {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let backends = boot::open(&self.redis, &self.mongodb).await?;
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

async fn redis(backends: &Backends) -> Vec<Line> {
    let mut lines = Vec::new();
    match recovery::check_settings(&backends.partition, backends.durability).await {
        Err(failure) => {
            lines.push(Line {
                check: "redis",
                ok: false,
                says: format!("{}; is it running?", failure.chain()),
            });
            return lines;
        }
        Ok(findings) => {
            lines.push(Line { check: "redis", ok: true, says: "answers".into() });
            let fits = findings.wrong.is_empty();
            lines.extend(findings.wrong.into_iter().map(|says| Line {
                check: "redis settings",
                ok: false,
                says,
            }));
            lines.extend(findings.notes.into_iter().map(|says| Line {
                check: "redis settings",
                ok: true,
                says,
            }));
            if fits {
                let says = "version, persistence and memory policy fit".into();
                lines.push(Line { check: "redis settings", ok: true, says });
            }
        }
    }
    lines.push(match recovery::is_certified(&backends.partition).await {
        Ok(true) => Line { check: "redis certificate", ok: true, says: "the data is certified".into() },
        Ok(false) => Line {
            check: "redis certificate",
            ok: true,
            says: "not certified yet: the first API or worker to start recovers it".into(),
        },
        Err(failure) => Line { check: "redis certificate", ok: false, says: failure.chain() },
    });
    lines
}

async fn mongodb(backends: &Backends) -> Vec<Line> {
    let database = backends.database.clone();
    let hello = mongo::run("say hello", async move { database.run_command(doc! {"hello": 1}).await }).await;
    let hello = match hello {
        Ok(hello) => hello,
        Err(failure) => {
            return vec![Line {
                check: "mongodb",
                ok: false,
                says: format!("{}; is it running?", failure.chain()),
            }];
        }
    };
    let mut lines = vec![Line { check: "mongodb", ok: true, says: "answers".into() }];
    lines.push(if hello.get_str("setName").is_ok() {
        Line { check: "mongodb replica set", ok: true, says: "it is one".into() }
    } else {
        let says =
            "a standalone server cannot confirm writes by majority: start it with --replSet and initiate it";
        Line { check: "mongodb replica set", ok: false, says: says.into() }
    });
    match indexes::check(&backends.database).await {
        Err(failure) => lines.push(Line { check: "mongodb indexes", ok: false, says: failure.chain() }),
        Ok(wrong) if wrong.is_empty() => {
            lines.push(Line { check: "mongodb indexes", ok: true, says: "all there, exactly".into() });
        }
        Ok(wrong) => {
            lines.extend(wrong.into_iter().map(|says| Line { check: "mongodb indexes", ok: false, says }));
        }
    }
    lines
}
