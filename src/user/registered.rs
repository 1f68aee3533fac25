//! Who may take stock: unknown users are turned away before the script, so that they take none.
//!
//! Users are remembered in the process once they were seen in MongoDB; that somebody is unknown is
//! never remembered, because they may register the next moment. What is remembered counts only while the
//! process hears of deletions ([`Deletions`]); those who are being deleted are forgotten.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::{Deletions, UserId, UserStore};
use crate::batch::{Batcher, Bounds, all_failed};
use crate::{Failure, metrics};

const BOUNDS: Bounds = Bounds { batch: 512, calls: 4, waiting: 16_384, wait: Duration::from_millis(500) };

/// Knows registered users. Cheap to clone.
#[derive(Clone)]
pub struct RegisteredUsers {
    known: Arc<Cache<UserId, ()>>,
    deletions: Arc<Deletions>,
    store: Batcher<UserId, bool>,
}

impl RegisteredUsers {
    /// Starts the batcher, with room for `cached` users in memory.
    pub fn start(store: UserStore, deletions: Arc<Deletions>, cached: usize) -> Self {
        let store = Batcher::start("look the user up", BOUNDS, move |ids: Vec<UserId>| {
            let store = store.clone();
            async move {
                match store.registered(&ids).await {
                    Ok(found) => {
                        let found: HashSet<UserId> = found.into_iter().collect();
                        ids.iter().map(|id| Ok(found.contains(id))).collect()
                    }
                    Err(failure) => all_failed(ids.len(), failure),
                }
            }
        });
        RegisteredUsers { known: Arc::new(Cache::new(cached)), deletions, store }
    }

    /// How many users are remembered.
    pub fn cached(&self) -> usize {
        self.known.len()
    }

    /// Remembers users who were read by a question asked at `asked`. What is so old that a deletion may
    /// have come and gone meanwhile is not remembered.
    pub(super) fn remember(&self, asked: Instant, users: impl Iterator<Item = UserId>) {
        for user in users {
            self.known.insert(user.clone(), ());
            // After it: the process may have slept before it.
            if asked.elapsed() > self.deletions.fresh_for() {
                self.known.remove(&user);
                return;
            }
        }
    }

    /// Forgets some users, who are asked for again.
    pub(crate) fn forget<'a>(&self, users: impl IntoIterator<Item = &'a UserId>) {
        for user in users {
            self.known.remove(user);
        }
    }

    /// Forgets all.
    pub(crate) fn forget_all(&self) {
        self.known.clear();
    }

    /// Whether the user is registered, and not being deleted.
    pub async fn contains(&self, id: &UserId) -> Result<bool, Failure> {
        if self.known.get(id).is_some() && self.deletions.is_fresh() {
            metrics::USER_CACHE.hit();
            return Ok(true);
        }
        // In a box: most are known, and the future of each request is no larger for those who are not.
        Box::pin(self.look_up(id)).await
    }

    async fn look_up(&self, id: &UserId) -> Result<bool, Failure> {
        metrics::USER_CACHE.miss();
        let asked = Instant::now();
        let registered = self.store.ask(id.clone()).await?;
        if registered {
            self.remember(asked, std::iter::once(id.clone()));
        }
        Ok(registered)
    }
}
