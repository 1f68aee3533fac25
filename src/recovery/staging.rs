//! What is written before a coupon is put in place: its holders and free serials, in keys of their own
//! that expire, and the one script that puts them there.

use std::sync::LazyLock;

use redis::Script;

use crate::Failure;
use crate::coupon::Coupon;
use crate::issuance::IssuanceId;
use crate::keys::EpochKeys;
use crate::partition::{Call, Partition, script};
use crate::user::UserId;

static LOAD: LazyLock<Script> = LazyLock::new(|| script(include_str!("load.lua")));

/// A load that was given up leaves nothing behind for longer than this.
const STAGING_EXPIRES_SECS: i64 = 900;
/// Fields or members in one command.
const CHUNK: usize = 2_000;

/// What became of the placing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    Now,
    /// The coupon was there.
    Before,
    /// A coupon was retired, or another epoch opened, since the computing began: compute again.
    Outdated,
}

/// The counts of a coupon that is placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accounts {
    /// The serial to take next.
    pub next: u32,
    /// In the ledger.
    pub issued: u32,
}

/// See the module's documentation.
pub(super) struct Staging<'a> {
    partition: &'a Partition,
    keys: &'a EpochKeys,
    holders: Staged,
    free: Staged,
}

struct Staged {
    key: String,
    command: &'static str,
    waiting: Vec<Vec<u8>>,
    count: usize,
}

impl<'a> Staging<'a> {
    pub(super) fn new(partition: &'a Partition, keys: &'a EpochKeys) -> Self {
        let (holders, free) = keys.staging(&crate::random_id());
        let staged = |key, command| Staged { key, command, waiting: Vec::new(), count: 0 };
        Staging { partition, keys, holders: staged(holders, "HSET"), free: staged(free, "SADD") }
    }

    pub(super) async fn holder(
        &mut self,
        user: &UserId,
        mut ids: Vec<IssuanceId>,
        more: Option<Vec<IssuanceId>>,
    ) -> Result<(), Failure> {
        ids.extend(more.unwrap_or_default());
        let value = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.holders.push(self.partition, [user.as_str().as_bytes().to_vec(), value]).await
    }

    pub(super) async fn rejected(&mut self, id: IssuanceId) -> Result<(), Failure> {
        let field = [b"!", id.as_bytes().as_slice()].concat();
        self.holders.push(self.partition, [field, b"1".to_vec()]).await
    }

    pub(super) async fn free(&mut self, serial: u32) -> Result<(), Failure> {
        self.free.push(self.partition, [serial.to_string().into_bytes()]).await
    }

    /// Puts the coupon in place. `retired`: how often coupons had been retired when all this began.
    pub(super) async fn finish(
        mut self,
        building: bool,
        coupon: &Coupon,
        accounts: Accounts,
        retired: u64,
    ) -> Result<Placed, Failure> {
        self.holders.flush(self.partition).await?;
        self.free.flush(self.partition).await?;
        let keys = self.keys;
        let mut call = Call::default();
        call.key(keys.certificate())
            .key(keys.counters())
            .key(keys.loaded())
            .key(keys.coupon(&coupon.id))
            .key(keys.holders(&coupon.id))
            .key(keys.free(&coupon.id))
            .key(self.holders.key.clone())
            .key(self.free.key.clone());
        call.arg(if building { keys.epoch().to_string() } else { self.partition.credential(keys) })
            .arg(u8::from(building))
            .arg(self.holders.count)
            .arg(self.free.count)
            .arg(retired);
        for (field, value) in [
            ("total", i64::from(coupon.total)),
            ("next", accounts.next.into()),
            ("settled", accounts.issued.into()),
            ("per_user", coupon.per_user.into()),
            ("starts_at", coupon.starts_at.as_millisecond()),
            ("ends_at", coupon.ends_at.as_millisecond()),
            ("paused", coupon.paused.into()),
            ("archived", coupon.archived.into()),
            ("generation", coupon.generation),
        ] {
            call.arg(field).arg(value);
        }
        call.arg("id").arg(coupon.id.as_str());
        let mut reply = self.partition.invoke(&LOAD, "load the coupon", &call).await?;
        match reply.text()?.as_str() {
            "ok" => match reply.text()?.as_str() {
                "loaded" => Ok(Placed::Now),
                "present" => Ok(Placed::Before),
                "retired" => Ok(Placed::Outdated),
                _ => Err(Failure::Redis {
                    operation: "load the coupon",
                    source: "what was staged has expired; try again".into(),
                }),
            },
            "stale" => {
                self.partition.admit(&mut reply).await?;
                Ok(Placed::Outdated)
            }
            _ => Err(Failure::Uncertified),
        }
    }
}

impl Staged {
    async fn push<const N: usize>(
        &mut self,
        partition: &Partition,
        parts: [Vec<u8>; N],
    ) -> Result<(), Failure> {
        self.waiting.extend(parts);
        self.count += 1;
        if self.waiting.len() >= CHUNK { self.flush(partition).await } else { Ok(()) }
    }

    async fn flush(&mut self, partition: &Partition) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        pipeline.cmd(self.command).arg(&self.key).arg(std::mem::take(&mut self.waiting)).ignore();
        pipeline.cmd("EXPIRE").arg(&self.key).arg(STAGING_EXPIRES_SECS).ignore();
        pipeline
            .query_async::<()>(&mut partition.connection())
            .await
            .map_err(Failure::redis("stage the coupon"))
    }
}
