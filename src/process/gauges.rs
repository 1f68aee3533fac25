//! The background task that reads queue, stock and certificate every few seconds, so that a scrape need not.
//! Idempotent and without input. Reads: `figures.lua`, `probe.lua`, the heartbeats, INFO, `stock.lua`, the current
//! coupons. Writes: the text that is scraped.
//!
//! Its figures belong to a partition and not to the process, so they are no part of the global recorder: each round
//! fills a recorder of its own, and a figure that is gone is gone from the text.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use metrics::gauge;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::coupon::{CouponStore, Stock, stock};
use crate::ids::{CouponId, PartitionId};
use crate::metrics::names;
use crate::metrics::names::ALL;
use crate::queue::registry::STALE_AFTER;
use crate::queue::{Backlog, figures, registry};
use crate::recovery::Writable;
use crate::redis::{AppendOnlyFile, Partition, Partitions, append_only_file};
use crate::runtime::tasks::Rounds;
use crate::{Failure, audit, metrics as counted, recovery};

/// The pause between two rounds.
const READ_EVERY: Duration = Duration::from_secs(2);
/// How long one partition may take to tell the stock of its coupons.
const STOCK_MAX: Duration = Duration::from_secs(3);
/// Coupons whose stock is shown: the newest of the current ones.
pub const COUPONS_MAX: usize = recovery::CURRENT_MAX;

/// Counts something that the process holds now.
type SizeFn = Box<dyn Fn() -> usize + Send + Sync>;

/// The sizes of what the process itself holds.
#[derive(Default)]
pub(crate) struct ProcessSizes {
    /// Waiters for an outcome; `None` in a process that has none.
    pub waiters: Option<SizeFn>,
    /// The entries of each cache, by its name.
    pub caches: Vec<(&'static str, SizeFn)>,
}

/// A background task that reads the gauges of queue and stock until it is dropped.
pub(crate) struct GaugeReader {
    text: Arc<Mutex<String>>,
    _stop: DropGuard,
}

impl GaugeReader {
    /// Starts the task.
    pub fn start(partitions: Partitions, coupons: CouponStore, sizes: ProcessSizes) -> Arc<Self> {
        counted::start();
        LazyLock::force(&audit::FINDINGS);
        let text = Arc::new(Mutex::new(String::new()));
        let of_each = partitions.iter().map(|_| PartitionReadings::default()).collect();
        let mut seen = Readings { partitions, coupons, sizes, of_each, stocks: Vec::new(), left_out: 0 };
        let stop = CancellationToken::new();
        let (shown, stopped) = (Arc::clone(&text), stop.clone());
        let mut rounds = Rounds::now_and_every(READ_EVERY, &stop);
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            while rounds.next().await {
                let fresh = seen.read().await;
                *shown.lock() = seen.render(fresh);
                counted::upkeep();
            }
        }));
        Arc::new(GaugeReader { text, _stop: stop.drop_guard() })
    }

    /// The last readings, as Prometheus text.
    pub fn text(&self) -> String {
        self.text.lock().clone()
    }
}

/// The last readings. A gauge that cannot be read now keeps its value.
struct Readings {
    partitions: Partitions,
    coupons: CouponStore,
    sizes: ProcessSizes,
    /// In the order of the partitions.
    of_each: Vec<PartitionReadings>,
    /// Of each share of each shown coupon, those of one coupon in a row.
    stocks: Vec<(CouponId, PartitionId, Option<Stock>)>,
    left_out: u64,
}

/// The last readings of one partition.
#[derive(Clone, Copy, Default)]
struct PartitionReadings {
    certified: bool,
    writable: bool,
    /// And how many workers live.
    queue: Option<(Backlog, usize)>,
    file: Option<AppendOnlyFile>,
}

