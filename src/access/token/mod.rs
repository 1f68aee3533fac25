//! End users' tokens: JSON Web Tokens that the shop signs. The subject names the user
//! ([`UserId::of_subject`]).
//!
//! What is verified once is remembered by the hash of the token until it expires, or the keys change.
//! The file of the keys is read again every [`POLL_EVERY`]; one that cannot be used leaves those of
//! before in force.

mod algorithm;
mod keys;
mod signature;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use algorithm::TokenAlgorithm;
use keys::VerificationKeys;

use crate::ids::UserId;
use crate::metrics;
use crate::runtime::tasks::Rounds;

/// Clocks may differ by this: a token is taken for so long after its `exp`, and before its `nbf`.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// Between two readings of the file of the keys.
pub const POLL_EVERY: Duration = Duration::from_secs(2);
const FILE_BYTES_MAX: u64 = 256 * 1_024;
const LOGGED_CHARS_MAX: usize = 200;

/// What a token must be like, and where the keys are.
#[derive(Clone)]
pub struct TokenSettings {
    pub signed_with: TokenAlgorithm,
    pub issuer: String,
    pub audience: String,
    /// One secret for the symmetric algorithms, else a JSON Web Key Set.
    pub key_file: PathBuf,
    /// Verified tokens that are remembered.
    pub remembered: usize,
}

crate::text::never_shown!(TokenSettings);

/// Why a token is refused: for the log. It repeats nothing of the token but what it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It was good once.
    #[error("it has expired (exp)")]
    Expired,
    /// It will be good.
    #[error("it is not valid yet (nbf)")]
    Early,
    #[error("it is no JSON Web Token: {0}")]
    Shape(String),
    #[error("it is signed with another algorithm than --jwt-algorithm")]
    Algorithm,
    #[error("it demands that extensions are understood (crit), and none is")]
    Critical,
    #[error("no key of the set in --jwt-jwks-file has its kid, which is {}", named(.0.as_deref()))]
    NoKey(Option<String>),
    #[error("its signature does not fit the key")]
    Signature,
    #[error("{0}")]
    Issuer(String),
    #[error("{0}")]
    Audience(String),
    #[error("its sub {0}")]
    Subject(String),
    #[error("its {0} is missing, or of the wrong type")]
    Claim(String),
}

fn named(kid: Option<&str>) -> String {
    kid.map_or_else(|| "missing".to_owned(), |kid| format!("{kid:?}"))
}

/// Verifies tokens.
pub(crate) struct TokenVerifier {
    settings: TokenSettings,
    validation: Validation,
    current: RwLock<Arc<KeyVersion>>,
}

/// One version of the keys, and what was verified with it.
struct KeyVersion {
    keys: VerificationKeys,
    verified: Cache<Hash, VerifiedToken>,
    content: Hash,
}

type Hash = [u8; 32];

/// What a good token says.
#[derive(Debug, Clone)]
pub(crate) struct VerifiedToken {
    pub user: UserId,
    /// The last second that it is good for, since the epoch; the leeway is in it.
    pub until: u64,
}

/// What is read of a token beyond what the library checks.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// May have fractions.
    exp: f64,
}

impl TokenVerifier {
    /// Reads the keys. The error is a sentence that says what to do.
    pub async fn read(settings: TokenSettings) -> Result<Self, String> {
        signature::install();
        let content = settings.read().await?;
        let keys = settings.keys(&content)?;
        let mut validation = Validation::new(settings.signed_with.into());
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY.as_secs();
        let current = KeyVersion::new(keys, &content, settings.remembered);
        Ok(TokenVerifier { settings, validation, current: RwLock::new(Arc::new(current)) })
    }

    /// How many verified tokens are remembered.
    pub fn remembered(&self) -> usize {
        self.current().verified.len()
    }

