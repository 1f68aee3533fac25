//! What the in-flight hash holds of an issuance: enough to decide it, and to build its stream entry
//! again.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::coupon::CouponId;
use crate::user::UserId;

/// A reservation that is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The id of its stream entry.
    pub entry: String,
    /// Its unit. `None` after a rebuild found the unit taken; a worker finds another.
    pub serial: Option<u32>,
    /// Its place among all that were accepted in this epoch, from 1.
    pub sequence: u64,
    pub accepted_at: Timestamp,
    /// Which of the user's units of this coupon it probably is, from 1.
    pub nth: u8,
    pub coupon: CouponId,
    pub user: UserId,
}

impl InFlight {
    /// What its text is after the entry: the part that its stream entry holds too.
    pub fn after_entry(&self) -> String {
        let InFlight { serial, sequence, accepted_at, nth, coupon, user, .. } = self;
        let (serial, accepted_at) = (serial.unwrap_or(0), accepted_at.as_millisecond());
        format!("{serial} {sequence} {accepted_at} {nth} {coupon} {user}")
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
            entry: next("entry")?.to_owned(),
            serial: Some(number(next("serial")?)?).filter(|serial| *serial > 0),
            sequence: number(next("sequence")?)?,
            accepted_at: Timestamp::from_millisecond(number(next("time")?)?).map_err(|e| e.to_string())?,
            nth: number(next("nth")?)?,
            coupon: next("coupon")?.parse()?,
            user: next("user")?.parse()?,
        };
        match fields.next() {
            None => Ok(parsed),
            Some(_) => Err("too many fields in flight".into()),
        }
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number that fits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_survives_its_text() {
        let text = "1700000000000-0 17 412 1700000000001 1 summer u1";
        let parsed: InFlight = text.parse().unwrap();
        assert_eq!(parsed.serial, Some(17));
        assert_eq!(parsed.to_string(), text);
        let without: InFlight = "1-0 0 1 1 1 c u".parse().unwrap();
        assert_eq!(without.serial, None);
        assert_eq!(without.to_string(), "1-0 0 1 1 1 c u");
    }

    #[test]
    fn damaged_text_is_refused() {
        for wrong in ["", "1-0", "1-0 x 1 1 1 c u", "1-0 1 1 1 1 c u more", "1-0 1 1 1 999 c u"] {
            assert!(wrong.parse::<InFlight>().is_err(), "{wrong:?}");
        }
    }
}
