//! The waiters of this process, by issuance.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ids::IssuanceId;
use crate::issuance::lookup::LookupResult;

/// Waiters at once. A request beyond that gets the present state at once.
const WAITERS_MAX: usize = 50_000;

/// The registry of waiters. It keeps a state only for those who wait for it.
pub(super) struct Waiters {
    waiting: Mutex<WaitingList>,
    /// Cancelled when the process is asked to stop: no waiter registers from then on.
    pub(super) stopping: CancellationToken,
}

#[derive(Default)]
struct WaitingList {
    /// Holds only issuances with a waiter.
    by_id: HashMap<IssuanceId, WatchedIssuance>,
    count: usize,
}

struct WatchedIssuance {
    seen: watch::Sender<Option<LookupResult>>,
    waiters: usize,
}

impl Waiters {
    pub(super) fn new(stopping: CancellationToken) -> Self {
        Waiters { waiting: Mutex::default(), stopping }
    }

    fn with<T>(&self, change: impl FnOnce(&mut WaitingList) -> T) -> T {
        change(&mut self.waiting.lock())
    }

    /// Adds a waiter, unless there are as many as the bound allows or the process stops.
    pub(super) fn register(self: &Arc<Self>, id: IssuanceId) -> Option<Waiter> {
        if self.stopping.is_cancelled() {
            return None;
        }
        let seen = self.with(|waiting| {
            if waiting.count >= WAITERS_MAX {
                return None;
            }
            waiting.count += 1;
            let new = || WatchedIssuance { seen: watch::Sender::new(None), waiters: 0 };
            let watched = waiting.by_id.entry(id).or_insert_with(new);
            watched.waiters += 1;
            Some(watched.seen.subscribe())
        })?;
        Some(Waiter { waiters: Arc::clone(self), id, seen })
    }

    /// Wakes the waiters for an issuance.
    pub(super) fn tell(&self, id: IssuanceId, found: LookupResult) {
        self.with(|waiting| {
            let Some(watched) = waiting.by_id.get(&id) else { return };
            watched.seen.send_if_modified(|seen| {
                // A decision stands: a lookup that began before it must not hide it from a waiter that is yet
                // to run.
                let decided = matches!(seen, Some(LookupResult::Decided(_)));
                if !decided {
                    *seen = Some(found);
                }
                !decided
            });
        });
    }

    /// The issuances with a waiter.
    pub(super) fn ids(&self) -> Vec<IssuanceId> {
        self.with(|waiting| waiting.by_id.keys().copied().collect())
    }

    pub(super) fn count(&self) -> usize {
        self.with(|waiting| waiting.count)
    }
}

/// A place in the registry, given up when this is dropped: a client that goes leaves nothing behind.
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    id: IssuanceId,
    seen: watch::Receiver<Option<LookupResult>>,
}

impl Waiter {
    /// The next state of the issuance; `None` when the process is asked to stop.
    pub async fn next(&mut self) -> Option<LookupResult> {
        tokio::select! {
            () = self.waiters.stopping.cancelled() => None,
            // The sender lives as long as this place does.
            Ok(()) = self.seen.changed() => self.seen.borrow_and_update().clone(),
            else => None,
        }
    }

    /// Waits until the issuance is queued no longer; `None` when the process is asked to stop.
    pub(super) async fn ended(&mut self) -> Option<LookupResult> {
        let ended = |seen: &Option<LookupResult>| {
            matches!(seen, Some(LookupResult::Decided(_) | LookupResult::Nowhere))
        };
        tokio::select! {
            () = self.waiters.stopping.cancelled() => None,
            Ok(seen) = self.seen.wait_for(ended) => seen.clone(),
            else => None,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.with(|waiting| {
            waiting.count -= 1;
            if let Some(watched) = waiting.by_id.get_mut(&self.id) {
                watched.waiters -= 1;
                if watched.waiters == 0 {
                    waiting.by_id.remove(&self.id);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;
    use crate::issuance::feed::message;

    #[test]
    fn places_are_bounded_and_given_back() {
        let waiters = Arc::new(Waiters::new(CancellationToken::new()));
        let (one, other) = (IssuanceId::generate(PartitionId::ONE), IssuanceId::generate(PartitionId::ONE));
        let mut held: Vec<_> = (1..WAITERS_MAX).map(|_| waiters.register(one).unwrap()).collect();
        held.push(waiters.register(other).unwrap());
        assert!(waiters.register(one).is_none(), "one more than the bound");
        assert_eq!((waiters.count(), waiters.ids().len()), (WAITERS_MAX, 2));
        held.pop();
        assert_eq!(waiters.ids(), [one]);
        assert!(waiters.register(one).is_some());
        drop(held);
        assert_eq!((waiters.count(), waiters.ids().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_look_that_comes_back_late_does_not_hide_a_decision() {
        let waiters = Arc::new(Waiters::new(CancellationToken::new()));
        let decided = message::read("019a0b1c-2d3e-7000-8f00-000000000000 I 17 1 1 2 summer u1").unwrap();
        let id = decided.id;
        let mut waiter = waiters.register(id).unwrap();
        let decided = LookupResult::Decided(Arc::new(decided));
        waiters.tell(id, decided.clone());
        waiters.tell(id, LookupResult::Nowhere);
        assert_eq!(waiter.ended().await, Some(decided));
    }

    #[tokio::test]
    async fn all_who_wait_for_an_issuance_are_woken_and_everyone_when_the_process_stops() {
        let stopping = CancellationToken::new();
        let waiters = Arc::new(Waiters::new(stopping.clone()));
        let id = IssuanceId::generate(PartitionId::ONE);
        let (mut early, mut late) = (waiters.register(id).unwrap(), waiters.register(id).unwrap());
        waiters.tell(id, LookupResult::Nowhere);
        assert_eq!(early.ended().await, Some(LookupResult::Nowhere));
        assert_eq!(late.next().await, Some(LookupResult::Nowhere));
        stopping.cancel();
        assert_eq!(late.next().await, None);
        assert!(waiters.register(id).is_none());
    }
}
