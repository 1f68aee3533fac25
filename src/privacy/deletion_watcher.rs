//! The background task, in every API process, that learns of deletions. Idempotent and without input;
//! periodic.
//!
//! Reads: marked users. Writes: what this process remembers of users and of outcomes. Wakes the task that
//! carries deletions out, once one is due.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::ids::UserId;
use crate::issuance::Lookup;
use crate::runtime::tasks::Rounds;
use crate::user::{PendingDeletions, RegisteredUsers, UserStore};

/// The longest pause between two polls.
const EVERY_MAX: Duration = Duration::from_secs(2);
/// Polls within the time that a list is fresh, so that one may fail.
const POLLS: u32 = 5;

/// Polls MongoDB for users who are being deleted, and makes this process forget them.
pub struct DeletionWatcher {
    pub users: UserStore,
    pub deletions: Arc<PendingDeletions>,
    /// `None` where the caller's ids are trusted.
    pub registered: Option<RegisteredUsers>,
    pub lookup: Lookup,
    /// Notified when a deletion is due.
    pub due: Arc<Notify>,
}

/// What the polls before read.
#[derive(Default)]
struct LastPoll {
    /// MongoDB's time of the latest one.
    at: Option<Timestamp>,
    /// User and pseudonym.
    pending: HashSet<(UserId, UserId)>,
    /// Who was new among them: what was read just before may be remembered just after.
    new: HashSet<UserId>,
}

impl DeletionWatcher {
    /// Polls until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let every = (self.deletions.fresh_for() / POLLS).min(EVERY_MAX);
        let mut last = LastPoll::default();
        let mut rounds = Rounds::now_and_every(every, &shutdown);
        while rounds.next().await {
            let Some(polled) = shutdown.run_until_cancelled(self.poll(&mut last)).await else { return };
            if let Err(failure) = polled {
                tracing::debug!(
                    error = failure.chain(),
                    "the list of users who are being deleted could not be read; trying again"
                );
            }
        }
    }

    async fn poll(&self, last: &mut LastPoll) -> Result<(), Failure> {
        let started = Instant::now();
        let (deletions, now) = self.users.deletions().await?;
        // A deletion may have come and gone unheard, be it before the first poll. MongoDB's clock, which says
        // when one is due, goes on while this machine sleeps; its own may not.
        let slept = last
            .at
            .is_some_and(|before| now.duration_since(before).unsigned_abs() > self.deletions.fresh_for());
        if slept || !self.deletions.is_fresh() {
            if let Some(registered) = &self.registered {
                registered.forget_all();
            }
            self.lookup.forget(|_| true);
        }
        let pending: HashSet<_> =
            deletions.iter().map(|one| (one.user.clone(), one.pseudonym.clone())).collect();
        let users: HashSet<_> = pending.iter().map(|(user, _)| user.clone()).collect();
        // First, so that nothing of them is remembered anew.
        self.deletions.learn(started, users.clone());
        if let Some(registered) = &self.registered {
            registered.forget(&users);
        }
        let new: HashSet<_> = pending.difference(&last.pending).map(|(user, _)| user.clone()).collect();
        if !new.is_empty() || !last.new.is_empty() {
            self.lookup.forget(|decision| new.contains(&decision.user) || last.new.contains(&decision.user));
        }
        *last = LastPoll { at: Some(now), pending, new };
        if deletions.iter().any(|one| one.due <= now) {
            self.due.notify_one();
        }
        Ok(())
    }
}
