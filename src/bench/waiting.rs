//! Many who wait: one API process holds thousands of polls with `?wait` while it accepts requests; then
//! all are decided, and told. After that they all poll again at once, as a crowd does that was not told
//! to stop: what is decided is answered from the outcome cache.
//!
//! The generator is this program, the API a process of its own; each waiter has a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::accept::to_service;
use super::backlog::{BATCH_MAX, queue};
use super::bed::Bed;
use super::lab::Lab;
use super::program::Program;
use super::report::{Row, row};
use super::usage;
use crate::dev::servers::Persistence;
use crate::ids::IssuanceId;
use crate::rush::connection::Connection;
use crate::rush::live::Latency;
use crate::rush::open_loop::{Bounds, Crowd};
use crate::rush::report::Percentiles;
use crate::rush::{Answer, Fault, Target, open_loop};

/// The longest that the API holds an answer.
const WAIT_SECONDS: u64 = 30;
const ANSWER_MAX: Duration = Duration::from_secs(WAIT_SECONDS + 30);
/// The API counts its waiters every two seconds.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const WAITERS: &str = "coupon_waiters ";
/// How long it is watched while all wait and nothing else happens.
const QUIET: Duration = Duration::from_secs(3);
/// Each polls so often in the storm.
const STORM_ROUNDS: usize = 4;

/// See the module's documentation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Polls held at once.
    pub waiters: u32,
    /// From the decision, as the ledger has it, to the waiter's answer, in milliseconds. The write to
    /// the ledger is in it.
    pub told_p50_ms: f64,
    pub told_p99_ms: f64,
    /// Accepted per second while all wait, over the same without waiters.
    pub accepted_ratio: f64,
    pub accepted_alone_per_second: f64,
    pub accepted_beside_per_second: f64,
    /// Resident memory of the API with them, and what each adds to it.
    pub api_bytes: u64,
    pub bytes_per_waiter: f64,
    /// Processor time of the API, and of Redis, per waiter and second, in microseconds, while nothing
    /// else happens.
    pub waiter_cpu_micros: f64,
    pub waiter_redis_cpu_micros: f64,
    /// Polls answered per second when all poll again at once, and the time of one from its sending.
    pub storm_per_second: f64,
    pub storm_p99_ms: f64,
    /// Processor time per poll, in microseconds.
    pub storm_server_cpu_micros: f64,
    pub storm_redis_cpu_micros: f64,
    pub storm_mongod_cpu_micros: f64,
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Waiting> {
    let (waiters, burst) = (lab.sizes.waiters, lab.sizes.burst);
    lab.say(&format!("waiting: {waiters} polls, alone"));
    let bed = Bed::make(lab, Persistence::FsyncAlways).await?;
    bed.register(burst).await?;
    let api = bed.api().await?;
    let first_sight = bed.coupon(burst).await?;
    to_service(lab, &bed, &api, None)?.send(first_sight.as_str()).await?;
    let coupon = bed.coupon(burst).await?;
    let accepted_alone_per_second =
        to_service(lab, &bed, &api, None)?.send(coupon.as_str()).await?.accepted_per_second;
    bed.drain(&coupon, burst).await?;
    bed.drained(&first_sight, burst).await?;

    let coupon = bed.coupon(waiters).await?;
    let ids = Arc::new(queue(&bed, &coupon, 0..waiters, BATCH_MAX).await?.ids);
    let bytes_before = usage::resident_bytes(api.pid())?;
    let (asking, told) = ask_all(&api, &ids)?;
    all_wait(&api, waiters).await?;
    let api_bytes = usage::resident_bytes(api.pid())?;

    let (api_before, redis_before) = (usage::cpu(api.pid())?, bed.redis_cpu_us().await?);
    tokio::time::sleep(QUIET).await;
    let each_second = f64::from(waiters) * QUIET.as_secs_f64();
    let waiter_cpu_micros = (usage::cpu(api.pid())? - api_before).as_secs_f64() * 1e6 / each_second;
    let waiter_redis_cpu_micros = (bed.redis_cpu_us().await? - redis_before) / each_second;

    lab.say(&format!("waiting: {waiters} polls, while requests are accepted"));
    let other = bed.coupon(burst).await?;
    let accepted_beside_per_second =
        to_service(lab, &bed, &api, None)?.send(other.as_str()).await?.accepted_per_second;
    let worker = bed.worker().await?;
    asking.await?;
    bed.drained(&coupon, waiters).await?;
    bed.drained(&other, burst).await?;
    worker.stop().await?;
    let not_told = waiters - told.issued.load(Ordering::Relaxed);
    ensure!(not_told == 0, "{not_told} of {waiters} waiters were not told that theirs is issued");
    let times = Percentiles::of(&told.took).context("somebody was told")?;

    lab.say(&format!("waiting: {waiters} poll again"));
    let storm = storm(lab, &bed, &api, &ids).await?;
    api.stop().await?;
    bed.close().await?;
    Ok(Waiting {
        waiters,
        told_p50_ms: times.p50_ms,
        told_p99_ms: times.p99_ms,
        accepted_ratio: accepted_beside_per_second / accepted_alone_per_second,
        accepted_alone_per_second,
        accepted_beside_per_second,
        api_bytes,
        bytes_per_waiter: api_bytes.saturating_sub(bytes_before) as f64 / f64::from(waiters),
        waiter_cpu_micros,
        waiter_redis_cpu_micros,
        storm_per_second: storm.per_second,
        storm_p99_ms: storm.p99_ms,
        storm_server_cpu_micros: storm.server_cpu_micros,
        storm_redis_cpu_micros: storm.redis_cpu_micros,
        storm_mongod_cpu_micros: storm.mongod_cpu_micros,
    })
}

