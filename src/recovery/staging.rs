//! Staging a coupon: its holders and free serials are written to keys of their own that expire, and one script puts
//! them in place.

use crate::Failure;
use crate::coupon::CouponTerms;
use crate::ids::{IssuanceId, Share, Unit, UserId};
use crate::issuance::shares::Mark;
use crate::redis::keys::EpochKeys;
use crate::redis::pipe;
use crate::redis::{Call, LuaScript, Partition};

static LOAD: LuaScript = LuaScript::new(include_str!("load.lua"));
static STAGE: LuaScript = LuaScript::new(include_str!("stage.lua"));

/// A load that was given up leaves nothing behind for longer than this.
const STAGING_EXPIRES_SECS: i64 = 900;
/// Fields or members in one command.
const CHUNK: usize = 2_000;

/// The outcome of putting a coupon in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlacementOutcome {
    Now,
    /// The coupon was there.
    Before,
    /// A coupon was retired, something of this one settled, or another epoch opened, since the computing
    /// began: compute again.
    Outdated,
}

/// The epoch that a coupon is placed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// One that is being built: it takes what the old one had, so there is room for it.
    Building,
    /// The counters are as Redis has them: it is only asked whether they have changed.
    Open {
        /// How often coupons had been retired when the computing began.
        retired: Vec<u8>,
        /// How many issuances of coupons that were not loaded had been settled before what is in flight was
        /// read; `None` if nothing is in flight for this one.
        settled_unloaded: Option<Vec<u8>>,
    },
}

/// The counts of a coupon that is placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnitCounts {
    pub share: Share,
    /// The serial to take next.
    pub next: u32,
    /// Issued by the ledger, and settled.
    pub settled: u32,
    /// Moved here.
    pub credited: u32,
    /// Moved away by the ledger, and settled.
    pub moved: u32,
}

/// Writes a coupon's holders and free units to staging keys, and then puts them in place with one script.
pub(super) struct Staging<'a> {
    target: StagingTarget<'a>,
    holders: StagingKey,
    free: StagingKey,
}

/// Where it is staged.
struct StagingTarget<'a> {
    partition: &'a Partition,
    keys: &'a EpochKeys,
    destination: Destination,
}

struct StagingKey {
    key: String,
    command: &'static str,
    waiting: Vec<Vec<u8>>,
    count: usize,
}

impl<'a> Staging<'a> {
    pub(super) fn new(partition: &'a Partition, keys: &'a EpochKeys, destination: Destination) -> Self {
        let (holders, free) = keys.staging(&crate::ids::random_id());
        let staged = |key, command| StagingKey { key, command, waiting: Vec::new(), count: 0 };
        let target = StagingTarget { partition, keys, destination };
        Staging { target, holders: staged(holders, "HSET"), free: staged(free, "SADD") }
    }

    pub(super) async fn holder(
        &mut self,
        user: &UserId,
        mut ids: Vec<IssuanceId>,
        more: Option<Vec<IssuanceId>>,
    ) -> Result<(), Failure> {
        ids.extend(more.unwrap_or_default());
        let value = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.holders.push(&self.target, [user.as_str().as_bytes().to_vec(), value]).await
    }

    pub(super) async fn rejected(&mut self, id: IssuanceId) -> Result<(), Failure> {
        let field = [b"!", id.as_bytes().as_slice()].concat();
        self.holders.push(&self.target, [field, b"1".to_vec()]).await
    }

    /// `unit`: `None` if the record of the move does not say which.
    pub(super) async fn moved(
        &mut self,
        mark: Mark,
        id: IssuanceId,
        unit: Option<Unit>,
    ) -> Result<(), Failure> {
        let unit = unit.map_or_else(|| "?".to_owned(), |unit| unit.to_string());
        self.holders.push(&self.target, [mark.field(id), unit.into_bytes()]).await
    }

    pub(super) async fn free(&mut self, unit: Unit) -> Result<(), Failure> {
        self.free.push(&self.target, [unit.to_string().into_bytes()]).await
    }

