//! What the programs themselves need: resident memory of an API and a worker process, at rest and
//! after a burst that they have worked off.

use std::time::Duration;

use serde::Serialize;

use super::accept::to_service;
use super::bed::Bed;
use super::lab::Lab;
use super::report::{Row, row};
use super::usage::resident_bytes;
use crate::dev::servers::Persistence;

/// A program is at rest when it has done nothing for so long.
const REST: Duration = Duration::from_secs(1);

/// Resident memory, in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Started, and ready.
    pub api_bytes_at_rest: u64,
    pub worker_bytes_at_rest: u64,
    /// After the burst was accepted and drained.
    pub api_bytes_after: u64,
    pub worker_bytes_after: u64,
    /// Requests in the burst.
    pub requests: u32,
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Memory> {
    let requests = lab.sizes.burst;
    lab.say("memory: at rest, and after a burst");
    let bed = Bed::make(lab, Persistence::FsyncAlways).await?;
    bed.register(requests).await?;
    let (api, worker) = (bed.api().await?, bed.worker().await?);
    let resident = async || {
        tokio::time::sleep(REST).await;
        anyhow::Ok((resident_bytes(api.pid())?, resident_bytes(worker.pid())?))
    };
    let (api_bytes_at_rest, worker_bytes_at_rest) = resident().await?;
    let coupon = bed.coupon(requests).await?;
    to_service(lab, &bed, &api, None)?.send(coupon.as_str()).await?;
    bed.drained(&coupon, requests).await?;
    let (api_bytes_after, worker_bytes_after) = resident().await?;
    worker.stop().await?;
    api.stop().await?;
    bed.close().await?;
    Ok(Memory { api_bytes_at_rest, worker_bytes_at_rest, api_bytes_after, worker_bytes_after, requests })
}

impl Memory {
    pub(super) fn rows(&self) -> Vec<Row> {
        let after = format!("after {} requests", self.requests);
        let row = |name, bytes: u64, says: &str| row(name, bytes as f64, says);
        vec![
            row("apiBytesAtRest", self.api_bytes_at_rest, "resident"),
            row("apiBytesAfter", self.api_bytes_after, &after),
            row("workerBytesAtRest", self.worker_bytes_at_rest, "resident"),
            row("workerBytesAfter", self.worker_bytes_after, &after),
        ]
    }
}
