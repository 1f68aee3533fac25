//! A stream entry, version 1: the fields `v id coupon user serial nth at`, in this order.

use std::collections::HashMap;

use jiff::Timestamp;
use redis::{Pipeline, Value};

use crate::coupon::CouponId;
use crate::issuance::{InFlight, IssuanceId};
use crate::user::UserId;

/// The version that this program writes and reads.
pub const VERSION: &str = "1";

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
pub struct Undecodable {
    pub entry: String,
    pub why: String,
}

/// Reads the fields of a stream entry.
pub fn decode(entry: String, fields: &HashMap<String, Value>) -> Result<Entry, Undecodable> {
    parse(&entry, fields).map_err(|why| Undecodable { entry, why })
}

fn parse(entry: &str, fields: &HashMap<String, Value>) -> Result<Entry, String> {
    let bytes = |name: &str| match fields.get(name) {
        Some(Value::BulkString(bytes)) => Ok(bytes.as_slice()),
        _ => Err(format!("it has no field {name:?}")),
    };
    let text =
        |name: &str| std::str::from_utf8(bytes(name)?).map_err(|_| format!("its field {name:?} is no text"));
    fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("{text:?} is no number that fits"))
    }
    match text("v")? {
        VERSION => {}
        other => return Err(format!("its version is {other:?}, and this program reads {VERSION:?}")),
    }
    Ok(Entry {
        entry: entry.to_owned(),
        id: <[u8; 16]>::try_from(bytes("id")?)
            .ok()
            .and_then(IssuanceId::from_bytes)
            .ok_or("its id is no issuance id")?,
        coupon: text("coupon")?.parse()?,
        user: text("user")?.parse()?,
        serial: Some(number(text("serial")?)?).filter(|serial| *serial > 0),
        nth: number(text("nth")?)?,
        accepted_at: Timestamp::from_millisecond(number(text("at")?)?).map_err(|error| error.to_string())?,
    })
}

/// Appends the entry of an issuance that is in flight to a pipeline.
pub(crate) fn append(pipeline: &mut Pipeline, stream: &str, id: IssuanceId, in_flight: &InFlight) {
    pipeline
        .cmd("XADD")
        .arg(stream)
        .arg("*")
        .arg("v")
        .arg(VERSION)
        .arg("id")
        .arg(id.as_bytes().as_slice())
        .arg("coupon")
        .arg(in_flight.coupon.as_str())
        .arg("user")
        .arg(in_flight.user.as_str())
        .arg("serial")
        .arg(in_flight.serial.unwrap_or(0))
        .arg("nth")
        .arg(in_flight.nth)
        .arg("at")
        .arg(in_flight.accepted_at.as_millisecond());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PartitionId;

    fn fields(changed: &[(&str, &[u8])]) -> HashMap<String, Value> {
        let id = IssuanceId::generate(PartitionId::ONE);
        let mut fields: HashMap<String, Value> = [
            ("v", b"1".as_slice()),
            ("id", id.as_bytes()),
            ("coupon", b"summer"),
            ("user", b"u1"),
            ("serial", b"17"),
            ("nth", b"1"),
            ("at", b"1700000000001"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::BulkString(value.to_vec())))
        .collect();
        for (name, value) in changed {
            fields.insert((*name).to_owned(), Value::BulkString(value.to_vec()));
        }
        fields
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let entry = decode("1-0".into(), &fields(&[])).unwrap();
        assert_eq!((entry.serial, entry.nth, entry.user.as_str()), (Some(17), 1, "u1"));
        assert_eq!(decode("1-0".into(), &fields(&[("serial", b"0")])).unwrap().serial, None);
    }

    #[test]
    fn an_entry_of_another_version_or_with_damage_says_what_is_wrong() {
        for (name, value) in [
            ("v", b"2".as_slice()),
            ("id", b"short"),
            ("coupon", b"a b"),
            ("user", b"\xff"),
            ("serial", b"-1"),
            ("nth", b"300"),
            ("at", b"x"),
        ] {
            let wrong = decode("1-0".into(), &fields(&[(name, value)])).unwrap_err();
            assert!(!wrong.why.is_empty(), "{name}");
        }
        assert!(decode("1-0".into(), &HashMap::new()).is_err());
    }
}
