//! A fresh serial for an issuance whose own serial another record holds.

use super::IssuanceId;
use crate::Failure;
use crate::ids::CouponId;
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript, Partition};

static REASSIGN: LuaScript = LuaScript::new(include_str!("reassign.lua"));

/// The result of an attempt to reassign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reassigned {
    /// This serial is now in flight for it: a fresh one, or what another worker gave it.
    To(u32),
    /// No unit is free.
    NoneFree,
    /// The entry is not in flight any more, or belongs to another epoch.
    Gone,
    /// Its in-flight value cannot be read: nothing was done.
    Unreadable,
    /// Its coupon is not loaded: nothing was done.
    Unloaded,
}

/// Replaces `old` by a fresh serial, if the issuance is in flight with this entry and this serial.
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
    old: Option<u32>,
) -> Result<Reassigned, Failure> {
    let reply = partition
        .call_in_epoch(keys, &REASSIGN, "reassign a serial", |keys, call| {
            call.key(keys.in_flight()).key(keys.coupon(coupon)).key(keys.free(coupon));
            call.arg(id.as_bytes().as_slice()).arg(entry).arg(old.unwrap_or(0));
        })
        .await?;
    let EpochBound::Epoch(mut reply) = reply else { return Ok(Reassigned::Gone) };
    let (what, serial) = (reply.text()?, reply.number()?);
    match (what.as_str(), u32::try_from(serial)) {
        ("taken" | "changed", Ok(serial)) if serial > 0 => Ok(Reassigned::To(serial)),
        ("none", _) => Ok(Reassigned::NoneFree),
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
