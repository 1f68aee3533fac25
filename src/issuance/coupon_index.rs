//! The coupons of a batch, as the scripts get them: each once in KEYS, and by its number in ARGV.

use std::collections::HashMap;

use crate::ids::CouponId;
use crate::redis::Call;
use crate::redis::keys::EpochKeys;

/// Coupons and their numbers; 1 is the first.
#[derive(Default)]
pub(super) struct CouponIndex<'a> {
    coupons: Vec<&'a CouponId>,
    numbers: HashMap<&'a CouponId, usize>,
}

impl<'a> CouponIndex<'a> {
    /// Numbers coupons in the order of their first appearance.
    pub(super) fn new(all: impl Iterator<Item = &'a CouponId>) -> Self {
        let mut numbered = CouponIndex::default();
        for coupon in all {
            numbered.add(coupon);
        }
        numbered
    }

    /// The same, with the places of each coupon among `all`, coupon by coupon.
    pub(super) fn grouped(all: impl Iterator<Item = &'a CouponId>) -> (Self, Vec<Vec<usize>>) {
        let (mut numbered, mut groups) = (CouponIndex::default(), Vec::<Vec<usize>>::new());
        for (place, coupon) in all.enumerate() {
            let number = numbered.add(coupon);
            groups.resize_with(numbered.coupons.len(), Vec::new);
            groups[number - 1].push(place);
        }
        (numbered, groups)
    }

    /// The number of a coupon, a new one if it has none.
    fn add(&mut self, coupon: &'a CouponId) -> usize {
        *self.numbers.entry(coupon).or_insert_with(|| {
            self.coupons.push(coupon);
            self.coupons.len()
        })
    }

    /// Adds the keys of the queue, stream, in flight, dead, counters; then of each coupon: coupon, holders, free.
    pub(super) fn add_queue_and_coupons(&self, keys: &EpochKeys, call: &mut Call) {
        call.key(keys.stream()).key(keys.in_flight()).key(keys.dead()).key(keys.counters());
        for coupon in &self.coupons {
            call.key(keys.coupon(coupon)).key(keys.holders(coupon)).key(keys.free(coupon));
        }
    }

    /// The number of a coupon that was numbered.
    pub(super) fn number(&self, coupon: &CouponId) -> usize {
        self.numbers[coupon]
    }
}
