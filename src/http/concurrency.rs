//! How many of a kind one holder may have at once: connections of an address, streams of a user.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// See the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit<K> {
    most: usize,
    taken: PermitCounts<K>,
}

type PermitCounts<K> = Arc<Mutex<HashMap<K, usize>>>;

/// One that is held; it counts until this is dropped.
#[derive(Debug)]
pub struct ConcurrencyPermit<K: Eq + Hash> {
    holder: K,
    taken: PermitCounts<K>,
}

impl<K: Eq + Hash + Clone> ConcurrencyLimit<K> {
    /// At most `most` for each holder.
    pub fn new(most: usize) -> Self {
        ConcurrencyLimit { most, taken: Arc::default() }
    }

    /// How many one holder may have.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Counts one more; `None` if the holder has as many as may be.
    pub fn enter(&self, holder: K) -> Option<ConcurrencyPermit<K>> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(holder.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(ConcurrencyPermit { holder, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Eq + Hash> Drop for ConcurrencyPermit<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}

fn lock<K>(taken: &PermitCounts<K>) -> MutexGuard<'_, HashMap<K, usize>> {
    taken.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_let_go_and_leaves_nothing_behind() {
        let limit = ConcurrencyLimit::new(2);
        let (one, two) = (limit.enter("here").unwrap(), limit.enter("here").unwrap());
        assert!(limit.enter("here").is_none() && limit.enter("there").is_some());
        drop(one);
        assert!(limit.enter("here").is_some());
        drop(two);
        assert!(limit.taken.lock().is_empty());
    }
}
