//! The bench: `couponctl bench`. It starts servers and programs of its own and measures, side by side
//! in one run, what the system is held to. Rates depend on the machine; what counts is what they are
//! over something plain that ran beside them.
//!
//! A section a file: [`accept`], [`drain`], [`latency`], [`redis`], [`overload`], [`ready`]. They work in a [`Lab`] (a folder), each on `bed`s (an empty Redis and
//! MongoDB), with the real programs (`program`), `burst`s of requests and `backlog`s.

pub mod accept;
mod backlog;
pub mod bare;
mod bed;
pub mod burst;
mod cores;
pub mod drain;
pub mod lab;
pub mod latency;
pub mod overload;
mod program;
pub mod ready;
pub mod redis;
pub mod report;
pub mod spread;
mod tokens;
mod usage;

use std::path::Path;

use clap::ValueEnum;
use tokio_util::sync::CancellationToken;

use crate::runtime::fd_limit;
pub use lab::{Lab, Sizes, Tell};
pub use report::Report;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Accepted requests over a bare handler
    Accept,
    /// Durable issuances of a worker over a raw insert
    Drain,
    /// From request to outcome at half load
    Latency,
    /// Processor time and memory of Redis
    Redis,
    /// Five times what it can take
    Overload,
    /// From nothing to a system to try
    Ready,
}

/// Whether this program was built to be fast.
pub const IS_RELEASE: bool = !cfg!(debug_assertions);

/// Measures some sections. `parent` is where the servers' folder is made; it is deleted after. After
/// `stop` nothing more is measured, and there is no report.
pub async fn run(
    parent: &Path,
    sections: &[Section],
    quick: bool,
    stop: &CancellationToken,
    tell: Tell<'_>,
) -> anyhow::Result<Report> {
    if sections.iter().any(|section| section.needs_programs()) {
        program::sibling("coupon-api")?;
        program::sibling("coupon-worker")?;
    }
    fd_limit::raise_limit();
    let sizes = if quick { Sizes::QUICK } else { Sizes::FULL };
    let lab = Lab::open(parent, sizes, tell).await?;
    // What is dropped in the middle takes its processes with it.
    let measured = stop.run_until_cancelled(measure(&lab, sections, quick)).await;
    let closed = lab.close();
    let report = measured.unwrap_or_else(|| anyhow::bail!("broken off"))?;
    closed.map(|()| report)
}

impl Section {
    fn needs_programs(self) -> bool {
        matches!(self, Section::Accept | Section::Drain | Section::Latency | Section::Overload)
    }
}

async fn measure(lab: &Lab<'_>, sections: &[Section], quick: bool) -> anyhow::Result<Report> {
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: if IS_RELEASE { "release" } else { "debug" },
        quick,
        cores: std::thread::available_parallelism()?.get(),
        fsync_micros: lab.fsync_micros()?,
        started_at: crate::mongo::now_in_milliseconds(),
        targets: Vec::new(),
        accept: None,
        drain: None,
        latency: None,
        redis: None,
        overload: None,
        ready: None,
    };
    for section in sections {
        match section {
            Section::Accept => report.accept = Some(accept::measure(lab).await?),
            Section::Drain => report.drain = Some(drain::measure(lab).await?),
            Section::Latency => report.latency = Some(latency::measure(lab).await?),
            Section::Redis => report.redis = Some(redis::measure(lab).await?),
            Section::Overload => report.overload = Some(overload::measure(lab).await?),
            Section::Ready => report.ready = Some(ready::measure(lab).await?),
        }
    }
    let rows = report.sections().into_iter().flat_map(|(_, rows)| rows);
    report.targets = rows.filter_map(|row| row.judged()).collect();
    Ok(report)
}
