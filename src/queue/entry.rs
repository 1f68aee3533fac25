//! A stream entry: what was accepted, one issuance or all that one call of `reserve.lua` accepted.
//!
//! The name of its first field is its version. Version 2 has one field, whose value is the issuance's id (16
//! bytes) and then what the in-flight hash holds of it after the entry: `unit seq acceptedAtMs nth coupon
//! user`. Version 3 holds many: its first field has no value, and each other field is an issuance's, the id its
//! name and the rest its value. An entry of many is settled as a whole, or taken apart into entries of one
//! (`split.lua`); a dead letter is an entry of one. One entry for many costs Redis a third less for each.

use jiff::Timestamp;

use crate::ids::{CouponId, IssuanceId, Unit, UserId};
use crate::issuance::InFlight;

/// The version of an entry of one issuance.
pub const VERSION_OF_ONE: &str = "2";
/// The version of an entry of many.
pub const VERSION_OF_MANY: &str = "3";
/// Bytes of an id.
const ID_LENGTH: usize = 16;

/// One accepted issuance, as the worker gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The id of its entry in the stream.
    pub entry: String,
    /// How many issuances that entry holds.
    pub of: usize,
    pub id: IssuanceId,
    pub coupon: CouponId,
    pub user: UserId,
    /// That of the reservation: the in-flight hash owns it and may have another by now.
    pub unit: Option<Unit>,
    pub nth: u8,
    pub accepted_at: Timestamp,
}

/// An entry that this program cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableEntry {
    pub entry: String,
    pub why: String,
}

/// The fields of an entry as Redis has them, names and values, which need not be text.
pub(crate) type RawFields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry as Redis has it: its id, and its fields; `None` if it was deleted since it was delivered.
pub(crate) type RawEntry = (String, Option<RawFields>);

impl Entry {
    /// Its in-flight value at the time of the reservation, without the sequence number.
    pub(crate) fn in_flight(&self) -> InFlight {
        let Entry { entry, coupon, user, unit, nth, accepted_at, .. } = self.clone();
        InFlight { entry, unit, sequence: 0, accepted_at, nth, coupon, user }
    }
}

/// Reads the fields of a stream entry: its issuances, and what of it cannot be read.
pub fn decode(entry: &str, fields: &RawFields) -> Vec<Result<Entry, UnreadableEntry>> {
    let found = in_flight(entry, fields);
    let of = found.len();
    let decoded = found.into_iter().map(|one| match one {
        Ok((id, InFlight { entry, unit, accepted_at, nth, coupon, user, .. })) => {
            Ok(Entry { entry, of, id, coupon, user, unit, nth, accepted_at })
        }
        Err(why) => Err(UnreadableEntry { entry: entry.to_owned(), why }),
    });
    decoded.collect()
}

/// Reads what the fields of a stream entry say of each of its issuances.
pub(crate) fn in_flight(entry: &str, fields: &RawFields) -> Vec<Result<(IssuanceId, InFlight), String>> {
    match fields.as_slice() {
        [(version, _), many @ ..] if version == VERSION_OF_MANY.as_bytes() && !many.is_empty() => {
            many.iter().map(|(id, text)| issuance(entry, id, text)).collect()
        }
        [(version, value)] if version == VERSION_OF_ONE.as_bytes() => {
            let one = value.split_at_checked(ID_LENGTH).ok_or_else(|| "it is too short".to_owned());
            vec![one.and_then(|(id, text)| issuance(entry, id, text))]
        }
        _ => {
            let found: Vec<_> = fields.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
            vec![Err(format!(
                "its fields are {found:?}, and this program reads versions {VERSION_OF_ONE} and {VERSION_OF_MANY}"
            ))]
        }
    }
}

fn issuance(entry: &str, id: &[u8], text: &[u8]) -> Result<(IssuanceId, InFlight), String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text after its id")?;
    let id = IssuanceId::from_bytes(id);
    Ok((id.ok_or("its id is no issuance id")?, format!("{entry} {text}").parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;

    fn field(name: &[u8], value: &[u8]) -> RawFields {
        vec![(name.to_vec(), value.to_vec())]
    }

    fn fields(text: &str) -> RawFields {
        let id = IssuanceId::generate(PartitionId::ONE);
        field(VERSION_OF_ONE.as_bytes(), &[id.as_bytes().as_slice(), text.as_bytes()].concat())
    }

    fn decode_one(fields: &RawFields) -> Result<Entry, UnreadableEntry> {
        let [one] = <[_; 1]>::try_from(decode("1-0", fields)).unwrap();
        one
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let entry = decode_one(&fields("17 412 1700000000001 1 summer u1")).unwrap();
        assert_eq!((entry.entry.as_str(), entry.unit, entry.nth), ("1-0", Unit::native(17), 1));
        assert_eq!((entry.coupon.as_str(), entry.user.as_str()), ("summer", "u1"));
        assert_eq!(entry.of, 1);
        assert_eq!(decode_one(&fields("0 1 1 1 c u")).unwrap().unit, None);
    }

    #[test]
    fn of_an_entry_of_many_one_that_is_damaged_harms_no_other() {
        let ids: Vec<_> = (0..3).map(|_| IssuanceId::generate(PartitionId::ONE)).collect();
        let texts = ["1 1 5 1 c u1", "nonsense", "3 3 5 2 d u3"];
        let mut fields = field(VERSION_OF_MANY.as_bytes(), b"");
        fields.extend(ids.iter().zip(texts).map(|(id, text)| (id.as_bytes().to_vec(), text.into())));
        let decoded = decode("7-1", &fields);
        let [Ok(first), Err(second), Ok(third)] = decoded.as_slice() else { panic!("{decoded:?}") };
        assert_eq!((first.id, first.of, first.entry.as_str()), (ids[0], 3, "7-1"));
        assert_eq!((third.id, third.of, third.nth, third.user.as_str()), (ids[2], 3, 2, "u3"));
        assert_eq!(second.entry, "7-1");
        assert!(decode_one(&field(VERSION_OF_MANY.as_bytes(), b"")).is_err(), "it holds none");
    }

    #[test]
    fn an_entry_of_another_version_or_with_damage_says_what_is_wrong() {
        for text in
            ["", "17", "x 1 1 1 c u", "1 1 1 300 c u", "1 1 1 1 a/b u", "1 1 1 1 c u more", "1 1 x 1 c u"]
        {
            let wrong = decode_one(&fields(text)).unwrap_err();
            assert!(!wrong.why.is_empty(), "{text}");
        }
        let (short, older) = (field(VERSION_OF_ONE.as_bytes(), &[7; 15]), field(b"v", b"1"));
        let (no_text, no_name) = (field(VERSION_OF_ONE.as_bytes(), &[0xff; 30]), field(&[0xff], b"1"));
        for fields in [RawFields::new(), short, older, no_text, no_name] {
            assert!(decode_one(&fields).is_err());
        }
    }
}
