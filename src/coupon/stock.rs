//! The live stock of coupons, read from Redis.

use jiff::Timestamp;

use super::CouponId;
use crate::Failure;
use crate::redis::{LuaScript, Partition, Reply};

static STOCK: LuaScript = LuaScript::new(include_str!("stock.lua"));

/// The units at one moment: `total = remaining + reserved + issued`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stock {
    #[schema(example = 5000)]
    pub total: u32,
    /// Free.
    #[schema(example = 1200)]
    pub remaining: u32,
    /// Taken, and waiting for a decision.
    #[schema(example = 30)]
    pub reserved: u32,
    #[schema(example = 3770)]
    pub issued: u32,
}

impl Stock {
    /// That of two shares of one coupon together. A unit on its way from one to another is reserved.
    pub fn and(self, other: Self) -> Self {
        let (total, remaining) = (self.total.max(other.total), self.remaining + other.remaining);
        let issued = self.issued + other.issued;
        Stock { total, remaining, reserved: total.saturating_sub(remaining + issued), issued }
    }
}

/// What Redis counts of a coupon's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitCounters {
    pub total: u64,
    /// The serial to hand out next, once no unit that was given back is left.
    pub next: u64,
    /// Units that are issued, as far as Redis has settled them.
    pub settled: u64,
    /// Units that were given back, or moved here.
    pub free: u64,
    /// In how many shares the coupon lies.
    pub shares: u64,
    /// Units that were moved to this share.
    pub credited: u64,
    /// Units that were moved away from it, as far as Redis has settled that.
    pub moved: u64,
}

/// Of a coupon that has no unit.
impl Default for UnitCounters {
    fn default() -> Self {
        UnitCounters { total: 0, next: 1, settled: 0, free: 0, shares: 1, credited: 0, moved: 0 }
    }
}

impl UnitCounters {
    /// The next elements of a reply, as `stock.lua` and `figures.lua` give them.
    pub(crate) fn read(reply: &mut Reply) -> Result<Self, Failure> {
        Ok(UnitCounters {
            total: reply.number()?,
            next: reply.number()?,
            settled: reply.number()?,
            free: reply.number()?,
            shares: reply.number()?,
            credited: reply.number()?,
            moved: reply.number()?,
        })
    }

    /// Units that are decided, as far as Redis has settled them: issued, or moved away.
    pub fn decided(self) -> u64 {
        self.settled.saturating_add(self.moved)
    }

    /// Whether a coupon can be so: the first serial is 1, and only units that were handed out, or moved here, can be free
    /// again.
    pub(crate) fn are_possible(self) -> bool {
        self.next > 0 && self.shares > 0 && self.free <= self.handed_out().saturating_add(self.credited)
    }

    /// Units that were born here, in turn with other shares, and handed out.
    fn handed_out(self) -> u64 {
        self.next.saturating_sub(1) / self.shares.max(1)
    }

    /// Units that came into being here or were moved here, and are not free: reserved, issued, or moved away.
    pub fn taken(self) -> u64 {
        self.handed_out().saturating_add(self.credited).saturating_sub(self.free)
    }

    /// Units that are taken and not settled.
    pub fn reserved(self) -> u64 {
        self.taken().saturating_sub(self.decided())
    }

    /// Units that are free.
    pub fn remaining(self) -> u64 {
        let ahead = self.total.saturating_add(self.shares).saturating_sub(self.next) / self.shares.max(1);
        ahead.saturating_add(self.free)
    }
}

/// Reads the stock of `coupons` in one script, with Redis's own time. `None` for one that is not
/// loaded; for one whose units cannot be read, and for no other, [`Failure::Damaged`]. At most
/// [`BATCH_MAX`] are asked at once.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn read(
    partition: &Partition,
    coupons: &[CouponId],
) -> Result<(Timestamp, Vec<Result<Option<Stock>, Failure>>), Failure> {
    let mut reply = partition
        .call(&STOCK, "read the stock", |keys, call| {
            for coupon in coupons {
                call.key(keys.coupon(coupon)).key(keys.free(coupon));
            }
        })
        .await?;
    let now = i64::try_from(reply.number()?).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let now = now.ok_or_else(|| reply.wrong())?;
    let mut stocks = Vec::with_capacity(coupons.len());
    for coupon in coupons {
        let mut held = reply.list()?;
        if held.len() == 0 {
            stocks.push(Ok(None));
            continue;
        }
        if held.len() == 1 {
            let why = format!("coupon {coupon}: {}", held.text()?);
            stocks.push(Err(Failure::Damaged { what: "the stock of the coupon in Redis", why }));
            continue;
        }
        let units = UnitCounters::read(&mut held)?;
        let whole = |units| u32::try_from(units).map_err(|_| held.wrong());
        stocks.push(Ok(Some(Stock {
            total: whole(units.total)?,
            remaining: whole(units.remaining())?,
            reserved: whole(units.reserved())?,
            issued: whole(units.settled)?,
        })));
    }
    Ok((now, stocks))
}

/// The most coupons that [`read`] takes: a script must stay short.
pub(crate) const BATCH_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_free_reserved_or_issued_and_damaged_counters_are_told_without_an_overflow() {
        let units = UnitCounters { total: 10, next: 8, settled: 3, free: 2, ..UnitCounters::default() };
        assert!(units.are_possible());
        assert_eq!((units.taken(), units.reserved(), units.remaining()), (5, 2, 5));
        assert_eq!(units.remaining() + units.reserved() + units.settled, units.total);
        let never_asked_for = UnitCounters { total: 10, ..UnitCounters::default() };
        assert!(never_asked_for.are_possible() && never_asked_for.taken() == 0);
        for damaged in [
            UnitCounters { next: 0, ..never_asked_for },
            UnitCounters { next: 0, free: u64::MAX, settled: u64::MAX, total: u64::MAX, ..units },
            UnitCounters { free: 8, ..units },
        ] {
            assert!(!damaged.are_possible(), "{damaged:?}");
            assert_eq!((damaged.taken(), damaged.reserved()), (0, 0), "{damaged:?}");
            assert!(damaged.remaining() >= damaged.total, "{damaged:?}");
        }
    }
}
