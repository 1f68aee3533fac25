//! The background task that looks up again whatever is waited for: once a second, when the feed is
//! connected again, and when another epoch is open. What the feed did not bring is found here.
//! Reads: the registry of waiters, and [`Lookup`](crate::issuance::Lookup) in batches. Writes: nothing.
//! Wakes: the waiters, with what was found.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::MissedTickBehavior;

use super::Feed;
use crate::Failure;

/// Between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looked up at once: a few calls' worth, so that the polls of others go in between.
const LOOK_BATCH: usize = 1_024;

/// Looks until the process is asked to stop.
pub(super) async fn keep_looking(feed: Feed) {
    let mut every = tokio::time::interval(LOOK_EVERY);
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
            looked = look(&feed) => if let Err(failure) = looked {
                // They stay, and the next look or their own deadline finds out.
                tracing::debug!(error = failure.chain(), "could not look up those who wait");
            },
        }
    }
}

async fn look(feed: &Feed) -> Result<(), Failure> {
    for ids in feed.waiters.ids().chunks(LOOK_BATCH) {
        let looked = join_all(ids.iter().map(|id| feed.lookup.find(*id))).await;
        // What is wrong with one of them alone is told to those who wait for it, at their deadline.
        let (mut told, mut failed) = (false, None);
        for (id, found) in ids.iter().zip(looked) {
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