    /// Puts the coupon in place. `without_unit`: those in flight whose units are others'.
    pub(super) async fn finish(
        mut self,
        coupon: &CouponTerms,
        accounts: UnitCounts,
        without_unit: &[IssuanceId],
    ) -> Result<PlacementOutcome, Failure> {
        self.holders.flush(&self.target).await?;
        self.free.flush(&self.target).await?;
        let StagingTarget { partition, keys, destination } = self.target;
        let mut call = Call::default();
        call.key(keys.certificate())
            .key(keys.counters())
            .key(keys.loaded())
            .key(keys.coupon(&coupon.id))
            .key(keys.holders(&coupon.id))
            .key(keys.free(&coupon.id))
            .key(self.holders.key.clone())
            .key(self.free.key.clone())
            .key(keys.in_flight());
        let building = destination == Destination::Building;
        call.arg(if building { keys.epoch().to_string() } else { partition.credential(keys) })
            .arg(u8::from(building))
            .arg(self.holders.count)
            .arg(self.free.count);
        match destination {
            // What is in flight comes into this epoch after its coupons, as it was computed with them.
            Destination::Building => call.arg(0).arg("").arg(0),
            Destination::Open { retired, settled_unloaded } => {
                call.arg(retired);
                call.arg(settled_unloaded.map(|count| [b"=", &*count].concat()).unwrap_or_default());
                call.arg(without_unit.len());
                for id in without_unit {
                    call.arg(id.as_bytes().as_slice());
                }
                &mut call
            }
        };
        for (field, value) in [
            ("total", i64::from(coupon.total)),
            ("next", accounts.next.into()),
            ("settled", accounts.settled.into()),
            ("per_user", coupon.per_user.into()),
            ("starts_at", coupon.starts_at.as_millisecond()),
            ("ends_at", coupon.ends_at.as_millisecond()),
            ("paused", coupon.paused.into()),
            ("archived", coupon.archived.into()),
            ("generation", coupon.generation),
        ] {
            call.arg(field).arg(value);
        }
        if accounts.share != Share::WHOLE {
            call.arg("shares").arg(accounts.share.count()).arg("credited").arg(accounts.credited);
            call.arg("moved").arg(accounts.moved);
        }
        call.arg("id").arg(coupon.id.as_str());
        let mut reply = partition.invoke(&LOAD, "load the coupon", &call).await?;
        match reply.text()?.as_str() {
            "ok" => match reply.text()?.as_str() {
                "loaded" => Ok(PlacementOutcome::Now),
                "present" => Ok(PlacementOutcome::Before),
                "retired" | "settled" => Ok(PlacementOutcome::Outdated),
                _ => Err(Failure::Stale {
                    operation: "load the coupon",
                    why: "what was staged for it has expired".into(),
                }),
            },
            "stale" => {
                partition.admit(&mut reply).await?;
                Ok(PlacementOutcome::Outdated)
            }
            _ => Err(Failure::Uncertified),
        }
    }
}

impl StagingKey {
    async fn push<const N: usize>(
        &mut self,
        target: &StagingTarget<'_>,
        parts: [Vec<u8>; N],
    ) -> Result<(), Failure> {
        self.waiting.extend(parts);
        self.count += 1;
        if self.waiting.len() >= CHUNK { self.flush(target).await } else { Ok(()) }
    }

    async fn flush(&mut self, target: &StagingTarget<'_>) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let parts = std::mem::take(&mut self.waiting);
        if target.destination == Destination::Building {
            let mut call = Call::default();
            call.key(target.keys.certificate()).key(self.key.clone());
            call.arg(target.keys.epoch().to_string()).arg(self.command).arg(STAGING_EXPIRES_SECS).arg(parts);
            let staged = target.partition.invoke(&STAGE, "stage the coupon", &call).await?.text()?;
            return if staged == "staged" { Ok(()) } else { Err(Failure::Uncertified) };
        }
        let mut pipeline = pipe();
        pipeline.cmd(self.command).arg(&self.key).arg(parts).ignore();
        pipeline.cmd("EXPIRE").arg(&self.key).arg(STAGING_EXPIRES_SECS).ignore();
        target.partition.query_all("stage the coupon", &pipeline).await
    }
}
