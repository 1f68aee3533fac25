//! Work that all who need it at the same time wait for together.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::Failure;

/// The end of some work, for which many may wait.
type SharedEnd<T> = Shared<BoxFuture<'static, Result<T, Arc<Failure>>>>;

/// The work that is under way, by what it is about: at most one of each. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SharedWork<K, T> {
    operation: &'static str,
    under_way: Arc<Mutex<HashMap<K, SharedEnd<T>>>>,
}

impl<K, T> SharedWork<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Nothing is under way.
    pub(crate) fn new(operation: &'static str) -> Self {
        SharedWork { operation, under_way: Arc::default() }
    }

    /// Whether work on this is under way.
    pub(crate) fn is_under_way(&self, on: &K) -> bool {
        self.under_way.lock().contains_key(on)
    }

    /// Joins the work on something, or begins it. It runs to its end even if nobody waits any more, and bounds itself.
    ///
    /// # Errors
    ///
    /// Those of the work, or [`Failure::Panicked`].
    pub(crate) async fn join<F>(&self, on: &K, work: impl FnOnce() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let under_way = {
            let mut all = self.under_way.lock();
            all.entry(on.clone()).or_insert_with(|| self.begin(on.clone(), work())).clone()
        };
        under_way.await.map_err(|failure| Failure::of_batch(&failure))
    }

    fn begin(&self, on: K, work: impl Future<Output = Result<T, Failure>> + Send + 'static) -> SharedEnd<T> {
        let (all, operation) = (Arc::clone(&self.under_way), self.operation);
        let panicked = move |join| Failure::Panicked { operation, source: join };
        let task = tokio::spawn(work);
        // A task of its own: it ends, and makes room for the next, whether or not somebody waits, and also if the work
        // panicked.
        let ended = tokio::spawn(async move {
            let ended = task.await.unwrap_or_else(|join| Err(panicked(join)));
            all.lock().remove(&on);
            ended.map_err(Arc::new)
        });
        async move { ended.await.map_err(|join| Arc::new(panicked(join)))? }.boxed().shared()
    }
}
