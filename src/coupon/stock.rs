//! The live stock of coupons, read from Redis.

use jiff::Timestamp;

use super::CouponId;
use crate::Failure;
use crate::redis::{LuaScript, Partition};

static STOCK: LuaScript = LuaScript::new(include_str!("stock.lua"));

/// The units of a coupon at one moment: `total = remaining + reserved + issued`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    pub total: u32,
    /// Free.
    pub remaining: u32,
    /// Taken, and not decided.
    pub reserved: u32,
    pub issued: u32,
}

/// Reads the stock of `coupons` in one script, with Redis's own time. `None` for one that is not
/// loaded; for one whose units cannot be read, and for no other, [`Failure::Damaged`]. At most
/// [`BATCH_MAX`] are asked at once.
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
        let mut figures = [0; 4];
        for figure in &mut figures {
            *figure = u32::try_from(held.number()?).map_err(|_| held.wrong())?;
        }
        let [total, next, settled, free] = figures;
        // Serials from `next` on were never taken; those in the free set were given back.
        let remaining = total.saturating_add(1).saturating_sub(next).saturating_add(free);
        stocks.push(Ok(Some(Stock {
            total,
            remaining,
            reserved: total.saturating_sub(remaining).saturating_sub(settled),
            issued: settled,
        })));
    }
    Ok((now, stocks))
}

/// The most coupons that [`read`] takes: a script must stay short.
pub const BATCH_MAX: usize = 500;
