//! Which units of a coupon are taken, and so which are free.

/// Which units are taken.
pub(super) struct Units {
    taken: Vec<bool>,
    highest: u32,
}

impl Units {
    pub(super) fn new(total: u32) -> Self {
        Units { taken: vec![false; total as usize + 1], highest: 0 }
    }

    /// Takes a unit, if there is one of this number and it is free.
    pub(super) fn take(&mut self, serial: u32) -> bool {
        match self.taken.get_mut(serial as usize) {
            Some(taken) if serial > 0 && !*taken => {
                *taken = true;
                self.highest = self.highest.max(serial);
                true
            }
            _ => false,
        }
    }

    /// Takes the lowest unit that is free, if there is any.
    pub(super) fn take_any(&mut self) {
        let free = (1..).zip(&self.taken[1..]).find(|(_, taken)| !**taken);
        if let Some((serial, _)) = free {
            self.take(serial);
        }
    }

    /// The serial to take next, and the free ones below it.
    pub(super) fn rest(&self) -> (u32, impl Iterator<Item = u32>) {
        (self.highest + 1, (1..=self.highest).filter(|serial| !self.taken[*serial as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_below_the_highest_taken_one_are_free_and_the_next_follows_it() {
        let mut units = Units::new(10);
        assert!(units.take(2) && units.take(5));
        assert!(!units.take(5) && !units.take(0) && !units.take(11));
        let (next, free) = units.rest();
        assert_eq!(next, 6);
        assert_eq!(free.collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn any_unit_is_the_lowest_that_is_free_and_none_where_all_are_taken() {
        let mut units = Units::new(3);
        units.take(1);
        units.take_any();
        assert!(!units.take(2));
        units.take_any();
        units.take_any();
        let (next, free) = units.rest();
        assert_eq!((next, free.count()), (4, 0));
    }
}
