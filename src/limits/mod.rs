//! How often one user, or one address, may ask: token buckets that all API processes share.
//!
//! The buckets are in Redis (`shared`), but a request mostly needs no word from there: each process
//! lets everyone have a share of the limit of its own (`local`) and asks only about those who use it
//! up. What was had unasked is paid back with the next question. So a client who asks as people do costs
//! Redis nothing, and one who is over the limit is turned away here until the time is over.
//!
//! With `n` processes a client may so get at most `n` quarters of the burst above the limit, once, and
//! `n` thirty-seconds of the rate.
//!
//! Limits protect the service; they are no part of its promise. What the limiter cannot say, because
//! Redis is away, full or slow, it lets pass, and counts.

mod local;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use self::local::{LocalBuckets, LocalDecision};
use self::shared::{SharedBuckets, TokenReply, TokenRequest};
use crate::metrics;
use crate::redis::Partition;

/// An answer of Redis is waited for no longer than this.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// A bucket's size, and how fast it fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Tokens per second; a request takes one.
    pub per_second: f64,
    /// Tokens in a full bucket.
    pub burst: u32,
}

impl Rate {
    /// How long an empty bucket takes to fill, in whole seconds, at least one.
    pub(crate) fn window_seconds(&self) -> u64 {
        (f64::from(self.burst) / self.per_second).ceil().max(1.0) as u64
    }
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests that may come at once now.
    pub left: u32,
    /// Until all of them may again; if none may, until one may.
    pub reset: Duration,
}

impl Quota {
    /// Nothing is left until then.
    fn none(reset: Duration) -> Self {
        Quota { left: 0, reset }
    }

    /// Of a bucket in which this many tokens are missing.
    fn missing(tokens: f64, rate: Rate) -> Self {
        // A little more than is there: sums of fractions that are whole come out a little less.
        let left = (f64::from(rate.burst) - tokens + 1e-6).max(0.0) as u32;
        let reset = if left > 0 { tokens } else { 1.0 } / rate.per_second;
        Quota { left, reset: Duration::try_from_secs_f64(reset).unwrap_or(Duration::MAX) }
    }
}

/// What a limit counts requests by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitScope {
    User,
    Address,
}

impl LimitScope {
    /// The name, in keys, metrics and `RateLimit` fields.
    pub fn as_str(self) -> &'static str {
        match self {
            LimitScope::User => "user",
            LimitScope::Address => "address",
        }
    }
}

/// Whether a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Admitted(Quota),
    /// Not before this.
    Limited {
        retry_after: Duration,
    },
}

impl Admission {
    /// What is left after this request.
    pub fn quota(self) -> Quota {
        match self {
            Admission::Admitted(quota) => quota,
            Admission::Limited { retry_after } => Quota::none(retry_after),
        }
    }
}

/// Tokens that a client took unasked, which the next question reports.
#[derive(Debug)]
pub(crate) struct Debt(u32);

/// Counts the requests of one kind. Cheap to clone.
#[derive(Clone)]
pub struct Limiter {
    kind: LimitScope,
    rate: Rate,
    local: Arc<LocalBuckets>,
    shared: SharedBuckets,
}

impl Limiter {
    /// Starts a limiter on the servers that a partition lies on.
    pub fn start(kind: LimitScope, rate: Rate, partition: &Partition) -> Self {
        Limiter {
            kind,
            rate,
            local: Arc::new(LocalBuckets::new(rate)),
            shared: SharedBuckets::start(kind, rate, partition.client().nodes()),
        }
    }

    pub fn kind(&self) -> LimitScope {
        self.kind
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Counts one request of `who`.
    pub async fn admit(&self, who: &str) -> Admission {
        match self.admit_unasked(who) {
            Ok(admission) => admission,
            Err(debt) => Box::pin(self.ask(who, debt)).await,
        }
    }

    /// Counts one request of `who`, if this process knows the answer.
    ///
    /// # Errors
    /// Only Redis knows it: the tokens that [`Self::ask`] must report.
    pub(crate) fn admit_unasked(&self, who: &str) -> Result<Admission, Debt> {
        match self.local.decide(who) {
            LocalDecision::Admitted(quota) => Ok(Admission::Admitted(quota)),
            LocalDecision::Limited { retry_after } => Ok(self.tally(Admission::Limited { retry_after })),
            LocalDecision::Ask { debt } => Err(Debt(debt)),
        }
    }

    /// Counts one request of `who` by what Redis says.
    pub(crate) async fn ask(&self, who: &str, debt: Debt) -> Admission {
        self.tally(self.ask_redis(who, debt).await)
    }

    fn tally(&self, admission: Admission) -> Admission {
        if matches!(admission, Admission::Limited { .. }) {
            metrics::LIMITED.count(self.kind.as_str());
        }
        admission
    }

    /// Counts one request of `who` that is answered whatever the limit says. Returns what is left, as far as this
    /// process knows.
    pub(crate) fn note(&self, who: String) -> Quota {
        match self.local.decide(&who) {
            LocalDecision::Admitted(quota) => quota,
            LocalDecision::Limited { retry_after } => Quota::none(retry_after),
            LocalDecision::Ask { debt } => {
                let (limiter, quota) = (self.clone(), self.local.quota(&who));
                tokio::spawn(async move { limiter.ask_redis(&who, Debt(debt)).await });
                quota
            }
        }
    }

    async fn ask_redis(&self, who: &str, Debt(debt): Debt) -> Admission {
        let asked = self.shared.ask(TokenRequest { who: who.into(), debt });
        match tokio::time::timeout(ANSWER_MAX, asked).await {
            Ok(Ok(answer)) => {
                self.local.learn(who, answer);
                match answer {
                    TokenReply::Admitted { left, .. } => {
                        let missing = f64::from(self.rate.burst) - f64::from(left);
                        Admission::Admitted(Quota::missing(missing, self.rate))
                    }
                    TokenReply::Limited { retry_after } => Admission::Limited { retry_after },
                }
            }
            silent => {
                if let Ok(Err(failure)) = silent {
                    tracing::debug!(
                        error = failure.chain(),
                        "the rate limiter admitted a request because Redis did not answer"
                    );
                }
                metrics::UNLIMITED.increment(1);
                Admission::Admitted(self.local.quota(who))
            }
        }
    }
}
