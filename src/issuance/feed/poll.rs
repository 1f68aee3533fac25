//! The background task that looks up again every issuance with a waiter: once a second, when the feed is connected
//! again, and when another epoch is open. It finds what the feed did not bring.
//! Reads: the registry of waiters, and [`Lookup`](crate::issuance::Lookup) in batches. Writes: nothing.
//! Wakes: the waiters, with what was found.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use super::Feed;
use crate::Failure;
use crate::ids::{IssuanceId, PartitionId};
use crate::redis::Opening;

/// The pause between two polls.
pub const POLL_EVERY: Duration = Duration::from_secs(1);
/// Issuances that are looked up at once: a few calls' worth, so that clients' lookups go in between.
const BATCH: usize = 1_024;
/// The longest that the poll of one partition may take.
const POLL_MAX: Duration = Duration::from_secs(5);

/// Polls until the process is asked to stop.
pub(super) async fn keep_polling(feed: Feed) {
    let mut every = tokio::time::interval(POLL_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = feed.waiters.stopping.cancelled() => return,
            _ = every.tick() => {}
            () = feed.again.notified() => {}
        }
        tokio::select! {
            () = feed.waiters.stopping.cancelled() => return,
            polled = poll(&feed) => if let Err(failure) = polled {
                // They stay, and the next poll or their own deadline finds out.
                tracing::debug!(error = failure.chain(), "could not look up those who wait");
            },
        }
    }
}

/// Asks for a poll whenever another epoch of a partition is open.
pub(super) async fn follow_openings(feed: Feed, mut openings: watch::Receiver<Opening>) {
    let follow = async {
        while openings.changed().await.is_ok() {
            feed.again.notify_one();
        }
    };
    feed.waiters.stopping.run_until_cancelled(follow).await;
}

/// Polls all partitions at the same time. One that takes long goes on with the next poll, so that it keeps no other's
/// waiters.
async fn poll(feed: &Feed) -> Result<(), Failure> {
    let mut of_partition: BTreeMap<PartitionId, Vec<IssuanceId>> = BTreeMap::new();
    for id in feed.waiters.ids() {
        of_partition.entry(id.partition()).or_default().push(id);
    }
    let polls = of_partition.into_values().map(|ids| timeout(POLL_MAX, poll_these(feed, ids)));
    join_all(polls).await.into_iter().flatten().collect()
}

async fn poll_these(feed: &Feed, ids: Vec<IssuanceId>) -> Result<(), Failure> {
    for ids in ids.chunks(BATCH) {
        let states = join_all(ids.iter().map(|id| feed.lookup.find(*id))).await;
        // Waiters for one that fails for itself learn of it at their deadline.
        let (mut told, mut failed) = (false, None);
        for (id, found) in ids.iter().zip(states) {
            match found {
                Ok(found) => {
                    feed.waiters.tell(*id, found);
                    told = true;
                }
                Err(failure) => failed = Some(failure),
            }
        }
        if let Some(failure) = failed.filter(|_| !told) {
            return Err(failure);
        }
    }
    Ok(())
}
