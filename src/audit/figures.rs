//! The counters of coupons and of the queue in Redis, read in one script under one epoch.

use super::AuditAbort;
use crate::coupon::UnitCounters;
use crate::ids::CouponId;
use crate::redis::keys::{EpochKeys, damaged};
use crate::redis::{EpochBound, LuaScript, Partition};

static FIGURES: LuaScript = LuaScript::new(include_str!("figures.lua"));

/// The most coupons of one call: a script must stay short.
pub(super) const BATCH_MAX: usize = 200;

/// A loaded coupon in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CouponFigures {
    pub units: UnitCounters,
    pub generation: i64,
}

/// Some coupons and the queue at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FiguresReading {
    /// Of every coupon.
    pub in_flight: u64,
    /// Dead letters among them.
    pub dead: u64,
    /// Reservations of this epoch, of every coupon.
    pub accepted: u64,
    /// In-flight values that a rebuild could not read.
    pub set_aside: u64,
    /// The stream entry that was appended last.
    pub last_entry: String,
    /// `None` for a coupon that is not loaded, or whose figures are damaged.
    pub coupons: Vec<Option<CouponFigures>>,
    /// Coupons whose figures are damaged, each with what is wrong.
    pub damaged: Vec<(CouponId, String)>,
}

/// Reads the figures of at most [`BATCH_MAX`] coupons.
pub(super) async fn figures(
    partition: &Partition,
    keys: &EpochKeys,
    coupons: &[CouponId],
) -> Result<FiguresReading, AuditAbort> {
    let called = partition.call_in_epoch(keys, &FIGURES, "read the figures", |keys, call| {
        call.key(keys.stream())
            .key(keys.in_flight())
            .key(keys.counters())
            .key(damaged(keys.partition()))
            .key(keys.dead());
        for coupon in coupons {
            call.key(keys.coupon(coupon)).key(keys.free(coupon));
        }
    });
    let EpochBound::Epoch(mut reply) = called.await? else { return Err(AuditAbort::AnotherEpoch) };
    let (in_flight, dead) = (reply.number()?, reply.number()?);
    let (accepted, set_aside) = (reply.number()?, reply.number()?);
    let last_entry = reply.text()?;
    let mut found = Vec::with_capacity(coupons.len());
    let mut wrong = Vec::new();
    for coupon in coupons {
        let mut held = reply.list()?;
        if held.len() == 0 {
            found.push(None);
            continue;
        }
        if held.len() == 1 {
            wrong.push((coupon.clone(), held.text()?));
            found.push(None);
            continue;
        }
        found.push(Some(CouponFigures {
            units: UnitCounters::read(&mut held)?,
            generation: i64::try_from(held.number()?).map_err(|_| held.wrong())?,
        }));
    }
    Ok(FiguresReading { in_flight, dead, accepted, set_aside, last_entry, coupons: found, damaged: wrong })
}
