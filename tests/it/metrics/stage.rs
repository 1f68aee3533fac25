//! The processes whose metrics are read, and the actions on them.

use std::collections::BTreeSet;

use coupon_system::access::key::ApiKey;
use coupon_system::access::{KeyInsert, KeyStore, Role};
use coupon_system::http::Code;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::metrics::names;
use coupon_system::metrics::names::Kind;
use coupon_system::queue::{ReadFrom, ReadOutcome, Reader};
use coupon_system::recovery::Deployment;
use coupon_system::redis::keys::certificate;
use futures::future::join_all;
use mongodb::bson::{DateTime, Document, doc};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use crate::access::{token, token_flags};
use crate::helpers::{
    API, Client, RawConnection, System, WORKER, api_key, at, eventually, issued_to, program,
    program_as_it_is, serving, stopped,
};

use super::scrape::{Scrape, metric_of};
use super::table::{MetricAction, MetricSource};

/// Connections that the API allows from one address.
pub const CROWD: usize = 50;

/// The processes under test, and what actions leave for later ones.
pub struct MetricsStage {
    pub system: System,
    pub api: Client,
    _api: Child,
    pub worker: Option<(Child, Client)>,
    pub queued: Vec<IssuanceId>,
    pub crowd: Vec<RawConnection>,
    pub folder: TempDir,
    pressed: Option<AbortOnDropHandle<()>>,
}

/// Starts the API, and makes a key for its operator.
async fn start_api(system: &System, folder: &TempDir) -> (Child, Client) {
    let (_, key) = api_key(&KeyStore::new(&system.backends.database), Role::Operator).await;
    let mut api = program_as_it_is(API, system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "1"]).args(token_flags(folder));
    api.args(["--connections-per-address", &CROWD.to_string()]);
    api.args(["--user-rate", "1", "--user-burst", "8"]);
    let (child, address) = serving(api).await;
    (child, Client::new(address).with(&key))
}

impl MetricsStage {
    pub async fn start() -> Self {
        let system = System::start().await;
        system.users("u", 30).await;
        let folder = tempfile::tempdir().expect("a folder");
        let (child, api) = start_api(&system, &folder).await;
        let (queued, crowd) = (Vec::new(), Vec::new());
        MetricsStage { system, api, _api: child, worker: None, queued, crowd, folder, pressed: None }
    }

    pub async fn scrape(&self, of: MetricSource) -> Scrape {
        let client = match (of, &self.worker) {
            (MetricSource::Api, _) => &self.api,
            (MetricSource::Worker, Some((_, client))) => client,
            (MetricSource::Worker, None) => return Scrape::default(),
        };
        // An address with too many connections gets no new one, and the one that is kept may not be free again yet.
        let response =
            eventually("a scrape is answered", async || client.request("GET", "/metrics").send().await.ok())
                .await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        Scrape::parse(&response.text().await.expect("a text"))
    }

    pub async fn start_worker(&mut self) {
        let mut worker = program(WORKER, &self.system);
        worker.args(["--metrics-listen", "127.0.0.1:0"]);
        let (child, address) = serving(worker).await;
        self.worker = Some((child, Client::new(address)));
    }

    pub async fn stop_worker(&mut self) {
        if let Some((child, _)) = self.worker.take() {
            assert!(stopped(child).await.success());
        }
    }

    pub async fn request(&self, user: &str, coupon: &CouponId) -> IssuanceId {
        let answer = self.api.issue(user, coupon.as_str(), None).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.id().parse().expect("an id")
    }

    pub async fn rename_ledger(&self, from: &str, to: &str) {
        let database = &self.system.backends.database;
        let name = |collection| format!("{}.{collection}", database.name());
        // The worker's next insert creates the collection again once the view is gone.
        let rename = doc! {"renameCollection": name(from), "to": name(to), "dropTarget": true};
        database.client().database("admin").run_command(rename).await.expect("it is renamed");
    }

    pub async fn redis(&self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let done: redis::RedisResult<redis::Value> =
            command.query_async(&mut self.system.partition().connection()).await;
        done.expect("Redis does it");
    }

    pub async fn lease(&self, change: Document) {
        let leases = self.system.backends.database.collection::<Document>("recovery");
        leases.update_one(doc! {}, doc! {"$set": change}).await.expect("it is changed");
    }

    pub async fn refuse_records_of(&self, user: &str) {
        let change = doc! {"collMod": "user_coupons", "validator": {"userId": {"$ne": user}}};
        self.system.backends.database.run_command(change).await.expect("it is changed");
    }

    /// Inserts a record of unit 1 that no request reserved.
    pub async fn insert_by_ghost(&self, coupon: CouponId) {
        self.system.write(&[issued_to(&coupon, "ghost", 1)]).await;
    }

