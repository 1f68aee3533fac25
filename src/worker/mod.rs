//! The worker: drains the queue into the ledger and settles what was decided.
//!
//! [`Worker::run`] reads batches (new entries, those of dead workers, and its own whose delivery it missed)
//! while fewer are in progress than it may work on at once; [`Decider`] brings each batch to its outcomes. While
//! MongoDB or Redis cannot do their part, the breaker is open: the worker reads next to nothing more, and tries
//! its batches again with growing pauses, for as long as it takes. An entry that fails for a reason of its own
//! goes to the retry lane (`retry_lane`), where no other entry waits for it: the worker tries it a few times, then
//! sets it aside as a dead letter. Where the reason is its coupon's, all entries of that coupon wait
//! (`parked_coupons`).

mod assignment;
mod batch_runner;
mod batch_span;
mod beat;
mod breaker;
mod coupon_limits;
mod decide;
mod entry_source;
mod in_progress;
mod making_way;
mod parked_coupons;
mod retry_lane;

use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::config::{self, Concurrency, WorkerCommand};
use crate::coupon::CouponStore;
use crate::http::connection_runtimes::ConnectionRuntimes;
use crate::http::server;
use crate::issuance::Ledger;
use crate::process::{Backends, TraceExporter, health};
use crate::queue::{Delivered, UnreadableEntry, by_whole_entries};
use crate::recovery::Loader;
use crate::redis::{Partition, Partitions};
use crate::runtime::backoff::Backoff;
use crate::runtime::damage::damaged;
use crate::runtime::tasks::{beside, restarted};
use crate::runtime::{fd_limit, shutdown, telemetry};
use crate::{Failure, process, recovery};
use batch_runner::BatchRunner;
pub use decide::{BatchDecisions, BatchOutcome, Decider, Unsettled};
use entry_source::EntrySource;
use making_way::MakingWay;
pub use retry_lane::ATTEMPTS_MAX;

/// The first and the longest pause between two attempts at the same batch or entry.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(3);

/// A batch that takes longer gives its place to another: what hangs in one partition takes no turns from the others.
const PLACE_MAX: Duration = Duration::from_secs(1);

/// After it was asked to stop, a worker waits this long for its batches in progress.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);

/// One worker on one partition. Each has a consumer name of its own there, which is never used again.
pub struct Worker {
    partition: Arc<Partition>,
    coupons: CouponStore,
    runner: Arc<BatchRunner>,
    consumer: String,
    concurrency: Concurrency,
    /// A permit for each batch that workers of this process may have in progress, in whatever partition.
    places: Arc<Semaphore>,
    /// The number of partitions on which workers of this process run.
    partitions: usize,
}

impl Worker {
    /// A worker on one of the partitions, and its ledger.
    pub fn new(
        partition: Arc<Partition>,
        ledger: Ledger,
        coupons: CouponStore,
        partitions: &Partitions,
        concurrency: Concurrency,
    ) -> Self {
        let decider =
            Decider::new(Arc::clone(&partition), ledger, coupons.clone()).crediting(partitions.clone());
        let runner = Arc::new(BatchRunner::new(Arc::clone(&partition), decider));
        let places = Arc::new(Semaphore::new(concurrency.batches.into()));
        Worker { partition, coupons, runner, consumer: consumer(), concurrency, places, partitions: 1 }
    }

    /// Workers on all partitions, one on each and all of one name, which drain until `shutdown`. Together they have as
    /// many batches in progress as one would have: their turns go round.
    pub async fn run_all(backends: &Backends, concurrency: Concurrency, shutdown: CancellationToken) {
        let (name, partitions) = (consumer(), backends.partitions.iter().len());
        let places = Arc::new(Semaphore::new(concurrency.batches.into()));
        let workers = backends.partitions.iter().map(|partition| {
            let (ledger, coupons) = (backends.ledger.clone(), backends.coupons.clone());
            let worker =
                Worker::new(Arc::clone(partition), ledger, coupons, &backends.partitions, concurrency);
            Worker { consumer: name.clone(), partitions, places: Arc::clone(&places), ..worker }
                .run(shutdown.clone())
        });
        let workers: Vec<_> = workers.map(tokio::spawn).collect();
        tracing::info!(consumer = name, partitions, "the worker drains the queue");
        join_all(workers).await;
        tracing::info!(consumer = name, "the worker has stopped");
    }

    /// Drains the queue until `shutdown`; then finishes its batches in progress, within [`DRAIN_MAX`], and leaves
    /// the others to other workers.
    pub async fn run(self, shutdown: CancellationToken) {
        let what = format!("drain partition {}", self.partition.id());
        restarted(&what, &shutdown, || self.run_once(&shutdown)).await;
    }

    async fn run_once(&self, shutdown: &CancellationToken) {
        let tasks = TaskTracker::new();
        let (runner, stopping) = (Arc::clone(&self.runner), shutdown.clone());
        let is_idle = move || stopping.is_cancelled() || runner.breaker.is_open();
        let (partition, consumer) = (Arc::clone(&self.partition), self.consumer.clone());
        let beating = beat::keep(Arc::clone(&partition), consumer, is_idle);
        let lane = tasks.spawn(Arc::clone(&self.runner).keep_lane(shutdown.clone()));
        let loader = Loader::new(Arc::clone(&partition), &self.coupons.database());
        let loading = recovery::keep_loading(partition, self.coupons.clone(), loader, shutdown.clone());
        let loading = tokio::spawn(shutdown.clone().run_until_cancelled_owned(loading).map(drop));
        let draining = async {
            self.drain(&tasks, shutdown).await;
            tasks.close();
            if tokio::time::timeout(DRAIN_MAX, tasks.wait()).await.is_err() {
                tracing::warn!(
                    batches = tasks.len(),
                    "stopped with batches in hand; another worker will finish them"
                );
            }
        };
        let needed = [lane, loading, tokio::spawn(beating)].map(AbortOnDropHandle::new);
        beside(needed, draining).await;
        beat::leave(&self.partition, &self.consumer).await;
    }

