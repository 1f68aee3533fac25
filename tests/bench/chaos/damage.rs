//! The kinds of damaged records, each with a coupon or a user of its own: the damage must not affect others.

use std::time::Duration;

use anyhow::Context;
use coupon_system::config::{MongoConfig, RedisConfig};
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use coupon_system::process;
use coupon_system::recovery::Durability;
use coupon_system::redis::keys::{EpochKeys, certificate};
use mongodb::Collection;
use mongodb::bson::{DateTime, Document, Uuid, doc};

use super::load::ChaosLoad;
use super::stack::Stack;

/// A planting that takes longer has met a fault that lasts, and is left out.
const PLANT_MAX: Duration = Duration::from_secs(40);

/// Bytes that are no UTF-8.
const NO_TEXT: &[u8] = b"\xff\xfe\x00";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// A ledger document with a reason of a later version; its issuance is in flight.
    RecordUnreadable,
    /// A coupon's record with a discount of a later version.
    CouponUnreadable,
    /// A loaded coupon's record is deleted.
    CouponDeleted,
    /// MongoDB's validator refuses each record of the coupon.
    RecordsRefused,
    InFlightDamaged,
    /// An in-flight value under something that is no issuance id.
    InFlightNoId,
    EntryUnreadable,
    /// A stream entry whose fields are no text.
    EntryNoText,
    DeadLetterDamaged,
    DeadLetterNoText,
    HoldersDamaged,
    FreeDamaged,
    CouponStateDamaged,
    /// The key of a coupon's holders has another type.
    HoldersOfAnotherType,
    UserUnreadable,
    /// What is listed as loaded is no coupon's id.
    LoadedNoId,
    HeartbeatDamaged,
    ApiKeyUnreadable,
    ActionUnreadable,
}

const ALL: [DamageKind; 19] = [
    DamageKind::RecordUnreadable,
    DamageKind::CouponUnreadable,
    DamageKind::CouponDeleted,
    DamageKind::RecordsRefused,
    DamageKind::InFlightDamaged,
    DamageKind::InFlightNoId,
    DamageKind::EntryUnreadable,
    DamageKind::EntryNoText,
    DamageKind::DeadLetterDamaged,
    DamageKind::DeadLetterNoText,
    DamageKind::HoldersDamaged,
    DamageKind::FreeDamaged,
    DamageKind::CouponStateDamaged,
    DamageKind::HoldersOfAnotherType,
    DamageKind::UserUnreadable,
    DamageKind::LoadedNoId,
    DamageKind::HeartbeatDamaged,
    DamageKind::ApiKeyUnreadable,
    DamageKind::ActionUnreadable,
];

/// One damaged record, and the issuances that it must not swallow.
#[derive(Debug)]
pub struct PlantedDamage {
    pub kind: DamageKind,
    pub coupon: String,
    /// Accepted requests that it may touch.
    pub accepted: Vec<String>,
}

/// What was planted.
pub struct DamageLog {
    pub planted: Vec<PlantedDamage>,
    round: u32,
    seed: u64,
}

impl DamageLog {
    pub fn new(seed: u64) -> Self {
        DamageLog { planted: Vec::new(), round: 0, seed }
    }

    /// Plants one of each kind.
    pub async fn plant(&mut self, stack: &Stack, load: &ChaosLoad) {
        for kind in ALL {
            let coupon = format!("damaged-{:x}-{}-{}", self.seed & 0xffff, self.round, kind as u8);
            let planting = plant(kind, &coupon, stack, load);
            match tokio::time::timeout(PLANT_MAX, planting).await {
                Ok(Ok(accepted)) => self.planted.push(PlantedDamage { kind, coupon, accepted }),
                Ok(Err(error)) => println!("{:>7.1} s  {kind:?} was not planted: {error:#}", load.seconds()),
                Err(_) => println!("{:>7.1} s  {kind:?} was not planted in time", load.seconds()),
            }
        }
        self.round += 1;
        println!("{:>7.1} s  planted one damaged record of each kind", load.seconds());
    }
}

