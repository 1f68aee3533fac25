//! The system under test: an API, as many workers as a test starts, and the servers behind them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coupon_system::access::key::ApiKey;
use coupon_system::access::{KeyInsert, KeyStore, Role};
use coupon_system::api;
use coupon_system::audit::{self, AuditReport, Auditor, SettleMode};
use coupon_system::config::Concurrency;
use coupon_system::coupon::{Coupon, CreateOutcome, Stock, stock};
use coupon_system::dev::servers::RedisServer;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId, Shares};
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reserve::{QueueEntries, Reserved, reserve};
use coupon_system::process::Backends;
use coupon_system::queue::{Entry, ReadFrom, ReadOutcome, Reader, split};
use coupon_system::recovery::{RecoverySupervisor, load_all};
use coupon_system::redis::Partition;
use coupon_system::redis::keys::{EpochKeys, GROUP, pressure};
use coupon_system::runtime::background::never_busy;
use coupon_system::user::User;
use coupon_system::worker::{Decider, Worker};
use jiff::{SignedDuration, Timestamp};
use mongodb::bson::doc;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Client;
use super::builder::SystemBuilder;
use super::decisions::{NO_BACKLOG_MAX, request};

/// The longest wait for anything: long enough for a busy machine, so that a test that reaches it has failed.
const EVENTUALLY_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a dropped system waits for its Redis, and for workers to settle what they have in hand.
const REDIS_MAX: Duration = Duration::from_secs(5);
const SETTLED_MAX: Duration = Duration::from_secs(5);

/// Calls `look` until it returns a value.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(started.elapsed() < EVENTUALLY_MAX, "it never happened that {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The moment that is this many seconds from now, in whole milliseconds.
pub fn at(seconds: i64) -> Timestamp {
    let moment = Timestamp::now() + SignedDuration::from_secs(seconds);
    Timestamp::from_millisecond(moment.as_millisecond()).expect("a moment")
}

/// Creates an API key. Returns its record, and the text that its owner sends.
pub async fn api_key(store: &KeyStore, role: Role) -> (ApiKey, String) {
    let (key, text) = ApiKey::generate(role.as_str(), role, None).expect("a name");
    assert_eq!(store.insert(&key).await.expect("it is kept"), KeyInsert::New);
    (key, text)
}

/// The supervisor that keeps partition 0 certified, of a process with these backends.
pub fn supervisor(backends: &Backends) -> RecoverySupervisor {
    backends.recovery_supervisors().next().expect("every deployment has partition 0")
}

/// An API in this process, with servers of its own behind it. A test that leaves something in flight, or a dead letter,
/// fails when it drops the system, unless it has said so ([`System::leaves_in_flight`]).
pub struct System {
    pub client: Client,
    /// A client of the operators' listener, if there is one.
    pub operators_client: Option<Client>,
    /// The keys of the builder's roles, in their order.
    pub api_keys: Vec<String>,
    pub backends: Backends,
    /// The redis-server that the partition lies on; of a cluster, where it lay at the start.
    pub redis: RedisServer,
    /// The other nodes of a cluster, in its order.
    pub other_nodes: Vec<RedisServer>,
    /// Where programs of the system find Redis.
    pub redis_url: String,
    pub mongodb_uri: String,
    pub database: String,
    /// The API in this process.
    pub app: api::App,
    pub(super) serving: JoinHandle<anyhow::Result<()>>,
    pub(super) stop: CancellationToken,
    pub(super) leaves_in_flight: AtomicBool,
    /// Whether the coupons of the test lie in partition 0, as those from before the deployment had others.
    pub(super) is_grown: bool,
    pub(super) _folder: Option<TempDir>,
}

impl System {
    /// Starts servers and an API without credentials, and no worker.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Builds a system that differs from the default.
    pub fn builder<'a>() -> SystemBuilder<'a> {
        SystemBuilder::default()
    }

    /// Allows this test to end with issuances in flight, or with dead letters.
    pub fn leaves_in_flight(&self) {
        self.leaves_in_flight.store(true, Ordering::Relaxed);
    }

