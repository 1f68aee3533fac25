//! Logs why credentials are refused: the operators are to know what is wrong with them, but not the caller, who may
//! have made them up. One line of a kind in [`LOG_EVERY`], however many there are.

use std::time::{Duration, Instant};

use super::token::TokenError;
use parking_lot::Mutex;

/// Between two lines of one kind of refusal.
pub const LOG_EVERY: Duration = Duration::from_secs(10);

/// What is wrong with credentials that were sent. It never repeats them.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    #[error("it is not `Bearer` and a key or a token")]
    Scheme,
    #[error("more than one was sent")]
    Doubled,
    #[error("it begins as an API key does, and is none: cut off, or with something after it")]
    KeyShape,
    #[error("there is no active API key {0:?}: revoked, or of another deployment")]
    KeyUnknown(String),
    #[error("the secret of API key {0:?} is another one")]
    KeySecret(String),
    #[error("API key {0:?} has expired, at {1:.0}")]
    KeyExpired(String, jiff::Timestamp),
    #[error("it is no API key, and users' tokens are not taken: there are no --jwt-… settings")]
    NoTokens,
    #[error("the token of a user is refused: {0}")]
    Token(#[from] TokenError),
}

/// How often each kind was met.
#[derive(Default)]
pub(super) struct RefusalLog(Mutex<Vec<RefusalCounter>>);

struct RefusalCounter {
    kind: std::mem::Discriminant<CredentialsError>,
    /// Tokens are refused for reasons of their own.
    token: Option<std::mem::Discriminant<TokenError>>,
    at: Instant,
    since: u64,
}

impl RefusalLog {
    /// Logs a refusal, unless one of its kind was logged just now.
    pub fn log(&self, wrong: &CredentialsError) {
        let more = self.count(wrong, Instant::now());
        if let Some(more) = more {
            tracing::warn!(why = %wrong, more, "credentials are refused");
        }
    }

    /// How many of its kind were not logged since the last one, if this one is to be logged.
    fn count(&self, wrong: &CredentialsError, now: Instant) -> Option<u64> {
        let kind = std::mem::discriminant(wrong);
        let token = match wrong {
            CredentialsError::Token(bad) => Some(std::mem::discriminant(bad)),
            _ => None,
        };
        let mut all = self.0.lock();
        match all.iter_mut().find(|counter| counter.kind == kind && counter.token == token) {
            Some(counter) if now.duration_since(counter.at) < LOG_EVERY => {
                counter.since += 1;
                None
            }
            Some(counter) => {
                counter.at = now;
                Some(std::mem::take(&mut counter.since))
            }
            None => {
                all.push(RefusalCounter { kind, token, at: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_one_line_and_hides_no_other() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        let key = || CredentialsError::KeyUnknown("a".into());
        assert_eq!(log.count(&key(), now), Some(0));
        for _ in 0..1_000 {
            assert_eq!(log.count(&key(), now), None);
        }
        assert_eq!(log.count(&CredentialsError::Token(TokenError::Signature), now), Some(0));
        assert_eq!(log.count(&CredentialsError::Token(TokenError::Expired), now), Some(0));
        assert_eq!(log.count(&key(), now + LOG_EVERY), Some(1_000));
        assert_eq!(log.count(&key(), now + LOG_EVERY), None);
    }
}
