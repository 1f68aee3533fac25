use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::{PartitionId, id_of, random_id};

/// The prefix of the pseudonyms of deleted users.
const PSEUDONYM: &str = "deleted:";
/// The prefix of what stands for a share of a coupon.
const SHARE: char = '=';
/// The prefix of the ids of users whose token has a subject that is no id.
const OF_SUBJECT: &str = "sub-sha256:";

/// The id of a user: `[A-Za-z0-9._:@-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Whether it is the pseudonym of a deleted user. Registration refuses such an id.
    pub(crate) fn is_pseudonym(&self) -> bool {
        self.0.starts_with(PSEUDONYM)
    }

    /// The user whom a token's subject names. A subject that is an id is the user's id. Any other one, such as
    /// `auth0|5f7c8ec7` or one of more than 64 characters, gives `sub-sha256:` and its SHA-256 in base64url,
    /// without padding. So that no two subjects name one user, one that is written like that itself, or like
    /// the pseudonym of a deleted user, is hashed too.
    pub(crate) fn of_subject(subject: &str) -> Result<Self, String> {
        if subject.is_empty() {
            return Err("must not be empty".into());
        }
        match subject.parse::<UserId>() {
            Ok(id) if !id.is_pseudonym() && !subject.starts_with(OF_SUBJECT) => Ok(id),
            _ => {
                let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(subject.as_bytes()));
                Ok(UserId(format!("{OF_SUBJECT}{hash}").into()))
            }
        }
    }

    /// The user that a unit on its way to another share of its coupon is reserved for: `=` and the number of the share's
    /// partition, which no id of a user can be.
    pub fn of_share(partition: PartitionId) -> Self {
        UserId(format!("{SHARE}{partition}").into())
    }

    /// The partition that a unit is on its way to; `None` for every user.
    pub fn share(&self) -> Option<PartitionId> {
        let number = self.0.strip_prefix(SHARE)?;
        number.parse().ok().and_then(PartitionId::new).filter(|partition| partition.to_string() == number)
    }

    /// Whoever a unit is in flight for: a user or a share.
    pub(crate) fn of_holder(text: &str) -> Result<Self, String> {
        match UserId(text.into()) {
            share if share.share().is_some() => Ok(share),
            _ => text.parse(),
        }
    }

    /// A new pseudonym for a deleted user, which nothing connects with their id.
    pub fn pseudonym() -> Self {
        UserId(format!("{PSEUDONYM}{}", random_id()).into())
    }

    /// A new id, for a user who is registered without one.
    pub fn generate() -> Self {
        UserId(format!("u-{}", random_id()).into())
    }

    /// The id of the `number`th of the users that one request with a key registers: always the same.
    pub(crate) fn of_key(key: &str, number: usize) -> Self {
        let digest = Sha256::digest(format!("{key} {number}"));
        let bits = digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        UserId(format!("u-{}", id_of(bits)).into())
    }
}

text_id!(UserId, "._:@-");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_subject_of_an_issuer_names_a_user_and_no_two_the_same() {
        let long = "x".repeat(65);
        let as_they_are = [
            "u1",
            "110169484474386276334",
            "hong@example.com",
            "001234.abcdef0123456789.5678",
            "8a1f6d1e-0f5c-4b1e-9d57-0a0f6e9d7a3b",
            "spiffe:prod:api",
            "Sub-sha256:x",
        ];
        let (hong, hashed) = ("auth0|hong", UserId::of_subject("auth0|hong").unwrap().to_string());
        let mapped = [
            hong,
            "hong+shop@example.com",
            "https://issuer.example/users/7",
            "홍길동",
            "a b",
            " u1",
            "u1 ",
            ".",
            "..",
            &long,
            "deleted:abcdefghjkmn",
            "sub-sha256:",
            // Who may choose their subject must not be able to choose somebody else's user.
            &hashed,
        ];
        let mut seen = HashMap::new();
        for subject in as_they_are.iter().chain(&mapped) {
            let id = UserId::of_subject(subject).unwrap();
            assert_eq!(id.as_str() == *subject, as_they_are.contains(subject), "{subject:?}");
            assert_eq!(id.as_str().parse(), Ok(id.clone()), "{subject:?}");
            assert!(!id.is_pseudonym());
            assert_eq!(seen.insert(id, *subject), None, "{subject:?}");
        }
        // printf %s 'auth0|hong' | openssl dgst -sha256 -binary | basenc --base64url | tr -d =
        assert_eq!(hashed, "sub-sha256:CGLi3w0FKzA8Fdk5P2_AJeDNqO0efkNsQAV-GZBVVTk");
        assert!(UserId::of_subject("").is_err());
    }
}
