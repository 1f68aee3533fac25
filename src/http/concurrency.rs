//! A limit on what one holder has at once: connections of an address, streams of a user.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// The limit, and what each holder has now. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ConcurrencyLimit<K> {
    most: usize,
    taken: PermitCounts<K>,
}

type PermitCounts<K> = Arc<Mutex<HashMap<K, usize>>>;

/// One thing that a holder has; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct ConcurrencyPermit<K: Eq + Hash> {
    holder: K,
    taken: PermitCounts<K>,
}

impl<K: Eq + Hash + Clone> ConcurrencyLimit<K> {
    /// At most `most` for each holder.
    pub fn new(most: usize) -> Self {
        ConcurrencyLimit { most, taken: Arc::default() }
    }

    /// The most that one holder may have.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Counts one more; `None` if the holder has the most already.
    pub fn enter(&self, holder: K) -> Option<ConcurrencyPermit<K>> {
        let mut taken = self.taken.lock();
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
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.holder);
            }
        }
    }
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
