//! The id of an issuance: a UUID that carries its partition in spare bits, so that a poll needs no
//! lookup table. It is also the id of the user coupon that comes of it.
//!
//! Without an `Idempotency-Key` it is a UUIDv7 (time-ordered, kind to the ledger's `_id` index); with
//! one it is a UUIDv8 made of a hash of user, coupon and key, so the same request has the same id
//! without anything being stored. Both keep the partition in the 12 bits after the version.
//!
//! The hash is keyed with an [`IdSecret`]: else whoever guesses user, coupon and key has the id, also of what
//! a user who was deleted had. Users who were registered before there were such secrets have none, and the
//! ids of their keys are as they always were.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use ring::hmac;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::coupon::CouponId;
use crate::keys::PartitionId;
use crate::user::{IdSecret, UserId};

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IssuanceId(Uuid);

impl IssuanceId {
    /// A fresh id for a request without a key.
    pub fn generate(partition: PartitionId) -> Self {
        Self::stamp(*Uuid::now_v7().as_bytes(), 7, partition)
    }

    /// The id that a request with this key always gets. `secret` is the user's, or the deployment's.
    pub fn from_key(
        partition: PartitionId,
        secret: Option<&IdSecret>,
        user: &UserId,
        coupon: &CouponId,
        key: &IdempotencyKey,
    ) -> Self {
        Self::stamp(keyed_hash(secret, [user.as_str(), coupon.as_str(), &key.0]), 8, partition)
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
    pub const LAST: Self = IssuanceId(Uuid::from_u128(0xffff_ffff_ffff_8fff_bfff_ffff_ffff_ffff));

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

/// The first `N` bytes of a hash of texts, keyed if there is a secret.
fn keyed_hash<const N: usize>(secret: Option<&IdSecret>, texts: [&str; 3]) -> [u8; N] {
    // None of them has a NUL in it, so they cannot run into each other.
    let parts = texts.iter().flat_map(|text| [text.as_bytes(), &[0]]);
    let mut bytes = [0; N];
    match secret {
        Some(secret) => {
            let mut hash = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
            parts.for_each(|part| hash.update(part));
            bytes.copy_from_slice(&hash.sign().as_ref()[..N]);
        }
        None => {
            let mut hash = Sha256::new();
            parts.for_each(|part| hash.update(part));
            bytes.copy_from_slice(&hash.finalize()[..N]);
        }
    }
    bytes
}

/// Names the key of one user, whatever the coupon: a hash, keyed as the ids of issuances are. Redis remembers it
/// with the issuance that the key was first accepted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyTag([u8; 8]);

impl KeyTag {
    /// The tag of this user's key. `secret` is the user's, or the deployment's.
    pub fn new(secret: Option<&IdSecret>, user: &UserId, key: &IdempotencyKey) -> Self {
        // No coupon has an empty id, so this hash is that of no issuance.
        KeyTag(keyed_hash(secret, [user.as_str(), "", &key.0]))
    }

    /// The 8 bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
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

/// The value of an `Idempotency-Key` header: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=255).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            Ok(IdempotencyKey(text.to_owned()))
        } else {
            Err("must have 1 to 255 visible ASCII characters".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_its_partition_and_survives_text_and_bytes() {
        let partition = PartitionId::new(0xabc).unwrap();
        let key = "k".parse().unwrap();
        let (user, coupon) = ("u".parse().unwrap(), "c".parse().unwrap());
        let keyed = IssuanceId::from_key(partition, Some(&IdSecret::generate()), &user, &coupon, &key);
        for id in [IssuanceId::generate(partition), keyed] {
            assert_eq!(id.partition(), partition);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(IssuanceId::from_bytes(*id.as_bytes()), Some(id));
        }
    }

    #[test]
    fn the_same_key_gives_the_same_id_and_any_other_part_another() {
        let secrets = [None, Some(IdSecret::generate()), Some(IdSecret::generate())];
        let with = |secret: Option<&IdSecret>, user: &str, coupon: &str, key: &str| {
            IssuanceId::from_key(
                PartitionId::ONE,
                secret,
                &user.parse().unwrap(),
                &coupon.parse().unwrap(),
                &key.parse().unwrap(),
            )
        };
        for secret in &secrets {
            let id = |user, coupon, key| with(secret.as_ref(), user, coupon, key);
            assert_eq!(id("u", "c", "k"), id("u", "c", "k"));
            assert_ne!(id("u", "c", "k"), id("u", "c", "k2"));
            assert_ne!(id("uc", "c", "k"), id("u", "cc", "k"));
            assert!(id("u", "c", "k").is_keyed());
        }
        let mut ids: Vec<_> = secrets.iter().map(|secret| with(secret.as_ref(), "u", "c", "k")).collect();
        ids.dedup();
        assert_eq!(ids.len(), secrets.len());
        // As it always was: these are in ledgers.
        assert_eq!(ids[0].to_string(), "57d9005f-fde5-8000-bb1f-e4786adc1343");
        assert!(!IssuanceId::generate(PartitionId::ONE).is_keyed());
    }

    #[test]
    fn a_uuid_that_no_request_was_answered_with_is_refused() {
        assert!("00000000-0000-0000-0000-000000000000".parse::<IssuanceId>().is_err());
        assert!("nonsense".parse::<IssuanceId>().is_err());
    }
}
