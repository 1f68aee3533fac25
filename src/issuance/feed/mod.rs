//! Waiting for outcomes. A waiter registers first, then looks up, then waits: a decision that
//! falls in between is either found or announced.
//!
//! Two background tasks wake the waiters of a process: the `subscriber`, which hears of each outcome
//! as it is settled, and the `look`, which finds what was not heard. At its deadline a waiter looks
//! for itself. So the feed may lose anything; what is answered is always what [`Lookup`] says.

mod look;
pub(super) mod message;
mod subscriber;
mod waiters;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lookup::LookupResult;
use super::{IssuanceId, Lookup};
use crate::Failure;
use crate::redis::Partition;
pub use look::LOOK_EVERY;
use waiters::Waiters;
pub use waiters::{WAITERS_MAX, Waiter};

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    partition: Arc<Partition>,
    lookup: Lookup,
    waiters: Arc<Waiters>,
    /// Asks for a look before its second is over.
    again: Arc<Notify>,
}

impl Feed {
    /// Starts the background tasks. They end, and everyone who waits is woken, with `stopping`.
    pub fn start(partition: Arc<Partition>, lookup: Lookup, stopping: CancellationToken) -> Self {
        let waiters = Arc::new(Waiters::new(stopping));
        let feed = Feed { partition, lookup, waiters, again: Arc::default() };
        tokio::spawn(subscriber::listen(feed.clone()));
        tokio::spawn(look::keep_looking(feed.clone()));
        feed
    }

    /// Finds an issuance; one that is queued is waited for until it is decided, for `longest` at most.
    /// What is found then is the present state, also when the process stops or too many wait.
    pub async fn find_decided(&self, id: IssuanceId, longest: Duration) -> Result<LookupResult, Failure> {
        self.find_decided_if(id, longest, |_| true).await
    }

    /// The same; but where `may_wait` does not like what is found at first, that is the answer at once.
    pub async fn find_decided_if(
        &self,
        id: IssuanceId,
        longest: Duration,
        may_wait: impl FnOnce(&LookupResult) -> bool,
    ) -> Result<LookupResult, Failure> {
        let (found, waiter) = self.watch(id).await?;
        let Some(mut waiter) = waiter.filter(|_| may_wait(&found)) else { return Ok(found) };
        match tokio::time::timeout(longest, waiter.ended()).await {
            Ok(Some(found @ LookupResult::Decided(_))) => Ok(found),
            // The deadline, the end of the process, or something to be certain of.
            _ => self.lookup.find(id).await,
        }
    }

    /// Finds an issuance; with it comes a waiter for what follows, if it is queued and may be waited for.
    pub async fn watch(&self, id: IssuanceId) -> Result<(LookupResult, Option<Waiter>), Failure> {
        // Before the look: what is decided after it is heard.
        let waiter = self.waiters.register(id);
        match self.lookup.find(id).await? {
            queued @ LookupResult::Queued { .. } => Ok((queued, waiter)),
            ended => Ok((ended, None)),
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiters.count()
    }
}
