//! Where Redis is: the forms that its URL may have.
//!
//! | URL | what it names |
//! |---|---|
//! | `redis://HOST:PORT/DB`, `rediss://…` (TLS), `unix:///PATH` | one server; or, found out by itself, any node of a cluster |
//! | `redis+cluster://HOST:PORT,HOST:PORT` | some nodes of a cluster, from which all others are learned |
//! | `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB` | Sentinels, which know the present primary of a service |
//!
//! A user and a password before the hosts, and `rediss+…` for TLS, are for every server that the URL leads to.
//! Sentinels with credentials of their own take them from `?sentinel_username=…&sentinel_password=…`.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use crate::failure::SetUpError;

const SENTINEL_PORT: u16 = 26_379;

/// How the servers of a URL are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Discovery {
    /// The URL names the server itself. If it turns out to be a node of a cluster, the others are learned from it.
    None,
    /// By asking a node of the cluster.
    Cluster,
    /// By asking a Sentinel for the primary of this service.
    Sentinel { service: String },
}

/// What a URL of Redis says.
#[derive(Clone)]
pub(super) struct Address {
    pub discovery: Discovery,
    /// The servers that the URL names: the server, nodes of the cluster, or Sentinels.
    pub named: Vec<ConnectionInfo>,
    /// How every server of the data is connected to, but for its host and port.
    template: ConnectionInfo,
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong. It repeats nothing of the URL, which may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, SetUpError> {
        let wrong = |what: &str| SetUpError(vec![format!("--redis-url {what}")]);
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(NO_URL))?;
        let (tls, kind) = scheme.split_once('+').map_or((scheme, None), |(tls, kind)| (tls, Some(kind)));
        let parts = UrlParts::split(rest);
        match kind {
            Some("cluster") => {
                let named = parts.infos(tls, parts.path, None).ok_or_else(|| wrong(NO_CLUSTER))?;
                let template = named.first().ok_or_else(|| wrong(NO_CLUSTER))?.clone();
                if template.redis_settings().db() != 0 {
                    return Err(wrong("names a database, but a cluster has only database 0"));
                }
                Ok(Address { discovery: Discovery::Cluster, named, template })
            }
            Some("sentinel") => {
                let (service, database) =
                    parts.path.split_once('/').map_or((parts.path, ""), |(service, db)| (service, db));
                let data = parts.infos(tls, database, None).ok_or_else(|| wrong(NO_SENTINEL))?;
                let template = data.first().ok_or_else(|| wrong(NO_SENTINEL))?.clone();
                if service.is_empty() {
                    return Err(wrong(NO_SENTINEL));
                }
                let sentinels =
                    parts.infos(tls, "", Some(SENTINEL_PORT)).ok_or_else(|| wrong(NO_SENTINEL))?;
                let login = parts.sentinel_login();
                let named =
                    sentinels.into_iter().map(|info| info.set_redis_settings(login.clone())).collect();
                let discovery = Discovery::Sentinel { service: service.to_owned() };
                Ok(Address { discovery, named, template })
            }
            _ if kind != Some("unix") && scheme != "unix" && parts.hosts.contains(',') => Err(wrong(
                "names several hosts: write redis+cluster://HOST:PORT,HOST:PORT for a cluster, or \
                           redis+sentinel://HOST:PORT,HOST:PORT/SERVICE for Sentinels",
            )),
            _ => {
                let info = url.into_connection_info().map_err(|_| wrong(NO_URL))?;
                let template = with_nodelay(info);
                Ok(Address { discovery: Discovery::None, named: vec![template.clone()], template })
            }
        }
    }

    /// How the server at this host and port is connected to: as the URL says, with the same credentials.
    pub(super) fn at(&self, host: &str, port: u16) -> ConnectionInfo {
        let host = host.to_owned();
        let address = match self.template.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.template.clone().set_addr(address)
    }

    /// The number of the database.
    pub(super) fn database(&self) -> i64 {
        self.template.redis_settings().db()
    }
}

const NO_URL: &str = "is no Redis URL, such as redis://USER:PASSWORD@HOST:6379/0; in user and password, characters \
                      such as @ : / % must be percent-encoded";
const NO_CLUSTER: &str = "is no URL of a cluster, such as redis+cluster://USER:PASSWORD@HOST:6379,HOST:6379";
const NO_SENTINEL: &str = "is no URL of Sentinels, such as redis+sentinel://USER:PASSWORD@HOST:26379,HOST:26379/SERVICE/0, \
                           where SERVICE is the name in `sentinel monitor SERVICE …`";

