//! Every metric of the table is moved by what it tells of, is served, and stays bounded: a test an action.
//!
//! The API and the worker are processes of their own here, so that nobody else counts in them.

use std::collections::{BTreeMap, BTreeSet};

use coupon_system::access::{KeyStore, Role};
use coupon_system::http::Code;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::metrics::names;
use coupon_system::metrics::names::Kind;
use coupon_system::process::gauges::COUPONS_MAX;
use coupon_system::queue::{ReadFrom, ReadOutcome, Reader};
use coupon_system::redis::keys::certificate;
use mongodb::bson::{DateTime, Document, doc};
use tempfile::TempDir;
use tokio::process::Child;

use crate::access::{token, token_flags};
use crate::helpers::{
    API, Client, RawConnection, System, WORKER, api_key, at, eventually, issued_to, program,
    program_as_it_is, serving, stopped,
};

/// A series: its name, and its labels as they were written.
type ScrapedSeries = BTreeMap<(String, String), f64>;

/// A scrape, read line by line.
#[derive(Debug, Default)]
struct Scrape {
    series: ScrapedSeries,
    helps: BTreeSet<String>,
    kinds: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads `name{label="value",…} number` and the comments before it; anything else is a panic.
    fn parse(text: &str) -> Self {
        let mut scrape = Scrape::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && scrape.helps.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert!(scrape.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
                let (name, labels) = match series.split_once('{') {
                    Some((name, labels)) => (name, labels.strip_suffix('}').expect("an end")),
                    None => (series, ""),
                };
                assert!(
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
                    "{line}"
                );
                check_labels(labels);
                let value = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
                let twice = scrape.series.insert((name.to_owned(), labels.to_owned()), value);
                assert_eq!(twice, None, "{line}");
            }
        }
        scrape
    }

    /// The sum of a metric's series that have all of `labels`; of a histogram, how much it has seen.
    fn sum(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        let name = match self.kinds.get(metric).map(String::as_str) {
            Some("histogram") => format!("{metric}_count"),
            _ => metric.to_owned(),
        };
        let found = self.series.iter().filter(|((of, has), _)| {
            *of == name && labels.iter().all(|label| has.split(',').any(|has| has == *label))
        });
        found.map(|(_, value)| *value).reduce(|sum, value| sum + value)
    }
}

/// `name="value",…`, with nothing unescaped inside; none of our values holds a comma.
fn check_labels(labels: &str) {
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{labels:?}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        assert!(!name.is_empty() && value.is_some_and(|value| !value.contains('"')), "{labels:?}");
    }
}

/// What moves metrics. Those of the worker are met by a fresh worker process.
#[derive(Debug, Clone, Copy, PartialEq)]
enum MetricAction {
    /// Three requests for a new coupon are accepted while no worker runs.
    Accept,
    /// Waits for one of them, which nobody decides.
    Wait,
    /// One of them again.
    Repeat,
    /// A coupon that has no unit left, one that ended, one that is not open, and one that is held.
    Refuse,
    /// Makes sixty coupons.
    MakeMany,
    /// A worker starts, and decides what is queued.
    StartWorker,
    /// Three requests more, and a worker.
    Issue,
    /// Asks for an outcome, twice.
    Poll,
    /// Uses what was issued, again with another reference, undoes it and revokes it.
    Redeem,
    /// A request whose unit is lost, and no other is there.
    Reject,
    /// A worker dies with an entry in hand.
    Die,
    /// The stream is trimmed by hand.
    Trim,
    /// MongoDB refuses a record.
    Poison,
    /// The ledger takes no records.
    Break,
    /// More connections than may come from one address.
    Crowd,
    /// One user asks again and again.
    Hammer,
    /// The API uses a second of processor time.
    Work,
    /// The secret of users' tokens becomes none.
    SpoilSecret,
    /// The certificate goes, until this API was the one to rebuild.
    Recover,
    /// A record that Redis knows nothing of.
    InsertLate,
    /// Redis becomes a replica of a server that is not there.
    Follow,
    /// The certificate is closed, and nobody can rebuild it.
    Uncertify,
    LoseRedis,
}

