//! A burst: as many requests as there are users, over kept connections, each sending its next request
//! as soon as it is answered; and what the processes used for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::env::user;
use super::usage;
use crate::rush::open_loop::{LoadBounds, Workload};
use crate::rush::run::cpu_time;
use crate::rush::{ExchangeError, LoadTarget, RawResponse, open_loop};

const ANSWER_MAX: Duration = Duration::from_secs(30);
const ACCEPTED: u16 = 202;

/// What a burst sends, and to which program.
pub(super) struct RequestBurst {
    pub url: String,
    /// Users 0 to this one, each once.
    pub users: u32,
    pub connections: usize,
    /// The header lines of each user's request; empty for requests without more headers.
    pub headers: Arc<[String]>,
    /// Processes whose processor time is told, by name.
    pub watched: Vec<(&'static str, u32)>,
}

/// The result of a burst.
#[derive(Debug)]
pub(super) struct BurstResult {
    /// From the first request to the last answer.
    pub accepted_per_second: f64,
    pub cpu: CpuMicros,
}

/// Processor time, user and system, in microseconds per request, by process.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuMicros {
    /// The generator: this program.
    pub generator: f64,
    /// The program that answered.
    pub server: f64,
    /// redis-server; 0 if it was not watched.
    pub redis: f64,
    /// mongod; 0 if it was not watched.
    pub mongod: f64,
    /// The worker process; 0 if it was not watched.
    pub worker: f64,
}

struct BurstWorkload {
    target: Arc<LoadTarget>,
    coupon: String,
    headers: Arc<[String]>,
    began: Instant,
    /// Nanoseconds after `began`.
    first_sent: AtomicU64,
    last_answered: AtomicU64,
    accepted: AtomicU64,
    /// The status, or 0 without an answer, of the last request that was not accepted.
    other: AtomicU64,
}

impl BurstWorkload {
    fn after(&self, moment: Instant) -> u64 {
        u64::try_from((moment - self.began).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Workload for BurstWorkload {
    fn write(&self, number: usize, request: &mut Vec<u8>) {
        let headers = self.headers.get(number).map_or("", String::as_str);
        let user = user(u32::try_from(number).unwrap_or(u32::MAX));
        let body = format!(r#"{{"userId":"{user}","couponId":"{}"}}"#, self.coupon);
        self.target.write("POST", "/user-coupons", headers, body.as_bytes(), request);
    }

    fn answered(&self, _: usize, _: Instant, sent: Instant, answer: Result<RawResponse<'_>, ExchangeError>) {
        self.first_sent.fetch_min(self.after(sent), Ordering::Relaxed);
        self.last_answered.fetch_max(self.after(Instant::now()), Ordering::Relaxed);
        match answer {
            Ok(answer) if answer.status == ACCEPTED && !answer.is_replay => {
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => self.other.store(answer.status.into(), Ordering::Relaxed),
            Err(_) => self.other.store(0, Ordering::Relaxed),
        }
    }

    fn dropped(&self, _: usize) {}
}

impl RequestBurst {
    /// Sends all requests, for this coupon.
    ///
    /// # Errors
    ///
    /// If not every request was accepted: the rate would be another thing's.
    pub async fn send(&self, coupon: &str) -> anyhow::Result<BurstResult> {
        let target = Arc::new(LoadTarget::new(&self.url).map_err(anyhow::Error::msg)?);
        let senders = Arc::new(BurstWorkload {
            target: Arc::clone(&target),
            coupon: coupon.to_owned(),
            headers: Arc::clone(&self.headers),
            began: Instant::now(),
            first_sent: AtomicU64::new(u64::MAX),
            last_answered: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            other: AtomicU64::new(0),
        });
        let schedule: Arc<[Duration]> = vec![Duration::ZERO; self.users as usize].into();
        let bounds =
            LoadBounds { connections: self.connections, in_flight_max: usize::MAX, answer_max: ANSWER_MAX };
        let before = self.used()?;
        let over = CancellationToken::new();
        open_loop::run(&target, schedule, senders.began, bounds, Arc::clone(&senders), over).await;
        let after = self.used()?;
        let accepted = senders.accepted.load(Ordering::Relaxed);
        if accepted != u64::from(self.users) {
            bail!(
                "{} of {} requests were not accepted; the last of them: {}",
                u64::from(self.users) - accepted,
                self.users,
                senders.other.load(Ordering::Relaxed)
            );
        }
        let [first, last] =
            [&senders.first_sent, &senders.last_answered].map(|at| at.load(Ordering::Relaxed));
        let took = Duration::from_nanos(last - first);
        let each = |name: &str| {
            let used = |all: &[(&'static str, Duration)]| {
                all.iter().filter(|(one, _)| *one == name).map(|(_, used)| used.as_secs_f64()).sum::<f64>()
            };
            (used(&after) - used(&before)) * 1e6 / f64::from(self.users)
        };
        let cpu = CpuMicros {
            generator: each(GENERATOR),
            server: each(SERVER),
            redis: each(REDIS),
            mongod: each(MONGOD),
            worker: each(WORKER),
        };
        Ok(BurstResult { accepted_per_second: f64::from(self.users) / took.as_secs_f64(), cpu })
    }

    fn used(&self) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let mut used = vec![(GENERATOR, cpu_time())];
        for (name, pid) in &self.watched {
            used.push((name, usage::cpu(*pid)?));
        }
        Ok(used)
    }
}

const GENERATOR: &str = "generator";
/// What a watched process is.
pub(super) const SERVER: &str = "server";
pub(super) const REDIS: &str = "redis";
pub(super) const MONGOD: &str = "mongod";
pub(super) const WORKER: &str = "worker";

impl CpuMicros {
    /// The middle of several bursts, process by process.
    pub(super) fn median(of: &[CpuMicros]) -> Self {
        let middle =
            |one: fn(&CpuMicros) -> f64| super::spread::Spread::of(of.iter().map(one).collect()).median;
        CpuMicros {
            generator: middle(|cpu| cpu.generator),
            server: middle(|cpu| cpu.server),
            redis: middle(|cpu| cpu.redis),
            mongod: middle(|cpu| cpu.mongod),
            worker: middle(|cpu| cpu.worker),
        }
    }
}
