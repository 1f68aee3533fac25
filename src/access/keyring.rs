//! The active API keys, in memory.
//!
//! Reads MongoDB's `api_keys` every [`REFRESH_EVERY`], and for a key that is not known, at most once in
//! [`ASK_EVERY`]. So a new key works at once, and a revoked one stops within [`REVOKED_WITHIN`]. While
//! MongoDB does not answer, the last known keys go on. A key expires by the clock of this machine.
//!
//! A request that presents a key sets a flag, and no more. At most once in [`NOTE_USE_EVERY`] one update writes the time
//! to the records of the keys whose flag is set: `lastUsedAt` is behind by as much, and misses what a process took in
//! the minute before its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
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
/// Between two updates, by one process, of when keys were last used.
pub const NOTE_USE_EVERY: Duration = Duration::from_secs(60);
/// A key that expires within this, and is used, should be replaced now.
pub(crate) const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A key that was used within this is in use.
const IN_USE: SignedDuration = SignedDuration::from_hours(24);

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
    expires_at: Option<Timestamp>,
    use_flag: UseFlag,
}

/// Set where the key was used since this was last noted.
#[derive(Default, Clone)]
struct UseFlag(Arc<AtomicBool>);

impl UseFlag {
    /// Writes only the first time, so that processors do not pass the flag around.
    fn set(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A key that was used is the same key.
impl PartialEq for UseFlag {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for UseFlag {}

/// Whose key a request presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyOwner {
    /// The caller, and when the key expires.
    Known(Caller, Option<Timestamp>),
    /// It is no longer valid since then.
    Expired(Timestamp),
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

    /// How many keys are not revoked, as far as is known: those that have expired or cannot be read, too.
    pub fn active(&self) -> usize {
        let known = self.known();
        known.by_id.len() + known.unreadable
    }

    /// Whose key it is.
    pub fn owner(&self, shown: &PresentedKey) -> KeyOwner {
        let known = self.known();
        let Some(key) = known.by_id.get(&shown.id) else { return KeyOwner::Unknown };
        if key.hash != shown.hash {
            return KeyOwner::WrongSecret;
        }
        match key.expires_at {
            Some(moment) if moment <= Timestamp::now() => KeyOwner::Expired(moment),
            expires_at => {
                key.use_flag.set();
                KeyOwner::Known(key.caller.clone(), expires_at)
            }
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

    /// Notes when keys were last used, until `stop`. In a task of its own: a write may wait for longer than a reading.
    pub(crate) async fn keep_noting_use(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = Rounds::every(REFRESH_EVERY, &stop);
        while rounds.next().await {
            if self.note_use().await {
                rounds.next_in(NOTE_USE_EVERY);
            }
        }
    }

    /// Writes which keys were used since the last time; returns whether it tried, which it does not if none was.
    async fn note_use(&self) -> bool {
        let known = self.known();
        let used: Vec<_> = known.by_id.iter().filter(|(_, key)| key.use_flag.take()).collect();
        if used.is_empty() {
            return false;
        }
        let ids: Vec<String> = used.iter().map(|(id, _)| (*id).clone()).collect();
        if let Err(failure) = self.store.note_use(&ids, crate::mongo::now_in_milliseconds()).await {
            tracing::debug!(error = failure.chain(), "when API keys were last used will be noted later");
            used.iter().for_each(|(_, key)| key.use_flag.set());
        }
        true
    }

    /// Reads the keys; returns whether that succeeded.
    async fn refresh(&self) -> bool {
        match self.store.active().await {
            Ok(keys) => {
                metrics::KEYS_EXPIRING.set(expiring(&keys.keys, Timestamp::now()) as f64);
                let known = KnownKeys::from(keys);
                let current = self.known();
                if known != *current {
                    *self.known.write() = Arc::new(known.with_flags_of(&current));
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
        let by_id = keys.into_iter().map(|ApiKey { id, name, role, hash, expires_at, .. }| {
            let caller = Caller::Key { id: id.clone(), name, role };
            (id, KnownKey { hash, caller, expires_at, use_flag: UseFlag::default() })
        });
        KnownKeys { by_id: by_id.collect(), unreadable }
    }
}

impl KnownKeys {
    /// These keys, with the flags that the same keys have in `others`: a use must not be forgotten because another key
    /// was made.
    fn with_flags_of(mut self, others: &KnownKeys) -> Self {
        for (id, key) in &mut self.by_id {
            if let Some(other) = others.by_id.get(id) {
                key.use_flag = other.use_flag.clone();
            }
        }
        self
    }
}

/// How many of these keys are in use and expire soon, so that their owners should get new ones.
fn expiring(keys: &[ApiKey], now: Timestamp) -> usize {
    let is_expiring = |key: &&ApiKey| {
        key.expires_at.is_some_and(|moment| moment > now && moment <= now + EXPIRES_SOON)
            && key.last_used_at.is_some_and(|moment| moment > now - IN_USE)
    };
    keys.iter().filter(is_expiring).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    fn key(expires_in: Option<SignedDuration>, last_used: Option<SignedDuration>, now: Timestamp) -> ApiKey {
        let (key, _) = ApiKey::generate("ci", Role::Service, None).expect("a key");
        ApiKey {
            expires_at: expires_in.map(|duration| now + duration),
            last_used_at: last_used.map(|ago| now - ago),
            ..key
        }
    }

    #[test]
    fn a_key_that_expires_soon_counts_while_it_is_used_and_still_valid() {
        let (now, hour) = (Timestamp::now(), SignedDuration::from_hours(1));
        for (expires_in, last_used, expected) in [
            (Some(hour), Some(hour), 1),
            (Some(EXPIRES_SOON), Some(hour), 1),
            (Some(EXPIRES_SOON + hour), Some(hour), 0),
            (Some(-hour), Some(hour), 0),
            (Some(hour), Some(IN_USE), 0),
            (Some(hour), None, 0),
            (None, Some(hour), 0),
        ] {
            let counted = expiring(&[key(expires_in, last_used, now)], now);
            assert_eq!(counted, expected, "{expires_in:?} {last_used:?}");
        }
    }

    #[test]
    fn a_use_is_remembered_while_the_keys_change() {
        let now = Timestamp::now();
        let one = key(None, None, now);
        let keys = |keys: &[&ApiKey]| {
            KnownKeys::from(ActiveKeys { keys: keys.iter().copied().cloned().collect(), unreadable: 0 })
        };
        let before = keys(&[&one]);
        before.by_id[&one.id].use_flag.set();
        assert!(before == keys(&[&one]), "a use is no change");
        let after = keys(&[&one, &key(None, None, now)]).with_flags_of(&before);
        assert!(after.by_id[&one.id].use_flag.take());
        assert!(!before.by_id[&one.id].use_flag.take(), "it is noted once");
    }
}
