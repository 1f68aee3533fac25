//! Which host a request names. Every request names one, once (RFC 9112, 3.2). If the service asks for no
//! credentials, the host must be one that only this service can have: another site could give its own name this
//! machine's address (DNS rebinding), and its page would then count as the service's own.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use axum::http::{Request, header};

use super::{Code, Problem};

/// A host name in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match HostKind::read(text) {
            Some(HostKind::Name(name)) if name.len() == text.len() => Ok(HostName(name.to_ascii_lowercase())),
            _ => Err("must be the name of a host such as api or coupons.internal, without a port".into()),
        }
    }
}

/// The hosts that requests may name.
#[derive(Debug, Clone, Default)]
pub(crate) enum Hosts {
    #[default]
    Any,
    /// IP addresses, localhost, and these.
    Own(Vec<HostName>),
}

/// The host of a `Host` header.
enum HostKind<'a> {
    Address,
    Name(&'a str),
}

impl<'a> HostKind<'a> {
    /// Reads `host` or `host:port`; `None` if it is neither.
    fn read(text: &'a str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, after) = bracketed.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                (HostKind::Address, after)
            }
            None => {
                let (name, port) = text.find(':').map_or((text, ""), |colon| text.split_at(colon));
                let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                if name.is_empty() || !name.bytes().all(is_name) {
                    return None;
                }
                let is_address = name.parse::<Ipv4Addr>().is_ok();
                (if is_address { HostKind::Address } else { HostKind::Name(name) }, port)
            }
        };
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
        (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host)
    }
}

impl Hosts {
    /// What is wrong with the host that a request names.
    pub(super) fn refuse<B>(&self, request: &Request<B>) -> Option<Problem> {
        let mut sent = request.headers().get_all(header::HOST).iter();
        let host = match (sent.next(), sent.next()) {
            (Some(host), None) => host.to_str().ok(),
            (None, _) => return Some(malformed("The Host header is missing; every request has one.")),
            _ => return Some(malformed("There is more than one Host header.")),
        };
        let Some((host, named)) = host.and_then(|host| Some((host, HostKind::read(host)?))) else {
            return Some(malformed("The Host header is not a host, or a host and a port."));
        };
        // A target with a host of its own stands above the header: two readers could go by either.
        let other = request.uri().authority().filter(|target| !target.as_str().eq_ignore_ascii_case(host));
        if other.is_some() {
            return Some(malformed("The target and the Host header name different hosts."));
        }
        (!self.have(&named)).then(|| {
            Problem::new(Code::Forbidden).with_detail(
                "Nobody is asked for credentials here, so the Host must be an IP address, localhost, or the host \
                 of --public-url: a page of another site may have sent this. --allowed-hosts names more.",
            )
        })
    }

    fn have(&self, named: &HostKind<'_>) -> bool {
        let (own, name) = match (self, named) {
            (Hosts::Any, _) | (_, HostKind::Address) => return true,
            (Hosts::Own(own), HostKind::Name(name)) => (own, name.strip_suffix('.').unwrap_or(name)),
        };
        let is_local = |name: &str| name.eq_ignore_ascii_case("localhost");
        is_local(name)
            || name.rsplit_once('.').is_some_and(|(_, last)| is_local(last))
            || own.iter().any(|own| own.0.eq_ignore_ascii_case(name))
    }
}

fn malformed(detail: &str) -> Problem {
    Problem::new(Code::Malformed).with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(hosts: &Hosts, target: &str, sent: &[&str]) -> Option<Code> {
        let request = sent
            .iter()
            .fold(Request::builder().uri(target), |request, host| request.header(header::HOST, *host));
        hosts.refuse(&request.body(()).unwrap()).map(|problem| problem.code)
    }

    #[test]
    fn a_request_names_one_host() {
        for wrong in [
            &[][..],
            &[""],
            &["a", "a"],
            &["a", "b"],
            &["a b"],
            &["a:"],
            &["a:b"],
            &["u@a"],
            &["a/b"],
            &["a,b"],
            &["[::1"],
            &["[a]"],
            &["::1"],
            &["[::1]x"],
        ] {
            assert_eq!(refused(&Hosts::Any, "/", wrong), Some(Code::Malformed), "{wrong:?}");
        }
        for right in ["a", "A.b-c_d:80", "127.0.0.1:3000", "[::1]:3000", "[2001:db8::1]"] {
            assert_eq!(refused(&Hosts::Any, "/", &[right]), None, "{right}");
        }
        assert_eq!(refused(&Hosts::Any, "http://a:80/", &["b:80"]), Some(Code::Malformed));
        assert_eq!(refused(&Hosts::Any, "http://A:80/", &["a:80"]), None);
    }

    #[test]
    fn where_nobody_is_asked_only_names_that_no_other_site_can_have_are_served() {
        let own = Hosts::Own(vec!["shop.example".parse().unwrap()]);
        for right in [
            "127.0.0.1",
            "192.0.2.1:3000",
            "[::1]:3000",
            "localhost",
            "LocalHost:3000",
            "localhost.",
            "app.localhost:3000",
            "shop.example",
            "Shop.Example:8080",
            "shop.example.",
        ] {
            assert_eq!(refused(&own, "/", &[right]), None, "{right}");
        }
        for wrong in [
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "a.shop.example",
            "127.0.0.1.evil.example",
            "0x7f000001",
            "2130706433",
            "1.2.3",
            "api",
        ] {
            assert_eq!(refused(&own, "/", &[wrong]), Some(Code::Forbidden), "{wrong}");
        }
        assert_eq!(refused(&own, "http://evil.example/", &["evil.example"]), Some(Code::Forbidden));
        assert_eq!(refused(&own, "http://evil.example/", &["localhost"]), Some(Code::Malformed));
    }

    #[test]
    fn a_name_of_a_host_has_no_port_and_is_no_address() {
        assert_eq!("API.internal".parse(), Ok(HostName("api.internal".into())));
        for wrong in ["", "api:3000", "127.0.0.1", "[::1]", "http://api", "*", "a,b"] {
            assert!(wrong.parse::<HostName>().is_err(), "{wrong}");
        }
    }
}
