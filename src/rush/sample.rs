//! Samples the coupon's stock and the backlog while a run goes on, through the API.

use std::sync::Arc;

use parking_lot::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::ServiceClient;
use super::virtual_users::VirtualUsers;

const EVERY: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// At this many samples every second one is dropped, and from then on half as many are kept.
const SAMPLES_MAX: usize = 1_200;

/// Units of the coupon at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StockSample {
    pub total: u64,
    pub remaining: u64,
    pub reserved: u64,
    pub issued: u64,
}

impl StockSample {
    /// Reads the stock of a coupon out of its JSON; `None` if the service does not know it.
    pub fn of(coupon: &Value) -> Option<StockSample> {
        let number = |name: &str| coupon["stock"][name].as_u64();
        Some(StockSample {
            total: number("total")?,
            remaining: number("remaining")?,
            reserved: number("reserved")?,
            issued: number("issued")?,
        })
    }
}

/// One sample.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineSample {
    /// After the start of the run.
    pub at_ms: u64,
    /// Requests that were due by then, and those that were sent, from the start.
    pub offered: u64,
    pub sent: u64,
    /// Accepted requests and told outcomes, from the start.
    pub accepted: u64,
    pub told: u64,
    /// What the service says of the coupon; null where it did not answer.
    pub stock: Option<StockSample>,
    /// Accepted and not decided, of all coupons.
    pub backlog: Option<u64>,
}

/// Samples until `over` is cancelled, and once more then; `latest` has the newest sample.
pub(super) struct TimelineSampler {
    samples: Arc<Mutex<Vec<TimelineSample>>>,
    pub latest: watch::Receiver<Option<TimelineSample>>,
    task: tokio::task::JoinHandle<()>,
}

impl TimelineSampler {
    /// Starts to sample every 100 ms, from the start of the run on.
    pub fn start(people: Arc<VirtualUsers>, over: CancellationToken) -> Self {
        let samples = Arc::<Mutex<Vec<TimelineSample>>>::default();
        let (tell, latest) = watch::channel(None);
        let kept = Arc::clone(&samples);
        let task = tokio::spawn(async move {
            let mut api = ServiceClient::new(Arc::clone(&people.target));
            let coupon = format!("/coupons/{}", people.coupon);
            let mut ticks = tokio::time::interval_at(people.start.into(), EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut keep = Decimator::default();
            loop {
                let is_last = tokio::select! {
                    _ = ticks.tick() => false,
                    () = over.cancelled() => true,
                };
                let sample = take_sample(&mut api, &coupon, &people).await;
                // How it ended is kept, whatever else is left out.
                if is_last {
                    kept.lock().push(sample);
                    return;
                }
                tell.send_replace(Some(sample));
                keep.add(&mut kept.lock(), sample);
            }
        });
        TimelineSampler { samples, latest, task }
    }

    /// Waits until sampling has ended, and returns all samples.
    pub async fn ended(self) -> Vec<TimelineSample> {
        // It does nothing that could panic; if it did, what was seen until then still counts.
        let _ = self.task.await;
        std::mem::take(&mut *self.samples.lock())
    }
}

async fn take_sample(api: &mut ServiceClient, coupon: &str, people: &VirtualUsers) -> TimelineSample {
    let stock = match api.try_get(coupon, ANSWER_MAX).await {
        Ok((200, body)) => StockSample::of(&body),
        _ => None,
    };
    let backlog = match api.try_get("/queue", ANSWER_MAX).await {
        Ok((200, body)) => body["backlog"].as_u64(),
        _ => None,
    };
    let elapsed = Instant::now().saturating_duration_since(people.start);
    let live = &people.live;
    TimelineSample {
        at_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        offered: people.plan.due(elapsed) as u64,
        sent: live.sent.get(),
        accepted: live.accepted.get(),
        told: live.issued.get() + live.rejected.get(),
        stock,
        backlog,
    }
}

/// Keeps samples at equal distances, and not too many.
#[derive(Debug)]
struct Decimator {
    seen: usize,
    every: usize,
}

impl Default for Decimator {
    fn default() -> Self {
        Decimator { seen: 0, every: 1 }
    }
}

impl Decimator {
    fn add(&mut self, samples: &mut Vec<TimelineSample>, sample: TimelineSample) {
        if self.seen.is_multiple_of(self.every) {
            samples.push(sample);
        }
        self.seen += 1;
        if samples.len() >= SAMPLES_MAX {
            let mut number = 0;
            samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.every *= 2;
        }
    }
}
