//! Redis with the scripts and an empty ledger, without processes that repair anything meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use coupon_system::config::{MongoConfig, RedisConfig};
use coupon_system::coupon::{Coupon, CreateOutcome, Stock, stock};
use coupon_system::dev::servers::{Persistence, RedisOptions, RedisServer};
use coupon_system::ids::{CouponId, IssuanceId, PartitionId, Unit};
use coupon_system::issuance::InFlight;
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use coupon_system::process;
use coupon_system::process::Backends;
use coupon_system::queue::{Entry, ReadFrom, ReadOutcome, Reader};
use coupon_system::recovery::{Durability, LoadOutcome};
use coupon_system::redis::Partition;
use coupon_system::redis::keys::{EpochKeys, GROUP};
use mongodb::bson::{Document, doc};
use redis::FromRedisValue;
use tempfile::TempDir;

use super::model::Offer;
use super::operations::NO_BACKLOG_MAX;
use crate::helpers::{database, mongodb, native};

/// A Redis and a database, with what calls the scripts on them.
pub struct ScriptBench {
    pub backends: Backends,
    redis: RedisConfig,
    mongodb: MongoConfig,
    _server: RedisServer,
    _folder: TempDir,
}

impl ScriptBench {
    /// Starts the servers. Redis writes nothing to disk: the scripts do the same, only faster.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options =
            RedisOptions { persistence: Persistence::None, ..RedisOptions::new(folder.path().join("redis")) };
        let server = RedisServer::start(options).await.expect("redis-server starts");
        let redis = RedisConfig {
            redis_url: server.url(),
            redis_durability: Durability::None,
            redis_acknowledged_by: 0,
        };
        let mongodb = MongoConfig { mongodb_uri: mongodb().await, mongodb_database: database() };
        let backends = process::connect(&redis, &mongodb).await.expect("the servers fit");
        let bench = ScriptBench { backends, redis, mongodb, _server: server, _folder: folder };
        bench.recover().await;
        bench
    }

    /// A second bench on the same servers, like another process.
    pub async fn another_process(&self) -> Backends {
        process::connect(&self.redis, &self.mongodb).await.expect("the servers fit")
    }

    async fn recover(&self) {
        assert!(
            self.backends
                .recovery_supervisors()
                .next()
                .expect("that of partition 0")
                .ensure()
                .await
                .expect("a recovery")
        );
    }

    /// Forgets everything: no coupons, and an empty Redis under a new epoch.
    pub async fn empty(&self) {
        let coupons = self.backends.database.collection::<Document>("coupons");
        coupons.delete_many(doc! {}).await.expect("they are deleted");
        self.run::<()>("FLUSHALL", &[]).await;
        self.recover().await;
    }

    pub fn partition(&self) -> &Partition {
        self.backends.partitions.first()
    }

    pub fn keys(&self) -> EpochKeys {
        self.partition().keys()
    }

    /// A command, all of whose arguments are text.
    pub async fn run<T: FromRedisValue>(&self, command: &str, args: &[&str]) -> T {
        let args: Vec<_> = args.iter().map(|arg| arg.as_bytes()).collect();
        self.run_raw(command, &args).await
    }

    /// Runs a command whose arguments may be any bytes.
    pub async fn run_raw<T: FromRedisValue>(&self, command: &str, args: &[&[u8]]) -> T {
        let answer = redis::cmd(command).arg(args).query_async(&mut self.partition().connection()).await;
        answer.unwrap_or_else(|error| panic!("{command} {args:?}: {error}"))
    }

    /// Writes a value into a hash under an issuance's id.
    pub async fn put(&self, key: &str, id: IssuanceId, value: &str) {
        let mut command = redis::cmd("HSET");
        command.arg(key).arg(id.as_bytes().as_slice()).arg(value);
        command.query_async::<()>(&mut self.partition().connection()).await.expect("it is written");
    }

    /// Creates and loads a coupon that can be requested now.
    pub async fn coupon(&self, id: &str, total: u32, per_user: u8) -> CouponId {
        let coupon: CouponId = id.parse().expect("an id");
        assert_eq!(self.load(&Offer::new(coupon.clone(), total, per_user).record()).await, LoadOutcome::Now);
        coupon
    }

    pub async fn load(&self, coupon: &Coupon) -> LoadOutcome {
        self.record(coupon).await;
        self.backends.loaders().first().load(&coupon.id).await.expect("it is loaded")
    }

    /// Writes a coupon's record, over any of an earlier test case.
    pub async fn record(&self, coupon: &Coupon) {
        let coupons = self.backends.database.collection::<Document>("coupons");
        coupons.delete_one(doc! {"_id": coupon.id.as_str()}).await.expect("it is deleted");
        assert_eq!(self.backends.coupons.insert(coupon).await.expect("it is written"), CreateOutcome::New);
    }

    /// Reserves one batch.
    pub async fn reserve(&self, requests: &[Request]) -> Vec<Reserved> {
        reserve(self.partition(), requests, NO_BACKLOG_MAX, QueueEntries::OfOne).await.expect("answers")
    }

    /// The units of these issuances, which must be in flight.
    pub async fn serials(&self, ids: &[IssuanceId]) -> Vec<Option<Unit>> {
        let found = read_in_flight(self.partition(), ids).await.expect("a look");
        let value = |found: Result<Option<(InFlight, _)>, _>| {
            found.expect("it can be read").expect("it is in flight")
        };
        found.into_iter().map(|found| value(found).0.unit).collect()
    }

    pub async fn stocks(&self, coupons: &[CouponId]) -> Vec<Option<Stock>> {
        let (_, stocks) = stock::read(self.partition(), coupons).await.expect("the stock");
        stocks.into_iter().map(|stock| stock.expect("it can be read")).collect()
    }

    /// The free units of a loaded coupon: those given back, and those that were never taken.
    pub async fn free(&self, coupon: &CouponId) -> BTreeSet<Unit> {
        let keys = self.keys();
        let returned: Vec<String> = self.run("SMEMBERS", &[&keys.free(coupon)]).await;
        let mut free: BTreeSet<Unit> = returned.iter().map(|unit| unit.parse().expect("a unit")).collect();
        let (next, total): (u32, u32) = self.run("HMGET", &[&keys.coupon(coupon), "next", "total"]).await;
        for serial in next..=total {
            assert!(free.insert(native(serial)), "unit {serial} of {coupon} is free twice");
        }
        free
    }

    /// Delivers new entries to a consumer. Waits if there are none.
    pub async fn deliver(&self, count: usize) -> Vec<Entry> {
        let mut reader = Reader::new(self.partition().client().clone(), "test".into());
        match reader.read(&self.keys(), ReadFrom::New, count).await.expect("a read") {
            ReadOutcome::Entries(delivered) => {
                assert_eq!(delivered.undecodable, []);
                delivered.entries
            }
            ReadOutcome::NoGroup => panic!("there is no group"),
        }
    }

    /// How many are in the stream, how many of them are pending, and how many are in flight.
    pub async fn queue(&self) -> (usize, usize, usize) {
        let keys = self.keys();
        let (pending, ..): (usize, redis::Value, redis::Value, redis::Value) =
            self.run("XPENDING", &[&keys.stream(), GROUP]).await;
        (self.run("XLEN", &[&keys.stream()]).await, pending, self.run("HLEN", &[&keys.in_flight()]).await)
    }

    /// Everything that Redis holds, for comparisons.
    pub async fn everything(&self) -> BTreeMap<String, Vec<u8>> {
        let keys: Vec<String> = self.run("KEYS", &["*"]).await;
        let mut held = BTreeMap::new();
        for key in keys {
            let value = self.run("DUMP", &[&key]).await;
            held.insert(key, value);
        }
        held
    }
}

/// An id that no issuance has.
pub fn new_id() -> IssuanceId {
    IssuanceId::generate(PartitionId::ONE)
}
