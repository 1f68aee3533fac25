//! Adoption: counting an issued record that Redis knows nothing of. A worker that slept through a
//! recovery leaves one when it wakes and inserts what it had in hand. Idempotent by the record's id.

use super::AuditAbort;
use crate::Failure;
use crate::coupon::MAX_TOTAL;
use crate::ids::{CouponId, IssuanceId, Unit, UserId};
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript, Partition};

static ADOPT: LuaScript = LuaScript::new(include_str!("adopt.lua"));

/// Units that one call moves into the free set: a script must stay short.
pub(super) const UNITS_A_CALL: u32 = 1_000;
/// The largest coupon needs no more calls than this.
pub(super) const CALLS_MAX: u32 = MAX_TOTAL / UNITS_A_CALL + 1;

/// The outcome of adopting a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptOutcome {
    Now,
    /// Its id is in its user's dedupe: it was counted.
    Before,
    /// It will be counted when it is settled.
    InFlight,
    /// Its coupon is not in Redis; a load will count it.
    NotLoaded,
    /// Its serial is beyond the total that Redis knows.
    BeyondTotal,
}

/// Adopts an issued record, read under the epoch of `keys`.
pub(super) async fn adopt(
    partition: &Partition,
    keys: &EpochKeys,
    coupon: &CouponId,
    id: IssuanceId,
    user: &UserId,
    unit: Unit,
) -> Result<AdoptOutcome, AuditAbort> {
    for _ in 0..CALLS_MAX {
        let called = partition.call_in_epoch(keys, &ADOPT, "adopt a record", |keys, call| {
            call.key(keys.in_flight())
                .key(keys.coupon(coupon))
                .key(keys.holders(coupon))
                .key(keys.free(coupon));
            call.arg(id.as_bytes().as_slice()).arg(user.as_str()).arg(unit.number()).arg(UNITS_A_CALL);
        });
        let EpochBound::Epoch(mut reply) = called.await? else { return Err(AuditAbort::AnotherEpoch) };
        return Ok(match reply.text()?.as_str() {
            "more" => continue,
            "adopted" => AdoptOutcome::Now,
            "counted" => AdoptOutcome::Before,
            "in-flight" => AdoptOutcome::InFlight,
            "unloaded" => AdoptOutcome::NotLoaded,
            "beyond" => AdoptOutcome::BeyondTotal,
            "damaged" => {
                let why = format!("coupon {coupon}");
                return Err(Failure::Damaged { what: "the figures of the coupon in Redis", why }.into());
            }
            _ => return Err(reply.wrong().into()),
        });
    }
    Err(Failure::Overloaded { operation: "adopt a record" }.into())
}
