use std::fmt;
use std::str::FromStr;

/// Serials are below this.
const SERIALS: u32 = 1 << 24;

/// A unit of a coupon as one partition knows it: its serial, from 1, and how often it was moved from one share of the coupon
/// to another, its hop. Each move adds a hop, so a unit lies in one partition, ever: a number that the partition it
/// left could still hand out is another one. A coupon in one share has units of hop 0 alone, whose numbers are
/// their serials.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit(u32);

impl Unit {
    /// The unit with this number: the serial, and from bit 24 on the hop. `None` if it has no serial.
    pub fn new(number: u32) -> Option<Self> {
        (!number.is_multiple_of(SERIALS)).then_some(Unit(number))
    }

    /// The unit of a serial that was never moved; `None` if there is no such serial.
    pub fn native(serial: u32) -> Option<Self> {
        Self::new(serial).filter(|unit| unit.hop() == 0)
    }

    /// The number that Redis and the ledger have for it.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The serial, the same for ever.
    pub fn serial(self) -> u32 {
        self.0 % SERIALS
    }

    /// How often it was moved.
    pub fn hop(self) -> u32 {
        self.0 / SERIALS
    }

    /// What it is in the partition that it is moved to; `None` if it was moved as often as there are numbers for.
    pub fn moved(self) -> Option<Self> {
        self.0.checked_add(SERIALS).map(Unit)
    }

    /// What it was in the partition that it was moved from; `None` if it was never moved.
    pub fn before_move(self) -> Option<Self> {
        self.0.checked_sub(SERIALS).map(Unit)
    }
}

/// Its number, without a sign or zeros before it.
impl FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = text.parse().ok().and_then(Unit::new).filter(|unit| unit.0.to_string() == text);
        unit.ok_or_else(|| format!("{text:?} is no unit"))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.serial(), self.hop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_adds_a_hop_and_keeps_the_serial_as_long_as_there_are_numbers() {
        let unit = Unit::native(7).unwrap();
        let moved = unit.moved().unwrap();
        assert_eq!((moved.serial(), moved.hop(), moved.number()), (7, 1, (1 << 24) + 7));
        assert_eq!((moved.before_move(), unit.before_move()), (Some(unit), None));
        let last = Unit::new((255 << 24) + 7).unwrap();
        assert_eq!((last.hop(), last.moved()), (255, None));
    }

    #[test]
    fn a_number_without_a_serial_and_other_spellings_are_no_unit() {
        for text in ["7", "16777223", "4294967295"] {
            assert_eq!(text.parse::<Unit>().unwrap().to_string(), text);
        }
        for wrong in ["", "0", "16777216", "4294967296", "+7", "07", "-7", "7 ", "x"] {
            assert!(wrong.parse::<Unit>().is_err(), "{wrong:?}");
        }
        assert_eq!(Unit::native(1 << 24), None);
        assert_eq!(Unit::native((1 << 24) + 1), None);
    }
}
