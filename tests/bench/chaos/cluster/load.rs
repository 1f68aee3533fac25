//! The users: each requests each coupon once, repeats a request without a final answer, and follows an accepted one to
//! its outcome. While there are faults they arrive at an even rate, whatever becomes of those before them; afterwards
//! all others come at once.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use coupon_system::user::{User, UserStore};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::stack::{ClusterStack, slot};
use crate::stack::{BACK_MAX, LOOK_EVERY};

/// Coupons on sale.
pub const COUPONS: usize = 12;
/// Requests under way at once, of those that come when the faults are over; and polls at any time.
const AT_ONCE: usize = 256;
/// A user gives up a request that takes longer, and repeats it at another API.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The pause before a request is repeated, and a part of it more by chance.
const REPEAT_AFTER: Duration = Duration::from_millis(800);
/// The pauses between two polls grow from the first to the second.
const POLL_AFTER: Duration = Duration::from_millis(200);
const POLL_AFTER_MAX: Duration = Duration::from_secs(2);
/// Users that are registered at once.
const REGISTERED_AT_ONCE: usize = 1_000;
/// When all users have come, each must have a last word within this time.
const LAST_WORD_MAX: Duration = Duration::from_secs(120);
/// Violations that are printed; more are only counted.
const VIOLATIONS_TOLD_MAX: usize = 50;

/// A coupon on sale.
pub struct SoldCoupon {
    pub id: String,
    pub slot: u16,
    /// The users in the order in which they come for it.
    order: Vec<usize>,
    arrived: AtomicUsize,
    /// When the last of the accepted requests was planned, in milliseconds from the start.
    accepted_ms: AtomicU64,
}

/// One request, from the moment for which it was planned to its final answer.
#[derive(Clone, Copy)]
pub struct Sample {
    pub coupon: usize,
    pub planned: Instant,
    pub took: Duration,
    /// How often it was repeated.
    pub repeats: u32,
    pub is_accepted: bool,
}

/// What became of an accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Unknown,
    Issued {
        serial: u32,
    },
    Rejected,
    /// It was answered 404.
    NotFound,
}

/// An accepted request.
#[derive(Debug, Clone, Copy)]
pub struct Accepted {
    pub coupon: usize,
    pub user: usize,
    pub at: Instant,
    pub fate: Fate,
}

/// What users and the service have told each other.
#[derive(Default)]
pub struct Told {
    pub samples: Vec<Sample>,
    /// By the ids of their issuances.
    pub accepted: HashMap<String, Accepted>,
    /// The last word to each user of each coupon: the serial, or none if the coupon was sold out.
    pub words: HashMap<(usize, usize), Option<u32>>,
}

pub struct ClusterLoad {
    client: Client,
    apis: Vec<SocketAddr>,
    pub coupons: Vec<SoldCoupon>,
    pub users: usize,
    pub units: u32,
    rate: f64,
    started: Instant,
    told: Mutex<Told>,
    violations: Mutex<Vec<String>>,
    polling: Semaphore,
}

/// A final answer to a request.
enum Answer {
    Accepted(String),
    SoldOut,
}

impl ClusterLoad {
    /// Registers the users, and puts the coupons on sale.
    pub async fn start(
        stack: &ClusterStack,
        users: usize,
        units: u32,
        rate: f64,
        chance: &mut StdRng,
    ) -> anyhow::Result<Self> {
        // The client requires a TLS configuration, though nothing here is encrypted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut load = ClusterLoad {
            client: Client::builder().timeout(ANSWER_MAX).no_proxy().build()?,
            apis: stack.addresses.clone(),
            coupons: Vec::new(),
            users,
            units,
            rate,
            started: Instant::now(),
            told: Mutex::default(),
            violations: Mutex::default(),
            polling: Semaphore::new(AT_ONCE),
        };
        let now = Timestamp::from_second(Timestamp::now().as_second())?;
        let mut sold = Vec::new();
        for number in 0..COUPONS {
            let coupon = json!({
                "id": format!("sale-{number}"), "name": "sale", "total": units, "perUser": 1,
                "startsAt": (now - SignedDuration::from_hours(1)).to_string(),
                "endsAt": (now + SignedDuration::from_hours(24)).to_string(),
            });
            // The processes are starting.
            let (status, body) =
                timeout(BACK_MAX, load.insist(Method::POST, "/coupons", Some(&coupon))).await?;
            anyhow::ensure!(status == StatusCode::CREATED, "no coupon could be created: {status} {body}");
            let id: String = format!("sale-{number}");
            let record = stack.coupons().get(&id.parse().map_err(anyhow::Error::msg)?).await?;
            let partition = record.map(|record| record.shares.partitions()[0]);
            let partition = partition.ok_or_else(|| anyhow::anyhow!("{id} has no record"))?;
            let mut order: Vec<usize> = (0..users).collect();
            order.shuffle(chance);
            let (arrived, accepted_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
            sold.push(SoldCoupon { id, slot: slot(partition), order, arrived, accepted_ms });
        }
        load.coupons = sold;
        let store = UserStore::new(&stack.database);
        let names: Vec<String> = (0..users).map(user).collect();
        for names in names.chunks(REGISTERED_AT_ONCE) {
            let users = names.iter().map(|name| {
                let id = name.parse().map_err(anyhow::Error::msg)?;
                Ok(User { id, name: name.clone(), created_at: now })
            });
            store.insert(&users.collect::<anyhow::Result<Vec<User>>>()?).await?;
        }
        Ok(load)
    }

    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub fn violated(&self, what: String) {
        let mut violations = self.violations.lock();
        if violations.len() < VIOLATIONS_TOLD_MAX {
            println!("{:>7.1} s  VIOLATION: {what}", self.seconds());
        }
        violations.push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    pub fn told(&self) -> parking_lot::MutexGuard<'_, Told> {
        self.told.lock()
    }

