//! What a process asks of those who call it: nothing, or credentials; and who has shown them.

use std::sync::Arc;

use mongodb::Database;
use tokio_util::sync::CancellationToken;

use super::key::{PREFIX, Shown};
use super::keyring::{Keyring, Owner, Unclear};
use super::token::{BadToken, TokenSettings, Tokens};
use super::{Caller, KeyStore};
use crate::boot::SetUpError;

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub enum Access {
    /// Nobody is asked who they are.
    Open,
    Closed {
        keys: Arc<Keyring>,
        /// `None` takes no tokens of users.
        tokens: Option<Arc<Tokens>>,
    },
}

/// Who has sent an `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identified {
    As(Caller),
    Not(Refusal),
    /// A key that is not known, and may be new: see [`Access::ask`].
    Perhaps(Shown),
}

/// Why it is not known who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing was sent.
    NoCredentials,
    /// What was sent is good for nothing: made up, damaged, revoked.
    BadCredentials,
    /// The token was good once.
    Expired,
    /// It cannot be known now.
    Unclear,
}

impl Access {
    /// Reads the credentials that there are, and keeps them fresh until `stop`. Without any the process
    /// must not start, unless it is to be open; and then there must not be any.
    pub async fn start(
        open: bool,
        tokens: Option<TokenSettings>,
        database: &Database,
        stop: &CancellationToken,
    ) -> Result<Self, SetUpError> {
        let wrong = |sentence: String| SetUpError(vec![sentence]);
        let keys = Keyring::read(KeyStore::new(database)).await;
        let keys = keys
            .map_err(|failure| wrong(format!("MongoDB does not tell the API keys ({})", failure.chain())))?;
        match (open, keys.active(), &tokens) {
            (true, 0, None) => return Ok(Access::Open),
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
            Some(settings) => Some(Arc::new(Tokens::read(settings).await.map_err(wrong)?)),
            None => None,
        };
        let keys = Arc::new(keys);
        tokio::spawn(Arc::clone(&keys).keep_fresh(stop.clone()));
        if let Some(tokens) = &tokens {
            tokio::spawn(Arc::clone(tokens).keep_fresh(stop.clone()));
        }
        Ok(Access::Closed { keys, tokens })
    }

    /// Whether nobody is asked who they are.
    pub fn is_open(&self) -> bool {
        matches!(self, Access::Open)
    }

    /// Who has sent this `Authorization`. Waits for nothing.
    pub fn identify(&self, authorization: Option<&[u8]>) -> Identified {
        let Access::Closed { keys, tokens } = self else { return Identified::As(Caller::Open) };
        let Some(sent) = authorization else { return Identified::Not(Refusal::NoCredentials) };
        let Some(credentials) = bearer(sent) else { return Identified::Not(Refusal::BadCredentials) };
        if credentials.starts_with(PREFIX) {
            let Some(shown) = Shown::read(credentials) else {
                return Identified::Not(Refusal::BadCredentials);
            };
            return match keys.owner(&shown) {
                Owner::Known(caller) => Identified::As(caller),
                Owner::WrongSecret => Identified::Not(Refusal::BadCredentials),
                Owner::Unknown => Identified::Perhaps(shown),
            };
        }
        match tokens.as_ref().map(|tokens| tokens.user(credentials)) {
            Some(Ok(user)) => Identified::As(Caller::User(user)),
            Some(Err(BadToken::Expired)) => Identified::Not(Refusal::Expired),
            Some(Err(BadToken::Invalid)) | None => Identified::Not(Refusal::BadCredentials),
        }
    }

    /// Who has shown a key that was not known.
    pub async fn ask(&self, shown: &Shown) -> Result<Caller, Refusal> {
        let Access::Closed { keys, .. } = self else { return Ok(Caller::Open) };
        match keys.ask(shown).await {
            Ok(Some(caller)) => Ok(caller),
            Ok(None) => Err(Refusal::BadCredentials),
            Err(Unclear) => Err(Refusal::Unclear),
        }
    }

    /// How many verified tokens are remembered.
    pub fn tokens_remembered(&self) -> usize {
        match self {
            Access::Closed { tokens: Some(tokens), .. } => tokens.remembered(),
            _ => 0,
        }
    }
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