    /// Ends a coupon, in its record and in Redis: in Redis alone the API would bring it up to its record.
    pub async fn end(&self, coupon: &CouponId) {
        let ended = self.client.request("PATCH", &format!("/coupons/{coupon}"));
        let answer = self.client.send(ended.json(&json!({"endsAt": at(0).to_string()}))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        eventually("it has ended", async || {
            let answer = self.client.get(&format!("/coupons/{coupon}")).await;
            (answer.body["status"] == "ended").then_some(())
        })
        .await;
    }

    /// Lets a worker decide and settle everything that is in flight.
    pub async fn drain(&self) {
        let worker = self.worker();
        eventually("nothing is in flight", async || {
            let mut in_flight = 0;
            for partition in &self.backends.partitions {
                let mut count = redis::cmd("HLEN");
                count.arg(partition.keys().in_flight());
                in_flight += count.query_async::<u64>(&mut partition.connection()).await.ok()?;
            }
            (in_flight == 0 && self.queue().await == (0, 0)).then_some(())
        })
        .await;
        worker.cancel();
    }

    /// Asks API and workers to stop, and waits until the API has answered the requests that it has.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        (&mut self.serving).await.expect("no panic").expect("it ends well");
    }

    /// A worker that runs until the token is cancelled, or the test ends.
    pub fn worker(&self) -> CancellationToken {
        self.worker_with(Concurrency { batches: 2, batch_size: 50 })
    }

    pub fn worker_with(&self, concurrency: Concurrency) -> CancellationToken {
        let backends = self.backends.clone();
        let stop = self.stop.child_token();
        let runtime = tokio::runtime::Handle::current();
        let stopping = stop.clone();
        runtime.spawn(async move { Worker::run_all(&backends, concurrency, stopping).await });
        // A worker on the only thread of a test settles nothing while that thread drops the system.
        if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::CurrentThread {
            self.leaves_in_flight();
        }
        stop
    }

    /// The part of a worker that decides, for tests that call it step by step.
    pub fn decider(&self) -> Decider {
        let backends = &self.backends;
        Decider::new(
            Arc::clone(backends.partitions.first()),
            backends.ledger.clone(),
            backends.coupons.clone(),
        )
    }

    pub fn partition(&self) -> &Partition {
        self.backends.partitions.first()
    }

    /// The one that keeps partition 0 certified, of another process than the API.
    pub fn supervisor(&self) -> RecoverySupervisor {
        supervisor(&self.backends)
    }

    pub fn keys(&self) -> EpochKeys {
        self.partition().keys()
    }

