//! What a coupon is doing now, derived and never stored.

use jiff::Timestamp;

use super::Coupon;

/// What the coupon is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CouponStatus {
    Scheduled,
    Open,
    Paused,
    SoldOut,
    Ended,
    Archived,
}

impl CouponStatus {
    /// Derives the status at `now`. `remaining` is the number of free units, where known.
    pub fn of(coupon: &Coupon, remaining: Option<u32>, now: Timestamp) -> Self {
        if coupon.archived {
            CouponStatus::Archived
        } else if now >= coupon.ends_at {
            CouponStatus::Ended
        } else if coupon.paused {
            CouponStatus::Paused
        } else if now < coupon.starts_at {
            CouponStatus::Scheduled
        } else if remaining == Some(0) {
            CouponStatus::SoldOut
        } else {
            CouponStatus::Open
        }
    }

    /// All of them, in the order of a coupon's life.
    pub const ALL: [CouponStatus; 6] = [
        CouponStatus::Scheduled,
        CouponStatus::Open,
        CouponStatus::Paused,
        CouponStatus::SoldOut,
        CouponStatus::Ended,
        CouponStatus::Archived,
    ];

    /// The name on the wire, which its serialised form is too.
    pub fn as_str(self) -> &'static str {
        match self {
            CouponStatus::Scheduled => "scheduled",
            CouponStatus::Open => "open",
            CouponStatus::Paused => "paused",
            CouponStatus::SoldOut => "soldOut",
            CouponStatus::Ended => "ended",
            CouponStatus::Archived => "archived",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_half_open_and_an_operators_word_comes_first() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut coupon = Coupon::new("c".parse().unwrap(), 1, at(10), at(20));
        assert_eq!(CouponStatus::of(&coupon, Some(1), at(9)), CouponStatus::Scheduled);
        assert_eq!(CouponStatus::of(&coupon, Some(1), at(10)), CouponStatus::Open);
        assert_eq!(CouponStatus::of(&coupon, None, at(10)), CouponStatus::Open);
        assert_eq!(CouponStatus::of(&coupon, Some(0), at(19)), CouponStatus::SoldOut);
        assert_eq!(CouponStatus::of(&coupon, Some(0), at(20)), CouponStatus::Ended);
        coupon.paused = true;
        assert_eq!(CouponStatus::of(&coupon, Some(1), at(15)), CouponStatus::Paused);
        coupon.archived = true;
        assert_eq!(CouponStatus::of(&coupon, Some(1), at(15)), CouponStatus::Archived);
    }
}
