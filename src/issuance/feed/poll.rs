//! The background task that looks up again every issuance with a waiter: once a second, when the feed is connected
//! again, and when another epoch is open. It finds what the feed did not bring.
//! Reads: the registry of waiters, and [`Lookup`](crate::issuance::Lookup) in batches. Writes: nothing.
//! Wakes: the waiters, with what was found.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::MissedTickBehavior;

use super::Feed;
use crate::Failure;

/// The pause between two polls.
pub const POLL_EVERY: Duration = Duration::from_secs(1);
/// Issuances that are looked up at once: a few calls' worth, so that clients' lookups go in between.
const BATCH: usize = 1_024;

/// Polls until the process is asked to stop.
pub(super) async fn keep_polling(feed: Feed) {
    let mut every = tokio::time::interval(POLL_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut openings = feed.partition.openings();
    loop {
        tokio::select! {
            () = feed.waiters.stopping.cancelled() => return,
            _ = every.tick() => {}
            () = feed.again.notified() => {}
            Ok(()) = openings.changed() => {}
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

async fn poll(feed: &Feed) -> Result<(), Failure> {
    for ids in feed.waiters.ids().chunks(BATCH) {
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
