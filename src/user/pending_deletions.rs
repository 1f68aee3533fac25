//! The users who are being deleted, as one process knows them: the list, and how old it is. Made fresh all
//! the time by [`crate::privacy::DeletionWatcher`].
//!
//! What is remembered of users may be trusted only while the list is fresh: a deletion is carried out so
//! long after it was asked for that by then every process has either heard of it or stopped trusting.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::UserId;
use crate::Failure;
use parking_lot::RwLock;

/// The users who are being deleted, as far as this process knows, and how old that knowledge is.
pub struct PendingDeletions {
    started: Instant,
    /// When the list was asked for, in milliseconds since `started`.
    asked_ms: AtomicU64,
    fresh_for: Duration,
    any: AtomicBool,
    users: RwLock<HashSet<UserId>>,
}

impl PendingDeletions {
    /// Knows of none. `delay` is what lies between the asking for a deletion and its being due.
    pub fn new(delay: Duration) -> Self {
        PendingDeletions {
            started: Instant::now(),
            asked_ms: AtomicU64::new(0),
            fresh_for: delay / 2,
            any: AtomicBool::new(false),
            users: RwLock::default(),
        }
    }

    /// How long a list is fresh.
    pub(crate) fn fresh_for(&self) -> Duration {
        self.fresh_for
    }

    /// Whether the list is fresh. By the clock, so that a process that slept knows that it did.
    pub fn is_fresh(&self) -> bool {
        let asked = Duration::from_millis(self.asked_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(asked) <= self.fresh_for
    }

    /// Takes over a list that was asked for at `asked`.
    pub(crate) fn learn(&self, asked: Instant, users: HashSet<UserId>) {
        let ms = asked.saturating_duration_since(self.started).as_millis();
        self.any.store(!users.is_empty(), Ordering::Release);
        *self.users.write() = users;
        self.asked_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Whether the user is being deleted.
    ///
    /// # Errors
    ///
    /// If the list is not fresh.
    pub fn contains(&self, user: &UserId) -> Result<bool, Failure> {
        if !self.is_fresh() {
            return Err(Failure::Stale {
                operation: "determine whether a user is being deleted",
                why: "MongoDB has not been reached for too long".into(),
            });
        }
        Ok(self.lists(user))
    }

    /// Whether the list names the user, however old it is.
    pub fn lists(&self, user: &UserId) -> bool {
        self.any.load(Ordering::Acquire) && self.users.read().contains(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_too_long_ago_is_not_trusted() {
        let user: UserId = "u".parse().unwrap();
        let fresh = PendingDeletions::new(Duration::from_secs(3_600));
        assert!(!fresh.contains(&user).unwrap());
        fresh.learn(Instant::now(), HashSet::from([user.clone()]));
        assert!(fresh.contains(&user).unwrap());
        fresh.learn(Instant::now(), HashSet::new());
        assert!(!fresh.contains(&user).unwrap());

        let stale = PendingDeletions::new(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        assert!(!stale.is_fresh());
        stale.contains(&user).unwrap_err();
    }
}
