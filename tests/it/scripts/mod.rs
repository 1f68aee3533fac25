//! The Lua scripts on a real redis-server: generated operations against a plain [`model`], and
//! examples of what those do not reach ([`contracts`]).
//!
//! `PROPTEST_CASES` sets the number of cases, and `PROPTEST_RNG_SEED` repeats a failed run.

mod bench;
mod contracts;
mod model;
mod operations;

use std::collections::{HashMap, HashSet};

use coupon_system::ids::{CouponId, IssuanceId};
use coupon_system::issuance::InFlight;
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reassign::{Reassigned, reassign};
use coupon_system::issuance::reserve::{QueueEntries, QueuedIssuance, Request, Reserved, reserve};
use coupon_system::issuance::settle::settle;
use coupon_system::recovery::LoadOutcome;
use jiff::Timestamp;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use bench::ScriptBench;
use model::{ChosenUnit, ModelChange, ModelDamage, ModelFlight, ScriptModel, UnitClaim};
use operations::{COUPONS, CampaignMachine, KEYS, Operation, OperationId, REPEATED, USERS, made_of};

const CASES: u32 = 128;
const OPERATIONS_MAX: usize = 40;

#[test]
fn the_scripts_do_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bench = runtime.block_on(ScriptBench::start());
    let config = config();
    let seed = config.rng_seed;
    let campaigns = CampaignMachine::sequential_strategy(1..=OPERATIONS_MAX);
    let tried = TestRunner::new(config).run(&campaigns, |(model, operations, seen)| {
        runtime.block_on(async {
            let mut trial = ScriptTrial::start(&bench, model).await;
            for operation in operations {
                // So that a failing example is first cut off behind its failure.
                if let Some(seen) = &seen {
                    seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                trial.apply(operation).await;
                trial.check().await;
            }
        });
        Ok(())
    });
    if let Err(error) = tried {
        panic!("PROPTEST_RNG_SEED={seed} repeats this: {error}");
    }
}

/// The seed of a run. The test chooses it, so that it can print it.
fn config() -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(rand::random());
    }
    config
}

/// The scripts beside a model that adopts what they choose.
struct ScriptTrial<'a> {
    bench: &'a ScriptBench,
    model: ScriptModel,
    /// Redis's time in the latest answer.
    clock: Timestamp,
}

impl<'a> ScriptTrial<'a> {
    async fn start(bench: &'a ScriptBench, model: ScriptModel) -> Self {
        bench.empty().await;
        for offer in model.coupons.values().filter(|offer| offer.loaded) {
            assert_eq!(bench.load(&offer.record()).await, LoadOutcome::Now);
        }
        ScriptTrial { bench, model, clock: Timestamp::UNIX_EPOCH }
    }