    /// Runs a command in Redis, given as words.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.partition().connection()).await.expect("Redis does it")
    }

    /// Creates a coupon that can be requested now.
    pub async fn coupon(&self, id: &str, total: u32, per_user: u8) -> CouponId {
        self.coupon_within(id, total, per_user, at(-3600), at(3600)).await
    }

    pub async fn coupon_within(
        &self,
        id: &str,
        total: u32,
        per_user: u8,
        starts_at: Timestamp,
        ends_at: Timestamp,
    ) -> CouponId {
        let coupon = self.coupon_record(id, total, per_user, starts_at, ends_at).await;
        self.load(&coupon.id).await;
        coupon.id
    }

    /// Loads a coupon, if it is not loaded, as a request does.
    pub async fn load(&self, coupon: &CouponId) {
        let coupon = self.backends.coupons.get(coupon).await.expect("it is read").expect("there is one");
        load_all(&self.backends.loaders(), &coupon).await.expect("it can be loaded");
    }

    /// Where the units of a coupon lie.
    pub async fn partition_of(&self, coupon: &CouponId) -> &Partition {
        let coupon = self.backends.coupons.get(coupon).await.expect("it is read").expect("there is one");
        self.backends.partitions.get(coupon.shares.partitions()[0]).expect("it is known")
    }

    /// Creates a coupon's record and does not load the coupon, as if the process died in between.
    pub async fn coupon_record(
        &self,
        id: &str,
        total: u32,
        per_user: u8,
        starts_at: Timestamp,
        ends_at: Timestamp,
    ) -> Coupon {
        let plain = Coupon::new(id.parse().expect("an id"), total, starts_at, ends_at);
        let shares = match self.is_grown {
            true => Shares::one(PartitionId::ONE),
            false => self.backends.partitions.place(&plain.id, 1).expect("there is a partition"),
        };
        let coupon = Coupon { per_user, created_at: at(0), shares, ..plain };
        assert_eq!(self.backends.coupons.insert(&coupon).await.expect("it is written"), CreateOutcome::New);
        coupon
    }

    /// Registers `count` users, named `prefix` and a number from 0.
    pub async fn users(&self, prefix: &str, count: usize) -> Vec<String> {
        let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
        let users: Vec<User> = names
            .iter()
            .map(|name| User { id: name.parse().expect("an id"), name: name.clone(), created_at: at(0) })
            .collect();
        self.backends.users.insert(&users).await.expect("they are registered");
        names
    }

    /// Has MongoDB refuse every record of one user; with `None`, no record.
    pub async fn poison(&self, user: Option<&str>) {
        let validator = user.map_or_else(|| doc! {}, |user| doc! {"userId": {"$ne": user}});
        let changed =
            self.backends.database.run_command(doc! {"collMod": "user_coupons", "validator": validator});
        changed.await.expect("it is changed");
    }

    /// The stock of a coupon, which is loaded first if it is not, as a request does.
    pub async fn stock(&self, coupon: &CouponId) -> Stock {
        self.load(coupon).await;
        let coupon = self.backends.coupons.get(coupon).await.expect("it is read").expect("there is one");
        let mut whole: Option<Stock> = None;
        for share in coupon.shares.partitions() {
            let partition = self.backends.partitions.get(*share).expect("it is known");
            let (_, mut stocks) =
                stock::read(partition, std::slice::from_ref(&coupon.id)).await.expect("a stock");
            let stock = stocks.remove(0).expect("it can be read").expect("the coupon is loaded");
            whole = Some(whole.map_or(stock, |whole| whole.and(stock)));
        }
        whole.expect("a coupon has a share")
    }

    /// Waits until nothing of the coupon is reserved.
    pub async fn settled(&self, coupon: &CouponId) -> Stock {
        eventually("everything is settled", async || {
            let stock = self.stock(coupon).await;
            (stock.reserved == 0).then_some(stock)
        })
        .await
    }

    /// How often each command has run in Redis so far, including those of scripts, by its name in lower case.
    pub async fn commands_run(&self) -> BTreeMap<String, u64> {
        let stats: String = self.command(&["INFO", "commandstats"]).await;
        let counts = stats.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().expect("a number")))
        });
        counts.collect()
    }

    /// How many calls of scripts Redis has run so far.
    pub async fn scripts_run(&self) -> u64 {
        self.commands_run().await["evalsha"]
    }

    /// Reserves for one user without the API. Loads the coupon first if it is not loaded.
    pub async fn reserve(&self, user: &str, coupon: &CouponId) -> Reserved {
        let request = [request(user, coupon)];
        let answer = reserve(self.partition(), &request, NO_BACKLOG_MAX, QueueEntries::OfOne)
            .await
            .expect("an answer")
            .remove(0);
        if !matches!(answer, Reserved::NotLoaded { .. }) {
            return answer;
        }
        self.backends.loaders().first().load(coupon).await.expect("it can be loaded");
        reserve(self.partition(), &request, NO_BACKLOG_MAX, QueueEntries::OfOne)
            .await
            .expect("an answer")
            .remove(0)
    }

    /// Reserves for one user, and asserts that they get a unit.
    pub async fn accepted(&self, user: &str, coupon: &CouponId) -> IssuanceId {
        match self.reserve(user, coupon).await {
            Reserved::Accepted(queued) => queued.id,
            other => panic!("{user} was not accepted: {other:?}"),
        }
    }

    /// Reads every new entry of the queue, as a new consumer.
    pub async fn take_entries(&self) -> Vec<Entry> {
        let consumer = format!("test-{}", IssuanceId::generate(PartitionId::ONE));
        let mut reader = Reader::new(self.partition().client().clone(), consumer);
        match reader.read(&self.keys(), ReadFrom::New, 1000).await.expect("a read") {
            ReadOutcome::Entries(delivered) => {
                assert_eq!(delivered.undecodable, []);
                delivered.entries
            }
            ReadOutcome::NoGroup => panic!("there is no group"),
        }
    }

    /// The same, each in a stream entry of its own: a worker takes others apart before it sets anything aside.
    pub async fn take_entries_of_one(&self) -> Vec<Entry> {
        let entries = self.take_entries().await;
        let names = entries.iter().map(|entry| entry.entry.as_str());
        split(self.partition(), &self.keys(), names).await.expect("they are taken apart");
        let (mut ones, _) = entries.into_iter().partition::<Vec<_>, _>(|entry| entry.of == 1);
        if self.queue().await.0 > ones.len() as u64 {
            ones.extend(self.take_entries().await);
        }
        ones
    }

    /// Whether an issuance is in flight.
    pub async fn is_in_flight(&self, id: IssuanceId) -> bool {
        let found = read_in_flight(self.partition(), &[id]).await.expect("a look").remove(0);
        found.expect("it can be read").is_some()
    }

    /// The number of entries in the stream, and of those that are delivered and not acknowledged.
    pub async fn queue(&self) -> (u64, u64) {
        let (mut connection, stream) = (self.partition().connection(), self.keys().stream());
        let length: u64 =
            redis::cmd("XLEN").arg(&stream).query_async(&mut connection).await.expect("a length");
        let (pending, ..): (u64, Option<String>, Option<String>, redis::Value) = redis::cmd("XPENDING")
            .arg(&stream)
            .arg(GROUP)
            .query_async(&mut connection)
            .await
            .expect("a count");
        (length, pending)
    }

    /// Audits Redis against the ledger.
    pub fn auditor(&self) -> Auditor {
        self.auditor_of(self.backends.partitions.first())
    }

    pub fn auditor_of(&self, partition: &Arc<Partition>) -> Auditor {
        let Backends { ledger, coupons, .. } = self.backends.clone();
        Auditor::new(Arc::clone(partition), ledger, coupons)
    }

    /// Audits in the background, as an API process does, until `stop`.
    pub fn keep_auditing(&self, every: Duration, stop: &CancellationToken) -> JoinHandle<()> {
        tokio::spawn(audit::keep_auditing(self.auditor(), every, never_busy(), stop.clone()))
    }

    /// Says in Redis that callers wait, as API processes do while they wait long, until the handle is dropped.
    pub fn keep_pressing(&self) -> AbortOnDropHandle<()> {
        let partition = Arc::clone(self.backends.partitions.first());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                let mut set = redis::cmd("SET");
                set.arg(pressure(partition.id())).arg(1).arg("PX").arg(150);
                let _: redis::RedisResult<()> = set.query_async(&mut partition.connection()).await;
            }
        }))
    }

    /// Audits every coupon, unit by unit, and settles nothing.
    pub async fn audited(&self) -> AuditReport {
        let auditor = self.auditor();
        let (mut coupons, mut last) = (Vec::new(), None);
        loop {
            let page = auditor.coupons_after(last.as_ref()).await.expect("the coupons");
            last = page.last().cloned();
            coupons.extend(page);
            if last.is_none() {
                break;
            }
        }
        let mut report = AuditReport::default();
        for partition in &self.backends.partitions {
            let here: Vec<_> =
                coupons.iter().filter(|coupon| coupon.shares.of(partition.id()).is_some()).cloned().collect();
            let audited = self.auditor_of(partition).full(&here, SettleMode::ReadOnly, |_| {}).await;
            let audited = audited.expect("an audit");
            report.coupons.extend(audited.coupons);
            report.queue.extend(audited.queue);
        }
        report
    }

    /// Asserts that every unit and every issuance of every coupon is where it should be.
    pub async fn audited_clean(&self) {
        let report = self.audited().await;
        let findings: Vec<_> = report.findings().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:#?}");
        for audited in report.coupons {
            assert!(audited.bracket.is_none_or(|bracket| bracket.holds()), "{audited:?}");
        }
    }

    /// The serials that the ledger says are issued, in order.
    pub async fn issued_serials(&self, coupon: &CouponId) -> Vec<u32> {
        let mut records = self.backends.ledger.issued_records(coupon).await.expect("they are read");
        let mut serials = Vec::new();
        loop {
            let page = records.next().await.expect("a page");
            if page.is_empty() {
                serials.sort_unstable();
                return serials;
            }
            serials.extend(page.into_iter().map(|held| held.expect("it is readable").unit.serial()));
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.leaves_in_flight.load(Ordering::Relaxed) {
            assert_eq!(left_at_last(&self.redis), [], "the test leaves this in its Redis");
        }
        self.stop.cancel();
    }
}

/// What is left in flight after workers of other threads and processes have had time to settle it; nothing if the test
/// has ended its Redis.
fn left_at_last(redis: &RedisServer) -> Vec<(String, u64)> {
    let started = Instant::now();
    loop {
        let left = left_in(redis).unwrap_or_default();
        if left.is_empty() || started.elapsed() > SETTLED_MAX {
            return left;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The in-flight and dead-letter hashes of any epoch that are not empty, with the number of their fields.
fn left_in(redis: &RedisServer) -> redis::RedisResult<Vec<(String, u64)>> {
    let client = redis::Client::open(redis.url())?;
    let mut connection = client.get_connection_with_timeout(REDIS_MAX)?;
    connection.set_read_timeout(Some(REDIS_MAX))?;
    let mut left = Vec::new();
    for hash in ["in-flight", "dead"] {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("coupon:*:*:{hash}")).query(&mut connection)?;
        for key in keys {
            let count = redis::cmd("HLEN").arg(&key).query(&mut connection)?;
            left.push((key, count));
        }
    }
    Ok(left)
}
