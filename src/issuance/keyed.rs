//! Ids of requests with an `Idempotency-Key`: the same request gets the same id without a store, because the id is a
//! hash of user, coupon and key.
//!
//! The hash is keyed with an [`IdSecret`]. Otherwise a person who guesses user, coupon and key would know the id,
//! also of what a deleted user had. Users who were registered before such secrets existed have none, and the ids of
//! their keys stay as they were.

use std::str::FromStr;

use ring::hmac;
use sha2::{Digest, Sha256};

use crate::ids::{CouponId, IssuanceId, PartitionId, UserId};
use crate::user::IdSecret;

/// A key of 1 to 255 visible ASCII characters, as an `Idempotency-Key` header names it: bare, or in quotes (a string
/// of RFC 9651, as in draft-ietf-httpapi-idempotency-key-header). Both are the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key as text, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = match text.strip_prefix('"') {
            Some(quoted) => unquoted(quoted).ok_or("begins with a quote and must be one string in quotes")?,
            None => text.to_owned(),
        };
        let fits = (1..=255).contains(&key.len());
        if fits && key.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            Ok(IdempotencyKey(key))
        } else {
            Err("must have 1 to 255 visible ASCII characters".into())
        }
    }
}

/// The rest of a string of RFC 9651, after its opening quote, as it is meant; `None` if it is none.
fn unquoted(text: &str) -> Option<String> {
    let mut characters = text.strip_suffix('"')?.chars();
    let mut meant = String::new();
    while let Some(character) = characters.next() {
        meant.push(match character {
            '"' => return None,
            '\\' => characters.next().filter(|escaped| ['"', '\\'].contains(escaped))?,
            other => other,
        });
    }
    Some(meant)
}

impl IssuanceId {
    /// The id that a request with this key always gets. `secret` is the user's, or the deployment's.
    pub fn from_key(
        partition: PartitionId,
        secret: Option<&IdSecret>,
        user: &UserId,
        coupon: &CouponId,
        key: &IdempotencyKey,
    ) -> Self {
        Self::from_hash(keyed_hash(secret, [user.as_str(), coupon.as_str(), &key.0]), partition)
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
    fn a_key_in_quotes_is_the_key_that_is_in_them() {
        let key = |text: &str| text.parse().map(|IdempotencyKey(key)| key);
        for (header, meant) in [
            ("k-1", "k-1"),
            (r#""k-1""#, "k-1"),
            (r#"a"b"#, r#"a"b"#),
            (r#""a\"b\\""#, r#"a"b\"#),
            (r#"a\b""#, r#"a\b""#),
            (r#"" ""#, " "),
        ] {
            assert_eq!(key(header).as_deref(), Ok(meant), "{header}");
        }
        let longest = "k".repeat(255);
        assert_eq!(key(&format!("\"{longest}\"")), Ok(longest));
        for wrong in
            ["", r#"""#, r#""""#, r#""k"#, r#""k"l"#, r#""k\""#, r#""k\n""#, r#""k";a=1"#, r#""k", "l""#, "ü"]
        {
            assert!(key(wrong).is_err(), "{wrong}");
        }
        assert!(key(&"k".repeat(256)).is_err());
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
        // Ledgers hold ids of this hash.
        assert_eq!(ids[0].to_string(), "57d9005f-fde5-8000-bb1f-e4786adc1343");
        assert!(!IssuanceId::generate(PartitionId::ONE).is_keyed());
    }
}
