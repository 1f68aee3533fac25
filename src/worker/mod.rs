//! The worker: drains the queue into the ledger and settles what was decided.
//!
//! [`Worker::run`] reads batches while it has hands free; [`Decider`] brings each batch to its
//! outcomes; what cannot be decided now (MongoDB away, Redis being recovered) is tried again with
//! growing pauses, and while all hands wait nothing more is read.

mod backoff;
mod decide;
mod limits;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::boot::{self, Backends};
use crate::coupon::CouponStore;
use crate::http::{health, server};
use crate::issuance::Ledger;
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::queue::{Entry, Read, Reader, Which};
use crate::recovery::is_certified;
use backoff::Backoff;
pub use decide::Decider;

/// After the request to stop, what is in hand may take this long.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);

/// How much one worker takes on.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Batches in hand at once.
    pub concurrency: usize,
    /// Entries in one batch.
    pub batch: usize,
}

/// One worker. Its consumer name is new with every start, and never used again.
pub struct Worker {
    partition: Arc<Partition>,
    decider: Arc<Decider>,
    consumer: String,
    pace: Pace,
    /// Entries that a task of this process works on: a second delivery of one is left alone.
    in_hand: Arc<Mutex<HashSet<String>>>,
}

impl Worker {
    /// A worker on a partition and its ledger.
    pub fn new(partition: Arc<Partition>, ledger: Ledger, coupons: CouponStore, pace: Pace) -> Self {
        let decider = Arc::new(Decider::new(Arc::clone(&partition), ledger, coupons));
        let consumer = format!("w-{}", crate::random_id());
        Worker { partition, decider, consumer, pace, in_hand: Arc::default() }
    }

    /// Drains until `shutdown`; then finishes what is in hand, within [`DRAIN_MAX`].
    pub async fn run(self, shutdown: CancellationToken) {
        tracing::info!(partition = %self.partition.id(), consumer = self.consumer, "the worker drains the queue");
        let tasks = TaskTracker::new();
        let hands = Arc::new(Semaphore::new(self.pace.concurrency));
        let mut reader = Reader::new(self.partition.client().clone(), self.consumer.clone());
        let mut backoff = Backoff::new();
        // After trouble, something may have been delivered that never arrived here.
        let mut which = Which::New;
        loop {
            let hand = tokio::select! {
                () = shutdown.cancelled() => break,
                hand = hands.clone().acquire_owned() => hand,
            };
            let Ok(hand) = hand else { break };
            let keys = self.partition.keys();
            match reader.read(&keys, which, self.pace.batch).await {
                Ok(Read::Entries { entries, undecodable }) => {
                    backoff.reset();
                    which = Which::New;
                    for wrong in undecodable {
                        tracing::error!(
                            entry = wrong.entry,
                            why = wrong.why,
                            "an entry cannot be read; it stays pending"
                        );
                    }
                    let entries = self.take(entries);
                    if !entries.is_empty() {
                        let work = self.work(keys, entries, shutdown.clone());
                        tasks.spawn(async move {
                            work.await;
                            drop(hand);
                        });
                    }
                }
                Ok(Read::NoGroup) => {
                    if let Ok(false) | Err(_) = is_certified(&self.partition).await {
                        backoff.wait(&shutdown).await;
                    }
                }
                Err(failure) => {
                    tracing::warn!(error = failure.chain(), "the queue cannot be read; trying again");
                    which = Which::Pending;
                    backoff.wait(&shutdown).await;
                }
            }
        }
        tasks.close();
        if tokio::time::timeout(DRAIN_MAX, tasks.wait()).await.is_err() {
            tracing::warn!(
                batches = tasks.len(),
                "stopped with batches in hand; another worker will finish them"
            );
        }
        tracing::info!(consumer = self.consumer, "the worker has stopped");
    }

    fn take(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut in_hand = self.in_hand.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        entries.into_iter().filter(|entry| in_hand.insert(entry.entry.clone())).collect()
    }

    /// Works on a batch until it is done, or is somebody else's.
    fn work(
        &self,
        keys: EpochKeys,
        entries: Vec<Entry>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (partition, decider) = (Arc::clone(&self.partition), Arc::clone(&self.decider));
        let in_hand = Arc::clone(&self.in_hand);
        async move {
            let mut backoff = Backoff::new();
            loop {
                match decider.process(&keys, &entries).await {
                    Ok(()) => break,
                    Err(failure) => tracing::warn!(
                        entries = entries.len(),
                        error = failure.chain(),
                        "a batch cannot be decided now; trying again"
                    ),
                }
                if shutdown.is_cancelled() || partition.keys() != keys {
                    break;
                }
                backoff.wait(&shutdown).await;
            }
            let mut in_hand = in_hand.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for entry in &entries {
                in_hand.remove(&entry.entry);
            }
        }
    }
}

/// Runs a worker process: the worker, the keeper of the certificate, and health on `listener`.
pub async fn run(
    listener: TcpListener,
    backends: Backends,
    pace: Pace,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(listen = %boot::address(&listener)?, "serving health");
    let router = health::router(Arc::clone(&backends.partition), backends.database.clone());
    // Health is served, and the certificate kept, until the last batch is done.
    let drained = CancellationToken::new();
    let serving = tokio::spawn(server::serve(listener, router, drained.clone()));
    let keeping = tokio::spawn(backends.keeper().run(drained.clone()));
    Worker::new(backends.partition, backends.ledger, backends.coupons, pace).run(shutdown).await;
    drained.cancel();
    let _ = tokio::join!(serving, keeping);
    Ok(())
}
