//! How many requests of a user or an address are served in a time. A layer counts addresses, and another the users who
//! send requests; the handler of a request that names a user counts by the one whom it names.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::access::{Access, Caller, Identification};
use crate::config::IngressConfig;
use crate::http::addresses::{ClientPrefix, Peer};
use crate::http::forwarded::Proxies;
use crate::http::{Code, Problem};
use crate::ids::UserId;
use crate::limits::{Admission, LimitScope, Limiter, Quota, Rate};
use crate::redis::Partition;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Routes that are not counted: they cost next to nothing, and orchestrators and scrapers always need an answer.
const EXEMPT: [&str; 3] = ["/livez", "/healthz", "/metrics"];

/// A limiter, and the policy that answers advertise.
pub(crate) struct AdvertisedLimiter {
    limiter: Limiter,
    policy: HeaderValue,
}

/// The `RateLimit` fields of an answer that was counted; none if no limit counts it. They are written at the end: the
/// future of each request has what they are made of.
#[derive(Default)]
#[must_use = "every counted answer has the fields"]
pub(crate) struct RateLimitFields(Option<(Arc<AdvertisedLimiter>, Quota)>);

impl RateLimitFields {
    /// Adds the fields to an answer.
    pub(crate) fn add_to(self, response: &mut Response) {
        for (name, value) in self.fields() {
            // An answer that two limits count has both.
            response.headers_mut().append(name, value);
        }
    }

    /// The answer of a handler, with the fields; a problem has them too.
    pub(crate) fn on(self, answer: Result<impl IntoResponse, Problem>) -> Result<Response, Problem> {
        match answer {
            Ok(answer) => {
                let mut response = answer.into_response();
                self.add_to(&mut response);
                Ok(response)
            }
            Err(problem) => Err(self.on_problem(problem)),
        }
    }

    /// As in draft-ietf-httpapi-ratelimit-headers-10: the policy's quota and window; what is left, and in how many
    /// seconds it is whole again or, if nothing is left, in how many there is more.
    fn fields(self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let fields = self.0.map(|(limiter, Quota { left, reset })| {
            let AdvertisedLimiter { limiter, policy } = &*limiter;
            let seconds = reset.as_millis().div_ceil(1_000);
            let told = format!("\"{}\";r={left};t={seconds}", limiter.kind().as_str());
            let told = HeaderValue::try_from(told).expect("numbers and a name");
            [(RATE_LIMIT_POLICY, policy.clone()), (RATE_LIMIT, told)]
        });
        fields.into_iter().flatten()
    }

    fn on_problem(self, problem: Problem) -> Problem {
        self.fields().fold(problem, |problem, (name, value)| problem.with_header(name, value))
    }
}

impl AdvertisedLimiter {
    fn start(kind: LimitScope, rate: Rate, partition: &Arc<Partition>) -> Arc<Self> {
        let policy = format!("\"{}\";q={};w={}", kind.as_str(), rate.burst, rate.window_seconds());
        Arc::new(AdvertisedLimiter {
            limiter: Limiter::start(kind, rate, partition),
            policy: HeaderValue::try_from(policy).expect("numbers and a name"),
        })
    }

    /// Counts one request of `who`.
    ///
    /// # Errors
    /// 429 `rate-limited`, with the fields.
    async fn admit(self: &Arc<Self>, who: &str) -> Result<RateLimitFields, Problem> {
        self.advertise(self.limiter.admit(who).await)
    }

    /// The fields of a request that is admitted, or the problem of one that is not.
    fn advertise(self: &Arc<Self>, admission: Admission) -> Result<RateLimitFields, Problem> {
        let fields = RateLimitFields(Some((Arc::clone(self), admission.quota())));
        match admission {
            Admission::Admitted(_) => Ok(fields),
            Admission::Limited { retry_after } => {
                let retry_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
                let kind = self.limiter.kind().as_str();
                let problem = Problem::new(Code::RateLimited).retry_after_ms(retry_ms).with("limit", kind);
                Err(fields.on_problem(problem))
            }
        }
    }
}

/// Whether a request may go on: known here and now, or once Redis has answered.
pub(crate) enum CountOutcome<F> {
    Now(Result<RateLimitFields, Problem>),
    Asked(F),
}

/// The rate limit of users; `None` counts nothing. Cheap to clone.
#[derive(Clone)]
pub(crate) struct UserLimit(Option<Arc<AdvertisedLimiter>>);

impl UserLimit {
    /// The limit of the configuration, if it has one.
    pub(crate) fn start(config: &IngressConfig, partition: &Arc<Partition>) -> Self {
        UserLimit(config.user_limit().map(|rate| AdvertisedLimiter::start(LimitScope::User, rate, partition)))
    }