    /// Whose token it is, and until when.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub fn verified(&self, token: &str) -> Result<VerifiedToken, TokenError> {
        let current = self.current();
        let hash = Sha256::digest(token.as_bytes()).into();
        if let Some(verified) = current.verified.get(&hash) {
            metrics::TOKEN_CACHE.hit();
            return if now() <= verified.until { Ok(verified) } else { Err(TokenError::Expired) };
        }
        metrics::TOKEN_CACHE.miss();
        let verified = self.verify(&current.keys, token)?;
        current.verified.insert(hash, verified.clone());
        Ok(verified)
    }

    fn verify(&self, keys: &VerificationKeys, token: &str) -> Result<VerifiedToken, TokenError> {
        let kid = match keys {
            VerificationKeys::Secret(_) => None,
            VerificationKeys::Set(_) => decode_header(token).map_err(|error| self.why(token, &error))?.kid,
        };
        let mut refused = TokenError::NoKey(kid.as_deref().map(for_log));
        for key in keys.of(kid.as_deref()) {
            match decode::<Claims>(token, key, &self.validation) {
                Ok(decoded) => {
                    // Who demands that an extension is understood must not be misunderstood.
                    if decoded.header.crit.is_some() {
                        return Err(TokenError::Critical);
                    }
                    let user = UserId::of_subject(&decoded.claims.sub);
                    return Ok(VerifiedToken {
                        user: user.map_err(TokenError::Subject)?,
                        until: (decoded.claims.exp as u64).saturating_add(LEEWAY.as_secs()),
                    });
                }
                Err(error) => {
                    refused = self.why(token, &error);
                    if refused != TokenError::Signature {
                        break;
                    }
                }
            }
        }
        Err(refused)
    }

    fn why(&self, token: &str, error: &jsonwebtoken::errors::Error) -> TokenError {
        let TokenSettings { issuer, audience, .. } = &self.settings;
        match error.kind() {
            ErrorKind::ExpiredSignature => TokenError::Expired,
            ErrorKind::ImmatureSignature => TokenError::Early,
            ErrorKind::InvalidSignature => TokenError::Signature,
            ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
            ErrorKind::InvalidIssuer => TokenError::Issuer(format!(
                "its iss is {}, and --jwt-issuer {issuer:?}: they must be the same, a slash at the end too",
                claim(token, "iss")
            )),
            ErrorKind::InvalidAudience => TokenError::Audience(format!(
                "its aud is {}, without --jwt-audience {audience:?}",
                claim(token, "aud")
            )),
            ErrorKind::MissingRequiredClaim(name) | ErrorKind::InvalidClaimFormat(name) => {
                TokenError::Claim(for_log(name))
            }
            _ => TokenError::Shape(for_log(&error.to_string())),
        }
    }

    /// Reads the file of the keys again and again until `stop`, and notifies `changed` of other keys.
    pub(crate) async fn keep_fresh(self: Arc<Self>, changed: watch::Sender<()>, stop: CancellationToken) {
        let mut for_log = None;
        let mut fresh_at = Instant::now();
        let mut rounds = Rounds::every(POLL_EVERY, &stop);
        while rounds.next().await {
            match self.reload_if_changed(&changed).await {
                Ok(()) => {
                    for_log = None;
                    fresh_at = Instant::now();
                    metrics::credentials_stale_for("tokens", Duration::ZERO);
                }
                Err(why) => {
                    metrics::CREDENTIALS_STALE.count("tokens");
                    metrics::credentials_stale_for("tokens", fresh_at.elapsed());
                    // Once for each trouble, not every two seconds.
                    if for_log.as_ref() != Some(&why) {
                        tracing::error!("the earlier keys stay in force: {why}");
                        for_log = Some(why);
                    }
                }
            }
        }
    }

    async fn reload_if_changed(&self, changed: &watch::Sender<()>) -> Result<(), String> {
        let content = self.settings.read().await?;
        if hash(&content) == self.current().content {
            return Ok(());
        }
        let keys = self.settings.keys(&content)?;
        tracing::info!(
            file = self.settings.flag(),
            keys = keys.count(),
            "read the keys of users' tokens again"
        );
        let current = Arc::new(KeyVersion::new(keys, &content, self.settings.remembered));
        *self.current.write() = current;
        changed.send_replace(());
        Ok(())
    }

    fn current(&self) -> Arc<KeyVersion> {
        Arc::clone(&self.current.read())
    }
}

impl TokenSettings {
    /// What the file is called in errors and in the log: its name may be a secret that was given in its place.
    fn flag(&self) -> &'static str {
        if self.signed_with.is_symmetric() { "--jwt-secret-file" } else { "--jwt-jwks-file" }
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        let reading = async {
            let mut content = Vec::new();
            let opened = tokio::fs::File::open(&self.key_file).await?;
            opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).await?;
            Ok::<_, std::io::Error>(content)
        };
        let flag = self.flag();
        let content = reading.await.map_err(|error| format!("the file of {flag} cannot be read: {error}"))?;
        if content.len() as u64 > FILE_BYTES_MAX {
            return Err(format!("the file of {flag} has more than {FILE_BYTES_MAX} bytes"));
        }
        Ok(content)
    }

    /// The keys in the content of the file. What is left out of them is logged.
    fn keys(&self, content: &[u8]) -> Result<VerificationKeys, String> {
        let file = self.flag();
        let (keys, left_out) = VerificationKeys::parse(content, self.signed_with)
            .map_err(|why| format!("the file of {file}: {why}"))?;
        for why in left_out {
            tracing::warn!(file, "left a key out of the key set: {why}");
        }
        if keys.count() == 0 {
            tracing::error!(
                file,
                "the key set has no key for {}: every token is refused",
                self.signed_with.as_str()
            );
        }
        Ok(keys)
    }
}

/// A claim of a token whose signature fits, for the log.
fn claim(token: &str, name: &str) -> String {
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let claims = payload.and_then(|payload| serde_json::from_slice::<serde_json::Value>(&payload).ok());
    claims.map(|claims| for_log(&claims[name].to_string())).unwrap_or_default()
}

/// A text that another party wrote, as the log repeats it: on one line, and shortened.
fn for_log(text: &str) -> String {
    text.escape_debug().take(LOGGED_CHARS_MAX).collect()
}

impl KeyVersion {
    fn new(keys: VerificationKeys, content: &[u8], remembered: usize) -> Self {
        KeyVersion { keys, verified: Cache::new(remembered), content: hash(content) }
    }
}

fn hash(content: &[u8]) -> Hash {
    Sha256::digest(content).into()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
