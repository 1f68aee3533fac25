//! Identifies callers by their credentials, or admits all of them without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::mongo::Database;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::key::{PREFIX, PresentedKey};
use super::keyring::{KeyOwner, Keyring, KeyringUnavailable};
use super::refusals::{CredentialsError, RefusalLog};
use super::token::{TokenError, TokenSettings, TokenVerifier};
use super::{Caller, KeyStore};
use crate::failure::SetUpError;

/// The longest that credentials are relied on during a long answer before they are checked again: this machine may
/// sleep, and its clock be set.
const RECHECK_AFTER_MAX: Duration = Duration::from_secs(60);

/// The credentials that this process accepts: API keys, users' tokens, or none.
pub(crate) struct Access {
    /// Whether every caller is admitted without credentials. Once `false`, it stays so.
    open: AtomicBool,
    keys: Arc<Keyring>,
    /// `None` takes no tokens of users.
    tokens: Option<Arc<TokenVerifier>>,
    /// Notified when credentials that were valid may be so no more.
    changed: watch::Sender<()>,
    refusals: RefusalLog,
}

/// Who has sent an `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identification {
    As(Caller),
    Not(AuthRefusal),
    /// A key that is not known, and may be new: see [`Access::ask`].
    Perhaps(PresentedKey),
}

/// Why a caller is not identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthRefusal {
    /// Nothing was sent.
    NoCredentials,
    /// The credentials are invalid: made up, damaged or revoked.
    BadCredentials,
    /// The token has expired.
    Expired,
    /// The API key has expired.
    KeyExpired,
    /// The token is not valid yet.
    Early,
    /// The credentials cannot be checked now.
    Unclear,
}

/// The caller, and the last second, since the Unix epoch, until which the credentials are valid: `None` is for ever.
type Recognition = (Caller, Option<u64>);

/// Credentials of which the caller is not known.
enum Unrecognised {
    Refused(AuthRefusal, Option<CredentialsError>),
    Perhaps(PresentedKey),
}

impl From<CredentialsError> for Unrecognised {
    fn from(wrong: CredentialsError) -> Self {
        let refusal = match wrong {
            CredentialsError::Token(TokenError::Expired) => AuthRefusal::Expired,
            CredentialsError::Token(TokenError::Early) => AuthRefusal::Early,
            CredentialsError::KeyExpired(..) => AuthRefusal::KeyExpired,
            _ => AuthRefusal::BadCredentials,
        };
        Unrecognised::Refused(refusal, Some(wrong))
    }
}

impl Access {
    /// Reads the credentials that there are, and keeps them fresh until `stop`. Without any the process
    /// must not start, unless it is to be open; and then there must not be any: the first key that is made
    /// later ends it.
    ///
    /// # Errors
    ///
    /// If the keys or the file of tokens cannot be read, or `open` contradicts the credentials that there are.
    pub async fn start(
        open: bool,
        tokens: Option<TokenSettings>,
        database: &Database,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, SetUpError> {
        let wrong = |sentence: String| SetUpError(vec![sentence]);
        let changed = watch::Sender::new(());
        let keys = Keyring::read(KeyStore::new(database), changed.clone()).await;
        let keys = keys
            .map_err(|failure| wrong(format!("MongoDB does not give the API keys ({})", failure.chain())))?;
        match (open, keys.active(), &tokens) {
            (true, 0, None) => {}
            (true, active, _) => {
                let there = if active > 0 {
                    format!("{active} active API keys")
                } else {
                    "--jwt-… settings".into()
                };
                return Err(wrong(format!(
                    "--open (COUPON_OPEN) asks nobody for credentials, but there are {there}: leave --open away, or \
                     revoke the keys (`couponctl key list`, `key revoke ID`) and take the --jwt-… settings away"
                )));
            }
            (false, 0, None) => {
                return Err(wrong(
                    "there are no credentials, so nobody could use the API, or everybody: make a first key with \
                     `couponctl key create --name NAME --role operator` on the same --mongodb-uri, or name what \
                     signs users' tokens with --jwt-algorithm and its kin; --open (COUPON_OPEN=true) asks nobody \
                     for credentials, for a network that you trust"
                        .into(),
                ));
            }
            (false, ..) => {}
        }
        let tokens = match tokens {
            Some(settings) => Some(Arc::new(TokenVerifier::read(settings).await.map_err(wrong)?)),
            None => None,
        };
        let keys = Arc::new(keys);
        let access = Arc::new(Access {
            open: AtomicBool::new(open),
            keys: Arc::clone(&keys),
            tokens: tokens.clone(),
            changed: changed.clone(),
            refusals: RefusalLog::default(),
        });
        if open {
            tokio::spawn(Arc::clone(&access).close_with_the_first_key(stop.clone()));
        }
        tokio::spawn(Arc::clone(&keys).keep_noting_use(stop.clone()));
        tokio::spawn(keys.keep_fresh(stop.clone()));
        if let Some(tokens) = tokens {
            tokio::spawn(tokens.keep_fresh(changed, stop.clone()));
        }
        Ok(access)
    }

    /// An operator who makes a first key wants every API that runs to ask for it.
    async fn close_with_the_first_key(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.changed.subscribe();
        while self.keys.active() == 0 {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changed.changed() => if changed.is_err() { return },
            }
        }
        self.open.store(false, Ordering::Release);
        tracing::warn!(
            keys = self.keys.active(),
            "a first API key exists: the API asks for credentials from now on; remove --open"
        );
        // Streams that began while it was open end.
        self.changed.send_replace(());
    }

