//! Ingress: which connections and requests the API admits, and how often.

use std::num::NonZeroUsize;

use clap::Args;

use crate::http::cors::Origin;
use crate::http::forwarded::{Network, Proxies, ProxyHeader};
use crate::http::host::HostName;
use crate::http::server::Bounds;
use crate::limits::Rate;

/// Which connections and requests the API admits, and how often.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ingress and rate limits")]
pub struct IngressConfig {
    /// Most connections from one address (IPv6: a /64); 0 for no bound. Customers of a mobile carrier share
    /// few addresses; connections of --trusted-proxies do not count
    #[arg(long, env = "COUPON_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER", default_value_t = 0)]
    pub connections_per_address: usize,

    /// Requests per second of one user, including polls, over all API processes; 0 for no limit. The default is
    /// twice the rate of a client that polls as soon as the answers allow
    #[arg(long, env = "COUPON_USER_RATE", value_name = "PER_SECOND", default_value_t = 20.0, value_parser = rate)]
    pub user_rate: f64,

    /// Requests of one user that may come at once
    #[arg(long, env = "COUPON_USER_BURST", value_name = "NUMBER", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub user_burst: u32,

    /// Requests of any kind per second from one address (IPv6: a /64), over all API processes; 0 for no limit.
    /// Customers of a mobile carrier share addresses
    #[arg(long, env = "COUPON_ADDRESS_RATE", value_name = "PER_SECOND", default_value_t = 0.0, value_parser = rate)]
    pub address_rate: f64,

    /// Requests from one address that may come at once
    #[arg(long, env = "COUPON_ADDRESS_BURST", value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub address_burst: u32,

    /// Streams, and requests with `wait`, that one user may have open at once at one API process; 0 for no bound
    #[arg(long, env = "COUPON_USER_HELD", value_name = "NUMBER", default_value_t = 20)]
    pub user_held: usize,

    /// Streams without credentials that one address (IPv6: a /64) may have open at once at one API process; 0 for
    /// no bound
    #[arg(long, env = "COUPON_ADDRESS_STREAMS", value_name = "NUMBER", default_value_t = 500)]
    pub address_streams: usize,

    /// Networks of proxies whose header the API trusts to name a request's client address
    #[arg(long, env = "COUPON_TRUSTED_PROXIES", value_name = "CIDR,...", value_delimiter = ',')]
    pub trusted_proxies: Vec<Network>,

    /// Header in which the trusted proxies name the client address; the API ignores the other one
    #[arg(
        long,
        env = "COUPON_PROXY_HEADER",
        value_name = "HEADER",
        value_enum,
        default_value = "x-forwarded-for"
    )]
    pub proxy_header: ProxyHeader,

    /// Host names, besides localhost and that of --public-url, that the API accepts in `Host` where it
    /// asks for no credentials
    #[arg(long, env = "COUPON_ALLOWED_HOSTS", value_name = "NAME,...", value_delimiter = ',')]
    pub allowed_hosts: Vec<HostName>,

    /// Origins whose scripts may call the API from a browser
    #[arg(long, env = "COUPON_CORS_ORIGINS", value_name = "ORIGIN,...", value_delimiter = ',')]
    pub cors_origins: Vec<Origin>,
}

const RATE_MAX: f64 = 1_000_000.0;
/// A slower limit is probably a mistake.
const RATE_MIN: f64 = 0.001;

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| *rate == 0.0 || (RATE_MIN..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| format!("must be 0, or a number from {RATE_MIN} to {RATE_MAX}"))
}

impl IngressConfig {
    /// How many connections a server accepts.
    pub fn bounds(&self) -> Bounds {
        let per_address = NonZeroUsize::new(self.connections_per_address).map(NonZeroUsize::get);
        Bounds { per_address, proxies: self.trusted_proxies.clone(), ..Bounds::default() }
    }

    /// The limit of a user, if there is one.
    pub(crate) fn user_limit(&self) -> Option<Rate> {
        (self.user_rate > 0.0).then_some(Rate { per_second: self.user_rate, burst: self.user_burst })
    }

    /// The limit of an address, if there is one.
    pub(crate) fn address_limit(&self) -> Option<Rate> {
        (self.address_rate > 0.0).then_some(Rate { per_second: self.address_rate, burst: self.address_burst })
    }

    /// The proxies that the API trusts, and the header in which they name the client address.
    pub fn proxies(&self) -> Proxies {
        Proxies { trusted: self.trusted_proxies.clone(), header: self.proxy_header }
    }
}
