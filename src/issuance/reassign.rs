//! A fresh unit for an issuance whose own another record holds.

use super::IssuanceId;
use crate::Failure;
use crate::ids::{CouponId, Unit};
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript, Partition};

static REASSIGN: LuaScript = LuaScript::new(include_str!("reassign.lua"));

/// The result of an attempt to reassign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reassigned {
    /// This unit is now in flight for it: a fresh one, or what another worker gave it.
    To(Unit),
    /// No unit is free.
    NoneFree,
    /// No unit is free in this share of the coupon, and another may have one.
    Dry,
    /// The entry is not in flight any more, or belongs to another epoch.
    Gone,
    /// Its in-flight value cannot be read: nothing was done.
    Unreadable,
    /// Its coupon is not loaded: nothing was done.
    Unloaded,
}

/// Replaces `old` by a fresh unit, if the issuance is in flight with this entry and this unit.
///
/// # Errors
///
/// If Redis fails; [`Failure::Damaged`] if Redis cannot tell which units of the coupon are free.
pub async fn reassign(
    partition: &Partition,
    keys: &EpochKeys,
    coupon: &CouponId,
    id: IssuanceId,
    entry: &str,
    old: Option<Unit>,
) -> Result<Reassigned, Failure> {
    let reply = partition
        .call_in_epoch(keys, &REASSIGN, "reassign a unit", |keys, call| {
            call.key(keys.in_flight()).key(keys.coupon(coupon)).key(keys.free(coupon));
            call.arg(id.as_bytes().as_slice()).arg(entry).arg(old.map_or(0, Unit::number));
        })
        .await?;
    let EpochBound::Epoch(mut reply) = reply else { return Ok(Reassigned::Gone) };
    let (what, unit) = (reply.text()?, reply.text()?);
    match (what.as_str(), unit.parse()) {
        ("taken" | "changed", Ok(unit)) => Ok(Reassigned::To(unit)),
        ("none", _) => Ok(Reassigned::NoneFree),
        ("dry", _) => Ok(Reassigned::Dry),
        ("gone", _) => Ok(Reassigned::Gone),
        ("unreadable", _) => Ok(Reassigned::Unreadable),
        ("unloaded", _) => Ok(Reassigned::Unloaded),
        ("damaged", _) => Err(Failure::Damaged {
            what: "what Redis holds of a coupon's units",
            why: format!("coupon {coupon}, issuance {id}, entry {entry}"),
        }),
        _ => Err(reply.wrong()),
    }
}