    /// Whether every caller is admitted without credentials.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// How many API keys are not revoked.
    pub fn keys(&self) -> usize {
        self.keys.active()
    }

    /// Whether users' tokens are taken.
    pub(crate) fn takes_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Who has sent this `Authorization`. Waits for nothing.
    pub(crate) fn identify(&self, authorization: Option<&[u8]>) -> Identification {
        match self.recognise(authorization) {
            Ok((caller, _)) => Identification::As(caller),
            Err(Unrecognised::Perhaps(shown)) => Identification::Perhaps(shown),
            Err(Unrecognised::Refused(refusal, wrong)) => {
                if let Some(wrong) = wrong {
                    self.refusals.log(&wrong);
                }
                Identification::Not(refusal)
            }
        }
    }

    fn recognise(&self, authorization: Option<&[u8]>) -> Result<Recognition, Unrecognised> {
        if self.is_open() {
            return Ok((Caller::Open, None));
        }
        let sent = authorization.ok_or(Unrecognised::Refused(AuthRefusal::NoCredentials, None))?;
        let credentials = bearer(sent).ok_or(CredentialsError::Scheme)?;
        if credentials.starts_with(PREFIX) {
            let shown = PresentedKey::read(credentials).ok_or(CredentialsError::KeyShape)?;
            return match self.keys.owner(&shown) {
                KeyOwner::Known(caller, expires_at) => Ok((caller, expires_at.map(second_of))),
                KeyOwner::Expired(moment) => Err(CredentialsError::KeyExpired(shown.id, moment).into()),
                KeyOwner::WrongSecret => Err(CredentialsError::KeySecret(shown.id).into()),
                KeyOwner::Unknown => Err(Unrecognised::Perhaps(shown)),
            };
        }
        let tokens = self.tokens.as_ref().ok_or(CredentialsError::NoTokens)?;
        let verified = tokens.verified(credentials).map_err(CredentialsError::from)?;
        Ok((Caller::User(verified.user), Some(verified.until)))
    }

    /// Refuses a request that has more than one `Authorization`.
    pub(crate) fn refuse_doubled(&self) -> AuthRefusal {
        self.refusals.log(&CredentialsError::Doubled);
        AuthRefusal::BadCredentials
    }

    /// Who has shown a key that was not known.
    ///
    /// # Errors
    ///
    /// Why the caller is not known.
    pub async fn ask(&self, shown: &PresentedKey) -> Result<Caller, AuthRefusal> {
        match self.keys.ask(shown).await {
            Ok(KeyOwner::Known(caller, _)) => Ok(caller),
            Ok(KeyOwner::Expired(moment)) => {
                self.refusals.log(&CredentialsError::KeyExpired(shown.id.clone(), moment));
                Err(AuthRefusal::KeyExpired)
            }
            Ok(KeyOwner::WrongSecret) => {
                self.refusals.log(&CredentialsError::KeySecret(shown.id.clone()));
                Err(AuthRefusal::BadCredentials)
            }
            Ok(KeyOwner::Unknown) => {
                self.refusals.log(&CredentialsError::KeyUnknown(shown.id.clone()));
                Err(AuthRefusal::BadCredentials)
            }
            Err(KeyringUnavailable) => Err(AuthRefusal::Unclear),
        }
    }

    /// Waits until this `Authorization` is good no more for whom it is good now: it has expired, or was
    /// revoked, or what it was verified with has gone.
    pub async fn revoked(&self, authorization: Option<&[u8]>) {
        let mut changed = self.changed.subscribe();
        let mut first = None;
        while let Ok((caller, until)) = self.recognise(authorization) {
            if *first.get_or_insert_with(|| caller.clone()) != caller {
                return;
            }
            let again = until.map_or(RECHECK_AFTER_MAX, |until| {
                // The second itself is still good.
                Duration::from_secs((until + 1).saturating_sub(seconds_now())).min(RECHECK_AFTER_MAX)
            });
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again.max(Duration::from_millis(100))) => {}
            }
        }
    }

    /// How many verified tokens are remembered.
    pub(crate) fn tokens_remembered(&self) -> usize {
        self.tokens.as_ref().map_or(0, |tokens| tokens.remembered())
    }
}

/// The second, since the Unix epoch, that this moment lies in.
fn second_of(moment: Timestamp) -> u64 {
    u64::try_from(moment.as_second()).unwrap_or(0)
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What follows `Bearer`, in any case.
fn bearer(authorization: &[u8]) -> Option<&str> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, credentials) = authorization.split_at_checked(SCHEME.len())?;
    let credentials = std::str::from_utf8(credentials).ok()?.trim();
    (scheme.eq_ignore_ascii_case(SCHEME) && !credentials.is_empty()).then_some(credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_credentials_are_read() {
        assert_eq!(bearer(b"Bearer x.y"), Some("x.y"));
        assert_eq!(bearer(b"bEARER  x "), Some("x"));
        for wrong in [&b""[..], b"Bearer", b"Bearer ", b"Basic eDp5", b"x.y", b"Bearer \xff"] {
            assert_eq!(bearer(wrong), None);
        }
    }
}
