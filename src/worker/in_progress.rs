//! Which entries this process works on, so that it leaves a second delivery of one alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::ids::IssuanceId;
use crate::queue::Entry;
use crate::redis::Epoch;
use crate::redis::keys::EpochKeys;

/// How long this process passes over an entry for which it can do nothing, and how many it remembers.
const PASSED_OVER_FOR: Duration = Duration::from_secs(60);
const PASSED_OVER_MAX: usize = 50_000;

/// An issuance, as one stream entry holds it.
type EntryKey = (Epoch, String, IssuanceId);

fn key(epoch: Epoch, entry: &Entry) -> EntryKey {
    (epoch, entry.entry.clone(), entry.id)
}

pub(super) struct InProgress {
    entries: Mutex<HashSet<EntryKey>>,
    passed_over: Cache<EntryKey, Instant>,
}

/// Entries in progress, until this is dropped, even by a panic.
pub(super) struct Batch {
    pub keys: EpochKeys,
    entries: Vec<Entry>,
    in_progress: Arc<InProgress>,
}

impl InProgress {
    pub(super) fn new() -> Self {
        InProgress { entries: Mutex::default(), passed_over: Cache::new(PASSED_OVER_MAX) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashSet<EntryKey>) -> T) -> T {
        change(&mut self.entries.lock())
    }

    fn passes_over(&self, key: &EntryKey) -> bool {
        self.passed_over.get(key).is_some_and(|since| since.elapsed() < PASSED_OVER_FOR)
    }

    /// Begins to work on entries, but not on those in progress already and those that are passed over.
    pub(super) fn take(this: &Arc<Self>, keys: EpochKeys, mut entries: Vec<Entry>) -> Batch {
        let epoch = keys.epoch();
        this.with(|in_progress| {
            entries.retain(|entry| {
                let key = key(epoch, entry);
                !this.passes_over(&key) && in_progress.insert(key)
            });
        });
        Batch { keys, entries, in_progress: Arc::clone(this) }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Takes one entry out, as a batch of its own.
    pub(super) fn take_out(&mut self, entry: &Entry) -> Option<Batch> {
        let place = self.entries.iter().position(|held| held == entry)?;
        let entries = vec![self.entries.swap_remove(place)];
        Some(Batch { keys: self.keys.clone(), entries, in_progress: Arc::clone(&self.in_progress) })
    }

    /// Ends the work on its entries, and passes them over for [`PASSED_OVER_FOR`].
    pub(super) fn pass_over(self) {
        for entry in &self.entries {
            self.in_progress.passed_over.insert(key(self.keys.epoch(), entry), Instant::now());
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let epoch = self.keys.epoch();
        self.in_progress.with(|in_progress| {
            for entry in &self.entries {
                in_progress.remove(&key(epoch, entry));
            }
        });
    }
}