/// Connections that may come from one address.
const CROWD: usize = 50;

/// How a metric moves.
#[derive(Debug, Clone, Copy)]
enum Movement {
    Up,
    To(f64),
}

/// Which process shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum MetricSource {
    Api,
    Worker,
}

/// A metric, the labels that are looked at, what must move it, in which process, and how.
type MetricRow = (&'static str, &'static [&'static str], MetricAction, MetricSource, Movement);

const ROWS: &[MetricRow] = {
    use MetricAction::*;
    use MetricSource::{Api, Worker};
    use Movement::*;
    &[
        (
            names::REQUESTS,
            &["method=\"POST\"", "route=\"/user-coupons\"", "status=\"202\"", "code=\"\""],
            Accept,
            Api,
            Up,
        ),
        (names::REQUEST_SECONDS, &["method=\"POST\"", "route=\"/user-coupons\""], Accept, Api, Up),
        (names::RESERVE_BATCH, &[], Accept, Api, Up),
        (names::RESERVE_SECONDS, &[], Accept, Api, Up),
        (names::ACCEPTED, &[], Accept, Api, Up),
        (names::BACKLOG, &[], Accept, Api, To(3.0)),
        (names::STREAM_ENTRIES, &[], Accept, Api, To(3.0)),
        (names::OLDEST_AGE_SECONDS, &[], Accept, Api, Up),
        (names::STOCK_TOTAL, &["coupon=\"queued\""], Accept, Api, To(9.0)),
        (names::STOCK_REMAINING, &["coupon=\"queued\""], Accept, Api, To(6.0)),
        (names::STOCK_RESERVED, &["coupon=\"queued\""], Accept, Api, To(3.0)),
        (names::CACHE_ENTRIES, &["cache=\"users\""], Accept, Api, Up),
        (names::WAITERS, &[], Wait, Api, To(1.0)),
        (names::REPLAYED, &[], Repeat, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"users\"", "result=\"hit\""], Repeat, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"users\"", "result=\"miss\""], Refuse, Api, Up),
        (names::REFUSED, &["code=\"sold-out\""], Refuse, Api, Up),
        (names::REFUSED, &["code=\"ended\""], Refuse, Api, Up),
        (names::REFUSED, &["code=\"not-started\""], Refuse, Api, Up),
        (names::REQUESTS, &["status=\"404\"", "code=\"user-not-found\""], Refuse, Api, Up),
        (
            names::REQUESTS,
            &["method=\"other\"", "route=\"unmatched\"", "status=\"404\"", "code=\"not-found\""],
            Refuse,
            Api,
            Up,
        ),
        (names::CONNECTIONS, &[], Crowd, Api, Up),
        (names::DROPPED, &["reason=\"address\""], Crowd, Api, Up),
        (names::LIMITED, &["limit=\"user\""], Hammer, Api, Up),
        (names::STOCK_LEFT_OUT, &[], MakeMany, Api, Up),
        (names::RESIDENT_BYTES, &[], StartWorker, Worker, Up),
        (names::OPEN_FDS, &[], StartWorker, Worker, Up),
        (names::START_SECONDS, &[], StartWorker, Worker, Up),
        (names::WORKERS_ALIVE, &[], Issue, Api, Up),
        (names::ISSUED, &[], Issue, Worker, To(3.0)),
        (names::LEDGER_INSERT_SECONDS, &[], Issue, Worker, Up),
        (names::SETTLE_SECONDS, &[], Issue, Worker, Up),
        (names::STOCK_ISSUED, &["coupon=\"newest\""], Issue, Api, To(3.0)),
        (names::CACHE_ENTRIES, &["cache=\"outcomes\""], Issue, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"outcomes\"", "result=\"hit\""], Poll, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"outcomes\"", "result=\"miss\""], Poll, Api, Up),
        (names::REDEEMED, &["change=\"used\""], Redeem, Api, To(1.0)),
        (names::REDEEMED, &["change=\"restored\""], Redeem, Api, To(1.0)),
        (names::REDEEMED, &["change=\"revoked\""], Redeem, Api, To(1.0)),
        (names::REDEMPTION_REFUSED, &["code=\"already-used\""], Redeem, Api, To(1.0)),
        (names::REDEMPTION_REFUSED, &["code=\"not-used\""], Redeem, Api, To(1.0)),
        (names::REJECTED, &["reason=\"sold-out\""], Reject, Worker, To(1.0)),
        (names::ACCEPTED_NOT_ISSUED, &[], Reject, Worker, To(1.0)),
        (names::CLAIMED, &[], Die, Worker, To(1.0)),
        (names::RESTORED, &[], Trim, Worker, To(1.0)),
        (names::DEAD_LETTERED, &[], Poison, Worker, To(1.0)),
        (names::DEAD_LETTERS, &[], Poison, Worker, To(1.0)),
        (names::BACKLOG, &[], Poison, Worker, To(0.0)),
        (names::OLDEST_AGE_SECONDS, &[], Poison, Worker, To(0.0)),
        (names::BREAKER_OPEN, &[], Break, Worker, To(1.0)),
        (names::BREAKER_OPENED, &[], Break, Worker, To(1.0)),
        (names::CPU_SECONDS, &[], Work, Api, Up),
        (names::CREDENTIALS_STALE, &["source=\"tokens\""], SpoilSecret, Api, Up),
        (names::CREDENTIALS_STALE_SECONDS, &["source=\"tokens\""], SpoilSecret, Api, Up),
        (names::AUDITED, &[], InsertLate, Api, Up),
        (names::AUDIT_LAST, &[], InsertLate, Api, Up),
        (names::AUDIT_FINDINGS, &["code=\"record-not-counted\""], InsertLate, Api, Up),
        (names::ADOPTED, &[], InsertLate, Api, Up),
        (names::RECOVERIES, &["result=\"rebuilt\""], Recover, Api, Up),
        (names::RECOVERY_SECONDS, &[], Recover, Api, Up),
        (names::LOST, &[], Recover, Api, Up),
        (names::WRITABLE, &[], Follow, Api, To(0.0)),
        (names::CERTIFIED, &[], Uncertify, Api, To(0.0)),
        (names::STALE, &[], LoseRedis, Api, To(1.0)),
        (names::UNLIMITED, &[], LoseRedis, Api, Up),
    ]
};