impl Readings {
    /// Reads every gauge once. Returns whether all of them could be read.
    async fn read(&mut self) -> bool {
        // First the queues: they matter most while MongoDB is away.
        let first_on_nodes = self.first_on_nodes();
        let read = self.partitions.ask_all("read the gauges", |partition| {
            let has_file = first_on_nodes.contains(&partition.id());
            PartitionReadings::read(partition, has_file)
        });
        let mut fresh = true;
        for ((partition, known), read) in self.partitions.iter().zip(&mut self.of_each).zip(read.await) {
            let read = told(read).unwrap_or_default();
            fresh &= read.queue.is_some();
            let known_file = known.file.filter(|_| first_on_nodes.contains(&partition.id()));
            let (queue, file) = (read.queue.or(known.queue), read.file.or(known_file));
            *known = PartitionReadings { queue, file, ..read };
        }
        let coupons = told(self.coupons.newest_current(Timestamp::now(), COUPONS_MAX).await);
        fresh &= coupons.is_some();
        if let Some((coupons, left_out)) = coupons {
            let stocks = &self.stocks;
            let shown = coupons.iter().flat_map(|coupon| {
                coupon.shares.partitions().iter().map(|share| {
                    let known = stocks.iter().find(|(id, of, _)| *id == coupon.id && of == share);
                    (coupon.id.clone(), *share, known.and_then(|(.., stock)| *stock))
                })
            });
            self.stocks = shown.collect();
            self.left_out = left_out;
        }
        // A coupon in a partition that this process does not know yet keeps no other from being shown.
        let (groups, _) = self.partitions.group(&mut self.stocks, |(_, partition, _)| *partition);
        let reads = groups.into_iter().map(async |(partition, group)| {
            let ids: Vec<_> = group.iter().map(|(id, ..)| id.clone()).collect();
            let read = timeout(STOCK_MAX, stock::read(partition, &ids)).await;
            let late = |_| Failure::Overloaded { operation: "read the stock" };
            let Some((_, stocks)) = told(read.map_err(late).flatten()) else { return false };
            for ((.., known), stock) in group.into_iter().zip(stocks) {
                *known = told(stock).flatten();
            }
            true
        });
        fresh & join_all(reads).await.into_iter().all(|is_read| is_read)
    }

    /// A partition on each node: those on one node share its append-only file, which is read once.
    fn first_on_nodes(&self) -> HashSet<PartitionId> {
        let mut firsts = HashMap::new();
        for partition in &self.partitions {
            let node = partition.client().known_primary().map(|primary| primary.name());
            firsts.entry(node).or_insert_with(|| partition.id());
        }
        firsts.into_values().collect()
    }

    /// Shows the partitions together, and what a person must know of each by itself if there are several.
    fn show_partitions(&self) {
        let all = |is_so: fn(&PartitionReadings) -> bool| f64::from(u8::from(self.of_each.iter().all(is_so)));
        gauge!(names::CERTIFIED).set(all(|one| one.certified));
        gauge!(names::WRITABLE).set(all(|one| one.writable));
        let queues: Vec<_> = self.of_each.iter().filter_map(|one| one.queue).collect();
        if !queues.is_empty() {
            let sum =
                |of: fn(&Backlog) -> u64| queues.iter().map(|(backlog, _)| of(backlog)).sum::<u64>() as f64;
            gauge!(names::BACKLOG).set(sum(Backlog::waiting));
            gauge!(names::DEAD_LETTERS).set(sum(|backlog| backlog.dead));
            gauge!(names::STREAM_ENTRIES).set(sum(|backlog| backlog.length));
            let oldest = queues.iter().map(|(backlog, _)| backlog.oldest_age()).max().unwrap_or_default();
            gauge!(names::OLDEST_AGE_SECONDS).set(oldest.as_secs_f64());
            // Each worker has a heartbeat in every partition.
            let alive = queues.iter().map(|(_, alive)| *alive).max().unwrap_or(0);
            gauge!(names::WORKERS_ALIVE).set(alive as f64);
        }
        let files: Vec<_> = self.of_each.iter().filter_map(|one| one.file).collect();
        if !files.is_empty() {
            let most = |of: fn(&AppendOnlyFile) -> f64| files.iter().map(of).fold(0.0, f64::max);
            fn seconds(time: Option<Duration>) -> f64 {
                time.unwrap_or_default().as_secs_f64()
            }
            gauge!(names::AOF_BYTES).set(most(|file| file.bytes as f64));
            gauge!(names::AOF_BASE_BYTES).set(most(|file| file.base_bytes as f64));
            gauge!(names::AOF_REWRITING).set(most(|file| f64::from(u8::from(file.is_rewriting))));
            gauge!(names::AOF_REWRITE_FAILED).set(most(|file| f64::from(u8::from(file.has_failed))));
            gauge!(names::AOF_REWRITE_SECONDS).set(most(|file| seconds(file.last_rewrite)));
            gauge!(names::FORK_SECONDS).set(most(|file| seconds(file.last_fork)));
        }
        if self.partitions.is_one() {
            return;
        }
        for (partition, one) in self.partitions.iter().zip(&self.of_each) {
            let id = partition.id().to_string();
            gauge!(names::PARTITION_CERTIFIED, "partition" => id.clone())
                .set(f64::from(u8::from(one.certified)));
            if let Some((backlog, _)) = &one.queue {
                gauge!(names::PARTITION_BACKLOG, "partition" => id).set(backlog.waiting() as f64);
            }
        }
    }

