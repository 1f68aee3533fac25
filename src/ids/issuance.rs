use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use uuid::Uuid;

use super::PartitionId;

/// The id of an issuance, and of the user coupon that comes of it: a UUID that carries its partition in the 12
/// bits after the version, so that a poll needs no lookup table.
///
/// It is a UUIDv7 (time-ordered, kind to the ledger's `_id` index), or a UUIDv8 if it was made from an
/// `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IssuanceId(Uuid);

impl IssuanceId {
    /// A fresh id for a request without a key.
    pub fn generate(partition: PartitionId) -> Self {
        Self::stamp(*Uuid::now_v7().as_bytes(), 7, partition)
    }

    /// The id that a hash stands for: always the same.
    pub(crate) fn from_hash(hash: [u8; 16], partition: PartitionId) -> Self {
        Self::stamp(hash, 8, partition)
    }

    fn stamp(mut bytes: [u8; 16], version: u8, partition: PartitionId) -> Self {
        let [high, low] = partition.number().to_be_bytes();
        bytes[6] = version << 4 | high;
        bytes[7] = low;
        bytes[8] = 0b1000_0000 | bytes[8] & 0b0011_1111;
        IssuanceId(Uuid::from_bytes(bytes))
    }

    /// Before any id, in the order of their bytes.
    pub const FIRST: Self = IssuanceId(Uuid::from_u128(0x7000_8000_0000_0000_0000));
    /// After any id, in the order of their bytes.
    pub(crate) const LAST: Self = IssuanceId(Uuid::from_u128(0xffff_ffff_ffff_8fff_bfff_ffff_ffff_ffff));

    /// An id as it is kept in Redis and in MongoDB. Says `None` to anything but the 16 bytes of one.
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Option<Self> {
        let uuid = Uuid::from_slice(bytes.as_ref()).ok()?;
        matches!(uuid.get_version_num(), 7 | 8).then_some(IssuanceId(uuid))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The partition whose Redis data this issuance lives in.
    pub fn partition(&self) -> PartitionId {
        let bytes = self.as_bytes();
        let number = u16::from_be_bytes([bytes[6] & 0x0f, bytes[7]]);
        PartitionId::new(number).unwrap_or(PartitionId::ONE)
    }

    /// When it was made, by the clock of the API; `None` for one that was made from a key.
    pub fn made_at(&self) -> Option<Timestamp> {
        let (seconds, nanoseconds) = self.0.get_timestamp()?.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
    }

    /// Whether it was made from an `Idempotency-Key`.
    pub fn is_keyed(&self) -> bool {
        self.0.get_version_num() == 8
    }
}

impl FromStr for IssuanceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<Uuid>()
            .ok()
            .and_then(|uuid| Self::from_bytes(*uuid.as_bytes()))
            .ok_or_else(|| "must be the id that an accepted request was answered with".to_string())
    }
}

impl fmt::Display for IssuanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for IssuanceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_that_no_request_was_answered_with_is_refused() {
        assert!("00000000-0000-0000-0000-000000000000".parse::<IssuanceId>().is_err());
        assert!("nonsense".parse::<IssuanceId>().is_err());
    }
}