/// The processes under test, and what the actions have to remember.
struct MetricsStage {
    system: System,
    api: Client,
    _api: Child,
    worker: Option<(Child, Client)>,
    queued: Vec<IssuanceId>,
    crowd: Vec<RawConnection>,
    folder: TempDir,
}

impl MetricsStage {
    async fn start() -> Self {
        let system = System::start().await;
        system.users("u", 30).await;
        let folder = tempfile::tempdir().expect("a folder");
        let (_, key) = api_key(&KeyStore::new(&system.backends.database), Role::Operator).await;
        let mut api = program_as_it_is(API, &system);
        api.args(["--listen", "127.0.0.1:0", "--audit-every", "1"]).args(token_flags(&folder));
        api.args(["--connections-per-address", &CROWD.to_string()]);
        api.args(["--user-rate", "1", "--user-burst", "8"]);
        let (child, address) = serving(api).await;
        let api = Client::new(address).with(&key);
        MetricsStage { system, api, _api: child, worker: None, queued: Vec::new(), crowd: Vec::new(), folder }
    }

    async fn scrape(&self, of: MetricSource) -> Scrape {
        let client = match (of, &self.worker) {
            (MetricSource::Api, _) => &self.api,
            (MetricSource::Worker, Some((_, client))) => client,
            (MetricSource::Worker, None) => return Scrape::default(),
        };
        let response = client.request("GET", "/metrics").send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        Scrape::parse(&response.text().await.expect("a text"))
    }

    async fn start_worker(&mut self) {
        let mut worker = program(WORKER, &self.system);
        worker.args(["--metrics-listen", "127.0.0.1:0"]);
        let (child, address) = serving(worker).await;
        self.worker = Some((child, Client::new(address)));
    }

    async fn stop_worker(&mut self) {
        if let Some((child, _)) = self.worker.take() {
            assert!(stopped(child).await.success());
        }
    }

