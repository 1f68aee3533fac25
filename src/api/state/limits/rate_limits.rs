//! How many requests of a user or an address are served in a time. Handlers count users, because they know which user
//! a request is for; the middleware counts addresses.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::access::{Access, Caller, Identification};
use crate::config::IngressConfig;
use crate::http::addresses::{ClientPrefix, Peer};
use crate::http::forwarded::Proxies;
use crate::http::{Code, Problem};
use crate::ids::UserId;
use crate::limits::{Admission, LimitScope, Limiter};
use crate::redis::Partition;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Routes that are not counted: they cost next to nothing, and orchestrators and scrapers always need an answer.
const EXEMPT: [&str; 3] = ["/livez", "/healthz", "/metrics"];

/// The rate limit of users; `None` counts nothing.
pub(crate) struct UserLimit(Option<Limiter>);

impl UserLimit {
    /// The limit of the configuration, if it has one.
    pub(crate) fn start(config: &IngressConfig, partition: &Arc<Partition>) -> Self {
        UserLimit(
            config.user_limit().map(|rate| Limiter::start(LimitScope::User, rate, Arc::clone(partition))),
        )
    }

    /// Counts a request of the user who sends it or, if the service asks for no credentials, of the user that it
    /// names. A request with a key is not counted: a shop's own systems ask for many users.
    ///
    /// # Errors
    /// 429 `rate-limited`, with the headers that tell the limit.
    pub(crate) async fn count(&self, caller: &Caller, named: Option<&UserId>) -> Result<(), Problem> {
        let Some(limiter) = &self.0 else { return Ok(()) };
        match counted(caller, named) {
            None => Ok(()),
            Some(user) => admit(limiter, user.as_str()).await,
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
    limiter: Limiter,
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
        let limiter = Limiter::start(LimitScope::Address, config.address_limit()?, Arc::clone(partition));
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
    /// 429 `rate-limited`, with the headers that tell the limit.
    pub(crate) async fn count(&self, prefix: ClientPrefix, headers: &HeaderMap) -> Result<(), Problem> {
        if self.has_key(headers).await { Ok(()) } else { admit(&self.limiter, &prefix.to_string()).await }
    }

    /// Counts a request that was answered without a check of the limit.
    pub(crate) fn note<B>(&self, request: &Request<B>) {
        if let Some(prefix) = self.prefix(request) {
            self.limiter.note(prefix.to_string());
        }
    }

    /// Counts what `peer` sent and was no request. A trusted proxy is not counted: it may have passed it on for any
    /// client.
    pub(crate) fn note_peer(&self, peer: IpAddr) {
        if !self.proxies.trusts(peer) {
            self.limiter.note(ClientPrefix::of(peer).to_string());
        }
    }
}

async fn admit(limiter: &Limiter, who: &str) -> Result<(), Problem> {
    let retry_after = match limiter.admit(who).await {
        Admission::Admitted => return Ok(()),
        Admission::Limited { retry_after } => retry_after,
    };
    let (kind, rate) = (limiter.kind().as_str(), limiter.rate());
    let retry_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    // As in draft-ietf-httpapi-ratelimit-headers-10: a policy's quota and window; what is left, and when
    // there is more.
    let policy = format!("\"{kind}\";q={};w={}", rate.burst, rate.window_seconds());
    let left = format!("\"{kind}\";r=0;t={}", retry_ms.div_ceil(1_000));
    let problem = [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)].into_iter().fold(
        Problem::new(Code::RateLimited).retry_after_ms(retry_ms).with("limit", kind),
        |problem, (name, value)| match HeaderValue::try_from(value) {
            Ok(value) => problem.with_header(name, value),
            Err(_) => problem,
        },
    );
    Err(problem)
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
