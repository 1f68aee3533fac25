//! The background task that reads queue, stock and certificate every few seconds, so that a scrape need not.
//! Idempotent and without input. Reads: `figures.lua`, `probe.lua`, the heartbeats, INFO, `stock.lua`, the current
//! coupons. Writes: the text that is scraped.
//!
//! Its figures belong to a partition and not to the process, so they are no part of the global recorder: each round
//! fills a recorder of its own, and a figure that is gone is gone from the text.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use metrics::gauge;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::coupon::{CouponStore, Stock, stock};
use crate::ids::CouponId;
use crate::metrics::names;
use crate::metrics::names::ALL;
use crate::queue::registry::STALE_AFTER;
use crate::queue::{Backlog, figures, registry};
use crate::recovery::Writable;
use crate::redis::{AppendOnlyFile, Partition, append_only_file};
use crate::runtime::tasks::Rounds;
use crate::{Failure, audit, metrics as counted, recovery};

/// The pause between two rounds.
const READ_EVERY: Duration = Duration::from_secs(2);
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
    pub fn start(partition: Arc<Partition>, coupons: CouponStore, sizes: ProcessSizes) -> Arc<Self> {
        counted::start();
        LazyLock::force(&audit::FINDINGS);
        let text = Arc::new(Mutex::new(String::new()));
        let mut seen = Readings {
            partition,
            coupons,
            sizes,
            certified: false,
            writable: false,
            queue: None,
            stocks: Vec::new(),
            left_out: 0,
            file: None,
        };
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
    partition: Arc<Partition>,
    coupons: CouponStore,
    sizes: ProcessSizes,
    certified: bool,
    writable: bool,
    queue: Option<(Backlog, usize)>,
    stocks: Vec<(CouponId, Option<Stock>)>,
    left_out: u64,
    file: Option<AppendOnlyFile>,
}

impl Readings {
    /// Reads every gauge once. Returns whether all of them could be read.
    async fn read(&mut self) -> bool {
        // First the queue: it matters most while MongoDB is away.
        let queue = told(self.queue().await);
        self.certified = queue.is_some();
        self.writable = told(recovery::writable(&self.partition).await) == Some(Writable::Yes);
        self.file = told(append_only_file(&self.partition).await).unwrap_or(self.file);
        let coupons = told(self.coupons.newest_current(Timestamp::now(), COUPONS_MAX).await);
        let fresh = queue.is_some() && coupons.is_some();
        self.queue = queue.or(self.queue);
        if let Some((coupons, left_out)) = coupons {
            let shown = coupons.into_iter().map(|coupon| {
                let known = self.stocks.iter().find(|(id, _)| *id == coupon.id);
                let stock = known.and_then(|(_, stock)| *stock);
                (coupon.id, stock)
            });
            self.stocks = shown.collect();
            self.left_out = left_out;
        }
        let ids: Vec<_> = self.stocks.iter().map(|(id, _)| id.clone()).collect();
        let Some((_, stocks)) = told(stock::read(&self.partition, &ids).await) else { return false };
        self.stocks = ids.into_iter().zip(stocks.into_iter().map(|stock| told(stock).flatten())).collect();
        fresh
    }

    async fn queue(&self) -> Result<(Backlog, usize), Failure> {
        let backlog = figures(&self.partition).await?;
        let beats = registry::beats(&self.partition).await?;
        let alive = beats
            .iter()
            // One from the future is stale too, as it is for `claim.lua`.
            .filter(|beat| backlog.now.duration_since(beat.at).unsigned_abs() <= STALE_AFTER);
        Ok((backlog, alive.count()))
    }

    fn render(&self, fresh: bool) -> String {
        let recorder = counted::recorder();
        metrics::with_local_recorder(&recorder, || {
            gauge!(names::STALE).set(f64::from(u8::from(!fresh)));
            gauge!(names::CERTIFIED).set(f64::from(u8::from(self.certified)));
            gauge!(names::WRITABLE).set(f64::from(u8::from(self.writable)));
            if let Some((backlog, alive)) = &self.queue {
                gauge!(names::BACKLOG).set(backlog.waiting() as f64);
                gauge!(names::DEAD_LETTERS).set(backlog.dead as f64);
                gauge!(names::STREAM_ENTRIES).set(backlog.length as f64);
                gauge!(names::OLDEST_AGE_SECONDS).set(backlog.oldest_age().as_secs_f64());
                gauge!(names::WORKERS_ALIVE).set(*alive as f64);
            }
            if let Some(file) = &self.file {
                let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
                gauge!(names::AOF_BYTES).set(file.bytes as f64);
                gauge!(names::AOF_BASE_BYTES).set(file.base_bytes as f64);
                gauge!(names::AOF_REWRITING).set(f64::from(u8::from(file.is_rewriting)));
                gauge!(names::AOF_REWRITE_FAILED).set(f64::from(u8::from(file.has_failed)));
                gauge!(names::AOF_REWRITE_SECONDS).set(seconds(file.last_rewrite));
                gauge!(names::FORK_SECONDS).set(seconds(file.last_fork));
            }
            for (coupon, stock) in &self.stocks {
                let Some(stock) = stock else { continue };
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
