//! A set of a coupon's serials: a bit for each.

/// Serials from 1 to a largest one. Ten million of them take 1.25 MB.
pub(crate) struct SerialSet {
    words: Vec<u64>,
    largest: u32,
}

impl SerialSet {
    /// An empty set of serials from 1 to `largest`.
    pub(crate) fn up_to(largest: u32) -> Self {
        SerialSet { words: vec![0; largest as usize / 64 + 1], largest }
    }

    /// Adds a serial. Returns `false` if the set has it already, or no room for it.
    pub(crate) fn insert(&mut self, serial: u32) -> bool {
        let is_new = (1..=self.largest).contains(&serial) && !self.contains(serial);
        if is_new {
            self.words[serial as usize / 64] |= 1 << (serial % 64);
        }
        is_new
    }

    /// Adds the lowest serial that the set does not have, if there is any.
    pub(crate) fn insert_lowest_missing(&mut self) {
        if let Some(serial) = (1..=self.largest).find(|serial| !self.contains(*serial)) {
            self.insert(serial);
        }
    }

    pub(crate) fn contains(&self, serial: u32) -> bool {
        self.words.get(serial as usize / 64).is_some_and(|word| word & (1 << (serial % 64)) != 0)
    }

    /// The highest serial in the set; 0 if it is empty.
    pub(crate) fn highest(&self) -> u32 {
        (1..=self.largest).rev().find(|serial| self.contains(*serial)).unwrap_or(0)
    }

    /// The serials below the highest one that the set does not have.
    pub(crate) fn missing_below_highest(&self) -> impl Iterator<Item = u32> {
        (1..self.highest()).filter(|serial| !self.contains(*serial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_added_once_and_only_where_there_is_room() {
        let mut serials = SerialSet::up_to(130);
        for serial in [1, 63, 64, 65, 130] {
            assert!(!serials.contains(serial) && serials.insert(serial) && serials.contains(serial));
            assert!(!serials.insert(serial));
        }
        for none in [0, 131, 1_000] {
            assert!(!serials.insert(none) && !serials.contains(none));
        }
        assert!(!serials.contains(2));
    }

    #[test]
    fn serials_below_the_highest_are_missing_until_they_are_added() {
        let mut serials = SerialSet::up_to(10);
        assert_eq!((serials.highest(), serials.missing_below_highest().count()), (0, 0));
        assert!(serials.insert(2) && serials.insert(5));
        assert_eq!(
            (serials.highest(), serials.missing_below_highest().collect::<Vec<_>>()),
            (5, vec![1, 3, 4])
        );
    }

    #[test]
    fn the_lowest_missing_serial_is_added_and_none_to_a_full_set() {
        let mut serials = SerialSet::up_to(3);
        serials.insert(1);
        serials.insert_lowest_missing();
        assert!(!serials.insert(2));
        serials.insert_lowest_missing();
        serials.insert_lowest_missing();
        assert_eq!((serials.highest(), serials.missing_below_highest().count()), (3, 0));
    }
}
