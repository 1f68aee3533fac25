//! Waits for outcomes. A waiter registers first, then looks its issuance up, then waits: a decision in between is
//! either found or announced.
//!
//! Background tasks wake the waiters of a process: a `subscriber` for each partition, which hears of each outcome as it
//! is settled, and `poll`, which finds what was not heard. At its deadline a waiter looks its issuance up itself. So the
//! feed may lose any message; the answer is always what [`Lookup`] says.

pub(super) mod message;
mod poll;
mod subscriber;
mod waiters;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lookup::LookupResult;
use super::{IssuanceId, Lookup};
use crate::Failure;
use crate::redis::Partitions;
pub use poll::POLL_EVERY;
pub(crate) use waiters::Waiter;
use waiters::Waiters;

/// The waiters of a process, and what wakes them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Feed {
    lookup: Lookup,
    waiters: Arc<Waiters>,
    /// Asks for a poll before its second is over.
    again: Arc<Notify>,
}

impl Feed {
    /// Starts the background tasks. `stopping` ends them, and wakes all waiters.
    pub fn start(partitions: &Partitions, lookup: Lookup, stopping: CancellationToken) -> Self {
        let waiters = Arc::new(Waiters::new(stopping));
        let feed = Feed { lookup, waiters, again: Arc::default() };
        for partition in partitions {
            tokio::spawn(subscriber::listen(feed.clone(), Arc::clone(partition)));
            tokio::spawn(poll::follow_openings(feed.clone(), partition.openings()));
        }
        tokio::spawn(poll::keep_polling(feed.clone()));
        feed
    }

    /// Finds an issuance, and if it is queued, waits until it is decided, for `longest` at most. Returns its state then,
    /// at once if the process stops or too many wait.
    ///
    /// # Errors
    ///
    /// Those of [`Lookup::find`].
    pub(crate) async fn wait_for_outcome(
        &self,
        id: IssuanceId,
        longest: Duration,
    ) -> Result<LookupResult, Failure> {
        self.wait_for_outcome_if(id, longest, |_| true).await
    }

    /// The same, but waits only if `may_wait` allows it for the state that is found first.
    ///
    /// # Errors
    ///
    /// Those of [`Lookup::find`].
    pub(crate) async fn wait_for_outcome_if(
        &self,
        id: IssuanceId,
        longest: Duration,
        may_wait: impl FnOnce(&LookupResult) -> bool,
    ) -> Result<LookupResult, Failure> {
        let (found, waiter) = self.watch(id).await?;
        let Some(mut waiter) = waiter.filter(|_| may_wait(&found)) else { return Ok(found) };
        match tokio::time::timeout(longest, waiter.ended()).await {
            Ok(Some(found @ LookupResult::Decided(_))) => Ok(found),
            // The deadline, the end of the process, or a state that is to be confirmed.
            _ => self.lookup.find(id).await,
        }
    }

    /// Finds an issuance; if it is queued, and not too many wait, with a waiter for its later states.
    ///
    /// # Errors
    ///
    /// Those of [`Lookup::find`].
    pub async fn watch(&self, id: IssuanceId) -> Result<(LookupResult, Option<Waiter>), Failure> {
        // Before the lookup: a decision after it is heard.
        let waiter = self.waiters.register(id);
        match self.lookup.find(id).await? {
            queued @ LookupResult::Queued { .. } => Ok((queued, waiter)),
            ended => Ok((ended, None)),
        }
    }

    /// The number of waiters.
    pub fn waiting(&self) -> usize {
        self.waiters.count()
    }
}
