//! The in-flight value of an issuance: enough to decide it, and to build its stream entry again.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::ids::{CouponId, Unit, UserId};

/// A reservation that is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The id of its stream entry.
    pub entry: String,
    /// `None` after a rebuild found its unit taken; a worker finds another.
    pub unit: Option<Unit>,
    /// Its place among all that were accepted in this epoch, from 1.
    pub sequence: u64,
    pub accepted_at: Timestamp,
    /// Which of the user's units of this coupon it probably is, from 1.
    pub nth: u8,
    pub coupon: CouponId,
    pub user: UserId,
}

impl InFlight {
    /// Its text after the entry: the part that its stream entry holds too.
    pub(crate) fn after_entry(&self) -> String {
        let InFlight { unit, sequence, accepted_at, nth, coupon, user, .. } = self;
        let (unit, accepted_at) = (unit.map_or(0, Unit::number), accepted_at.as_millisecond());
        format!("{unit} {sequence} {accepted_at} {nth} {coupon} {user}")
    }

    /// Reads a value of the in-flight hash.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        std::str::from_utf8(value).ok()?.parse().ok()
    }

    /// The stream entry that a value of the in-flight hash, or of the dead letters, begins with. The rest need not be
    /// readable.
    pub(crate) fn entry_named_by(value: &[u8]) -> Option<&str> {
        let end = value.iter().position(|byte| *byte == b' ')?;
        std::str::from_utf8(&value[..end]).ok().filter(|entry| is_entry(entry))
    }

    /// What a value that cannot be read still says of its coupon, its user and its time, so that its issuance can be
    /// rejected. Where it does not name them, it gets the unknown coupon and a pseudonym. Its unit is not believed.
    pub(crate) fn salvaged(entry: &str, value: &[u8]) -> Self {
        let text = String::from_utf8_lossy(value);
        let mut fields = text.split(' ').rev();
        let (user, coupon) = (fields.next(), fields.next());
        let accepted_at = fields.nth(1).and_then(|time| Timestamp::from_millisecond(time.parse().ok()?).ok());
        let whose =
            coupon.zip(user).and_then(|(coupon, user)| coupon.parse().ok().zip(UserId::of_holder(user).ok()));
        let (coupon, user) = whose.unwrap_or_else(|| (CouponId::unknown(), UserId::pseudonym()));
        InFlight {
            entry: entry.to_owned(),
            unit: None,
            sequence: 0,
            accepted_at: accepted_at.unwrap_or_else(crate::mongo::now_in_milliseconds),
            nth: 1,
            coupon,
            user,
        }
    }
}

/// The text that the scripts keep: seven fields with a space between, none of which can hold one.
impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.entry, self.after_entry())
    }
}

impl FromStr for InFlight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = text.split(' ');
        let mut next = |name: &str| fields.next().ok_or_else(|| format!("no {name} in flight"));
        let parsed = InFlight {
            entry: Some(next("entry")?)
                .filter(|entry| is_entry(entry))
                .ok_or("no entry in flight")?
                .to_owned(),
            unit: match next("unit")? {
                "0" => None,
                unit => Some(unit.parse()?),
            },
            sequence: number(next("sequence")?)?,
            accepted_at: Timestamp::from_millisecond(number(next("time")?)?).map_err(|e| e.to_string())?,
            nth: number(next("nth")?)?,
            coupon: next("coupon")?.parse()?,
            user: UserId::of_holder(next("user")?)?,
        };
        match fields.next() {
            None => Ok(parsed),
            Some(_) => Err("too many fields in flight".into()),
        }
    }
}

/// A number as the scripts write and read it: digits, and no zero before them.
fn number<T: FromStr>(text: &str) -> Result<T, String> {
    let wrong = || format!("{text:?} is no number that fits");
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().map_err(|_| wrong()) } else { Err(wrong()) }
}

/// Whether this is the id of a stream entry.
fn is_entry(text: &str) -> bool {
    let is_number = |text: &str| number::<u64>(text).is_ok();
    text.split_once('-').is_some_and(|(ms, sequence)| is_number(ms) && is_number(sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_survives_its_text() {
        let text = "1700000000000-0 17 412 1700000000001 1 summer u1";
        let parsed: InFlight = text.parse().unwrap();
        assert_eq!(parsed.unit, Unit::native(17));
        assert_eq!(parsed.to_string(), text);
        let without: InFlight = "1-0 0 1 1 1 c u".parse().unwrap();
        assert_eq!(without.unit, None);
        assert_eq!(without.to_string(), "1-0 0 1 1 1 c u");
    }

    #[test]
    fn damaged_text_is_refused() {
        for wrong in [
            "",
            "1-0",
            "1-0 x 1 1 1 c u",
            "1-0 1 1 1 1 c u more",
            "1-0 1 1 1 999 c u",
            "1 1 1 1 1 c u",
            "x-0 1 1 1 1 c u",
            "1-0 +1 1 1 1 c u",
            "1-0 01 1 1 1 c u",
            "1-0 1 1 -1 1 c u",
            "1-0 16777216 1 1 1 c u",
            "1-0 4294967296 1 1 1 c u",
        ] {
            assert!(wrong.parse::<InFlight>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_damaged_text_still_says_is_told_and_its_unit_is_not_believed() {
        let held = InFlight::salvaged("2-0", b"1-0 x 5 1700000000001 1 summer u1");
        assert_eq!(held.to_string(), "2-0 0 0 1700000000001 1 summer u1");
        for wrong in [&b""[..], b"nonsense", b"\xff\xfe \xff", b"1-0 1 1 1 1 a/b u"] {
            let held = InFlight::salvaged("2-0", wrong);
            assert!(held.user.is_pseudonym() && held.coupon == CouponId::unknown(), "{held}");
            assert_eq!(held.to_string().parse(), Ok(held));
        }
    }

    #[test]
    fn the_entry_of_a_value_is_told_whatever_follows() {
        assert_eq!(InFlight::entry_named_by(b"1-0 \xff"), Some("1-0"));
        for wrong in [&b"1-0"[..], b"", b"x 1", b"1- 1", b" 1-0"] {
            assert_eq!(InFlight::entry_named_by(wrong), None, "{wrong:?}");
        }
    }
}
