//! Coupons whose entries cannot be decided before an operator repairs a record: each waits alone, with growing
//! pauses, and the worker leaves its entries pending meanwhile. The sweep brings them back.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::CouponId;
use parking_lot::Mutex;

const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(15);
/// Coupons that wait at most. The worker tries others each time.
const PARKED_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct ParkedCoupons(Mutex<HashMap<CouponId, ParkedCoupon>>);

struct ParkedCoupon {
    until: Instant,
    length: Duration,
}

impl ParkedCoupons {
    fn with<T>(&self, use_them: impl FnOnce(&mut HashMap<CouponId, ParkedCoupon>) -> T) -> T {
        use_them(&mut self.0.lock())
    }

    pub(super) fn has(&self, coupon: &CouponId) -> bool {
        self.with(|parked| parked.get(coupon).is_some_and(|pause| pause.until > Instant::now()))
    }

    /// Lets a coupon wait. Returns for how long; `None` if it waits already.
    pub(super) fn park(&self, coupon: &CouponId) -> Option<Duration> {
        let now = Instant::now();
        self.with(|parked| {
            let length = match parked.get(coupon) {
                Some(pause) if pause.until > now => return None,
                Some(pause) => (pause.length * 2).min(PAUSE_LONGEST),
                None if parked.len() >= PARKED_MAX => return None,
                None => PAUSE_FIRST,
            };
            parked.insert(coupon.clone(), ParkedCoupon { until: now + length, length });
            Some(length)
        })
    }

    /// Lets coupons wait no longer, because entries of them were decided.
    pub(super) fn release<'a>(&self, coupons: impl Iterator<Item = &'a CouponId>) {
        self.with(|parked| {
            if !parked.is_empty() {
                for coupon in coupons {
                    parked.remove(coupon);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coupon_waits_alone_and_longer_each_time_until_it_is_decided() {
        let parked = ParkedCoupons::default();
        let (bad, good): (CouponId, CouponId) = ("bad".parse().unwrap(), "good".parse().unwrap());
        assert_eq!(parked.park(&bad), Some(PAUSE_FIRST));
        assert_eq!(parked.park(&bad), None, "it waits already");
        assert!(parked.has(&bad) && !parked.has(&good));
        let mut lengths = Vec::new();
        for _ in 0..5 {
            parked.with(|parked| parked.get_mut(&bad).unwrap().until = Instant::now());
            lengths.push(parked.park(&bad).unwrap().as_secs());
        }
        assert_eq!(lengths, [2, 4, 8, 15, 15]);
        parked.release([&bad, &good].into_iter());
        assert!(!parked.has(&bad));
        assert_eq!(parked.park(&bad), Some(PAUSE_FIRST));
    }
}
