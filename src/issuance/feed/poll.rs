//! The background task that looks up again every issuance with a waiter: once a second, when the feed is connected
//! again, and when another epoch is open. It finds what the feed did not bring.
//! Reads: the registry of waiters, and [`Lookup`](crate::issuance::Lookup) in batches. Writes: nothing.
//! Wakes: the waiters, with what was found.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
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
const POLL_MAX: Duration = Duration::from_secs(60);

/// Polls until the process is asked to stop.
pub(super) async fn keep_polling(feed: Feed) {
    let under_way = PollsUnderWay::default();
    let mut every = tokio::time::interval(POLL_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = feed.waiters.stopping.cancelled() => return,
            _ = every.tick() => {}
            () = feed.again.notified() => {}
        }
        poll(&feed, &under_way);
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

/// The partitions whose last poll still runs.
type PollsUnderWay = Arc<Mutex<HashSet<PartitionId>>>;

/// Starts a poll of each partition that has waiters, but of those whose last one still runs: a partition that takes long
/// keeps no other's waiters.
fn poll(feed: &Feed, under_way: &PollsUnderWay) {
    let mut of_partition: BTreeMap<PartitionId, Vec<IssuanceId>> = BTreeMap::new();
    for id in feed.waiters.ids() {
        of_partition.entry(id.partition()).or_default().push(id);
    }
    for (partition, ids) in of_partition {
        if !under_way.lock().insert(partition) {
            continue;
        }
        let (feed, under_way) = (feed.clone(), Arc::clone(under_way));
        tokio::spawn(async move {
            let stopping = feed.waiters.stopping.clone();
            let polled = stopping.run_until_cancelled(timeout(POLL_MAX, poll_these(&feed, ids))).await;
            if let Some(Ok(Err(failure))) = polled {
                // They stay, and the next poll or their own deadline finds out.
                tracing::debug!(error = failure.chain(), "could not look up those who wait");
            }
            under_way.lock().remove(&partition);
        });
    }
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
