//! What a rewrite of Redis's append-only file costs those who ask meanwhile.
//!
//! A backlog is queued, which nobody drains, so that there is much to rewrite. Then requests come at half of the rate
//! at which bursts are accepted: for a while without a rewrite, and for as long while Redis begins a rewrite as soon as
//! the last one has ended, which is more than a rush ever meets.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::accept::to_service;
use super::backlog::{BATCH_MAX, queue};
use super::context::BenchContext;
use super::env::BenchEnv;
use super::paced;
use super::program::ChildProgram;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use crate::dev::servers::Persistence;
use crate::redis::{append_only_file, rewrite};

/// Connections, for each of a burst's, so that a request hardly ever waits for one.
const CONNECTIONS_SHARE: usize = 4;
/// Never met: nobody drains.
const BACKLOG_MAX: &str = "1000000000";
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Times in milliseconds, each from the planned moment of the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteFigures {
    /// To the 202 at the 99th percentile while the file is rewritten, over that while it is not, in the same round. To be
    /// 3 or less.
    pub rewrite_latency_ratio: f64,
    pub still_accept_p99_ms: Spread,
    pub rewriting_accept_p99_ms: Spread,
    /// What came per second.
    pub offered_per_second: f64,
    /// Issuances that were queued when it began.
    pub backlog: u32,
    /// Of one rewrite, in seconds.
    pub rewrite_seconds: Spread,
    /// Redis stood still for a fork, in milliseconds.
    pub fork_ms: Spread,
}

/// The rewrites of one round.
#[derive(Default)]
struct Rewrites {
    seconds: Vec<f64>,
    forks_ms: Vec<f64>,
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<RewriteFigures> {
    let sizes = &context.sizes;
    context.say("rewrite: a backlog");
    let env = BenchEnv::make(context, Persistence::FsyncAlways).await?;
    let api = env.api_with_users(sizes.burst).await?;
    let mut rates = Vec::new();
    for _ in 0..sizes.rounds {
        let coupon = env.coupon(sizes.burst).await?;
        rates.push(to_service(context, &env, &api, None)?.send(coupon.as_str()).await?.accepted_per_second);
    }
    api.stop().await?;
    let backlog = env.coupon(sizes.rewritten).await?;
    queue(env.backends.partitions.first(), &backlog, 0..sizes.rewritten, BATCH_MAX).await?;
    let offered_per_second = Spread::of(rates).median / 2.0;
    let time = Duration::from_secs(sizes.rewrite_seconds.into());
    let requests = (offered_per_second * time.as_secs_f64()).ceil() as u32;
    let api = env.api_with_users_and(requests, &["--backlog-max", BACKLOG_MAX]).await?;
    let (mut still, mut rewriting, mut rewrites) = (Vec::new(), Vec::new(), Rewrites::default());
    for _ in 0..sizes.rounds {
        context.say(&format!("rewrite: {offered_per_second:.0} per second"));
        still.push(accept_p99_ms(context, &env, &api, requests, time).await?);
        let over = CancellationToken::new();
        let asking = async {
            let p99_ms = accept_p99_ms(context, &env, &api, requests, time).await;
            over.cancel();
            p99_ms
        };
        let (p99_ms, begun) = tokio::join!(asking, rewrites_until(&env, &over));
        rewriting.push(p99_ms?);
        let Rewrites { seconds, forks_ms } = begun?;
        rewrites.seconds.extend(seconds);
        rewrites.forks_ms.extend(forks_ms);
    }
    api.stop().await?;
    env.close().await?;
    let [still_accept_p99_ms, rewriting_accept_p99_ms] = [still, rewriting].map(Spread::of);
    Ok(RewriteFigures {
        rewrite_latency_ratio: rewriting_accept_p99_ms.over(&still_accept_p99_ms).median,
        still_accept_p99_ms,
        rewriting_accept_p99_ms,
        offered_per_second,
        backlog: sizes.rewritten,
        rewrite_seconds: Spread::of(rewrites.seconds),
        fork_ms: Spread::of(rewrites.forks_ms),
    })
}

/// Sends the requests for a coupon of their own. Returns how long it took to accept them, at the 99th percentile.
async fn accept_p99_ms(
    context: &BenchContext<'_>,
    env: &BenchEnv,
    api: &ChildProgram,
    requests: u32,
    time: Duration,
) -> anyhow::Result<f64> {
    let coupon = env.coupon(requests).await?;
    let connections = context.sizes.connections * CONNECTIONS_SHARE;
    let answers = paced::send(api, &coupon, requests, time, connections).await?;
    ensure!(
        answers.accepted == requests,
        "{} were not accepted: {:?}",
        requests - answers.accepted,
        answers.otherwise
    );
    Ok(answers.accept.context("nothing was accepted")?.p99_ms)
}

/// Has Redis rewrite its file again and again, and waits for the last rewrite.
async fn rewrites_until(env: &BenchEnv, over: &CancellationToken) -> anyhow::Result<Rewrites> {
    let partition = env.backends.partitions.first();
    let mut rewrites = Rewrites::default();
    while !over.is_cancelled() {
        let began = Instant::now();
        rewrite(partition).await?;
        let file = loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let file = append_only_file(partition).await?.context("Redis has no append-only file")?;
            if !file.is_rewriting {
                break file;
            }
        };
        ensure!(!file.has_failed, "Redis failed to rewrite its append-only file");
        rewrites.seconds.push(began.elapsed().as_secs_f64());
        rewrites.forks_ms.extend(file.last_fork.map(|fork| fork.as_secs_f64() * 1e3));
    }
    Ok(rewrites)
}

impl RewriteFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        vec![
            row(
                "rewriteLatencyRatio",
                self.rewrite_latency_ratio,
                "accept p99 while Redis rewrites its file over that while it does not",
            )
            .with_target(FigureTarget::AtMost(3.0)),
            row("stillAcceptP99Ms", self.still_accept_p99_ms.median, "without a rewrite")
                .over(&self.still_accept_p99_ms),
            row("rewritingAcceptP99Ms", self.rewriting_accept_p99_ms.median, "rewrites without a pause")
                .over(&self.rewriting_accept_p99_ms),
            row("offeredPerSecond", self.offered_per_second, "half of what bursts accept"),
            row(
                "rewriteSeconds",
                self.rewrite_seconds.median,
                &format!("with {} queued or more", self.backlog),
            )
            .over(&self.rewrite_seconds),
            row("forkMs", self.fork_ms.median, "Redis stands still").over(&self.fork_ms),
        ]
    }
}
