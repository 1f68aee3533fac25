//! The bench: `couponctl bench`. It starts servers and programs of its own and measures, side by side
//! in one run, what the system is held to. Rates depend on the machine; what counts is what they are
//! over something plain that ran beside them.
//!
//! A section a file: [`accept`], [`drain`], [`latency`], [`redis`], [`nodes`], [`overload`], [`rewrite`],
//! [`ready`]. They share a [`BenchContext`] (a folder); each makes its own `env`s (an empty Redis and MongoDB), with the
//! real programs (`program`), `burst`s of requests and `backlog`s.

pub mod accept;
mod backlog;
pub mod bare;
pub mod burst;
pub mod context;
mod cores;
pub mod drain;
mod env;
pub mod latency;
pub mod nodes;
pub mod overload;
mod paced;
mod program;
pub mod ready;
pub mod redis;
pub mod report;
pub mod rewrite;
pub mod spread;
mod tokens;
mod usage;

use std::path::Path;

use clap::ValueEnum;
use tokio_util::sync::CancellationToken;

use crate::runtime::fd_limit;
pub use context::{BenchContext, BenchSizes, StatusCallback};
pub use report::BenchReport;

/// A section of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchSection {
    /// Accepted requests per second, relative to a bare handler
    Accept,
    /// Durable issuances per second of a worker, relative to raw inserts
    Drain,
    /// Time from a request to its outcome at half load
    Latency,
    /// Processor time and memory that Redis uses for each issuance
    Redis,
    /// Processor time that the nodes of a Redis Cluster use for a reservation, relative to one node
    Nodes,
    /// Answers under five times the load that the API sustains
    Overload,
    /// Answers while Redis rewrites its append-only file
    Rewrite,
    /// Time from nothing to a system that accepts requests
    Ready,
}

/// Whether this program was built to be fast.
pub const IS_RELEASE: bool = !cfg!(debug_assertions);

/// Measures these sections, in a folder inside `parent` that it deletes after.
///
/// # Errors
///
/// If a program is missing, a server does not start, a request is not accepted or issued, or `stop` is cancelled:
/// there is no report of a part.
pub async fn run(
    parent: &Path,
    sections: &[BenchSection],
    quick: bool,
    stop: &CancellationToken,
    tell: StatusCallback<'_>,
) -> anyhow::Result<BenchReport> {
    if sections.iter().any(|section| section.needs_programs()) {
        program::sibling("coupon-api")?;
        program::sibling("coupon-worker")?;
    }
    fd_limit::raise_limit();
    let sizes = if quick { BenchSizes::QUICK } else { BenchSizes::FULL };
    let context = BenchContext::open(parent, sizes, tell).await?;
    // What is dropped in the middle takes its processes with it.
    let measured = stop.run_until_cancelled(measure(&context, sections, quick)).await;
    let closed = context.close();
    let report = measured.unwrap_or_else(|| anyhow::bail!("broken off"))?;
    closed.map(|()| report)
}

impl BenchSection {
    fn needs_programs(self) -> bool {
        matches!(
            self,
            BenchSection::Accept
                | BenchSection::Drain
                | BenchSection::Latency
                | BenchSection::Overload
                | BenchSection::Rewrite
        )
    }
}

async fn measure(
    context: &BenchContext<'_>,
    sections: &[BenchSection],
    quick: bool,
) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport {
        version: env!("CARGO_PKG_VERSION"),
        build: if IS_RELEASE { "release" } else { "debug" },
        quick,
        cores: std::thread::available_parallelism()?.get(),
        fsync_micros: context.fsync_micros()?,
        started_at: crate::mongo::now_in_milliseconds(),
        targets: Vec::new(),
        accept: None,
        drain: None,
        latency: None,
        redis: None,
        nodes: None,
        overload: None,
        rewrite: None,
        ready: None,
    };
    for section in sections {
        match section {
            BenchSection::Accept => report.accept = Some(accept::measure(context).await?),
            BenchSection::Drain => report.drain = Some(drain::measure(context).await?),
            BenchSection::Latency => report.latency = Some(latency::measure(context).await?),
            BenchSection::Redis => report.redis = Some(redis::measure(context).await?),
            BenchSection::Nodes => report.nodes = Some(nodes::measure(context).await?),
            BenchSection::Overload => report.overload = Some(overload::measure(context).await?),
            BenchSection::Rewrite => report.rewrite = Some(rewrite::measure(context).await?),
            BenchSection::Ready => report.ready = Some(ready::measure(context).await?),
        }
    }
    let rows = report.sections().into_iter().flat_map(|(_, rows)| rows);
    report.targets = rows.filter_map(|row| row.judged()).collect();
    Ok(report)
}
