//! API keys: `cpn_<id>_<secret>`. The id names the key in lists and logs; of the secret only a hash is
//! kept.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::Role;

/// What every key begins with, so that it can be distinguished from a token, and found where it should not be.
pub(crate) const PREFIX: &str = "cpn_";
const SECRET_BYTES: usize = 32;
/// The secret as hexadecimal digits.
const SECRET_CHARS: usize = 2 * SECRET_BYTES;
/// Of the id of a key, which names it and is no secret.
pub(crate) const ID_CHARS_MAX: usize = 32;
const NAME_CHARS_MAX: usize = 100;

/// A key as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Twelve letters and digits.
    pub id: String,
    /// For people: 1 to 100 characters.
    pub name: String,
    pub role: Role,
    pub hash: SecretHash,
    pub created_at: Timestamp,
    /// From then on it is refused; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// When an API last took it, as far as is noted: see [`super::keyring`].
    pub last_used_at: Option<Timestamp>,
    /// From then on it is refused.
    pub revoked_at: Option<Timestamp>,
}

/// What is kept of a secret: its SHA-256. The secret has 256 random bits, so nothing slower is needed.
#[derive(Debug, Clone, Copy)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    fn of(secret: &str) -> Self {
        SecretHash(Sha256::digest(secret.as_bytes()).into())
    }
}

impl PartialEq for SecretHash {
    /// Takes the same time wherever the two differ.
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |sum, (one, two)| sum | (one ^ two));
        std::hint::black_box(differing) == 0
    }
}

impl Eq for SecretHash {}

impl ApiKey {
    /// A new key, and the only sight of what its owner is to send.
    ///
    /// # Errors
    ///
    /// What is wrong with the name, or with the moment at which the key expires.
    pub fn generate(name: &str, role: Role, expires_at: Option<Timestamp>) -> Result<(Self, String), String> {
        let name = crate::text::words(name, NAME_CHARS_MAX).map_err(|why| format!("a key's name {why}"))?;
        let created_at = crate::mongo::now_in_milliseconds();
        if expires_at.is_some_and(|moment| moment <= created_at) {
            return Err("the moment at which a key expires must be in the future".into());
        }
        let secret: [u8; SECRET_BYTES] = rand::random();
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = crate::ids::random_id();
        let text = format!("{PREFIX}{id}_{secret}");
        let key = ApiKey {
            id,
            name,
            role,
            hash: SecretHash::of(&secret),
            created_at,
            expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        Ok((key, text))
    }
}

/// A key as a request presents it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PresentedKey {
    pub id: String,
    pub hash: SecretHash,
}

impl PresentedKey {
    /// Reads the text of a key; `None` if it is none.
    pub fn read(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let fits = (1..=ID_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && secret.len() == SECRET_CHARS;
        fits.then(|| PresentedKey { id: id.to_owned(), hash: SecretHash::of(secret) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_fits_what_is_kept_and_nothing_else_does() {
        let (key, text) = ApiKey::generate(" ci ", Role::Service, None).unwrap();
        assert_eq!((key.name.as_str(), text.len()), ("ci", 4 + 12 + 1 + 64));
        let shown = PresentedKey::read(&text).unwrap();
        assert_eq!((&shown.id, shown.hash), (&key.id, key.hash));
        let (other, _) = ApiKey::generate("ci", Role::Service, None).unwrap();
        assert_ne!(other.hash, key.hash);
        let last = if text.ends_with('0') { '1' } else { '0' };
        let wrong = format!("{}{last}", &text[..text.len() - 1]);
        assert_ne!(PresentedKey::read(&wrong).unwrap().hash, key.hash);
        for none in ["", "cpn_", "cpn_a", "cpn_a_b", &text[1..], &format!("{text}0"), &text[..text.len() - 1]]
        {
            assert_eq!(PresentedKey::read(none), None, "{none}");
        }
        for name in ["", " ", "a\nb", "a\u{202e}b", &"x".repeat(101)] {
            assert!(ApiKey::generate(name, Role::Viewer, None).is_err());
        }
    }

    #[test]
    fn a_key_expires_in_the_future_or_never() {
        let minute = jiff::SignedDuration::from_mins(1);
        let expiring = |moment| ApiKey::generate("ci", Role::Service, Some(moment));
        let later = Timestamp::now() + minute;
        assert_eq!(expiring(later).unwrap().0.expires_at, Some(later));
        assert!(expiring(Timestamp::now() - minute).unwrap_err().contains("future"));
    }
}
