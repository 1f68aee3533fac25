//! The coupons of a batch, as the scripts get them: each once, in KEYS, and by its number in ARGV.

use std::collections::HashMap;

use crate::coupon::CouponId;
use crate::keys::EpochKeys;
use crate::partition::Call;

/// Coupons and their numbers; 1 is the first.
pub(super) struct Numbered<'a> {
    coupons: Vec<&'a CouponId>,
    numbers: HashMap<&'a CouponId, usize>,
}

impl<'a> Numbered<'a> {
    /// Numbers coupons in the order of their first appearance.
    pub(super) fn new(all: impl Iterator<Item = &'a CouponId>) -> Self {
        let (mut coupons, mut numbers) = (Vec::new(), HashMap::new());
        for coupon in all {
            numbers.entry(coupon).or_insert_with(|| {
                coupons.push(coupon);
                coupons.len()
            });
        }
        Numbered { coupons, numbers }
    }

    /// Adds the keys of the queue and of each coupon: stream, in flight, dead, counters; then coupon,
    /// holders, free.
    pub(super) fn add_keys(&self, keys: &EpochKeys, call: &mut Call) {
        call.key(keys.stream()).key(keys.in_flight()).key(keys.dead()).key(keys.counters());
        for coupon in &self.coupons {
            call.key(keys.coupon(coupon)).key(keys.holders(coupon)).key(keys.free(coupon));
        }
    }

    /// Numbers and counts: which of `all` belong to each coupon, in the order of the coupons.
    pub(super) fn grouped(&self, all: impl Iterator<Item = &'a CouponId>) -> Vec<Vec<usize>> {
        let mut groups = vec![Vec::new(); self.coupons.len()];
        for (place, coupon) in all.enumerate() {
            groups[self.number(coupon) - 1].push(place);
        }
        groups
    }

    /// The number of a coupon that was numbered.
    pub(super) fn number(&self, coupon: &CouponId) -> usize {
        self.numbers[coupon]
    }
}
