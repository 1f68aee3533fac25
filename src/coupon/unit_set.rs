//! A set of units of one share of a coupon: a bit for each that is born there, and those that were moved there.

use std::collections::HashMap;

use crate::ids::{Share, Unit};

/// Units of one share. Ten million that are born in it take 1.25 MB.
pub(crate) struct UnitSet {
    share: Share,
    words: Vec<u64>,
    /// How many units can be born in the share.
    births: u32,
    /// The units that were moved there, and whether the set has them.
    arrived: HashMap<Unit, bool>,
}

impl UnitSet {
    /// An empty set, for the units that are born in a share up to a total.
    pub(crate) fn of(share: Share, total: u32) -> Self {
        let births = share.births(total);
        UnitSet { share, words: vec![0; births as usize / 64 + 1], births, arrived: HashMap::new() }
    }

    /// Makes room for a unit that was moved to the share.
    pub(crate) fn arrive(&mut self, unit: Unit) {
        self.arrived.entry(unit).or_default();
    }

    /// The units that were moved to the share.
    pub(crate) fn arrived(&self) -> impl ExactSizeIterator<Item = Unit> {
        self.arrived.keys().copied()
    }

    /// Whether a unit can be in the set.
    pub(crate) fn has_room_for(&self, unit: Unit) -> bool {
        self.place(unit).is_some() || self.arrived.contains_key(&unit)
    }

    /// How many others are born in the share before this unit; `None` if it is not, or beyond the total.
    fn place(&self, unit: Unit) -> Option<u32> {
        let before = (unit.serial() - 1) / self.share.count();
        (self.share.bears(unit) && before < self.births).then_some(before)
    }

    /// Adds a unit. Returns `false` if the set has it already, or no room for it.
    pub(crate) fn insert(&mut self, unit: Unit) -> bool {
        match (self.place(unit), self.arrived.get_mut(&unit)) {
            (Some(place), _) => {
                let (word, bit) = (&mut self.words[place as usize / 64], 1 << (place % 64));
                let is_new = *word & bit == 0;
                *word |= bit;
                is_new
            }
            (None, Some(is_in)) => !std::mem::replace(is_in, true),
            (None, None) => false,
        }
    }

    /// Adds the lowest of the units that are born in the share and that the set does not have, if there is any.
    pub(crate) fn insert_lowest_missing(&mut self) {
        if let Some(place) = (0..self.births).find(|place| !self.has(*place)) {
            self.words[place as usize / 64] |= 1 << (place % 64);
        }
    }

    pub(crate) fn contains(&self, unit: Unit) -> bool {
        match self.place(unit) {
            Some(place) => self.has(place),
            None => self.arrived.get(&unit).copied().unwrap_or(false),
        }
    }

    fn has(&self, place: u32) -> bool {
        self.words[place as usize / 64] & (1 << (place % 64)) != 0
    }

    /// How many are born in the share up to the last of them that the set has.
    fn born(&self) -> u32 {
        (0..self.births).rev().find(|place| self.has(*place)).map_or(0, |last| last + 1)
    }

    /// The units that are born in the share below a serial.
    pub(crate) fn born_below(&self, end: u32) -> impl Iterator<Item = Unit> {
        let share = self.share;
        (0..self.births)
            .map(move |before| share.born(before))
            .take_while(move |serial| *serial < end)
            .filter_map(Unit::native)
    }

    /// The lowest serial that is born in the share after all that the set has.
    pub(crate) fn next(&self) -> u32 {
        self.share.born(self.born())
    }

    /// The units that the set has room for and does not have, but for those that are born at or after [`Self::next`].
    pub(crate) fn missing(&self) -> impl Iterator<Item = Unit> {
        let born = (0..self.born()).filter(|place| !self.has(*place));
        let born = born.filter_map(|place| Unit::native(self.share.born(place)));
        born.chain(self.arrived.iter().filter(|(_, is_in)| !**is_in).map(|(unit, _)| *unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionId, Shares};

    fn unit(serial: u32) -> Unit {
        Unit::native(serial).unwrap()
    }

    fn missing(set: &UnitSet) -> Vec<u32> {
        set.missing().map(Unit::number).collect()
    }

    /// The second of three shares: 2, 5, 8, …
    fn second_of_three() -> Share {
        let partitions: Vec<_> = (1..=3).filter_map(PartitionId::new).collect();
        Shares::new(partitions.clone()).unwrap().of(partitions[1]).unwrap()
    }

    #[test]
    fn a_unit_is_added_once_and_only_where_there_is_room() {
        let mut set = UnitSet::of(Share::WHOLE, 130);
        for unit in [1, 63, 64, 65, 130].map(unit) {
            assert!(!set.contains(unit) && set.insert(unit) && set.contains(unit));
            assert!(!set.insert(unit));
        }
        for none in [unit(131), unit(1_000), unit(2).moved().unwrap()] {
            assert!(!set.insert(none) && !set.contains(none));
        }
        assert!(!set.contains(unit(2)));
    }

    #[test]
    fn a_share_has_room_for_its_own_and_for_what_was_moved_there() {
        let mut set = UnitSet::of(second_of_three(), 8);
        assert_eq!(set.next(), 2);
        for other in [1, 3, 4, 6, 11] {
            assert!(!set.insert(unit(other)), "{other}");
        }
        let arrived = unit(4).moved().unwrap();
        assert!(!set.insert(arrived));
        set.arrive(arrived);
        set.arrive(arrived);
        assert!(set.insert(unit(5)));
        assert_eq!((set.next(), missing(&set), set.arrived().len()), (8, vec![2, arrived.number()], 1));
        assert!(set.insert(arrived) && !set.insert(arrived) && set.insert(unit(8)));
        assert_eq!((set.next(), missing(&set)), (11, vec![2]));
    }

    #[test]
    fn units_below_the_next_one_are_missing_until_they_are_added() {
        let mut set = UnitSet::of(Share::WHOLE, 10);
        assert_eq!((set.next(), missing(&set)), (1, vec![]));
        assert!(set.insert(unit(2)) && set.insert(unit(5)));
        assert_eq!((set.next(), missing(&set)), (6, vec![1, 3, 4]));
    }

    #[test]
    fn the_lowest_missing_unit_is_added_and_none_to_a_full_set() {
        let mut set = UnitSet::of(Share::WHOLE, 3);
        set.insert(unit(1));
        set.insert_lowest_missing();
        assert!(!set.insert(unit(2)));
        set.insert_lowest_missing();
        set.insert_lowest_missing();
        assert_eq!((set.next(), missing(&set)), (4, vec![]));
    }
}