    pub async fn perform(&mut self, action: MetricAction) {
        let system = &self.system;
        match action {
            MetricAction::Accept => {
                let coupon = system.coupon("queued", 9, 1).await;
                // The API caches a user when it registers them.
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
                // This one must not be issued with the others.
                let entries = system.take_entries().await;
                let lost: Vec<_> = entries.into_iter().filter(|entry| entry.id == lost).collect();
                system.decider().process(&system.keys(), &lost).await.expect("it is decided");
            }
            MetricAction::Spread => {
                let coupon = self.coupon_in_new_partitions(9, 1).await;
                let id = self.request("u0", &coupon).await;
                assert_ne!(id.partition(), PartitionId::ONE);
            }
            MetricAction::EmptyShare => {
                let coupon = self.coupon_in_new_partitions(2, 2).await;
                let shares = self.system.backends.ledger.shares_of(&coupon).await.expect("they are read");
                let of_first = |user: &String| {
                    shares.route(&coupon, &user.parse().expect("an id")) == shares.partitions()[0]
                };
                let users: Vec<String> = (0..30).map(|n| format!("u{n}")).filter(of_first).take(3).collect();
                let [first, second, third] = &users[..] else { panic!("there are three: {users:?}") };
                self.request(first, &coupon).await;
                self.request(second, &coupon).await;
                assert_eq!(self.api.issue(third, coupon.as_str(), None).await.code(), "sold-out");
            }
            MetricAction::Crowd => {
                for _ in 0..=CROWD {
                    self.crowd.push(RawConnection::connect(self.api.address()).await);
                }
            }
            MetricAction::Press => {
                let coupon = self.system.coupon("pressed", 40, 1).await;
                let users = self.system.users("crowd", 40).await;
                // However fast the machine is, they wait.
                self.redis(&["CLIENT", "PAUSE", "200", "WRITE"]).await;
                join_all(users.iter().map(|user| self.request(user, &coupon))).await;
                self.system.leaves_in_flight();
            }
            MetricAction::MakeWay => {
                let coupon = self.system.coupon("queued", 2_000, 1).await;
                self.system.accept_all(&coupon, (0..2_000).map(|number| format!("q{number}"))).await;
                self.pressed = Some(self.system.keep_pressing());
                self.start_worker().await;
            }
            MetricAction::Hammer => {
                // Requests with a key do not count.
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
                // Decided outcomes are in the cache before the first poll; an unknown id is not.
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
            MetricAction::ExpireKey => {
                let day = Some(at(86_400));
                let (key, text) = ApiKey::generate("ci", Role::Viewer, day).expect("a key");
                let store = KeyStore::new(&self.system.backends.database);
                assert_eq!(store.insert(&key).await.expect("it is kept"), KeyInsert::New);
                assert_eq!(self.api.with(&text).get("/queue").await.status, 200);
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
            MetricAction::Rewrite => {
                self.redis(&["CONFIG", "SET", "rdb-key-save-delay", "1000000"]).await;
                self.redis(&["BGREWRITEAOF"]).await;
            }
            MetricAction::KillRewrite => {
                self.redis(&["CONFIG", "SET", "rdb-key-save-delay", "1000000"]).await;
                self.redis(&["BGREWRITEAOF"]).await;
                let redis = self.system.redis.pid().expect("it runs");
                let children = format!("/proc/{redis}/task/{redis}/children");
                let child =
                    std::fs::read_to_string(children).expect("a list").trim().parse().expect("a child");
                kill_process(Pid::from_raw(child).expect("a pid"), Signal::KILL).expect("it is killed");
            }
            MetricAction::Grow => {
                // Its API may ask as well.
                self.system.stop().await;
                let large = "x".repeat(1 << 20);
                for _ in 0..70 {
                    self.redis(&["SET", "large", &large]).await;
                }
                self.redis(&["DEL", "large"]).await;
            }
            MetricAction::Follow => self.redis(&["REPLICAOF", "127.0.0.1", "1"]).await,
            MetricAction::Uncertify => {
                // As far ahead as a lease may end.
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

    /// Gives the deployment two more partitions, starts the API anew, and creates a coupon there.
    async fn coupon_in_new_partitions(&mut self, total: u32, shares: u32) -> CouponId {
        Deployment::grow(&self.system.backends.database, 2).await.expect("it grows");
        (self._api, self.api) = start_api(&self.system, &self.folder).await;
        self.comes_to(MetricSource::Api, names::CERTIFIED, 1.0).await;
        let coupon = serde_json::json!({"id": "spread", "name": "n", "total": total, "shares": shares,
            "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"});
        assert_eq!(self.api.post("/coupons", coupon).await.status, 201);
        "spread".parse().expect("an id")
    }

    pub async fn comes_to(&self, of: MetricSource, metric: &str, value: f64) {
        eventually(&format!("{metric} is {value}"), async || {
            (self.scrape(of).await.sum(metric, &[])? == value).then_some(())
        })
        .await;
    }

    /// Asserts that each served metric is declared, with its help, its kind and its labels.
    pub async fn only_declared(&self) {
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
                    let known = |code: &&Code| labels == &format!("problem=\"{}\"", code.as_str());
                    assert!(Code::ALL.iter().any(|code| known(&code)), "{labels} is no problem code");
                }
            }
            assert!(scrape.series.len() < 1_500, "{} series", scrape.series.len());
        }
    }
}
