//! The active API keys, in memory.
//!
//! Reads MongoDB's `api_keys` every [`REFRESH_EVERY`], and for a key that is not known, at most once in
//! [`ASK_EVERY`]. So a new key works at once, and a revoked one stops within [`REVOKED_WITHIN`]. While
//! MongoDB does not answer, the last known keys go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::key::{ApiKey, PresentedKey, SecretHash};
use super::key_store::ActiveKeys;
use super::{Caller, KeyStore};
use crate::runtime::tasks::Rounds;
use crate::{Failure, metrics};

/// Between two readings of all keys.
const REFRESH_EVERY: Duration = Duration::from_secs(2);
/// Between two readings that unknown keys cause.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A request with an unknown key is not held for longer.
const ASK_MAX: Duration = Duration::from_secs(3);
/// A revoked key stops working within this, while MongoDB answers within seconds.
pub const REVOKED_WITHIN: Duration = Duration::from_secs(5);

/// The active API keys, in memory, read again from MongoDB all the time.
pub(crate) struct Keyring {
    store: KeyStore,
    known: RwLock<Arc<KnownKeys>>,
    /// Notified when the keys have changed.
    changed: watch::Sender<()>,
    /// The last reading for an unknown key: when, and whether it succeeded.
    asked: Mutex<Option<(Instant, bool)>>,
}

#[derive(PartialEq, Eq)]
struct KnownKeys {
    by_id: HashMap<String, KnownKey>,
    /// Active ones whose record cannot be read: they admit no caller.
    unreadable: usize,
}

#[derive(PartialEq, Eq)]
struct KnownKey {
    hash: SecretHash,
    caller: Caller,
}

/// Whose key a request presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyOwner {
    Known(Caller),
    /// The id is known, and the secret is another.
    WrongSecret,
    /// Perhaps it is new: see [`Keyring::ask`].
    Unknown,
}

impl Keyring {
    /// Reads the keys. `changed` is notified of later changes.
    ///
    /// # Errors
    ///
    /// If MongoDB cannot be read.
    pub async fn read(store: KeyStore, changed: watch::Sender<()>) -> Result<Self, Failure> {
        let known = RwLock::new(Arc::new(store.active().await?.into()));
        Ok(Keyring { store, known, changed, asked: Mutex::new(None) })
    }

    /// How many keys are active, as far as is known: those that cannot be read, too.
    pub fn active(&self) -> usize {
        let known = self.known();
        known.by_id.len() + known.unreadable
    }

    /// Whose key it is.
    pub fn owner(&self, shown: &PresentedKey) -> KeyOwner {
        match self.known().by_id.get(&shown.id) {
            Some(known) if known.hash == shown.hash => KeyOwner::Known(known.caller.clone()),
            Some(_) => KeyOwner::WrongSecret,
            None => KeyOwner::Unknown,
        }
    }

    /// Whose key it is, for one that is not known: reads the keys again, unless that was just done. A key
    /// that is unknown then belongs to no caller.
    ///
    /// # Errors
    ///
    /// If the keys cannot be read now, so that the owner cannot be determined.
    pub async fn ask(&self, shown: &PresentedKey) -> Result<KeyOwner, KeyringUnavailable> {
        let asking = async {
            let mut asked = self.asked.lock().await;
            match *asked {
                Some((at, known)) if at.elapsed() < ASK_EVERY => known,
                _ => {
                    // Before the reading: one that is given up counts as failed.
                    *asked = Some((Instant::now(), false));
                    let known = self.refresh().await;
                    *asked = Some((Instant::now(), known));
                    known
                }
            }
        };
        if !tokio::time::timeout(ASK_MAX, asking).await.unwrap_or(false) {
            return Err(KeyringUnavailable);
        }
        Ok(self.owner(shown))
    }

    /// Keeps the keys fresh until `stop`.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        // The keys were just read.
        let (mut fresh, mut fresh_at) = (true, Instant::now());
        let mut rounds = Rounds::every(REFRESH_EVERY, &stop);
        while rounds.next().await {
            let was_fresh = std::mem::replace(&mut fresh, self.refresh().await);
            if fresh {
                fresh_at = Instant::now();
            }
            metrics::credentials_stale_for("keys", if fresh { Duration::ZERO } else { fresh_at.elapsed() });
            if was_fresh && !fresh {
                tracing::warn!("API keys cannot be read: the known keys stay valid, even revoked ones");
            } else if !was_fresh && fresh {
                tracing::info!("API keys can be read again");
            }
        }
    }

    /// Reads the keys; returns whether that succeeded.
    async fn refresh(&self) -> bool {
        match self.store.active().await {
            Ok(keys) => {
                let known = Arc::new(KnownKeys::from(keys));
                let is_new = *known != *self.known();
                *self.known.write() = known;
                if is_new {
                    self.changed.send_replace(());
                }
                true
            }
            Err(failure) => {
                tracing::debug!(error = failure.chain(), "the API keys could not be read");
                metrics::CREDENTIALS_STALE.count("keys");
                false
            }
        }
    }

    fn known(&self) -> Arc<KnownKeys> {
        Arc::clone(&self.known.read())
    }
}

/// The keys cannot be read now, so it is unknown whose key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyringUnavailable;

impl From<ActiveKeys> for KnownKeys {
    fn from(ActiveKeys { keys, unreadable }: ActiveKeys) -> Self {
        let by_id = keys.into_iter().map(|ApiKey { id, name, role, hash, .. }| {
            (id.clone(), KnownKey { hash, caller: Caller::Key { id, name, role } })
        });
        KnownKeys { by_id: by_id.collect(), unreadable }
    }
}