    async fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Reserve { requests, backlog_max, queue_entries, damage } => {
                let planted = self.plant(damage).await;
                self.reserve(&requests, backlog_max, queue_entries).await;
                self.undo(planted).await;
            }
            Operation::Deliver { count } => self.deliver(count).await,
            Operation::Settle { claims, damage } => self.settle(&claims, damage).await,
            Operation::Reassign { request, right_entry, right_old } => {
                self.reassign(&request, right_entry, right_old).await;
            }
            Operation::Load(coupon) => self.load(&coupon).await,
            Operation::Change(coupon, change) => self.change(&coupon, change).await,
            Operation::SetAside(id) => self.set_aside(id).await,
            Operation::LoseUnit(id) => self.lose_unit(id).await,
        }
    }

    /// Damages one thing for as long as a script runs. Returns what was there.
    async fn plant(&mut self, damage: Option<ModelDamage>) -> Option<PlantedKey> {
        let keys = self.bench.keys();
        self.model.damage = damage;
        let (key, field): (_, Vec<u8>) = match self.model.damage.as_ref()? {
            ModelDamage::Coupon(coupon) => (keys.coupon(coupon), "total".into()),
            ModelDamage::Holder(coupon, user) => (keys.holders(coupon), user.as_str().into()),
            ModelDamage::Flight(id) => (keys.in_flight(), id.as_bytes().to_vec()),
        };
        let was: Option<Vec<u8>> = self.bench.run_raw("HGET", &[key.as_bytes(), &field]).await;
        let was = was?;
        let damaged = [was.as_slice(), b"x"].concat();
        // The whole value, or its end.
        let damaged =
            if matches!(self.model.damage, Some(ModelDamage::Flight(_))) { b"x".to_vec() } else { damaged };
        self.bench.run_raw::<()>("HSET", &[key.as_bytes(), &field, &damaged]).await;
        Some((key, field, was))
    }

    async fn undo(&mut self, planted: Option<PlantedKey>) {
        let damage = self.model.damage.take();
        if let Some((key, field, mut was)) = planted {
            // It may be of another entry by now.
            if let Some(ModelDamage::Flight(id)) = damage
                && let Some(flight) = self.model.in_flight.get(&id)
            {
                was = flight.value.to_string().into_bytes();
            }
            self.bench.run_raw::<()>("HSET", &[key.as_bytes(), &field, &was]).await;
        }
    }

    async fn reserve(&mut self, requests: &[Request], backlog_max: u64, queue_entries: QueueEntries) {
        let answers =
            reserve(self.bench.partition(), requests, backlog_max, queue_entries).await.expect("answers");
        let ids: Vec<_> = requests.iter().map(|request| request.id).collect();
        let found = read_in_flight(self.bench.partition(), &ids).await.expect("a look");
        let choose = |_: &ScriptModel, request: &Request| {
            let at = ids.iter().position(|id| *id == request.id).expect("it was asked");
            let Ok(Some((value, _))) = &found[at] else {
                panic!("{request:?} must be accepted: {answers:?}")
            };
            ChosenUnit { entry: value.entry.clone(), unit: value.unit.expect("a unit") }
        };
        let now = self.tick(&answers);
        let expected = self.model.reserve(requests, backlog_max, queue_entries, now, choose);
        let answers: Vec<_> = answers.into_iter().map(without_words).collect();
        assert_eq!(answers, expected, "to {requests:?}");
    }

    /// Redis's time in a batch, if an answer has it. Asserts that it never goes back.
    fn tick(&mut self, answers: &[Reserved]) -> Timestamp {
        if let Some(now) = answers.iter().find_map(time_of) {
            assert!(now >= self.clock, "time went back");
            self.clock = now;
        }
        self.clock
    }

    async fn deliver(&mut self, count: usize) {
        let expected = self.model.deliver(count);
        // A read without entries would wait for some.
        if !expected.is_empty() {
            assert_eq!(self.bench.deliver(count).await, expected);
        }
    }

    async fn settle(&mut self, claims: &[UnitClaim], damage: Option<ModelDamage>) {
        let decided: Vec<_> = claims.iter().map(|claim| self.model.decide(claim)).collect();
        let planted = self.plant(damage).await;
        let answers = settle(self.bench.partition(), &self.bench.keys(), &decided).await.expect("answers");
        let named = self.entries_in_flight().await;
        let expected = self.model.settle(&decided, |_, id| named[&id].clone());
        assert_eq!(answers, expected, "to {decided:?}");
        self.undo(planted).await;
    }

    /// The entry that each value in flight begins with, readable or not.
    async fn entries_in_flight(&self) -> HashMap<IssuanceId, String> {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> =
            self.bench.run_raw("HGETALL", &[self.bench.keys().in_flight().as_bytes()]).await;
        let named = pairs.into_iter().map(|(id, value)| {
            let value = String::from_utf8(value).expect("a text");
            let entry = value.split(' ').next().expect("a field").to_owned();
            (IssuanceId::from_bytes(&id).expect("an id"), entry)
        });
        named.collect()
    }

    async fn reassign(&mut self, request: &Request, right_entry: bool, right_old: bool) {
        let (entry, old) = (self.model.entry(request.id, right_entry), self.model.old(request.id, right_old));
        let (partition, keys) = (self.bench.partition(), self.bench.keys());
        let answer =
            reassign(partition, &keys, &request.coupon, request.id, &entry, old).await.expect("an answer");
        let choose = |_: &ScriptModel, _: &Request| match answer {
            Reassigned::To(unit) => ChosenUnit { entry: entry.clone(), unit },
            other => panic!("there is a free unit, but {other:?}"),
        };
        let expected = self.model.reassign(request, &entry, old, choose);
        assert_eq!(answer, expected, "to {request:?} {entry} {old:?}");
    }

    /// Loads the coupon as it is; or, if it is there, as it is not.
    async fn load(&mut self, coupon: &CouponId) {
        let mut record = self.model.coupons[coupon].record();
        let expected = self.model.load(coupon);
        if expected == LoadOutcome::Before {
            record.total += 1;
            record.per_user += 1;
            record.paused = !record.paused;
        }
        assert_eq!(self.bench.load(&record).await, expected);
    }

    /// Writes an operator's change straight into Redis, because the tested scripts make none.
    async fn change(&mut self, coupon: &CouponId, change: ModelChange) {
        self.model.change(coupon, change);
        let offer = &self.model.coupons[coupon];
        if !offer.loaded {
            return;
        }
        let (starts_at, ends_at) = offer.window.bounds();
        let flag = |flag| if flag { "1" } else { "0" };
        let fields = [
            ("total", offer.total.to_string()),
            ("paused", flag(offer.paused).into()),
            ("archived", flag(offer.archived).into()),
            ("starts_at", starts_at.as_millisecond().to_string()),
            ("ends_at", ends_at.as_millisecond().to_string()),
        ];
        let key = self.bench.keys().coupon(coupon);
        let mut args = vec![key.as_str()];
        args.extend(fields.iter().flat_map(|(name, value)| [*name, value.as_str()]));
        self.bench.run::<()>("HSET", &args).await;
    }

    async fn set_aside(&mut self, id: IssuanceId) {
        if self.model.set_aside(id) {
            self.bench.put(&self.bench.keys().dead(), id, "tried in vain").await;
        }
    }

    /// Writes what a rebuild leaves.
    async fn lose_unit(&mut self, id: IssuanceId) {
        if let Some(value) = self.model.lose_unit(id) {
            let value: &InFlight = value;
            self.bench.put(&self.bench.keys().in_flight(), id, &value.to_string()).await;
        }
    }

    async fn check(&mut self) {
        self.model.assert_sound();
        self.check_stock().await;
        self.check_in_flight().await;
        self.probe().await;
    }

    async fn check_stock(&self) {
        let offers: Vec<_> = self.model.coupons.values().collect();
        let coupons: Vec<_> = offers.iter().map(|offer| offer.id.clone()).collect();
        let stocks = self.bench.stocks(&coupons).await;
        for (offer, stock) in offers.into_iter().zip(stocks) {
            assert_eq!(stock, offer.stock(), "the stock of {offer:?}");
            if let Some(stock) = stock {
                assert_eq!(stock.remaining + stock.reserved + stock.issued, stock.total);
                assert_eq!(self.bench.free(&offer.id).await, offer.free, "what is free of {}", offer.id);
            }
        }
    }

    /// Compares what is queued, and the look-up of every issuance so far.
    async fn check_in_flight(&self) {
        let in_flight = &self.model.in_flight;
        let entries = |flights: &mut dyn Iterator<Item = &ModelFlight>| {
            flights.map(|flight| flight.value.entry.as_str()).collect::<HashSet<_>>().len()
        };
        let all = entries(&mut in_flight.values());
        let pending = entries(&mut in_flight.values().filter(|flight| flight.delivered));
        assert_eq!(self.bench.queue().await, (all, pending, in_flight.len()));
        let ids: Vec<_> = self.model.known.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let found = read_in_flight(self.bench.partition(), &ids).await.expect("a look");
        let found: Vec<_> = found.into_iter().map(|one| one.expect("it can be read")).collect();
        let now = found.iter().flatten().next().map_or(self.clock, |(_, progress)| progress.now);
        let expected: Vec<_> = ids.iter().map(|id| self.model.look_up(*id, now)).collect();
        assert_eq!(found, expected, "of {ids:?}");
    }

    /// Reserves for every user with a full backlog: those who hold a unit get their answer, and the script writes
    /// nothing.
    async fn probe(&mut self) {
        let mut requests = Vec::new();
        for (coupon, user) in COUPONS.iter().flat_map(|coupon| USERS.map(|user| (coupon, user))) {
            let ids = KEYS.map(OperationId::Key).into_iter().chain((0..=REPEATED).map(OperationId::Number));
            requests.extend(ids.map(|id| made_of(coupon, user, id)));
        }
        let form = QueueEntries::OfMany;
        let answers = reserve(self.bench.partition(), &requests, 0, form).await.expect("answers");
        let now = self.tick(&answers);
        let expected =
            self.model.reserve(&requests, 0, form, now, |_, request| panic!("{request:?} was accepted"));
        for ((answer, expected), request) in answers.iter().zip(&expected).zip(&requests) {
            assert_eq!(answer, expected, "to {request:?}");
        }
    }
}

/// A key, a field and its value.
type PlantedKey = (String, Vec<u8>, Vec<u8>);

/// An answer without the words about damage, which the model does not have.
fn without_words(answer: Reserved) -> Reserved {
    match answer {
        Reserved::Damaged(_) => Reserved::Damaged(String::new()),
        answer => answer,
    }
}

fn time_of(answer: &Reserved) -> Option<Timestamp> {
    match answer {
        Reserved::Accepted(QueuedIssuance { progress, .. })
        | Reserved::Replayed(QueuedIssuance { progress, .. }) => Some(progress.now),
        Reserved::NotStarted { now, .. } | Reserved::NotLoaded { now } => Some(*now),
        _ => None,
    }
}
