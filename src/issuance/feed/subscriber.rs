//! The background task that hears of outcomes: one for each partition in each API process, on a connection of its own.
//! Reads: the partition's channel. Writes: the outcome cache of [`Lookup`]. Wakes: the waiters for an announced
//! issuance; and [the poll](super::poll) when another epoch was opened, and after each connection, for outcomes that
//! were announced while there was none.
//!
//! It is lossy, as pub/sub is: nothing may depend on it but how soon a waiter wakes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Msg;
use tokio::time::timeout;

use super::Feed;
use super::message::{self, Announcement};
use crate::Failure;
use crate::issuance::lookup::LookupResult;
use crate::redis::{Partition, Subscription};
use crate::runtime::backoff::Backoff;

/// Pauses between attempts to connect.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// The longest that a connection may take to make, subscription included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is silent for this long is asked whether it lives.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// The longest that its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Listens until the process is asked to stop.
pub(super) async fn listen(feed: Feed, partition: Arc<Partition>) {
    let stopping = feed.waiters.stopping.clone();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    let mut told = false;
    while !stopping.is_cancelled() {
        let mut replacements = partition.client().replacements();
        match timeout(CONNECT_TIMEOUT, subscribe(&partition)).await {
            Ok(Ok(subscription)) => {
                told = false;
                let since = Instant::now();
                // Only now: what is decided from here on is heard.
                feed.again.notify_one();
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = hear(&feed, subscription) => tracing::debug!("lost the outcome feed"),
                    // Whatever this one leads to, the outcomes may be announced elsewhere.
                    () = replacements.changed() => {}
                }
                // A connection that is lost as soon as it is made is a failure too.
                if since.elapsed() > RETRY_LONGEST {
                    backoff.reset();
                }
            }
            failed if !told => {
                let error = match failed {
                    Ok(Err(failure)) => failure.chain(),
                    _ => "it takes too long".to_owned(),
                };
                tracing::warn!(error, "there is no outcome feed; those who wait are looked up every second");
                told = true;
            }
            _ => {}
        }
        backoff.wait(&stopping).await;
    }
}

async fn subscribe(partition: &Partition) -> Result<Subscription, Failure> {
    let subscribed = partition.client().subscribe(&partition.outcome_channel()).await;
    subscribed.map_err(|error| {
        partition.client().note(&error);
        Failure::redis("subscribe to the outcomes")(error)
    })
}

/// Hears until the connection breaks, or no longer answers.
async fn hear(feed: &Feed, mut subscription: Subscription) {
    loop {
        match timeout(QUIET_MAX, subscription.next()).await {
            Ok(Some(announced)) => take(feed, &announced),
            Ok(None) => return,
            Err(_) => match timeout(PING_TIMEOUT, subscription.ping()).await {
                Ok(Ok(())) => {}
                _ => return,
            },
        }
    }
}

fn take(feed: &Feed, announced: &Msg) {
    let bytes = announced.get_payload_bytes();
    let Ok(text) = std::str::from_utf8(bytes) else {
        tracing::debug!(bytes = bytes.len(), "skipped what is no text");
        return;
    };
    for line in text.split('\n') {
        match message::hear(line) {
            // Every waiter's issuance is looked up again because of it. Only a script's answer says which epoch is
            // open, and that it is of our ledger.
            Ok(Announcement::Epoch(_)) => feed.again.notify_one(),
            Ok(Announcement::Outcome(decision)) => {
                let id = decision.id;
                let decision = feed.lookup.learn(decision);
                feed.waiters.tell(id, LookupResult::Decided(decision));
            }
            Err(why) => {
                tracing::debug!(bytes = line.len(), why, "skipped what is no announcement")
            }
        }
    }
}
