//! The offer: what a coupon is, and what it is worth. Where it is kept: [`CouponStore`] (MongoDB,
//! the record of truth) and [`stock`] (Redis, the live figures).

pub mod admin_sync;
mod placements;
mod restock;
mod status;
pub mod stock;
mod store;
mod terms;
mod unit_set;
mod validity;

pub use placements::Placements;
pub(crate) use placements::by_share;
pub use restock::{Restock, RestockAmount, RestockKey};
pub use status::CouponStatus;
pub use stock::{Stock, UnitCounters};
pub use store::{CouponChange, CouponChangeOutcome, CouponStore, CreateOutcome, ended_before};
pub use terms::CouponTerms;
pub(crate) use unit_set::UnitSet;
pub use validity::{CouponTimeZone, Expiry, Validity, ValidityPeriod};

use jiff::Timestamp;

use crate::ids::{CouponId, PartitionId, Shares};

/// The largest number of units of one coupon.
pub(crate) const MAX_TOTAL: u32 = 10_000_000;
/// The largest number of units that one user may hold of one coupon.
pub(crate) const MAX_PER_USER: u8 = 100;

/// How many units of a coupon there are, and how many of them one user may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CouponLimit {
    pub total: u32,
    pub per_user: u8,
}

/// A coupon as its operator made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Coupon {
    pub id: CouponId,
    pub name: String,
    /// Units there are: serials 1..=total. Only ever grows.
    pub total: u32,
    /// Units that one user may hold.
    pub per_user: u8,
    /// Issuable from this moment on …
    pub starts_at: Timestamp,
    /// … and until just before this one.
    pub ends_at: Timestamp,
    pub discount: Option<Discount>,
    /// In the minor unit of the discount's currency.
    pub min_order_amount: Option<u64>,
    pub validity: Validity,
    /// Where calendar periods are counted.
    pub time_zone: CouponTimeZone,
    pub paused: bool,
    pub archived: bool,
    /// Counts the operator's changes; a later one wins over an earlier one.
    pub generation: i64,
    pub created_at: Timestamp,
    /// Where its units lie, for ever.
    pub shares: Shares,
}

impl Coupon {
    /// A coupon of which each user may hold one unit, valid without end, without a discount, open from `starts_at`
    /// until just before `ends_at`; as one that was made when it opens.
    pub fn new(id: CouponId, total: u32, starts_at: Timestamp, ends_at: Timestamp) -> Self {
        Coupon {
            name: id.to_string(),
            id,
            total,
            per_user: 1,
            starts_at,
            ends_at,
            discount: None,
            min_order_amount: None,
            validity: Validity::Unlimited,
            time_zone: CouponTimeZone::UTC,
            paused: false,
            archived: false,
            generation: 1,
            created_at: starts_at,
            shares: Shares::one(PartitionId::ONE),
        }
    }

    /// What the end of a unit's validity is computed from.
    pub fn expiry(&self) -> Expiry {
        Expiry { validity: self.validity.clone(), zone: self.time_zone.clone() }
    }

    /// Whether it offers the same as `other` does, whenever the two were made and wherever their units lie.
    pub(crate) fn is_offered_as(&self, other: &Coupon) -> bool {
        *self == Coupon { created_at: self.created_at, shares: self.shares.clone(), ..other.clone() }
    }
}

/// What a coupon takes off the price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discount {
    Fixed { amount: u64, currency: Currency },
    Percent { percent: u8, max_amount: Option<u64>, currency: Currency },
}

/// An ISO 4217 code: three capital letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// How many digits the minor unit has, in which amounts are counted: 2 of USD, 0 of KRW. `None` where
    /// ISO 4217 has no such currency, or no minor unit of it.
    pub(crate) fn minor_digits(&self) -> Option<u32> {
        iso_currency::Currency::from_code(self.as_str())?.exponent().map(u32::from)
    }
}

impl std::str::FromStr for Currency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_uppercase) => Ok(Currency(code)),
            _ => Err("must be a currency code of three capital letters, such as KRW".into()),
        }
    }
}
