//! How soon a developer can begin: `couponctl dev` in an empty folder, from its start to its banner.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;

use super::context::BenchContext;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use crate::dev::servers::spawn_child;

const READY_MAX: Duration = Duration::from_secs(60);
const BANNER: &str = "Coupon System is ready";

/// Seconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadyFigures {
    /// Built, and both server programs there. To be 2 or less.
    pub dev_ready_seconds: f64,
    pub rounds: Spread,
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<ReadyFigures> {
    context.say("ready: couponctl dev");
    let mut seconds = Vec::new();
    for _ in 0..context.sizes.rounds {
        seconds.push(start(context).await?);
    }
    let rounds = Spread::of(seconds);
    Ok(ReadyFigures { dev_ready_seconds: rounds.median, rounds })
}

async fn start(context: &BenchContext<'_>) -> anyhow::Result<f64> {
    let folder = context.next_folder();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["dev", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = spawn_child(command).await?;
    let output = child.stdout.take().context("its output is piped")?;
    let mut lines = BufReader::new(ChildStdout::from_std(output)?).lines();
    let banner = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(BANNER) {
                return Ok(started.elapsed().as_secs_f64());
            }
        }
        bail!("couponctl dev ended before it was ready")
    };
    let ready = tokio::time::timeout(READY_MAX, banner).await.context("couponctl dev was never ready");
    // Its servers die with it.
    child.kill()?;
    child.wait()?;
    std::fs::remove_dir_all(&folder).context("cannot delete a folder of the bench")?;
    ready?
}

impl ReadyFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        vec![
            row("devReadySeconds", self.dev_ready_seconds, "couponctl dev, from nothing")
                .over(&self.rounds)
                .with_target(FigureTarget::AtMost(2.0)),
        ]
    }
}
