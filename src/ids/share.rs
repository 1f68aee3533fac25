use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{CouponId, PartitionId, Unit, UserId};

/// Where the units of a coupon lie: in one partition, or in several, each of which has a share of them. It is fixed
/// when the coupon is created. Cheap to clone, and small, for every request in hand has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares(Arc<Vec<PartitionId>>);

/// A coupon has this many shares at most.
pub const SHARES_MAX: usize = 64;

/// With fewer units in each of several shares, these only thin the batches in which units are handed out.
pub(crate) const SHARE_UNITS_MIN: u32 = 500;

/// Whether a coupon of `total` units has more shares than these are good for.
pub(crate) fn are_thin(shares: u32, total: u32) -> bool {
    shares > 1 && total / shares < SHARE_UNITS_MIN
}

impl Shares {
    /// A share in each of these partitions, in this order; `None` unless there is at least one, at most
    /// [`SHARES_MAX`], and each once.
    pub fn new(partitions: Vec<PartitionId>) -> Option<Self> {
        let is_once = |(place, partition)| !partitions[..place].contains(partition);
        let fits = (1..=SHARES_MAX).contains(&partitions.len()) && partitions.iter().enumerate().all(is_once);
        fits.then(|| Shares(Arc::new(partitions)))
    }

    /// All units in one partition.
    pub fn one(partition: PartitionId) -> Self {
        Shares(Arc::new(vec![partition]))
    }

    /// The partition of each share.
    pub fn partitions(&self) -> &[PartitionId] {
        &self.0
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// The partition that serves a user, always the same: all that a user holds of the coupon, and has in flight, lies
    /// there. By the first eight bytes of SHA-256 of the coupon, a zero byte and the user.
    pub fn route(&self, coupon: &CouponId, user: &UserId) -> PartitionId {
        if let [one] = self.0[..] {
            return one;
        }
        let hash = Sha256::new().chain_update(coupon.as_str()).chain_update([0]).chain_update(user.as_str());
        let hash = hash.finalize();
        let number = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        self.0[(number % self.0.len() as u64) as usize]
    }

    /// The share that a partition has; `None` if it has none.
    pub fn of(&self, partition: PartitionId) -> Option<Share> {
        let place = self.0.iter().position(|other| *other == partition)?;
        Some(Share { count: self.count(), place: place as u32 })
    }
}

/// One share of a coupon: every serial is born in one, in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    count: u32,
    place: u32,
}

impl Share {
    /// The share of a coupon that has no other.
    pub const WHOLE: Share = Share { count: 1, place: 0 };

    /// How many shares the coupon has.
    pub fn count(self) -> u32 {
        self.count
    }

    /// The lowest serial that is born here.
    pub fn first(self) -> u32 {
        self.place + 1
    }

    /// Whether a unit was never moved, and is born here.
    pub fn bears(self, unit: Unit) -> bool {
        unit.hop() == 0 && (unit.serial() - 1) % self.count == self.place
    }

    /// How many serials up to `total` are born here.
    pub fn births(self, total: u32) -> u32 {
        (total + self.count - 1).saturating_sub(self.place) / self.count
    }

    /// The serial that is born here after `before` others, from 0.
    pub fn born(self, before: u32) -> u32 {
        before * self.count + self.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(numbers: &[u16]) -> Option<Shares> {
        Shares::new(numbers.iter().map(|number| PartitionId::new(*number).unwrap()).collect())
    }

    #[test]
    fn every_serial_is_born_in_one_share() {
        for (count, total) in [(1, 5), (2, 0), (2, 1), (3, 10), (6, 5), (6, 6)] {
            let numbers: Vec<u16> = (1..=count).collect();
            let all = shares(&numbers).unwrap();
            let mut born: Vec<u32> = Vec::new();
            for partition in all.partitions() {
                let share = all.of(*partition).unwrap();
                let here: Vec<u32> = (0..share.births(total)).map(|before| share.born(before)).collect();
                assert!(here.iter().all(|serial| share.bears(Unit::native(*serial).unwrap())), "{here:?}");
                born.extend(here);
            }
            born.sort_unstable();
            assert_eq!(born, (1..=total).collect::<Vec<_>>(), "{total} over {count}");
        }
    }

    #[test]
    fn a_unit_that_was_moved_is_born_nowhere() {
        let moved = Unit::native(1).unwrap().moved().unwrap();
        assert!(!Share::WHOLE.bears(moved));
    }

    #[test]
    fn a_user_is_always_served_by_the_same_share_and_users_are_spread_over_all() {
        let (all, coupon) = (shares(&[3, 9, 5]).unwrap(), "summer".parse().unwrap());
        let mut served = [0; 3];
        for number in 0..3_000 {
            let user: UserId = format!("u{number}").parse().unwrap();
            let partition = all.route(&coupon, &user);
            assert_eq!(partition, all.route(&coupon, &user));
            served[all.partitions().iter().position(|other| *other == partition).unwrap()] += 1;
        }
        assert!(served.iter().all(|users| (900..1_100).contains(users)), "{served:?}");
        // printf 'summer\0u2' | sha256sum: the route of a coupon must never change.
        assert_eq!(all.route(&coupon, &"u2".parse().unwrap()).number(), 5);
        assert_eq!(Shares::one(PartitionId::ONE).route(&coupon, &"u2".parse().unwrap()), PartitionId::ONE);
    }

    #[test]
    fn shares_of_few_units_are_thin() {
        assert!(are_thin(2, 999) && are_thin(64, 31_999));
        assert!(!are_thin(2, 1_000) && !are_thin(64, 32_000));
        assert!(!are_thin(1, 1), "there is nothing to divide");
    }

    #[test]
    fn shares_lie_in_partitions_of_their_own() {
        assert!(shares(&[]).is_none() && shares(&[1, 2, 1]).is_none());
        assert!(shares(&(0..=64).collect::<Vec<_>>()).is_none());
        assert!(shares(&(1..=64).collect::<Vec<_>>()).is_some());
    }
}
