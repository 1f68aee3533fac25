//! Who is let in, and how often.

use std::num::NonZeroUsize;

use clap::Args;

use crate::http::cors::Origin;
use crate::http::forwarded::{Network, Proxies, ProxyHeader};
use crate::http::host::HostName;
use crate::http::server::Bounds;
use crate::limits::Rate;

/// How the API keeps its doors.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Doors")]
pub struct IngressConfig {
    /// Connections from one address (IPv6: a /64) at most; 0 counts none. A mobile carrier's customers share
    /// few addresses; those of --trusted-proxies are not counted
    #[arg(long, env = "COUPON_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER", default_value_t = 0)]
    pub connections_per_address: usize,

    /// Requests per second of one user, polls among them, over all API processes; 0 for no limit. Twice as
    /// many as somebody sends who polls as soon as the answers allow
    #[arg(long, env = "COUPON_USER_RATE", value_name = "PER_SECOND", default_value_t = 20.0, value_parser = rate)]
    pub user_rate: f64,

    /// As many may come at once
    #[arg(long, env = "COUPON_USER_BURST", value_name = "NUMBER", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub user_burst: u32,

    /// Requests of any kind per second from one address (IPv6: a /64), over all API processes; 0 for no limit:
    /// a mobile carrier's customers share addresses
    #[arg(long, env = "COUPON_ADDRESS_RATE", value_name = "PER_SECOND", default_value_t = 0.0, value_parser = rate)]
    pub address_rate: f64,

    /// As many may come at once
    #[arg(long, env = "COUPON_ADDRESS_BURST", value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub address_burst: u32,

    /// Streams, and requests with `wait`, that one user may have open at once at one API process; 0 for no bound
    #[arg(long, env = "COUPON_USER_HELD", value_name = "NUMBER", default_value_t = 20)]
    pub user_held: usize,

    /// Streams that one address (IPv6: a /64) may have open at once where nobody is asked for credentials, at
    /// one API process; 0 for no bound
    #[arg(long, env = "COUPON_ADDRESS_STREAMS", value_name = "NUMBER", default_value_t = 500)]
    pub address_streams: usize,

    /// Networks of proxies that are believed when they say from where a request comes
    #[arg(long, env = "COUPON_TRUSTED_PROXIES", value_name = "CIDR,...", value_delimiter = ',')]
    pub trusted_proxies: Vec<Network>,

    /// The header in which they say it; the other one is ignored
    #[arg(long, env = "COUPON_PROXY_HEADER", value_enum, default_value = "x-forwarded-for")]
    pub proxy_header: ProxyHeader,

    /// Host names, besides localhost and that of --public-url, by which the API may be reached where it asks
    /// nobody for credentials
    #[arg(long, env = "COUPON_ALLOWED_HOSTS", value_name = "NAME,...", value_delimiter = ',')]
    pub allowed_hosts: Vec<HostName>,

    /// Origins whose scripts may call the API from a browser
    #[arg(long, env = "COUPON_CORS_ORIGINS", value_name = "ORIGIN,...", value_delimiter = ',')]
    pub cors_origins: Vec<Origin>,
}

const RATE_MAX: f64 = 1_000_000.0;
/// A slower limit is hardly meant.
const RATE_MIN: f64 = 0.001;

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| *rate == 0.0 || (RATE_MIN..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| format!("must be 0, or a number from {RATE_MIN} to {RATE_MAX}"))
}

impl IngressConfig {
    /// How many connections are served.
    pub fn bounds(&self) -> Bounds {
        let per_address = NonZeroUsize::new(self.connections_per_address).map(NonZeroUsize::get);
        Bounds { per_address, proxies: self.trusted_proxies.clone(), ..Bounds::default() }
    }

    /// The limit of a user, if there is one.
    pub fn user_limit(&self) -> Option<Rate> {
        (self.user_rate > 0.0).then_some(Rate { per_second: self.user_rate, burst: self.user_burst })
    }

    /// The limit of an address, if there is one.
    pub fn address_limit(&self) -> Option<Rate> {
        (self.address_rate > 0.0).then_some(Rate { per_second: self.address_rate, burst: self.address_burst })
    }

    /// Who is believed about where requests come from.
    pub fn proxies(&self) -> Proxies {
        Proxies { trusted: self.trusted_proxies.clone(), header: self.proxy_header }
    }
}