    async fn request(&self, user: &str, coupon: &CouponId) -> IssuanceId {
        let answer = self.api.issue(user, coupon.as_str(), None).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.id().parse().expect("an id")
    }

    async fn rename_ledger(&self, from: &str, to: &str) {
        let database = &self.system.backends.database;
        let name = |collection| format!("{}.{collection}", database.name());
        // The worker's next insert makes the collection anew, where the view is gone.
        let rename = doc! {"renameCollection": name(from), "to": name(to), "dropTarget": true};
        database.client().database("admin").run_command(rename).await.expect("it is renamed");
    }

    async fn redis(&self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let done: redis::RedisResult<redis::Value> =
            command.query_async(&mut self.system.partition().connection()).await;
        done.expect("Redis does it");
    }

    async fn lease(&self, change: Document) {
        let leases = self.system.backends.database.collection::<Document>("recovery");
        leases.update_one(doc! {}, doc! {"$set": change}).await.expect("it is changed");
    }

    async fn refuse_records_of(&self, user: &str) {
        let change = doc! {"collMod": "user_coupons", "validator": {"userId": {"$ne": user}}};
        self.system.backends.database.run_command(change).await.expect("it is changed");
    }

    /// A record of unit 1 that nobody reserved.
    async fn insert_by_ghost(&self, coupon: CouponId) {
        self.system.write(&[issued_to(&coupon, "ghost", 1)]).await;
    }

