//! End users' tokens: JSON Web Tokens that the shop signs. The subject is the user.
//!
//! What is verified once is remembered by the hash of the token until it expires, or the keys change.
//! The file of the keys is read again every [`LOOK_EVERY`]; one that cannot be used leaves those of
//! before in force.

mod algorithm;
mod keys;
mod signature;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use quick_cache::sync::Cache;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

pub use algorithm::SignedWith;
use keys::Keys;

use crate::metrics;
use crate::user::UserId;

/// Clocks may differ by this: a token is taken for so long after its `exp`, and before its `nbf`.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// Between two looks at the file of the keys.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
const TOKEN_BYTES_MAX: usize = 4_096;
const FILE_BYTES_MAX: u64 = 256 * 1_024;

/// What a token must be like, and where the keys are.
#[derive(Debug, Clone)]
pub struct TokenSettings {
    pub signed_with: SignedWith,
    pub issuer: String,
    pub audience: String,
    /// One secret for the symmetric algorithms, else a JSON Web Key Set.
    pub key_file: PathBuf,
    /// Verified tokens that are remembered.
    pub remembered: usize,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadToken {
    /// It was good once.
    Expired,
    /// Anything else; more would help only who makes them up.
    Invalid,
}

/// Verifies tokens.
pub struct Tokens {
    settings: TokenSettings,
    validation: Validation,
    current: RwLock<Arc<Current>>,
}

/// One version of the keys, and what was verified with it.
struct Current {
    keys: Keys,
    verified: Cache<Hash, Verified>,
    content: Hash,
}

type Hash = [u8; 32];

#[derive(Clone)]
struct Verified {
    user: UserId,
    /// In seconds since the epoch; the leeway is in it.
    until: u64,
}

/// What is read of a token beyond what the library checks.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// May have fractions.
    exp: f64,
}

impl Tokens {
    /// Reads the keys. The error is a sentence that says what to do.
    pub async fn read(settings: TokenSettings) -> Result<Self, String> {
        signature::install();
        let content = read(&settings.key_file).await?;
        let keys = Keys::parse(&content, settings.signed_with);
        let keys = keys.map_err(|why| format!("{}: {why}", settings.key_file.display()))?;
        let mut validation = Validation::new(settings.signed_with.into());
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY.as_secs();
        let current = Current::new(keys, &content, settings.remembered);
        Ok(Tokens { settings, validation, current: RwLock::new(Arc::new(current)) })
    }

    /// How many verified tokens are remembered.
    pub fn remembered(&self) -> usize {
        self.current().verified.len()
    }

    /// Whose token it is.
    pub fn user(&self, token: &str) -> Result<UserId, BadToken> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(BadToken::Invalid);
        }
        let current = self.current();
        let hash = Sha256::digest(token.as_bytes()).into();
        if let Some(verified) = current.verified.get(&hash) {
            metrics::TOKEN_CACHE.hit();
            return if now() <= verified.until { Ok(verified.user) } else { Err(BadToken::Expired) };
        }
        metrics::TOKEN_CACHE.miss();
        let verified = self.verify(&current.keys, token)?;
        current.verified.insert(hash, verified.clone());
        Ok(verified.user)
    }

    fn verify(&self, keys: &Keys, token: &str) -> Result<Verified, BadToken> {
        let key = match keys {
            Keys::Secret(key) => key,
            Keys::Set(_) => {
                let head = decode_header(token).map_err(|_| BadToken::Invalid)?;
                keys.of(head.kid.as_ref()).ok_or(BadToken::Invalid)?
            }
        };
        let decoded = decode::<Claims>(token, key, &self.validation).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => BadToken::Expired,
            _ => BadToken::Invalid,
        })?;
        // Who demands that an extension is understood must not be misunderstood.
        if decoded.header.crit.is_some() {
            return Err(BadToken::Invalid);
        }
        Ok(Verified {
            user: decoded.claims.sub.parse().map_err(|_| BadToken::Invalid)?,
            until: (decoded.claims.exp as u64).saturating_add(LEEWAY.as_secs()),
        })
    }

    /// Looks at the file of the keys until `stop`.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut told = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match self.look().await {
                Ok(()) => told = None,
                Err(why) => {
                    metrics::CREDENTIALS_STALE.count("tokens");
                    // Once for each trouble, not every two seconds.
                    if told.as_ref() != Some(&why) {
                        tracing::error!("the keys of before stay in force: {why}");
                        told = Some(why);
                    }
                }
            }
        }
    }

    async fn look(&self) -> Result<(), String> {
        let file = &self.settings.key_file;
        let content = read(file).await?;
        if hash(&content) == self.current().content {
            return Ok(());
        }
        let keys = Keys::parse(&content, self.settings.signed_with);
        let keys = keys.map_err(|why| format!("{}: {why}", file.display()))?;
        let current = Arc::new(Current::new(keys, &content, self.settings.remembered));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        tracing::info!(file = %file.display(), "the keys of tokens were read anew");
        Ok(())
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    fn new(keys: Keys, content: &[u8], remembered: usize) -> Self {
        Current { keys, verified: Cache::new(remembered), content: hash(content) }
    }
}

fn hash(content: &[u8]) -> Hash {
    Sha256::digest(content).into()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn read(file: &Path) -> Result<Vec<u8>, String> {
    let reading = async {
        let mut content = Vec::new();
        let opened = tokio::fs::File::open(file).await?;
        opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).await?;
        Ok::<_, std::io::Error>(content)
    };
    let content = reading.await.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", file.display()));
    }
    Ok(content)
}
