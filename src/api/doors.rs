//! How often may be asked: limits on the way in. Users are counted by the handlers, which know whom a
//! request is for; addresses before any handler.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::Caller;
use crate::config::DoorsConfig;
use crate::http::addresses::{Peer, Place};
use crate::http::forwarded::Proxies;
use crate::http::{Code, Problem};
use crate::limits::{Admission, Kind, Limiter};
use crate::partition::Partition;
use crate::user::UserId;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What orchestrators and scrapers ask; they must always get their answer.
const EXEMPT: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The limits of users: `None` if there is none.
pub(super) struct UserLimit(Option<Limiter>);

impl UserLimit {
    pub(super) fn start(config: &DoorsConfig, partition: &Arc<Partition>) -> Self {
        UserLimit(config.user_limit().map(|rate| Limiter::start(Kind::User, rate, Arc::clone(partition))))
    }

    /// Counts a request: of the user who sends it, or, where nobody is asked who they are, of the one
    /// that it names. Who has a key is not counted: a shop's own systems ask for many users.
    pub(super) async fn count(&self, caller: &Caller, named: Option<&UserId>) -> Result<(), Problem> {
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

/// The limit of addresses.
#[derive(Clone)]
pub(super) struct AddressLimit {
    limiter: Limiter,
    proxies: Arc<Proxies>,
}

impl AddressLimit {
    /// `None` if there is none.
    pub(super) fn start(config: &DoorsConfig, partition: &Arc<Partition>) -> Option<Self> {
        let limiter = Limiter::start(Kind::Address, config.address_limit()?, Arc::clone(partition));
        Some(AddressLimit { limiter, proxies: Arc::new(config.proxies()) })
    }

    /// Counts a request, if it is not one that must always get its answer.
    async fn count(&self, place: Option<Place>) -> Result<(), Problem> {
        match place {
            Some(place) => admit(&self.limiter, &place.to_string()).await,
            None => Ok(()),
        }
    }

    /// Where a request comes from; `None` if it is not counted, whoever sends it.
    fn place(&self, request: &Request) -> Option<Place> {
        let Peer(peer) = request.extensions().get().copied()?;
        let counts = !EXEMPT.contains(&request.uri().path());
        counts.then(|| Place::of(self.proxies.client(peer, request.headers())))
    }
}

/// Counts a request of an address. Behind the layer that finds out who the caller is: who has a key is
/// not counted.
pub(super) async fn count_address(
    State(limit): State<AddressLimit>,
    request: Request,
    next: Next,
) -> Response {
    let has_key = matches!(request.extensions().get(), Some(Caller::Key { .. }));
    let place = if has_key { None } else { limit.place(&request) };
    match limit.count(place).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Counts a request that is turned away because it is not known who sends it. Before that layer, which
/// lets no such request through to [`count_address`].
pub(super) async fn count_stranger(
    State(limit): State<AddressLimit>,
    request: Request,
    next: Next,
) -> Response {
    let place = limit.place(&request);
    let response = next.run(request).await;
    if response.status() != StatusCode::UNAUTHORIZED {
        return response;
    }
    match limit.count(place).await {
        Ok(()) => response,
        Err(problem) => problem.into_response(),
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