/// Asks for each of these, in turn, and takes in what is told.
struct Polls {
    target: Arc<Target>,
    ids: Arc<Vec<IssuanceId>>,
    query: String,
    /// Waiters: from the decision. Others: from the sending.
    from_decision: bool,
    took: Latency,
    issued: AtomicU32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    state: String,
    decided_at: Option<Timestamp>,
}

impl Polls {
    fn new(api: &Program, ids: &Arc<Vec<IssuanceId>>, query: &str) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Polls {
            target: Arc::new(Target::new(&api.url()).map_err(anyhow::Error::msg)?),
            ids: Arc::clone(ids),
            query: query.to_owned(),
            from_decision: !query.is_empty(),
            took: Latency::default(),
            issued: AtomicU32::new(0),
        }))
    }

    /// Asks so many times, over so many connections.
    async fn ask(self: Arc<Self>, times: usize, connections: usize) {
        let schedule: Arc<[Duration]> = vec![Duration::ZERO; times].into();
        let bounds = Bounds { connections, in_flight_max: usize::MAX, answer_max: ANSWER_MAX };
        let target = Arc::clone(&self.target);
        open_loop::run(&target, schedule, Instant::now(), bounds, self, CancellationToken::new()).await;
    }
}

impl Crowd for Polls {
    fn write(&self, number: usize, request: &mut Vec<u8>) {
        let id = self.ids[number % self.ids.len()];
        self.target.write("GET", &format!("/issuances/{id}{}", self.query), "", b"", request);
    }

