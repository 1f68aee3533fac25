//! What a coupon is doing now, derived and never stored.

use jiff::Timestamp;

use super::Coupon;

/// The derived status of a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Scheduled,
    Open,
    Paused,
    SoldOut,
    Ended,
    Archived,
}

impl Status {
    /// Derives the status at `now`. `remaining` is the number of free units, where known.
    pub fn of(coupon: &Coupon, remaining: Option<u32>, now: Timestamp) -> Self {
        if coupon.archived {
            Status::Archived
        } else if now >= coupon.ends_at {
            Status::Ended
        } else if coupon.paused {
            Status::Paused
        } else if now < coupon.starts_at {
            Status::Scheduled
        } else if remaining == Some(0) {
            Status::SoldOut
        } else {
            Status::Open
        }
    }

    /// All of them, in the order of a coupon's life.
    pub const ALL: [Status; 6] =
        [Status::Scheduled, Status::Open, Status::Paused, Status::SoldOut, Status::Ended, Status::Archived];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Scheduled => "scheduled",
            Status::Open => "open",
            Status::Paused => "paused",
            Status::SoldOut => "soldOut",
            Status::Ended => "ended",
            Status::Archived => "archived",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupon::{Validity, Zone};

    #[test]
    fn the_window_is_half_open_and_an_operators_word_comes_first() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut coupon = Coupon {
            id: "c".parse().unwrap(),
            name: "n".into(),
            total: 1,
            per_user: 1,
            starts_at: at(10),
            ends_at: at(20),
            discount: None,
            min_order_amount: None,
            validity: Validity::Unlimited,
            time_zone: Zone::UTC,
            paused: false,
            archived: false,
            generation: 1,
            created_at: at(0),
        };
        assert_eq!(Status::of(&coupon, Some(1), at(9)), Status::Scheduled);
        assert_eq!(Status::of(&coupon, Some(1), at(10)), Status::Open);
        assert_eq!(Status::of(&coupon, None, at(10)), Status::Open);
        assert_eq!(Status::of(&coupon, Some(0), at(19)), Status::SoldOut);
        assert_eq!(Status::of(&coupon, Some(0), at(20)), Status::Ended);
        coupon.paused = true;
        assert_eq!(Status::of(&coupon, Some(1), at(15)), Status::Paused);
        coupon.archived = true;
        assert_eq!(Status::of(&coupon, Some(1), at(15)), Status::Archived);
    }
}
