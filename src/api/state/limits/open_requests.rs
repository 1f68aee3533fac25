//! Requests that are held open: streams of events, and requests that wait for an outcome. Each costs memory for as
//! long as it lasts, and a rate limit counts it only once; so each user, address or key may have only a few.

use std::net::IpAddr;

use axum::http::HeaderMap;

use crate::access::Caller;
use crate::config::IngressConfig;
use crate::http::addresses::ClientPrefix;
use crate::http::concurrency::{ConcurrencyLimit, ConcurrencyPermit};
use crate::http::forwarded::Proxies;
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};
use crate::ids::UserId;
use crate::metrics;

/// Streams of live figures that one caller may have.
const LISTENERS_EACH_MAX: usize = 10;
/// A caller with too many should try again after about this long.
const RETRY_MS: u64 = 1_000;

/// The limits on requests that are held open.
pub(crate) struct OpenRequestLimits {
    /// `None` limits no user.
    users: Option<ConcurrencyLimit<UserId>>,
    addresses: Option<ConcurrencyLimit<ClientPrefix>>,
    listeners: ConcurrencyLimit<String>,
    proxies: Proxies,
}

/// A request that is held open; it counts until this is dropped.
pub(crate) struct OpenRequest {
    _user: Option<ConcurrencyPermit<UserId>>,
    _address: Option<ConcurrencyPermit<ClientPrefix>>,
    _listener: Option<ConcurrencyPermit<String>>,
}

impl OpenRequestLimits {
    /// The limits of the configuration.
    pub(crate) fn new(config: &IngressConfig) -> Self {
        OpenRequestLimits {
            users: (config.user_held > 0).then(|| ConcurrencyLimit::new(config.user_held)),
            addresses: (config.address_streams > 0).then(|| ConcurrencyLimit::new(config.address_streams)),
            listeners: ConcurrencyLimit::new(LISTENERS_EACH_MAX),
            proxies: config.proxies(),
        }
    }

    /// Counts a request that waits for the outcome of an issuance of `user`'s. A request with a key is not counted: a
    /// shop's own systems wait for many users.
    ///
    /// # Errors
    /// 429 `rate-limited`.
    pub(crate) fn hold_for_outcome(&self, caller: &Caller, user: &UserId) -> Result<OpenRequest, Problem> {
        let counted = self.users.as_ref().filter(|_| !matches!(caller, Caller::Key { .. }));
        let user = counted.map(|users| enter(users, user.clone(), "user")).transpose()?;
        Ok(OpenRequest { _user: user, _address: None, _listener: None })
    }

    /// Counts a stream of the outcome of an issuance of `user`'s; if the service asks for no credentials, for the
    /// address, too.
    ///
    /// # Errors
    /// 429 `rate-limited`.
    pub(crate) fn stream(
        &self,
        caller: &Caller,
        user: &UserId,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Result<OpenRequest, Problem> {
        let mut held = self.hold_for_outcome(caller, user)?;
        if let (Caller::Open, Some(addresses)) = (caller, &self.addresses) {
            held._address = Some(enter(addresses, self.prefix(peer, headers), "address")?);
        }
        Ok(held)
    }

    /// Counts a stream of live figures, for the caller's key or address.
    ///
    /// # Errors
    /// 429 `rate-limited`.
    pub(crate) fn listen(
        &self,
        caller: &Caller,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Result<OpenRequest, Problem> {
        let (holder, limit) = match caller {
            Caller::Key { id, .. } => (format!("key {id}"), "key"),
            _ => (self.prefix(peer, headers).to_string(), "address"),
        };
        let listener = enter(&self.listeners, holder, limit)?;
        Ok(OpenRequest { _user: None, _address: None, _listener: Some(listener) })
    }

    fn prefix(&self, peer: IpAddr, headers: &HeaderMap) -> ClientPrefix {
        ClientPrefix::of(self.proxies.client(peer, headers))
    }
}

fn enter<K: Eq + std::hash::Hash + Clone>(
    limit: &ConcurrencyLimit<K>,
    holder: K,
    of: &'static str,
) -> Result<ConcurrencyPermit<K>, Problem> {
    limit.enter(holder).ok_or_else(|| {
        metrics::LIMITED.count("held");
        let most = limit.most();
        Problem::new(Code::RateLimited)
            .with_detail(format!(
                "This {of} has {most} streams and waiting requests open here, which is as many as may be: end one, \
                 or poll without `wait`."
            ))
            .with("limit", format!("{of}-held"))
            .retry_after_ms(jittered_ms(RETRY_MS))
    })
}
