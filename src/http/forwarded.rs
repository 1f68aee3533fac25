//! Which address a request comes from, if proxies stand before the service. The service believes what the nearest
//! proxy says of the address before it only if that proxy is trusted, and so on back: a client may write anything
//! into these headers.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, header};
use clap::ValueEnum;
use ipnet::IpNet;

/// A network: all addresses that share the first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let wrong = |_| "must be a network such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.1".to_string();
        network.map(Network).map_err(wrong)
    }
}

/// The header in which proxies name the client. Only one of the two is read: a proxy that writes one of them passes
/// on what a client wrote into the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyHeader {
    /// `X-Forwarded-For: client, proxy`
    XForwardedFor,
    /// `Forwarded: for=client, for=proxy` (RFC 7239)
    Forwarded,
}

/// The trusted proxies.
#[derive(Debug, Clone)]
pub struct Proxies {
    pub trusted: Vec<Network>,
    pub header: ProxyHeader,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Proxies {
    /// The client of a request that arrived over a connection from `peer`: the nearest address that is no trusted
    /// proxy's.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = peer.to_canonical();
        if !self.trusts(nearest) {
            return nearest;
        }
        let name = match self.header {
            ProxyHeader::XForwardedFor => X_FORWARDED_FOR,
            ProxyHeader::Forwarded => header::FORWARDED,
        };
        let lines: Vec<_> = headers.get_all(name).iter().collect();
        for line in lines.into_iter().rev() {
            // A client wrote a line that is no text: proxies write addresses.
            let Ok(line) = line.to_str() else { return nearest };
            for hop in line.rsplit(',') {
                let Some(address) = self.address(hop) else { return nearest };
                nearest = address;
                if !self.trusts(nearest) {
                    return nearest;
                }
            }
        }
        nearest
    }

    /// Whether the address is a trusted proxy's.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    fn address(&self, hop: &str) -> Option<IpAddr> {
        let node = match self.header {
            ProxyHeader::XForwardedFor => hop,
            ProxyHeader::Forwarded => hop.split(';').find_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                name.trim().eq_ignore_ascii_case("for").then_some(value)
            })?,
        };
        let node = node.trim().trim_matches('"');
        let address = match node.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next()?,
            // A port behind it; an IPv6 address without brackets has several colons.
            None if node.matches(':').count() == 1 => node.split(':').next()?,
            None => node,
        };
        address.parse().ok().map(|address: IpAddr| address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: ProxyHeader, peer: &str, lines: &[&str]) -> String {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap()).to_vec();
        let mut headers = HeaderMap::new();
        for line in lines {
            let name = if header == ProxyHeader::Forwarded { "forwarded" } else { "x-forwarded-for" };
            headers.append(name, line.parse().unwrap());
        }
        Proxies { trusted, header }.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_nearest_address_that_is_no_proxys_is_the_clients() {
        use ProxyHeader::*;
        for (header, peer, lines, expected) in [
            (XForwardedFor, "192.0.2.9", vec!["198.51.100.1"], "192.0.2.9"),
            (XForwardedFor, "10.0.0.1", vec![], "10.0.0.1"),
            (XForwardedFor, "10.0.0.1", vec!["198.51.100.1"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", vec!["203.0.113.7, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", vec!["203.0.113.7", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            (XForwardedFor, "10.0.0.1", vec!["198.51.100.1, nonsense"], "10.0.0.1"),
            (XForwardedFor, "10.0.0.1", vec!["nonsense, 198.51.100.1:4711"], "198.51.100.1"),
            (XForwardedFor, "::ffff:10.0.0.1", vec!["[2001:db9::1]:443"], "2001:db9::1"),
            (XForwardedFor, "2001:db8::1", vec!["2001:db9::1"], "2001:db9::1"),
            (
                Forwarded,
                "10.0.0.1",
                vec!["for=198.51.100.1;proto=https, For=\"10.0.0.2:80\""],
                "198.51.100.1",
            ),
            (Forwarded, "10.0.0.1", vec!["for=\"[2001:db9::1]:443\""], "2001:db9::1"),
            (Forwarded, "10.0.0.1", vec!["for=unknown"], "10.0.0.1"),
        ] {
            assert_eq!(client(header, peer, &lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn a_network_holds_the_addresses_that_share_its_bits() {
        let holds = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(holds("10.1.0.0/16", "10.1.255.255") && !holds("10.1.0.0/16", "10.2.0.0"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "2001:db8::1") && holds("192.0.2.1", "192.0.2.1"));
        assert!(!holds("192.0.2.1", "192.0.2.2") && !holds("2001:db8::/33", "2001:db8:8000::"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "x", "10.0.0.0/-1", "::/129"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