    fn answered(&self, _: usize, _: Instant, sent: Instant, answer: Result<Answer<'_>, Fault>) {
        let Some(told) = answer.ok().and_then(|answer| serde_json::from_slice::<Told>(answer.body).ok())
        else {
            return;
        };
        let Some(decided_at) = told.decided_at.filter(|_| told.state == "issued") else { return };
        let since_decision = || Timestamp::now().duration_since(decided_at).try_into().unwrap_or_default();
        self.took.record(if self.from_decision { since_decision() } else { sent.elapsed() });
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    fn dropped(&self, _: usize) {}
}

/// Begins to ask for them all at once, to be held until they are decided.
fn ask_all(api: &Program, ids: &Arc<Vec<IssuanceId>>) -> anyhow::Result<(JoinHandle<()>, Arc<Polls>)> {
    let polls = Polls::new(api, ids, &format!("?wait={WAIT_SECONDS}"))?;
    Ok((tokio::spawn(Arc::clone(&polls).ask(ids.len(), ids.len())), polls))
}

/// Waits until the API says that so many wait.
async fn all_wait(api: &Program, waiters: u32) -> anyhow::Result<()> {
    let target = Arc::new(Target::new(&api.url()).map_err(anyhow::Error::msg)?);
    let (mut connection, mut request) = (Connection::new(Arc::clone(&target)), Vec::new());
    target.write("GET", "/metrics", "", b"", &mut request);
    let began = Instant::now();
    loop {
        let answer = connection.exchange(&request, ANSWER_MAX).await;
        let answer = answer.map_err(|fault| anyhow!("the API does not tell its metrics: {fault}"))?;
        let text = std::str::from_utf8(answer.body)?;
        let waiting = text.lines().find_map(|line| line.strip_prefix(WAITERS)?.parse::<f64>().ok());
        if waiting.is_some_and(|waiting| waiting >= f64::from(waiters)) {
            return Ok(());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(WAIT_SECONDS) / 2,
            "only {waiting:?} of {waiters} polls wait; each is an open file here and there: `ulimit -n`"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Storm {
    per_second: f64,
    p99_ms: f64,
    server_cpu_micros: f64,
    redis_cpu_micros: f64,
    mongod_cpu_micros: f64,
}

async fn storm(lab: &Lab<'_>, bed: &Bed, api: &Program, ids: &Arc<Vec<IssuanceId>>) -> anyhow::Result<Storm> {
    let polls = Polls::new(api, ids, "")?;
    let count = ids.len() * STORM_ROUNDS;
    let used = || {
        let redis = bed.redis.pid().context("redis-server has ended")?;
        anyhow::Ok([usage::cpu(api.pid())?, usage::cpu(redis)?, usage::cpu(bed.mongodb_pid()?)?])
    };
    let (before, began) = (used()?, Instant::now());
    Arc::clone(&polls).ask(count, lab.sizes.connections).await;
    let (took, after) = (began.elapsed(), used()?);
    let issued = polls.issued.load(Ordering::Relaxed) as usize;
    ensure!(issued == count, "{} of {count} polls were not answered that it is issued", count - issued);
    let each = |place: usize| (after[place] - before[place]).as_secs_f64() * 1e6 / count as f64;
    Ok(Storm {
        per_second: count as f64 / took.as_secs_f64(),
        p99_ms: Percentiles::of(&polls.took).context("somebody was told")?.p99_ms,
        server_cpu_micros: each(0),
        redis_cpu_micros: each(1),
        mongod_cpu_micros: each(2),
    })
}

impl Waiting {
    pub(super) fn rows(&self) -> Vec<Row> {
        vec![
            row("waiters", self.waiters.into(), "polls held at once by one API process"),
            row("toldP50Ms", self.told_p50_ms, "from the decision to the waiter's answer"),
            row("toldP99Ms", self.told_p99_ms, ""),
            row("acceptedRatio", self.accepted_ratio, "accepted per second beside them, over without them"),
            row("acceptedBesidePerSecond", self.accepted_beside_per_second, ""),
            row("apiBytes", self.api_bytes as f64, "resident, with them"),
            row("bytesPerWaiter", self.bytes_per_waiter, ""),
            row("waiterCpuMicros", self.waiter_cpu_micros, "of the API, per waiter and second"),
            row("waiterRedisCpuMicros", self.waiter_redis_cpu_micros, "of Redis, per waiter and second"),
            row("stormPerSecond", self.storm_per_second, "polls, when all poll again at once"),
            row("stormP99Ms", self.storm_p99_ms, "from the sending"),
            row("stormServerCpuMicros", self.storm_server_cpu_micros, "of the API, per poll"),
            row("stormRedisCpuMicros", self.storm_redis_cpu_micros, "of Redis: the cache answers"),
            row("stormMongodCpuMicros", self.storm_mongod_cpu_micros, "of MongoDB"),
        ]
    }
}