/// The parts of a URL behind its scheme.
struct UrlParts<'a> {
    /// User and password, with the `@` behind them.
    login: &'a str,
    /// `HOST:PORT`, with commas between them.
    hosts: &'a str,
    /// Without the slash before it.
    path: &'a str,
    /// From the question mark on.
    query: &'a str,
    /// From the hash on.
    fragment: &'a str,
}

impl<'a> UrlParts<'a> {
    fn split(rest: &'a str) -> Self {
        let cut = |text: &'a str, at: char| text.find(at).map_or((text, ""), |place| text.split_at(place));
        let (rest, fragment) = cut(rest, '#');
        let (rest, query) = cut(rest, '?');
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
        UrlParts { login, hosts, path, query, fragment }
    }

    /// How to connect to each of the hosts; `None` if one is none.
    fn infos(&self, tls: &str, database: &str, default_port: Option<u16>) -> Option<Vec<ConnectionInfo>> {
        let info = |host: &str| {
            let port = match default_port {
                Some(port) if !has_port(host) => format!(":{port}"),
                _ => String::new(),
            };
            let UrlParts { login, query, fragment, .. } = self;
            let url = format!("{tls}://{login}{host}{port}/{database}{query}{fragment}");
            url.into_connection_info().ok().map(with_nodelay)
        };
        self.hosts.split(',').map(info).collect()
    }

    fn sentinel_login(&self) -> RedisConnectionInfo {
        let query = self.query.trim_start_matches('?').as_bytes();
        form_urlencoded::parse(query).fold(RedisConnectionInfo::default(), |login, (name, value)| match name
            .as_ref()
        {
            "sentinel_username" => login.set_username(value),
            "sentinel_password" => login.set_password(value),
            _ => login,
        })
    }
}

fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A command must not wait for the acknowledgement of the one before it.
fn with_nodelay(info: ConnectionInfo) -> ConnectionInfo {
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    info.set_tcp_settings(tcp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str) -> (Discovery, Vec<String>) {
        let address = Address::parse(url).expect("a URL");
        (address.discovery, address.named.iter().map(|info| info.addr().to_string()).collect())
    }

    #[test]
    fn a_url_names_one_server_nodes_of_a_cluster_or_sentinels() {
        for (url, discovery, expected) in [
            ("redis://a", Discovery::None, vec!["a:6379"]),
            ("rediss://u:p@a:1/2", Discovery::None, vec!["a:1"]),
            ("unix:///run/redis.sock?db=1", Discovery::None, vec!["/run/redis.sock"]),
            ("redis+cluster://a:1", Discovery::Cluster, vec!["a:1"]),
            ("rediss+cluster://u:p@a:1,[::1]:2,c/0", Discovery::Cluster, vec!["a:1", "::1:2", "c:6379"]),
            (
                "redis+sentinel://u:p@a,b:1/main/2?sentinel_password=q",
                Discovery::Sentinel { service: "main".into() },
                vec!["a:26379", "b:1"],
            ),
        ] {
            assert_eq!(named(url), (discovery, expected.into_iter().map(str::to_owned).collect()), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_repeating_it() {
        for (url, expected) in [
            ("hunter2", "is no Redis URL"),
            ("http://:hunter2@a", "is no Redis URL"),
            ("redis://:hunter2@a,b", "redis+cluster://"),
            ("redis+cluster://:hunter2@a,", "is no URL of a cluster"),
            ("redis+cluster://:hunter2@a/1", "only database 0"),
            ("redis+sentinel://:hunter2@a", "SERVICE"),
            ("http+cluster://:hunter2@a", "is no URL of a cluster"),
        ] {
            let why = Address::parse(url).map(|_| ()).expect_err(url).to_string();
            assert!(why.starts_with("--redis-url") && why.contains(expected), "{url}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn every_server_has_the_credentials_of_the_url_and_a_sentinel_its_own() {
        let address =
            Address::parse("rediss+sentinel://u:p%40@s/main/2?sentinel_username=v&sentinel_password=q")
                .expect("a URL");
        let primary = address.at("10.0.0.1", 7);
        assert!(matches!(primary.addr(), ConnectionAddr::TcpTls { host, port: 7, .. } if host == "10.0.0.1"));
        let settings = primary.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("u"), Some("p@"), 2));
        let settings = address.named[0].redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("v"), Some("q"), 0));
        assert!(primary.tcp_settings().nodelay());
    }
}
