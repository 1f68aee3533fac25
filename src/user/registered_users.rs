//! Who may take stock: unknown users are turned away before the script, so that they take none.
//!
//! A process remembers users once it has read them in MongoDB; that a user is unknown is
//! never remembered, because they may register the next moment. What is remembered counts only while the
//! process hears of deletions ([`PendingDeletions`]); those who are being deleted are forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::{IdSecret, PendingDeletions, RegisteredUser, UserId, UserStore};
use crate::runtime::batch::{Batcher, Bounds};
use crate::{Failure, metrics};

const BOUNDS: Bounds = Bounds { batch: 512, calls: 4, waiting: 16_384, wait: Duration::from_millis(500) };

/// What a request needs to know of a user who may request.
#[derive(Debug, Clone, Copy)]
pub struct KnownUser {
    /// The secret that the ids of the user's keyed issuances are made with; `None` if the user was given none.
    pub id_secret: Option<IdSecret>,
}

/// Knows registered users. Cheap to clone.
#[derive(Clone)]
pub struct RegisteredUsers {
    known: Arc<Cache<UserId, KnownUser>>,
    deletions: Arc<PendingDeletions>,
    store: Batcher<UserId, Option<RegisteredUser>>,
}

impl RegisteredUsers {
    /// Starts the batcher, with room for `cached` users in memory.
    pub fn start(store: UserStore, deletions: Arc<PendingDeletions>, cached: usize) -> Self {
        let store = Batcher::start("look the user up", BOUNDS, move |ids: Vec<UserId>| {
            let store = store.clone();
            async move {
                let found = store.registered(&ids).await?;
                Ok(ids.iter().map(|id| answer(&found, id)).collect())
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
    pub(super) fn remember(&self, asked: Instant, users: impl Iterator<Item = RegisteredUser>) {
        for user in users {
            self.known.insert(user.id.clone(), KnownUser { id_secret: user.secret });
            // After it: the process may have slept before it.
            if asked.elapsed() > self.deletions.fresh_for() {
                self.known.remove(&user.id);
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

    /// The user, if they are registered and not being deleted.
    ///
    /// # Errors
    ///
    /// If the user must be read, and MongoDB fails or the record cannot be read.
    pub async fn find(&self, id: &UserId) -> Result<Option<KnownUser>, Failure> {
        if let Some(user) = self.known.get(id)
            && self.deletions.is_fresh()
        {
            metrics::USER_CACHE.hit();
            return Ok(Some(user));
        }
        // In a box: most are known, and the future of each request is no larger for those who are not.
        Box::pin(self.look_up(id)).await
    }

    async fn look_up(&self, id: &UserId) -> Result<Option<KnownUser>, Failure> {
        metrics::USER_CACHE.miss();
        let asked = Instant::now();
        let Some(registered) = self.store.ask(id.clone()).await? else { return Ok(None) };
        let user = KnownUser { id_secret: registered.secret };
        self.remember(asked, std::iter::once(registered));
        Ok(Some(user))
    }
}

/// The answer for one of the users that a batch asked for.
fn answer(
    found: &HashMap<UserId, Result<RegisteredUser, Failure>>,
    id: &UserId,
) -> Result<Option<RegisteredUser>, Failure> {
    match found.get(id) {
        None => Ok(None),
        Some(Ok(known)) => Ok(Some(known.clone())),
        Some(Err(failure)) => Err(Failure::Damaged { what: "the record of a user", why: failure.chain() }),
    }
}
