//! The background task that keeps this worker's heartbeat fresh: once a second. Idempotent. Writes: the heartbeat
//! registry.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::queue::registry;
use crate::queue::registry::BEAT_EVERY;
use crate::redis::Partition;
use crate::runtime::tasks::Rounds;

/// What a heartbeat says of a worker that reads nothing: others read its partitions.
pub(super) const IDLE: &str = " idle=true";

/// Sends heartbeats. They say whether the worker `is_idle`: it lives, and reads nothing.
pub(super) async fn keep(partition: Arc<Partition>, consumer: String, is_idle: impl Fn() -> bool) {
    let says = format!(
        "pid={} started={} version={}",
        std::process::id(),
        Timestamp::now(),
        env!("CARGO_PKG_VERSION")
    );
    let mut rounds = Rounds::now_and_every(BEAT_EVERY, &CancellationToken::new());
    while rounds.next().await {
        let says = format!("{says}{}", if is_idle() { IDLE } else { "" });
        if let Err(failure) = registry::beat(&partition, &partition.keys(), &consumer, &says).await {
            tracing::debug!(error = failure.chain(), "no heartbeat could be sent");
        }
    }
}

/// Ends the heartbeat.
pub(super) async fn leave(partition: &Partition, consumer: &str) {
    match registry::leave(partition, consumer).await {
        Ok(0) => {}
        Ok(entries) => tracing::warn!(consumer, entries, "left entries to other workers"),
        Err(failure) => {
            tracing::warn!(consumer, error = failure.chain(), "others will miss its heartbeat and take over")
        }
    }
}