    async fn perform(&mut self, action: MetricAction) {
        let system = &self.system;
        match action {
            MetricAction::Accept => {
                let coupon = system.coupon("queued", 9, 1).await;
                // Who is registered is remembered before they come.
                assert_eq!(self.api.post("/users", serde_json::json!({"id": "new"})).await.status, 201);
                for user in ["u0", "u1", "u2"] {
                    let id = self.request(user, &coupon).await;
                    self.queued.push(id);
                }
            }
            MetricAction::Wait => {
                let path = format!("/issuances/{}?wait=30", self.queued[0]);
                tokio::spawn(self.api.request("GET", &path).send());
            }
            MetricAction::Repeat => {
                assert!(self.api.issue("u0", "queued", None).await.is_replay());
            }
            MetricAction::Refuse => {
                let one = system.coupon("one", 1, 1).await;
                let lost = system.accepted("u0", &one).await;
                let ended = system.coupon_within("ended", 1, 1, at(-60), at(-30)).await;
                let later = system.coupon_within("later", 1, 1, at(3_000), at(3_600)).await;
                for coupon in [&one, &ended, &later] {
                    assert_eq!(self.api.issue("u1", coupon.as_str(), None).await.status, 409);
                }
                assert_eq!(self.api.issue("nobody", "one", None).await.code(), "user-not-found");
                self.api.send(self.api.request("BREW", "/tea")).await;
                // Not to be issued with the others.
                let entries = system.take_entries().await;
                let lost: Vec<_> = entries.into_iter().filter(|entry| entry.id == lost).collect();
                system.decider().process(&system.keys(), &lost).await.expect("it is decided");
            }
            MetricAction::Crowd => {
                for _ in 0..=CROWD {
                    self.crowd.push(RawConnection::connect(self.api.address()).await);
                }
            }
            MetricAction::Hammer => {
                // Who has a key is not counted.
                let user = Client::new(self.api.address()).with(&token("u9"));
                eventually("the user is told to wait", async || {
                    (user.issue("u9", "none", None).await.status == 429).then_some(())
                })
                .await;
            }
            MetricAction::MakeMany => {
                for number in 0..60 {
                    system.coupon(&format!("many{number}"), 1, 1).await;
                }
            }
            MetricAction::StartWorker => {
                self.start_worker().await;
                if !self.queued.is_empty() {
                    self.system.settled(&"queued".parse().expect("an id")).await;
                }
            }
            MetricAction::Issue => {
                let coupon = system.coupon("newest", 3, 1).await;
                self.stop_worker().await;
                for user in ["u0", "u1", "u2"] {
                    self.request(user, &coupon).await;
                }
                self.start_worker().await;
            }
            MetricAction::Poll => {
                self.api.decided(&self.queued[0].to_string()).await;
                self.api.decided(&self.queued[0].to_string()).await;
                // What was decided is in the cache before anybody polls; what nobody was told of is not.
                self.api.get("/issuances/019a0b1c-2d3e-7000-8f00-000000000000").await;
            }
            MetricAction::Redeem => {
                let link = self.api.get(&format!("/issuances/{}", self.queued[0])).await.body["userCoupon"]
                    .as_str()
                    .expect("a link")
                    .to_owned();
                for (verb, body) in [
                    ("use", serde_json::json!({"reference": "o1"})),
                    ("use", serde_json::json!({"reference": "o2"})),
                    ("restore", serde_json::json!({})),
                    ("restore", serde_json::json!({})),
                    ("revoke", serde_json::json!({})),
                ] {
                    self.api.post(&format!("{link}/{verb}"), body).await;
                }
            }
            MetricAction::Reject => {
                self.stop_worker().await;
                let coupon = self.system.coupon("lost", 1, 1).await;
                self.request("u3", &coupon).await;
                self.insert_by_ghost(coupon).await;
                self.start_worker().await;
            }
            MetricAction::Die => {
                self.stop_worker().await;
                let coupon = self.system.coupon("held", 1, 1).await;
                self.request("u4", &coupon).await;
                let mut reader = Reader::new(self.system.partition().client().clone(), "w-dead".into());
                match reader.read(&self.system.keys(), ReadFrom::New, 1).await.expect("a read") {
                    ReadOutcome::Entries(delivered) => assert_eq!(delivered.count(), 1),
                    ReadOutcome::NoGroup => panic!("there is no group"),
                }
                self.start_worker().await;
            }
            MetricAction::Trim => {
                self.stop_worker().await;
                let coupon = self.system.coupon("trimmed", 1, 1).await;
                self.request("u5", &coupon).await;
                self.redis(&["XTRIM", &self.system.keys().stream(), "MAXLEN", "0"]).await;
                self.start_worker().await;
            }
            MetricAction::Poison => {
                self.stop_worker().await;
                let coupon = self.system.coupon("refused", 1, 1).await;
                self.request("u6", &coupon).await;
                self.refuse_records_of("u6").await;
                self.start_worker().await;
            }
            MetricAction::Break => {
                let coupon = self.system.coupon("stuck", 1, 1).await;
                self.rename_ledger("user_coupons", "kept").await;
                let view = doc! {"create": "user_coupons", "viewOn": "kept"};
                self.system.backends.database.run_command(view).await.expect("a view");
                self.request("u7", &coupon).await;
            }
            MetricAction::SpoilSecret => {
                std::fs::write(self.folder.path().join("secret"), "short").expect("it is written");
            }
            MetricAction::Work => {
                eventually("the API has worked for a second", async || {
                    for _ in 0..200 {
                        self.api.get("/openapi.json").await;
                    }
                    (self.scrape(MetricSource::Api).await.sum(names::CPU_SECONDS, &[])? >= 1.0).then_some(())
                })
                .await;
            }
            MetricAction::Recover => {
                self.stop_worker().await;
                let lost = IssuanceId::generate(PartitionId::ONE);
                eventually("this API rebuilds", async || {
                    self.redis(&["DEL", &certificate(PartitionId::ONE)]).await;
                    eventually("somebody rebuilds", async || {
                        (self.api.get("/readyz").await.status == 200).then_some(())
                    })
                    .await;
                    (self.scrape(MetricSource::Api).await.sum(names::RECOVERIES, &["result=\"rebuilt\""])?
                        > 0.0)
                        .then_some(())
                })
                .await;
                let answer = eventually("it is certain that it is lost", async || {
                    let answer = self.api.get(&format!("/issuances/{lost}")).await;
                    (answer.status != 503).then_some(answer)
                })
                .await;
                assert_eq!((answer.status, answer.body["redisRecoveredAt"].is_string()), (404, true));
            }
            MetricAction::InsertLate => {
                let coupon = self.system.coupon("late", 1, 1).await;
                self.insert_by_ghost(coupon).await;
            }
            MetricAction::Follow => self.redis(&["REPLICAOF", "127.0.0.1", "1"]).await,
            MetricAction::Uncertify => {
                // As long as a lease may be.
                let until = DateTime::from_millis(at(14).as_millisecond());
                self.lease(doc! {"holder": "slow", "until": until}).await;
                self.redis(&["HSET", &certificate(PartitionId::ONE), "state", "closed"]).await;
            }
            MetricAction::LoseRedis => {
                self.system.redis.kill().await.expect("it is killed");
                let user = Client::new(self.api.address()).with(&token("u10"));
                for _ in 0..10 {
                    user.issue("u10", "none", None).await;
                }
            }
        }
    }

