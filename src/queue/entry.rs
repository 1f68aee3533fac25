//! A stream entry, version 2: one field, whose name is the version. Its value is the issuance's id (16
//! bytes), and then what the in-flight hash holds of it after the entry: `serial seq acceptedAtMs nth
//! coupon user`. One field, because each more costs Redis time for every request.

use jiff::Timestamp;

use crate::ids::{CouponId, IssuanceId, UserId};
use crate::issuance::InFlight;

/// The version that this program writes and reads.
pub const VERSION: &str = "2";
/// Bytes of an id.
const ID_LENGTH: usize = 16;

/// One accepted issuance, as the worker gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The entry's id in the stream.
    pub entry: String,
    pub id: IssuanceId,
    pub coupon: CouponId,
    pub user: UserId,
    /// The unit at the time of the reservation: the in-flight hash owns it and may have another by now.
    pub serial: Option<u32>,
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
pub type RawFields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry as Redis has it: its id, and its fields; `None` if it was deleted since it was delivered.
pub(crate) type RawEntry = (String, Option<RawFields>);

impl Entry {
    /// Its in-flight value at the time of the reservation, without the sequence number.
    pub(crate) fn in_flight(&self) -> InFlight {
        let Entry { entry, coupon, user, serial, nth, accepted_at, .. } = self.clone();
        InFlight { entry, serial, sequence: 0, accepted_at, nth, coupon, user }
    }
}

/// Reads the fields of a stream entry.
///
/// # Errors
///
/// What is wrong with them, if this version cannot read them.
pub fn decode(entry: String, fields: &RawFields) -> Result<Entry, UnreadableEntry> {
    match in_flight(&entry, fields) {
        Ok((id, held)) => Ok(Entry {
            entry: held.entry,
            id,
            coupon: held.coupon,
            user: held.user,
            serial: held.serial,
            nth: held.nth,
            accepted_at: held.accepted_at,
        }),
        Err(why) => Err(UnreadableEntry { entry, why }),
    }
}

/// Reads what the fields of a stream entry say of their issuance.
pub(crate) fn in_flight(entry: &str, fields: &RawFields) -> Result<(IssuanceId, InFlight), String> {
    let Some((_, value)) = fields.iter().find(|(name, _)| name == VERSION.as_bytes()) else {
        let found: Vec<_> = fields.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
        return Err(format!("its fields are {found:?}, and this program reads version {VERSION:?}"));
    };
    let (id, text) = value.split_at_checked(ID_LENGTH).ok_or("it is too short")?;
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
        field(VERSION.as_bytes(), &[id.as_bytes().as_slice(), text.as_bytes()].concat())
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let entry = decode("1-0".into(), &fields("17 412 1700000000001 1 summer u1")).unwrap();
        assert_eq!((entry.entry.as_str(), entry.serial, entry.nth), ("1-0", Some(17), 1));
        assert_eq!((entry.coupon.as_str(), entry.user.as_str()), ("summer", "u1"));
        assert_eq!(decode("1-0".into(), &fields("0 1 1 1 c u")).unwrap().serial, None);
    }

    #[test]
    fn an_entry_of_another_version_or_with_damage_says_what_is_wrong() {
        for text in
            ["", "17", "x 1 1 1 c u", "1 1 1 300 c u", "1 1 1 1 a/b u", "1 1 1 1 c u more", "1 1 x 1 c u"]
        {
            let wrong = decode("1-0".into(), &fields(text)).unwrap_err();
            assert!(!wrong.why.is_empty(), "{text}");
        }
        let (short, older) = (field(VERSION.as_bytes(), &[7; 15]), field(b"v", b"1"));
        let (no_text, no_name) = (field(VERSION.as_bytes(), &[0xff; 30]), field(&[0xff], b"1"));
        for fields in [RawFields::new(), short, older, no_text, no_name] {
            assert!(decode("1-0".into(), &fields).is_err());
        }
    }
}