    /// Counts a request for `named`, by the user who sends it or, if the service asks for no credentials, by the user
    /// that it names. A request with a key is not counted: a shop's own systems ask for many users.
    ///
    /// # Errors
    /// 429 `rate-limited`.
    pub(crate) async fn count(&self, caller: &Caller, named: &UserId) -> Result<RateLimitFields, Problem> {
        match (&self.0, counted(caller, Some(named))) {
            (Some(limiter), Some(user)) => limiter.admit(user.as_str()).await,
            _ => Ok(RateLimitFields(None)),
        }
    }

    /// Counts a request that names no user, by the user who sends it. The error is 429 `rate-limited`.
    pub(crate) fn count_caller(
        &self,
        caller: &Caller,
    ) -> CountOutcome<impl Future<Output = Result<RateLimitFields, Problem>> + Send + 'static + use<>> {
        let (Some(limiter), Some(user)) = (&self.0, counted(caller, None)) else {
            return CountOutcome::Now(Ok(RateLimitFields(None)));
        };
        match limiter.limiter.admit_unasked(user.as_str()) {
            Ok(admission) => CountOutcome::Now(limiter.advertise(admission)),
            Err(debt) => {
                let (limiter, user) = (Arc::clone(limiter), user.clone());
                CountOutcome::Asked(async move {
                    limiter.advertise(limiter.limiter.ask(user.as_str(), debt).await)
                })
            }
        }
    }
}

fn counted<'a>(caller: &'a Caller, named: Option<&'a UserId>) -> Option<&'a UserId> {
    match caller {
        Caller::Key { .. } => None,
        Caller::User(user) => Some(user),
        Caller::Open | Caller::Anonymous => named,
    }
}

/// The rate limit of addresses.
#[derive(Clone)]
pub(crate) struct AddressLimit {
    limiter: Arc<AdvertisedLimiter>,
    proxies: Arc<Proxies>,
    access: Arc<Access>,
}

impl AddressLimit {
    /// `None` if the configuration has no such limit.
    pub(crate) fn start(
        config: &IngressConfig,
        access: &Arc<Access>,
        partition: &Arc<Partition>,
    ) -> Option<Self> {
        let limiter = AdvertisedLimiter::start(LimitScope::Address, config.address_limit()?, partition);
        Some(AddressLimit { limiter, proxies: Arc::new(config.proxies()), access: Arc::clone(access) })
    }

    /// The address that a request comes from; `None` if the route is not counted.
    pub(crate) fn prefix<B>(&self, request: &Request<B>) -> Option<ClientPrefix> {
        let Peer(peer) = request.extensions().get().copied()?;
        let counts = !EXEMPT.contains(&request.uri().path());
        counts.then(|| ClientPrefix::of(self.proxies.client(peer, request.headers())))
    }

    /// Whether the request has a valid key.
    async fn has_key(&self, headers: &HeaderMap) -> bool {
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(sent), None) = (sent.next(), sent.next()) else { return false };
        let caller = match self.access.identify(Some(sent.as_bytes())) {
            Identification::As(caller) => caller,
            Identification::Not(_) => return false,
            // The key may be new.
            Identification::Perhaps(shown) => match self.access.ask(&shown).await {
                Ok(caller) => caller,
                Err(_) => return false,
            },
        };
        matches!(caller, Caller::Key { .. })
    }

    /// Counts a request of an address, unless it has a key.
    ///
    /// # Errors
    /// 429 `rate-limited`.
    pub(crate) async fn count(
        &self,
        prefix: ClientPrefix,
        headers: &HeaderMap,
    ) -> Result<RateLimitFields, Problem> {
        if self.has_key(headers).await {
            return Ok(RateLimitFields(None));
        }
        self.limiter.admit(&prefix.to_string()).await
    }

    /// Counts a request that is answered without a check of the limit.
    pub(crate) fn note<B>(&self, request: &Request<B>) -> RateLimitFields {
        match self.prefix(request) {
            Some(prefix) => RateLimitFields(Some((
                Arc::clone(&self.limiter),
                self.limiter.limiter.note(prefix.to_string()),
            ))),
            None => RateLimitFields(None),
        }
    }

    /// Counts what `peer` sent and was no request. A trusted proxy is not counted: it may have passed it on for any
    /// client.
    pub(crate) fn note_peer(&self, peer: IpAddr) {
        if !self.proxies.trusts(peer) {
            self.limiter.limiter.note(ClientPrefix::of(peer).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    #[test]
    fn a_request_counts_for_who_sends_it_and_a_key_for_nobody() {
        let [me, other]: [UserId; 2] = ["me", "other"].map(|id| id.parse().unwrap());
        let key = Caller::Key { id: "k".into(), name: "shop".into(), role: Role::Service };
        assert_eq!(counted(&key, Some(&other)), None);
        assert_eq!(counted(&Caller::User(me.clone()), Some(&other)), Some(&me));
        assert_eq!(counted(&Caller::Open, Some(&other)), Some(&other));
        assert_eq!(counted(&Caller::Open, None), None);
    }
}