async fn plant(
    kind: DamageKind,
    coupon: &str,
    stack: &Stack,
    load: &ChaosLoad,
) -> anyhow::Result<Vec<String>> {
    let collection = |name: &str| -> Collection<Document> { stack.database.collection(name) };
    let users: Vec<String> = (0..3).map(|number| format!("{coupon}.u{number}")).collect();
    load.create(coupon, 100).await;
    load.register(&users).await;
    let mut accepted = Vec::new();
    for user in &users[..2] {
        if let Some((202, body, _)) = load.request(user, coupon, None).await {
            accepted.extend(body["id"].as_str().map(str::to_owned));
        }
    }
    let mut redis = stack.connection(stack.primary).await?;
    let open: String = redis::cmd("HGET")
        .arg(certificate(PartitionId::ONE))
        .arg("epoch")
        .query_async(&mut redis)
        .await
        .context("no epoch is open")?;
    let keys =
        EpochKeys::new(PartitionId::ONE, open.parse().map_err(|_| anyhow::anyhow!("{open} is no epoch"))?);
    let id = coupon.parse().map_err(anyhow::Error::msg)?;
    match kind {
        DamageKind::RecordUnreadable => {
            let issuance = IssuanceId::generate(PartitionId::ONE);
            let now = DateTime::now();
            let record = doc! {
                "_id": Uuid::from_bytes(*issuance.as_bytes()), "p": 0, "outcome": "rejected",
                "reason": "of-a-later-version", "couponId": coupon, "userId": &users[2], "acceptedAt": now, "decidedAt": now,
            };
            collection("user_coupons").insert_one(record).await?;
            accepted.extend(reserve_as(stack, issuance, coupon, &users[2]).await?);
        }
        DamageKind::CouponUnreadable => {
            let change = doc! {"$set": {"discount": {"type": "of-a-later-version", "factor": 2}}};
            collection("coupons").update_one(doc! {"_id": coupon}, change).await?;
        }
        DamageKind::CouponDeleted => {
            collection("coupons").delete_one(doc! {"_id": coupon}).await?;
            let issuance = IssuanceId::generate(PartitionId::ONE);
            accepted.extend(reserve_as(stack, issuance, coupon, &users[2]).await?);
        }
        DamageKind::RecordsRefused => {
            let validator = doc! {"couponId": {"$not": {"$regex": format!("^damaged-.*-{}$", kind as u8)}}};
            stack.database.run_command(doc! {"collMod": "user_coupons", "validator": validator}).await?;
        }
        DamageKind::InFlightDamaged => {
            let issuance = IssuanceId::generate(PartitionId::ONE);
            accepted.extend(reserve_as(stack, issuance, coupon, &users[2]).await?);
            let field = issuance.as_bytes().as_slice();
            redis::cmd("HSET")
                .arg(keys.in_flight())
                .arg(field)
                .arg("no value")
                .exec_async(&mut redis)
                .await?;
        }
        DamageKind::InFlightNoId => {
            let pair = [coupon, "no value"];
            redis::cmd("HSET").arg(keys.in_flight()).arg(&pair).exec_async(&mut redis).await?;
        }
        DamageKind::EntryUnreadable => {
            let entry = ["*", "2", "too short"];
            redis::cmd("XADD").arg(keys.stream()).arg(&entry).exec_async(&mut redis).await?;
        }
        DamageKind::EntryNoText => {
            let entry = [b"*".as_slice(), NO_TEXT, NO_TEXT];
            redis::cmd("XADD").arg(keys.stream()).arg(&entry).exec_async(&mut redis).await?;
        }
        DamageKind::DeadLetterDamaged => {
            let field = IssuanceId::generate(PartitionId::ONE);
            let pair = [field.as_bytes().as_slice(), b"no value"];
            redis::cmd("HSET").arg(keys.dead()).arg(&pair).exec_async(&mut redis).await?;
        }
        DamageKind::DeadLetterNoText => {
            let field = IssuanceId::generate(PartitionId::ONE);
            let pair = [field.as_bytes().as_slice(), NO_TEXT];
            redis::cmd("HSET").arg(keys.dead()).arg(&pair).exec_async(&mut redis).await?;
        }
        DamageKind::HoldersDamaged => {
            redis::cmd("HSET")
                .arg(keys.holders(&id))
                .arg(&users[2])
                .arg("odd")
                .exec_async(&mut redis)
                .await?;
        }
        DamageKind::FreeDamaged => {
            redis::cmd("SADD").arg(keys.free(&id)).arg("no unit").exec_async(&mut redis).await?;
        }
        DamageKind::CouponStateDamaged => {
            let state = ["total", "many", "next", "some"];
            redis::cmd("HSET").arg(keys.coupon(&id)).arg(&state).exec_async(&mut redis).await?;
        }
        DamageKind::HoldersOfAnotherType => {
            redis::cmd("SET").arg(keys.holders(&id)).arg("no hash").exec_async(&mut redis).await?;
        }
        DamageKind::UserUnreadable => {
            let damaged = doc! {"$set": {"name": 5, "createdAt": "long ago"}};
            collection("users").update_one(doc! {"_id": &users[2]}, damaged).await?;
        }
        DamageKind::LoadedNoId => {
            redis::cmd("SADD").arg(keys.loaded()).arg(NO_TEXT).exec_async(&mut redis).await?;
        }
        DamageKind::HeartbeatDamaged => {
            let pair = [coupon.as_bytes(), NO_TEXT];
            redis::cmd("HSET").arg(keys.workers()).arg(&pair).exec_async(&mut redis).await?;
        }
        DamageKind::ApiKeyUnreadable => {
            let key = doc! {"_id": coupon, "name": 5, "role": "of-a-later-version"};
            collection("api_keys").insert_one(key).await?;
        }
        DamageKind::ActionUnreadable => {
            collection("operator_actions").insert_one(doc! {"_id": coupon, "at": "long ago"}).await?;
        }
    }
    // A user requests the damaged coupon: the answer does not matter, but others must not be affected.
    if let Some((202, body)) = load.request_once(&users[2], coupon).await {
        accepted.extend(body["id"].as_str().map(str::to_owned));
    }
    Ok(accepted)
}

/// Reserves a unit under an id of one's own. Returns the id if it was accepted.
async fn reserve_as(
    stack: &Stack,
    id: IssuanceId,
    coupon: &str,
    user: &str,
) -> anyhow::Result<Option<String>> {
    let redis = RedisConfig {
        redis_url: stack.redis_url(),
        redis_durability: Durability::Always,
        redis_acknowledged_by: 0,
    };
    let mongodb =
        MongoConfig { mongodb_uri: stack.mongodb_uri(), mongodb_database: stack.database.name().into() };
    let backends = process::connect(&redis, &mongodb).await?;
    let request = Request {
        id,
        coupon: coupon.parse().map_err(anyhow::Error::msg)?,
        user: user.parse().map_err(anyhow::Error::msg)?,
        key: None,
        trace: None,
    };
    let reserved =
        reserve(backends.partitions.first(), &[request], u64::MAX >> 12, QueueEntries::OfOne).await;
    backends.database.client().clone().shutdown().immediate(true).await;
    Ok(matches!(reserved?.as_slice(), [Reserved::Accepted(_)]).then(|| id.to_string()))
}
