//! The users: sale after sale, each user requests a unit, repeats a request without an answer, and follows an accepted
//! one to its outcome. The verdict compares what they were told with the ledger.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use coupon_system::user::{User, UserStore};
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stack::{BACK_MAX, Stack};

/// Users who request at the same time.
const AT_ONCE: usize = 96;
/// A user gives up a request that takes longer, and repeats it at another API.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const REPEAT_EVERY: Duration = Duration::from_millis(150);
/// Attempts of a restock: either API may be of the last release, and refuse it.
const RESTOCKS_TRIED_MAX: usize = 20;
/// After the last fault, each user must have a final answer within this time.
const LAST_WORD_MAX: Duration = Duration::from_secs(120);
/// Violations that the bench prints; it only counts more.
const VIOLATIONS_TOLD_MAX: usize = 50;

/// What one user of a sale was told last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastKnown {
    Issued { id: String, serial: u64 },
    SoldOut,
}

pub struct ChaosSale {
    pub coupon: String,
    pub total: u64,
    pub told: HashMap<String, LastKnown>,
}

pub struct ChaosLoad {
    client: Client,
    token: String,
    apis: Vec<SocketAddr>,
    /// Whether programs of the last release answer too, which do not know everything.
    has_other_release: bool,
    users: UserStore,
    started: Instant,
    /// Milliseconds from the start to the last 202, and the longest time without one.
    accepted_at_ms: AtomicU64,
    gap_ms: AtomicU64,
    counts: Mutex<BTreeMap<String, u64>>,
    violations: Mutex<Vec<String>>,
    sales: Mutex<Vec<ChaosSale>>,
    stopping: CancellationToken,
    gate: Semaphore,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl ChaosLoad {
    pub fn new(stack: &Stack) -> anyhow::Result<Self> {
        // The client requires a TLS configuration, though nothing here is encrypted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(ChaosLoad {
            client: Client::builder().timeout(ANSWER_MAX).build()?,
            token: stack.token.clone(),
            apis: stack.addresses.clone(),
            has_other_release: stack.has_other_release(),
            users: UserStore::new(&stack.database),
            started: Instant::now(),
            accepted_at_ms: AtomicU64::new(0),
            gap_ms: AtomicU64::new(0),
            counts: Mutex::default(),
            violations: Mutex::default(),
            sales: Mutex::default(),
            stopping: CancellationToken::new(),
            gate: Semaphore::new(AT_ONCE),
        })
    }

    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub fn longest_gap(&self) -> Duration {
        Duration::from_millis(self.gap_ms.load(Ordering::Relaxed))
    }

    pub fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.counts).clone()
    }

    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// The sales that are over; they are given out once.
    pub fn sales(&self) -> Vec<ChaosSale> {
        std::mem::take(&mut lock(&self.sales))
    }

    pub fn violated(&self, what: String) {
        self.count("violations");
        let mut violations = lock(&self.violations);
        if violations.len() < VIOLATIONS_TOLD_MAX {
            println!("{:>7.1} s  VIOLATION: {what}", self.seconds());
            violations.push(what);
        }
    }

    pub fn count(&self, what: &str) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += 1;
    }

    fn accepted(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = self.accepted_at_ms.fetch_max(now, Ordering::Relaxed);
        self.gap_ms.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
    }

    /// Waits until a request is accepted that was made after now.
    pub async fn accepts_again(&self, after: &str) {
        let from = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let waited = Instant::now();
        while self.accepted_at_ms.load(Ordering::Relaxed) <= from {
            if waited.elapsed() > BACK_MAX {
                self.violated(format!("after {after} nothing was accepted for {BACK_MAX:?}"));
                return;
            }
            tokio::time::sleep(REPEAT_EVERY).await;
        }
    }

    /// Sends a request to one API, by chance; `None` if there was no answer.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let api = self.apis[rand::random_range(0..self.apis.len())];
        let mut request = self.client.request(method, format!("http://{api}{path}")).bearer_auth(&self.token);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer: Response = request.send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.ok()?))
    }

    /// Repeats a request until the answer is final.
    async fn insist(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<(u16, Value, bool)> {
        let mut repeated = false;
        loop {
            match self.ask(method.clone(), path, key, body).await {
                Some((503 | 429, _)) | None => self.count("not answered, or 503"),
                Some((status, body)) => return Some((status, body, repeated)),
            }
            if self.is_over() {
                return None;
            }
            repeated = true;
            tokio::time::sleep(REPEAT_EVERY).await;
        }
    }

    fn is_over(&self) -> bool {
        self.stopping.is_cancelled() && lock(&self.counts).get("over").is_some()
    }

    /// Creates a coupon with this id, unless there is one.
    pub async fn create(&self, id: &str, total: u64) -> bool {
        let now = Timestamp::now();
        let mut coupon = json!({
            "id": id, "name": id, "total": total, "validFor": "P1M", "timeZone": "Asia/Seoul",
            "startsAt": (now - SignedDuration::from_hours(1)).to_string(),
            "endsAt": (now + SignedDuration::from_hours(24)).to_string(),
        });
        let mut again = false;
        loop {
            match self.insist(Method::POST, "/coupons", None, Some(&coupon)).await {
                Some((201, ..)) => return true,
                // Created by the request before, whose answer was lost.
                Some((409, body, repeated)) if (again || repeated) && body["code"] == "coupon-exists" => {
                    return true;
                }
                Some((422, ..)) if self.has_other_release && !again => {
                    coupon.as_object_mut().map(|fields| fields.remove("timeZone"));
                    again = true;
                }
                Some((status, body, _)) => {
                    self.violated(format!("creating {id}: {status} {body}"));
                    return false;
                }
                None => return false,
            }
        }
    }

    /// Adds units to a coupon: once, however often it is asked for. Returns whether it was done.
    async fn restock(&self, coupon: &str, total: u64, add: u64) -> bool {
        // The last release knows no keys: to it, only a target can be repeated.
        let (key, body) = match self.has_other_release {
            true => (None, json!({"total": total + add})),
            false => (Some(coupon), json!({"add": add})),
        };
        let path = format!("/coupons/{coupon}/restock");
        for _ in 0..RESTOCKS_TRIED_MAX {
            match self.insist(Method::POST, &path, key, Some(&body)).await {
                Some((200, ..)) => {
                    self.count("restocks");
                    return true;
                }
                Some((422, ..)) if self.has_other_release => {}
                Some((status, body, _)) => {
                    self.violated(format!("restocking {coupon}: {status} {body}"));
                    return false;
                }
                None => return false,
            }
        }
        false
    }

    /// Registers users with these names.
    pub async fn register(&self, names: &[String]) -> bool {
        let created_at = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let users: Vec<User> = names
            .iter()
            .filter_map(|name| Some(User { id: name.parse().ok()?, name: name.clone(), created_at }))
            .collect();
        while let Err(failure) = self.users.insert(&users).await {
            if self.is_over() {
                println!("users could not be registered: {failure}");
                return false;
            }
            tokio::time::sleep(REPEAT_EVERY).await;
        }
        true
    }

    /// Requests a unit for a user once it is possible. Returns the issuance's id if it was accepted.
    pub async fn request(&self, user: &str, coupon: &str, key: Option<&str>) -> Option<(u16, Value, bool)> {
        let body = json!({"userId": user, "couponId": coupon});
        let answered = self.insist(Method::POST, "/user-coupons", key, Some(&body)).await;
        if let Some((202, ..)) = &answered {
            self.accepted();
        }
        answered
    }

    /// Requests a unit once, whatever the answer.
    pub async fn request_once(&self, user: &str, coupon: &str) -> Option<(u16, Value)> {
        let body = json!({"userId": user, "couponId": coupon});
        self.ask(Method::POST, "/user-coupons", None, Some(&body)).await
    }

    /// Sale after sale until the end, then until each user has a last word.
    pub async fn run(self: Arc<Self>, mut chance: StdRng) {
        let mut sales = JoinSet::new();
        let mut number = 0;
        while !self.stopping.is_cancelled() {
            let total = chance.random_range(100..=600);
            let sale = Arc::clone(&self).sale(format!("sale-{number}"), total, StdRng::from_rng(&mut chance));
            // The next sale begins when this one has ended, or after some seconds.
            let sale = sales.spawn(sale);
            number += 1;
            let begun = Instant::now();
            while !sale.is_finished()
                && begun.elapsed() < Duration::from_secs(8)
                && !self.stopping.is_cancelled()
            {
                tokio::time::sleep(REPEAT_EVERY).await;
            }
        }
        let last_words = async { while sales.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WORD_MAX, last_words).await.is_err() {
            self.violated(format!(
                "{} sales had users without a last word after {LAST_WORD_MAX:?}",
                sales.len()
            ));
            self.count("over");
            while sales.join_next().await.is_some() {}
        }
    }

    async fn sale(self: Arc<Self>, coupon: String, mut total: u64, mut chance: StdRng) {
        let users: Vec<String> = (0..total * 3 / 2).map(|number| format!("{coupon}.u{number}")).collect();
        // Before any user can have been told that the coupon is sold out.
        let restocked_at = chance.random_range(0..total / 2);
        let add = if chance.random_bool(0.5) { total / 10 } else { 0 };
        if !self.create(&coupon, total).await || !self.register(&users).await {
            return;
        }
        let mut tasks = JoinSet::new();
        for (number, user) in (0..).zip(users) {
            if number == restocked_at && add > 0 && self.restock(&coupon, total, add).await {
                total += add;
            }
            let (load, coupon) = (Arc::clone(&self), coupon.clone());
            let key = chance.random_bool(0.5).then(|| format!("{:016x}", chance.next_u64()));
            tasks.spawn(async move {
                let told = load.one(&user, &coupon, key.as_deref()).await;
                (user, told)
            });
            tokio::time::sleep(Duration::from_millis(chance.random_range(0..=20))).await;
        }
        let mut told = HashMap::new();
        while let Some(one) = tasks.join_next().await {
            if let Ok((user, Some(word))) = one {
                told.insert(user, word);
            }
        }
        lock(&self.sales).push(ChaosSale { coupon, total, told });
    }

    /// One user, from the request to the final answer.
    async fn one(&self, user: &str, coupon: &str, key: Option<&str>) -> Option<LastKnown> {
        let id = {
            let _turn = self.gate.acquire().await.ok()?;
            let (status, body, repeated) = self.request(user, coupon, key).await?;
            match (status, body["code"].as_str().unwrap_or_default()) {
                (202, _) => body["id"].as_str()?.to_owned(),
                (200, _) if repeated => body["id"].as_str()?.to_owned(),
                (409, "sold-out") => {
                    self.count("sold out");
                    return Some(LastKnown::SoldOut);
                }
                (409, "already-issued") if repeated => {
                    body["userCoupons"][0].as_str()?.rsplit('/').next()?.to_owned()
                }
                _ => {
                    self.violated(format!("{user} requests {coupon}: {status} {body}"));
                    return None;
                }
            }
        };
        self.count("accepted");
        loop {
            let (status, body, _) = self.insist(Method::GET, &format!("/issuances/{id}"), None, None).await?;
            match (status, body["state"].as_str().unwrap_or_default()) {
                (200, "queued") => tokio::time::sleep(REPEAT_EVERY).await,
                (200, "issued") => {
                    self.count("issued");
                    return Some(LastKnown::Issued { id, serial: body["serial"].as_u64()? });
                }
                _ => {
                    self.violated(format!("{user} asks for {id} of {coupon}: {status} {body}"));
                    return None;
                }
            }
            if self.is_over() {
                return None;
            }
        }
    }

    /// The body of a 200 to this path, as soon as one is answered.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let answered = self.insist(Method::GET, path, None, None).await;
        answered.and_then(|(status, body, _)| (status == 200).then_some(body))
    }

    /// What an API answers to this path if it is not 200.
    pub async fn refused(&self, path: &str) -> Option<String> {
        for api in &self.apis {
            let request = self.client.get(format!("http://{api}{path}")).bearer_auth(&self.token);
            match request.send().await {
                Ok(answer) if answer.status() == 200 => {}
                Ok(answer) => {
                    let status = answer.status();
                    return Some(format!("{status} {}", answer.text().await.unwrap_or_default()));
                }
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    }
}