    async fn comes_to(&self, of: MetricSource, metric: &str, value: f64) {
        eventually(&format!("{metric} is {value}"), async || {
            (self.scrape(of).await.sum(metric, &[])? == value).then_some(())
        })
        .await;
    }

    /// Asserts that everything that is served is declared, with its help, its kind and its labels.
    async fn only_declared(&self) {
        for of in [MetricSource::Api, MetricSource::Worker] {
            let scrape = self.scrape(of).await;
            for (name, kind) in &scrape.kinds {
                let metric = names::ALL.iter().find(|metric| metric.name == name);
                let metric = metric.unwrap_or_else(|| panic!("{name} is not declared"));
                assert!(scrape.helps.contains(metric.name), "{} has no help", metric.name);
                let declared = match metric.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram(_) => "histogram",
                };
                assert_eq!(kind, declared, "{}", metric.name);
            }
            for (name, labels) in scrape.series.keys() {
                let metric = metric_of(name).unwrap_or_else(|| panic!("{name} is not declared"));
                let has: BTreeSet<_> =
                    labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
                let may: BTreeSet<_> = metric.labels.iter().map(|(label, _)| *label).collect();
                assert_eq!(
                    has.into_iter().filter(|label| *label != "le").collect::<BTreeSet<_>>(),
                    may,
                    "{name}"
                );
                if metric.name == names::REFUSED {
                    let known = |code: &&Code| labels == &format!("code=\"{}\"", code.as_str());
                    assert!(Code::ALL.iter().any(|code| known(&code)), "{labels} is no problem code");
                }
            }
            assert!(scrape.series.len() < 1_500, "{} series", scrape.series.len());
        }
    }
}

/// The metric that a series belongs to.
fn metric_of(series: &str) -> Option<&'static names::Metric> {
    names::ALL.iter().find(|metric| match metric.kind {
        Kind::Histogram(_) => {
            series.strip_prefix(metric.name).is_some_and(|part| ["_bucket", "_sum", "_count"].contains(&part))
        }
        _ => series == metric.name,
    })
}

#[test]
fn every_declared_metric_has_a_row() {
    let declared: BTreeSet<_> = names::ALL.iter().map(|metric| metric.name).collect();
    let tested: BTreeSet<_> = ROWS.iter().map(|row| row.0).collect();
    assert_eq!(declared, tested, "each metric has a row, and each row a metric");
}

/// Does this in a system of its own, and waits until everything moves that it is to move.
async fn moves_its_metrics(action: MetricAction) -> MetricsStage {
    let mut stage = MetricsStage::start().await;
    // What is requested is left to nobody, or to a worker that is stopped.
    stage.system.leaves_in_flight();
    for earlier in before(action) {
        stage.perform(*earlier).await;
    }
    let before = stage.scrape(MetricSource::Api).await;
    stage.perform(action).await;
    let rows = ROWS.iter().filter(|row| row.2 == action);
    assert_ne!(rows.clone().count(), 0, "{action:?} has no row");
    for (metric, labels, _, of, moves) in rows {
        // The worker is a fresh one: it has counted nothing before.
        let before = match of {
            MetricSource::Api => before.sum(metric, labels).unwrap_or_default(),
            MetricSource::Worker => 0.0,
        };
        eventually(&format!("{action:?} moves {metric} {labels:?} of the {of:?} {moves:?}"), async || {
            let now = stage.scrape(*of).await.sum(metric, labels)?;
            let moved = match moves {
                Movement::Up => now > before,
                Movement::To(value) => now == *value,
            };
            moved.then_some(())
        })
        .await;
    }
    stage.only_declared().await;
    stage
}