    fn render(&self, fresh: bool) -> String {
        let recorder = counted::recorder();
        metrics::with_local_recorder(&recorder, || {
            gauge!(names::STALE).set(f64::from(u8::from(!fresh)));
            self.show_partitions();
            for shares in self.stocks.chunk_by(|one, other| one.0 == other.0) {
                let coupon = &shares[0].0;
                let stocks = shares.iter().map(|(.., stock)| *stock).collect::<Option<Vec<_>>>();
                let Some(stock) = stocks.into_iter().flatten().reduce(Stock::and) else { continue };
                gauge!(names::STOCK_TOTAL, "coupon" => coupon.to_string()).set(stock.total);
                gauge!(names::STOCK_REMAINING, "coupon" => coupon.to_string()).set(stock.remaining);
                gauge!(names::STOCK_RESERVED, "coupon" => coupon.to_string()).set(stock.reserved);
                gauge!(names::STOCK_ISSUED, "coupon" => coupon.to_string()).set(stock.issued);
            }
            gauge!(names::STOCK_LEFT_OUT).set(self.left_out as f64);
            if let Some(waiters) = &self.sizes.waiters {
                gauge!(names::WAITERS).set(waiters() as f64);
            }
            for (cache, size) in &self.sizes.caches {
                gauge!(names::CACHE_ENTRIES, "cache" => *cache).set(size() as f64);
            }
        });
        let of_process = metrics_process::collector::collect();
        metrics::with_local_recorder(&recorder, || {
            let gauges = [
                (names::RESIDENT_BYTES, of_process.resident_memory_bytes),
                (names::START_SECONDS, of_process.start_time_seconds),
                (names::OPEN_FDS, of_process.open_fds),
            ];
            for (name, value) in gauges {
                if let Some(value) = value {
                    gauge!(name).set(value as f64);
                }
            }
        });
        recorder.handle().render() + &cpu_seconds(of_process.cpu_seconds_total)
    }
}

impl PartitionReadings {
    /// Of the append-only file nothing, unless `has_file` says that this partition is to tell of its node's.
    async fn read(partition: Arc<Partition>, has_file: bool) -> Result<Self, Failure> {
        let partition = &partition;
        let file = async {
            match has_file {
                true => told(append_only_file(partition).await).flatten(),
                false => None,
            }
        };
        let (queue, writable, file) = tokio::join!(queue(partition), recovery::writable(partition), file);
        let queue = told(queue);
        let is_writable = told(writable) == Some(Writable::Yes);
        Ok(PartitionReadings { certified: queue.is_some(), writable: is_writable, queue, file })
    }
}

async fn queue(partition: &Partition) -> Result<(Backlog, usize), Failure> {
    let backlog = figures(partition).await?;
    let beats = registry::beats(partition).await?;
    let alive = beats
        .iter()
        // One from the future is stale too, as it is for `claim.lua`.
        .filter(|beat| backlog.now.duration_since(beat.at).unsigned_abs() <= STALE_AFTER);
    Ok((backlog, alive.count()))
}

/// The processor time: a counter with a fraction, which the recorder does not know.
fn cpu_seconds(seconds: Option<f64>) -> String {
    let (Some(seconds), name) = (seconds, names::CPU_SECONDS) else { return String::new() };
    let help = ALL.iter().find(|metric| metric.name == name).map_or("", |metric| metric.help);
    format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {seconds}\n\n")
}

/// A reading; `None`, and a line in the log, if it failed.
fn told<T>(read: Result<T, Failure>) -> Option<T> {
    read.inspect_err(|failure| {
        tracing::debug!(error = failure.chain(), "figures for /metrics could not be read")
    })
    .ok()
}
