//! Who is let in, and how often.

use std::num::NonZeroUsize;

use clap::Args;

use crate::http::cors::Origin;
use crate::http::forwarded::{Network, Proxies, ProxyHeader};
use crate::http::server::Bounds;
use crate::limits::Rate;

/// How the API keeps its doors.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Doors")]
pub struct DoorsConfig {
    /// Connections from one address at most; 0 counts none. Behind a proxy all come from one address,
    /// and a mobile carrier's customers share few
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

    /// Networks of proxies that are believed when they say from where a request comes
    #[arg(long, env = "COUPON_TRUSTED_PROXIES", value_name = "CIDR,...", value_delimiter = ',')]
    pub trusted_proxies: Vec<Network>,

    /// The header in which they say it; the other one is ignored
    #[arg(long, env = "COUPON_PROXY_HEADER", value_enum, default_value = "x-forwarded-for")]
    pub proxy_header: ProxyHeader,

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

impl DoorsConfig {
    /// How many connections are served.
    pub fn bounds(&self) -> Bounds {
        let per_address = NonZeroUsize::new(self.connections_per_address).map(NonZeroUsize::get);
        Bounds { per_address, ..Bounds::default() }
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