    /// Reads, claims and sweeps entries, and starts to work on them while there is room for another batch.
    async fn drain(&self, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let free = Arc::new(Semaphore::new(self.concurrency.batches.into()));
        let batch_size = usize::from(self.concurrency.batch_size);
        let (partition, consumer) = (Arc::clone(&self.partition), self.consumer.clone());
        let mut source = EntrySource::new(partition, consumer, batch_size, self.partitions);
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut making_way = MakingWay::new(Arc::clone(&self.partition));
        // The age of the oldest entry of the last read if that came back half full or more, so that more is queued.
        let mut behind_by = None;
        loop {
            match behind_by {
                Some(age) => making_way.rest(&free, self.concurrency.batches.into(), age, shutdown).await,
                None => making_way.keeps_up(),
            }
            let permit = tokio::select! {
                () = shutdown.cancelled() => return,
                permit = self.runner.when_free(&free) => permit,
            };
            // Not raced with `shutdown`: a read that is dropped strands what it was given.
            match source.next().await {
                Ok(Some((keys, delivered))) => {
                    backoff.reset();
                    delivered.undecodable.iter().for_each(report);
                    behind_by = (delivered.count() * 2 >= batch_size).then(|| age_of(&delivered));
                    // There are more than one batch if the entries hold more issuances than those before.
                    let parts = by_whole_entries(&delivered.entries, batch_size, |entry| &entry.entry);
                    let sizes: Vec<_> = parts.into_iter().map(<[_]>::len).collect();
                    let mut entries = delivered.entries.into_iter();
                    let mut permit = Some(permit);
                    for size in sizes {
                        let permit = match permit.take() {
                            Some(permit) => permit,
                            None => tokio::select! {
                                () = shutdown.cancelled() => return,
                                permit = self.runner.when_free(&free) => permit,
                            },
                        };
                        let place = tokio::select! {
                            () = shutdown.cancelled() => return,
                            // The semaphore is never closed.
                            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
                        };
                        let batch = self.runner.take(keys.clone(), entries.by_ref().take(size).collect());
                        if !batch.is_empty() {
                            let (runner, shutdown) = (Arc::clone(&self.runner), shutdown.clone());
                            tasks.spawn(async move {
                                let mut work = pin!(runner.work(batch, &shutdown));
                                if tokio::time::timeout(PLACE_MAX, &mut work).await.is_err() {
                                    drop(place);
                                    work.await;
                                }
                                drop(permit);
                            });
                        }
                    }
                }
                Ok(None) => backoff.wait(shutdown).await,
                Err(failure) => {
                    tracing::warn!(error = failure.chain(), "the queue cannot be read; trying again");
                    backoff.wait(shutdown).await;
                }
            }
        }
    }
}

/// A consumer name that nobody ever had.
fn consumer() -> String {
    format!("w-{}", crate::ids::random_id())
}

/// How long the first of these entries has waited, by this process's clock; zero if there is none.
fn age_of(delivered: &Delivered) -> Duration {
    let first = delivered.entries.first();
    let age = first.map(|entry| Timestamp::now().duration_since(entry.accepted_at));
    age.and_then(|age| age.try_into().ok()).unwrap_or_default()
}

/// Logs an entry that this version cannot read. It stays pending for a program that can, and comes back with each
/// sweep.
fn report(wrong: &UnreadableEntry) {
    damaged!(
        wrong.entry; entry = wrong.entry, why = wrong.why,
        "a stream entry cannot be read; it stays pending for a program that can (couponctl audit --full)"
    );
}

fn warn(entries: usize, failure: &Failure) {
    tracing::warn!(entries, error = failure.chain(), "not decided yet; trying again");
}

/// Runs the worker process: parses the command line, connects, and drains until the process is asked to stop.
///
/// The binary calls this and nothing else, so that the code of its tasks is generated once, with this crate, and
/// not in each binary again.
#[tokio::main]
pub async fn main() -> ExitCode {
    process::exit(start(config::parse()).await)
}

async fn start(command: WorkerCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    let traces = TraceExporter::start("coupon-worker")?;
    fd_limit::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = process::bind(command.worker.metrics_listen, "--metrics-listen")?;
    let backends = process::connect(&command.redis, &command.mongodb).await?;
    let ended = run(listener, backends, command.worker.concurrency, shutdown).await;
    traces.finish().await;
    ended
}

/// Runs a worker process until `shutdown`: the worker, the recovery supervisor, and health on `listener`.
///
/// # Errors
///
/// If the listener has no address, or the threads that serve it cannot be started.
pub async fn run(
    listener: TcpListener,
    backends: Backends,
    concurrency: Concurrency,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(listen = %process::address(&listener)?, "serving health");
    let router = health::router(backends.partitions.clone(), backends.database.clone(), shutdown.clone());
    // Health is served, and the certificate kept, until the last batch is done.
    let drained = CancellationToken::new();
    let threads = ConnectionRuntimes::start()?;
    let serving = tokio::spawn({
        let (bounds, asked, drained) = (server::Bounds::default(), shutdown.clone(), drained.clone());
        async move { server::serve(listener, router, bounds, &threads, asked, drained).await }
    });
    let supervisors = backends.recovery_supervisors().map(|supervisor| supervisor.run(drained.clone()));
    let keeping = join_all(supervisors.map(tokio::spawn).collect::<Vec<_>>());
    Worker::run_all(&backends, concurrency, shutdown).await;
    drained.cancel();
    let _ = tokio::join!(serving, keeping);
    Ok(())
}