/// What must have been done for it.
fn before(action: MetricAction) -> &'static [MetricAction] {
    match action {
        MetricAction::Wait | MetricAction::Repeat => &[MetricAction::Accept],
        MetricAction::Poll | MetricAction::Redeem => &[MetricAction::Accept, MetricAction::StartWorker],
        MetricAction::Break => &[MetricAction::StartWorker],
        _ => &[],
    }
}

/// A test for each of these: its name, and what is done.
macro_rules! moves {
    ($($name:ident: $action:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            moves_its_metrics(MetricAction::$action).await;
        }
    )*};
}

moves! {
    accepted_requests_move_the_queue_the_stock_and_what_they_took: Accept;
    a_wait_is_counted_while_it_lasts: Wait;
    a_repeat_is_counted_as_a_replay: Repeat;
    refusals_are_counted_by_their_code: Refuse;
    a_worker_tells_of_its_process: StartWorker;
    issued_units_move_what_the_worker_and_the_stock_tell: Issue;
    polls_are_counted_by_whether_the_cache_answers: Poll;
    each_change_of_a_redemption_and_each_refusal_is_counted: Redeem;
    a_rejection_of_what_was_accepted_is_counted: Reject;
    what_a_dead_worker_held_is_counted_as_claimed: Die;
    an_entry_that_is_put_back_is_counted: Trim;
    a_dead_letter_is_counted_and_is_no_backlog: Poison;
    connections_beyond_the_limit_of_an_address_are_counted: Crowd;
    a_user_beyond_the_rate_is_counted: Hammer;
    processor_time_is_told: Work;
    a_secret_that_cannot_be_read_is_told_as_stale: SpoilSecret;
    a_recovery_is_counted_and_what_is_not_found_after_it: Recover;
    an_audit_counts_what_it_finds_and_adopts: InsertLate;
    a_redis_that_is_gone_is_told_as_stale_and_limits_nobody: LoseRedis;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_coupons_a_bounded_number_is_shown() {
    let stage = moves_its_metrics(MetricAction::MakeMany).await;
    let expected = [names::STOCK_ISSUED, names::STOCK_REMAINING, names::STOCK_RESERVED, names::STOCK_TOTAL]
        .map(|name| (name, COUPONS_MAX));
    // The stock of a coupon is shown once it has been read.
    eventually("the bounded number of coupons is shown", async || {
        let scrape = stage.scrape(MetricSource::Api).await;
        let mut coupons = BTreeMap::<&str, usize>::new();
        for (name, labels) in scrape.series.keys() {
            if labels.contains("coupon=") {
                *coupons.entry(name).or_default() += 1;
            }
        }
        assert!(coupons.values().all(|shown| *shown <= COUPONS_MAX), "{coupons:?}");
        coupons.into_iter().eq(expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_is_told_while_it_is_open_and_closes_once_the_ledger_takes_records() {
    let stage = moves_its_metrics(MetricAction::Break).await;
    let ledger = stage.system.backends.database.collection::<Document>("user_coupons");
    ledger.drop().await.expect("the view goes");
    stage.rename_ledger("kept", "user_coupons").await;
    stage.comes_to(MetricSource::Worker, names::BREAKER_OPEN, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_told_as_not_writable_until_it_is_a_primary_again() {
    let stage = moves_its_metrics(MetricAction::Follow).await;
    stage.redis(&["REPLICAOF", "NO", "ONE"]).await;
    stage.comes_to(MetricSource::Api, names::WRITABLE, 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_certificate_is_told_until_there_is_one_again() {
    let stage = moves_its_metrics(MetricAction::Uncertify).await;
    stage.lease(doc! {"until": DateTime::from_millis(0)}).await;
    stage.comes_to(MetricSource::Api, names::CERTIFIED, 1.0).await;
}
