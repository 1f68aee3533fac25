//! A set of serials: a bit each.

/// Serials from 1 to a largest one.
pub(super) struct Serials(Vec<u64>);

impl Serials {
    /// An empty set, with room for serials up to `largest`.
    pub(super) fn up_to(largest: u32) -> Self {
        Serials(vec![0; largest as usize / 64 + 1])
    }

    /// Adds a serial. `false` if it is there already, or there is no room for it.
    pub(super) fn insert(&mut self, serial: u32) -> bool {
        let bit = 1 << (serial % 64);
        match self.0.get_mut(serial as usize / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    pub(super) fn contains(&self, serial: u32) -> bool {
        self.0.get(serial as usize / 64).is_some_and(|word| word & (1 << (serial % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_added_once_and_only_where_there_is_room() {
        let mut serials = Serials::up_to(130);
        for serial in [1, 63, 64, 65, 130] {
            assert!(!serials.contains(serial) && serials.insert(serial) && serials.contains(serial));
            assert!(!serials.insert(serial));
        }
        assert!(!serials.insert(1_000) && !serials.contains(1_000) && !serials.contains(2));
    }
}
