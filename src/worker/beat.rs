//! The background task that keeps this worker's heartbeat fresh: once a second. Idempotent. Writes: the heartbeat
//! registry.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::queue::registry;
use crate::queue::registry::BEAT_EVERY;
use crate::redis::Partition;
use crate::runtime::tasks::Rounds;

/// Sends heartbeats until `left`, then ends them.
pub(super) async fn keep(partition: Arc<Partition>, consumer: String, left: CancellationToken) {
    let says = format!(
        "pid={} started={} version={}",
        std::process::id(),
        Timestamp::now(),
        env!("CARGO_PKG_VERSION")
    );
    let mut rounds = Rounds::now_and_every(BEAT_EVERY, &left);
    while rounds.next().await {
        if let Err(failure) = registry::beat(&partition, &partition.keys(), &consumer, &says).await {
            tracing::debug!(error = failure.chain(), "no heartbeat could be sent");
        }
    }
    match registry::leave(&partition, &consumer).await {
        Ok(0) => {}
        Ok(entries) => tracing::warn!(consumer, entries, "left entries to other workers"),
        Err(failure) => {
            tracing::warn!(consumer, error = failure.chain(), "others will miss its heartbeat and take over")
        }
    }
}