    /// Waits until each of these coupons has accepted a request that was planned after now.
    ///
    /// # Errors
    ///
    /// If no users are left to wait for.
    pub async fn accept_again(&self, coupons: &BTreeSet<usize>, after: &str) -> anyhow::Result<()> {
        let from = self.ms(Instant::now());
        let waited = Instant::now();
        while coupons.iter().any(|coupon| self.coupons[*coupon].accepted_ms.load(Ordering::Relaxed) <= from) {
            let have_all_come = |coupon: &SoldCoupon| coupon.arrived.load(Ordering::Relaxed) >= self.users;
            anyhow::ensure!(
                !self.coupons.iter().any(have_all_come),
                "all users have come before the faults are over: lower --rate, or raise --users"
            );
            if waited.elapsed() > BACK_MAX {
                self.violated(format!("after {after} a coupon of its own accepts nothing for {BACK_MAX:?}"));
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn ms(&self, moment: Instant) -> u64 {
        u64::try_from(moment.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Has users arrive at the rate until there is nothing more to stop them for. Returns those on their way.
    pub async fn arrive(
        self: Arc<Self>,
        mut chance: StdRng,
        stopping: tokio_util::sync::CancellationToken,
    ) -> JoinSet<()> {
        let mut on_their_way = JoinSet::new();
        let mut planned = Instant::now();
        for coupon in (0..COUPONS).cycle() {
            // Arrivals of independent users.
            let pause = -(1.0 - chance.random_range(0.0..1.0_f64)).ln() / self.rate;
            planned += Duration::from_secs_f64(pause);
            tokio::select! {
                () = stopping.cancelled() => break,
                () = sleep_until(planned) => {}
            }
            let Some(user) = self.next_user(coupon) else { break };
            on_their_way.spawn(Arc::clone(&self).one(coupon, user, planned));
        }
        on_their_way
    }

    fn next_user(&self, coupon: usize) -> Option<usize> {
        let coupon = &self.coupons[coupon];
        coupon.order.get(coupon.arrived.fetch_add(1, Ordering::Relaxed)).copied()
    }

    /// Has all others come at once. Waits until each user has a last word.
    pub async fn rush(self: &Arc<Self>, mut on_their_way: JoinSet<()>) {
        let rest = (0..self.users).flat_map(|_| 0..COUPONS);
        let rest = rest.filter_map(|coupon| Some((coupon, self.next_user(coupon)?)));
        let following = Mutex::new(&mut on_their_way);
        let requests = futures::stream::iter(rest).for_each_concurrent(AT_ONCE, async |(coupon, user)| {
            let answer = self.request(coupon, user, Instant::now()).await;
            following.lock().spawn(Arc::clone(self).follow(coupon, user, answer));
        });
        requests.await;
        println!("{:>7.1} s  all users have come", self.seconds());
        let last_words = async { while on_their_way.join_next().await.is_some() {} };
        if timeout(LAST_WORD_MAX, last_words).await.is_err() {
            let left = on_their_way.len();
            self.violated(format!("{left} users have no last word within {LAST_WORD_MAX:?}"));
            on_their_way.shutdown().await;
        }
    }

    async fn one(self: Arc<Self>, coupon: usize, user: usize, planned: Instant) {
        let answer = self.request(coupon, user, planned).await;
        self.follow(coupon, user, answer).await;
    }

    /// Requests a unit until the answer is final.
    async fn request(&self, coupon: usize, number: usize, planned: Instant) -> Answer {
        let sold = &self.coupons[coupon];
        let body = json!({"userId": user(number), "couponId": sold.id});
        let mut repeats = 0;
        loop {
            let answered = self.ask(Method::POST, "/user-coupons", Some(&body)).await;
            let (status, body) = answered.unwrap_or((StatusCode::SERVICE_UNAVAILABLE, Value::Null));
            let answer = match (status.as_u16(), body["code"].as_str().unwrap_or_default()) {
                (202, _) => body["id"].as_str().map(|id| Answer::Accepted(id.into())),
                (409, "sold-out") => Some(Answer::SoldOut),
                // An earlier request was accepted, and its answer was lost.
                (409, "already-issued") => {
                    let link = body["userCoupons"][0].as_str();
                    link.and_then(|link| link.rsplit('/').next()).map(|id| Answer::Accepted(id.into()))
                }
                (503, _) => None,
                _ => {
                    self.violated(format!("user {number} requests {}: {status} {body}", sold.id));
                    None
                }
            };
            let Some(answer) = answer else {
                repeats += 1;
                sleep(REPEAT_AFTER.mul_f64(rand::random_range(1.0..1.5))).await;
                continue;
            };
            let now = Instant::now();
            let is_accepted = matches!(answer, Answer::Accepted(_));
            let took = now.duration_since(planned);
            let mut told = self.told.lock();
            told.samples.push(Sample { coupon, planned, took, repeats, is_accepted });
            if let Answer::Accepted(id) = &answer {
                sold.accepted_ms.fetch_max(self.ms(planned), Ordering::Relaxed);
                let accepted = Accepted { coupon, user: number, at: now, fate: Fate::Unknown };
                told.accepted.entry(id.clone()).or_insert(accepted);
            }
            return answer;
        }
    }

    /// Follows an answer to the last word, with new requests where an issuance ends without a coupon.
    async fn follow(self: Arc<Self>, coupon: usize, number: usize, mut answer: Answer) {
        loop {
            let word = match answer {
                Answer::SoldOut => None,
                Answer::Accepted(id) => {
                    let fate = self.fate(&id).await;
                    if let Some(accepted) = self.told.lock().accepted.get_mut(&id) {
                        accepted.fate = fate;
                    }
                    if let Fate::Issued { serial } = fate {
                        Some(serial)
                    } else {
                        answer = self.request(coupon, number, Instant::now()).await;
                        continue;
                    }
                }
            };
            self.told.lock().words.insert((coupon, number), word);
            return;
        }
    }

    /// Polls until an issuance is decided, or is said not to exist.
    async fn fate(&self, id: &str) -> Fate {
        let mut pause = POLL_AFTER;
        loop {
            sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
            pause = (pause * 2).min(POLL_AFTER_MAX);
            let answered = {
                let _turn = self.polling.acquire().await;
                self.ask(Method::GET, &format!("/issuances/{id}"), None).await
            };
            let Some((status, body)) = answered else { continue };
            match (status.as_u16(), body["state"].as_str().unwrap_or_default()) {
                (200, "queued") | (503, _) => {}
                (200, "issued") => {
                    let serial = body["serial"].as_u64().and_then(|serial| u32::try_from(serial).ok());
                    return Fate::Issued { serial: serial.unwrap_or(0) };
                }
                (200, "rejected") => return Fate::Rejected,
                (404, _) => {
                    if body["redisRecoveredAt"].is_null() {
                        self.violated(format!("{id} is answered 404, and no recovery is named: {body}"));
                    }
                    return Fate::NotFound;
                }
                _ => self.violated(format!("polling {id}: {status} {body}")),
            }
        }
    }

    /// Sends a request until the answer is no 503.
    async fn insist(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        loop {
            match self.ask(method.clone(), path, body).await {
                Some((status, body)) if status != StatusCode::SERVICE_UNAVAILABLE => return (status, body),
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Sends a request to one API, by chance; `None` if there was no answer.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Option<(StatusCode, Value)> {
        let api = self.apis[rand::random_range(0..self.apis.len())];
        let mut request = self.client.request(method, format!("http://{api}{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.ok()?;
        Some((answer.status(), answer.json().await.ok()?))
    }
}

/// The id of a user.
pub fn user(number: usize) -> String {
    format!("u{number}")
}

/// A generator of its own for what runs beside what the seed chooses.
pub fn beside(chance: &mut StdRng) -> StdRng {
    StdRng::from_rng(chance)
}
