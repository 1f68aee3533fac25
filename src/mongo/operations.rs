//! The one way to run an operation on MongoDB, within a bound.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use mongodb::Collection;
use mongodb::bson::Document;
use mongodb::options::FindOptions;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::OPERATION_TIMEOUT;
use crate::Failure;
use crate::ids::PartitionId;
use crate::runtime::background::paced;

/// The longest that an operation keeps MongoDB busy, a count of a million records, say: one that took longer waited.
const CHARGED_MAX: Duration = Duration::from_secs(1);
/// The most operations in progress at once of everything that has no bound of its own; and the most that are in progress or
/// wait for that. The driver's default of 10 makes concurrent reads queue behind the worker's writes.
const RUNNING_MAX: usize = 64;
const ADMITTED_MAX: usize = 1_000;
/// The same of the operations on the documents of one of several partitions.
const PARTITION_RUNNING_MAX: usize = 16;
const PARTITION_ADMITTED_MAX: usize = 256;

/// A bound on operations at once, those included whose callers have given up. What has a bound of its own takes no place
/// from the others while its shard hangs, nor a connection: the driver's pool has room for all that may be in progress.
/// Clones share the bound.
#[derive(Debug, Clone)]
pub struct OperationLimit {
    /// One permit for each operation that may be in progress or wait; one more is refused.
    admitted: Arc<Semaphore>,
    /// One permit for each that may be in progress: the others wait.
    running: Arc<Semaphore>,
}

impl OperationLimit {
    /// A bound of its own.
    pub fn new(admitted_max: usize, running_max: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        OperationLimit { admitted: semaphore(admitted_max), running: semaphore(running_max) }
    }

    /// The one of everything in this process that has none of its own.
    pub(crate) fn of_process() -> Self {
        static OF_PROCESS: LazyLock<OperationLimit> =
            LazyLock::new(|| OperationLimit::new(ADMITTED_MAX, RUNNING_MAX));
        OF_PROCESS.clone()
    }

    /// That of the operations in this process on the documents of one partition, which lie on one shard. Partition 0 may
    /// have as many as everything else together: where it is the only one, all documents are its.
    pub(crate) fn of_partition(partition: PartitionId) -> Self {
        static OF_PARTITIONS: LazyLock<Mutex<HashMap<PartitionId, OperationLimit>>> =
            LazyLock::new(Mutex::default);
        let (admitted_max, running_max) = match partition {
            PartitionId::ONE => (ADMITTED_MAX, RUNNING_MAX),
            _ => (PARTITION_ADMITTED_MAX, PARTITION_RUNNING_MAX),
        };
        let mut limits = OF_PARTITIONS.lock();
        limits.entry(partition).or_insert_with(|| OperationLimit::new(admitted_max, running_max)).clone()
    }

    /// Runs an operation to its end, and waits for it up to [`OPERATION_TIMEOUT`].
    ///
    /// A future of the driver that is dropped in mid-flight leaves its connection in an unknown state, so the
    /// operation runs in a task of its own, and only the waiting times out.
    ///
    /// # Errors
    ///
    /// [`Failure::Overloaded`] if as many operations are in progress or wait as may; else what [`Failure::mongodb`] makes
    /// of the driver's error, or [`Failure::MongoDb`] after the timeout.
    pub(crate) fn run<T, F>(
        &self,
        operation: &'static str,
        future: F,
    ) -> impl Future<Output = Result<T, Failure>> + Send
    where
        T: Send + 'static,
        F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
    {
        self.run_boxed(operation, future.boxed())
    }

    /// Boxed, so that not every operation has code of its own for all of this, which takes long to compile.
    async fn run_boxed<T: Send + 'static>(
        &self,
        operation: &'static str,
        future: BoxFuture<'static, mongodb::error::Result<T>>,
    ) -> Result<T, Failure> {
        paced(CHARGED_MAX, async {
            let Ok(admitted) = Arc::clone(&self.admitted).try_acquire_owned() else {
                return Err(Failure::Overloaded { operation });
            };
            let (deadline, running) = (Instant::now() + OPERATION_TIMEOUT, Arc::clone(&self.running));
            let task = tokio::spawn(async move {
                // What has waited until its caller gave up is not begun.
                let running = timeout_at(deadline, running.acquire_owned()).await?;
                let result = future.await;
                drop((running, admitted));
                Ok::<_, Elapsed>(result)
            });
            let late = |elapsed: Elapsed| Failure::MongoDb { operation, source: elapsed.into() };
            match timeout_at(deadline, task).await.map_err(late)? {
                Ok(result) => result.map_err(late)?.map_err(Failure::mongodb(operation)),
                Err(join) => Err(Failure::Panicked { operation, source: join }),
            }
        })
        .await
    }

    /// Reads the documents of a collection that fit `filter`; `options` should bound how many. MongoDB stops the read
    /// after [`OPERATION_TIMEOUT`], when its caller has given up.
    pub(crate) async fn find<T, C>(
        &self,
        operation: &'static str,
        collection: &Collection<C>,
        filter: Document,
        mut options: FindOptions,
    ) -> Result<Vec<T>, Failure>
    where
        T: DeserializeOwned + Unpin + Send + Sync + 'static,
        C: Send + Sync,
    {
        options.max_time.get_or_insert(OPERATION_TIMEOUT);
        let collection = collection.clone_with_type::<T>();
        let read = async move { collection.find(filter).with_options(options).await?.try_collect().await };
        self.run(operation, read).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_hangs_takes_no_place_from_what_has_another_bound() {
        let (hung, other) = (OperationLimit::new(3, 2), OperationLimit::new(3, 2));
        let waiting = [0, 1].map(|_| {
            let hung = hung.clone();
            tokio::spawn(async move { hung.run("hang", pending::<mongodb::error::Result<()>>()).await })
        });
        while hung.running.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // A third waits, and a fourth is refused.
        let (third, fourth) = tokio::join!(hung.run("wait", async { Ok(()) }), async {
            while hung.admitted.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            let fourth = hung.run("run", async { Ok(()) }).await;
            assert_eq!(other.run("run", async { Ok(7) }).await.expect("it has a place"), 7);
            fourth
        });
        assert!(matches!(third, Err(Failure::MongoDb { operation: "wait", .. })), "{third:?}");
        assert!(matches!(fourth, Err(Failure::Overloaded { operation: "run" })), "{fourth:?}");
        // The task of the third ends by the same deadline as its caller's wait: after it, at the latest.
        tokio::time::sleep(Duration::from_millis(1)).await;
        // Its callers give up, and its places stay taken: the operations may still be in progress.
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        assert_eq!((hung.running.available_permits(), hung.admitted.available_permits()), (0, 1));
        // That of partition 0 is as large as the process's, and each other's is its own.
        let of = |number| OperationLimit::of_partition(PartitionId::new(number).expect("a number"));
        assert_eq!(of(0).running.available_permits(), RUNNING_MAX);
        let _taken = of(1).running.try_acquire_many_owned(PARTITION_RUNNING_MAX as u32).expect("all");
        assert_eq!(of(1).running.available_permits(), 0);
        assert_eq!(of(2).running.available_permits(), PARTITION_RUNNING_MAX);
    }
}
