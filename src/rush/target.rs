//! What is loaded: an HTTP/1.1 server, named by its URL.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The longest that a connection may take to make, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A parsed URL and what every request to it needs: address, TLS, `Host` and `Authorization`.
pub struct LoadTarget {
    url: String,
    host: String,
    port: u16,
    /// Of the `Host` header.
    authority: String,
    /// The path that the service lives under; empty or `/a/b`.
    prefix: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The whole line of the header, or nothing.
    authorization: String,
}

/// A connection's two ways.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

impl LoadTarget {
    /// Reads a URL: http or https, with the path under which the service lives.
    ///
    /// # Errors
    ///
    /// A sentence for people: the text is no such URL.
    pub fn new(url: &str) -> Result<Self, String> {
        let parsed = Url::parse(url).map_err(|why| format!("{url:?} is no URL: {why}"))?;
        let host = parsed.host_str().ok_or_else(|| format!("{url:?} names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = parsed.port_or_known_default().ok_or_else(|| format!("{url:?} names no port"))?;
        let tls = match parsed.scheme() {
            "http" => None,
            "https" => {
                let config = crate::http::tls::client().map_err(|error| error.to_string())?;
                let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
                Some((TlsConnector::from(Arc::new(config)), name))
            }
            _ => return Err(format!("{url:?} must begin with http:// or https://")),
        };
        Ok(LoadTarget {
            url: parsed.as_str().trim_end_matches('/').to_owned(),
            authority: parsed.authority().rsplit('@').next().unwrap_or_default().to_owned(),
            prefix: parsed.path().trim_end_matches('/').to_owned(),
            host,
            port,
            tls,
            authorization: String::new(),
        })
    }

    /// Sends an API key, or a user's token, with every request.
    pub fn with_token(mut self, token: Option<&str>) -> Self {
        self.authorization =
            token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        self
    }

    /// The URL without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Appends a request. `headers` are whole lines, each with its `\r\n`.
    pub fn write(&self, method: &str, path: &str, headers: &str, body: &[u8], request: &mut Vec<u8>) {
        let line = [method, " ", &self.prefix, path, " HTTP/1.1\r\nhost: ", &self.authority, "\r\n"];
        for part in line.into_iter().chain([self.authorization.as_str(), headers]) {
            request.extend_from_slice(part.as_bytes());
        }
        if !body.is_empty() {
            let head = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
            request.extend_from_slice(head.as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body);
    }

    pub(super) async fn connect(&self) -> std::io::Result<Box<dyn ByteStream>> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            tcp.set_nodelay(true)?;
            let stream: Box<dyn ByteStream> = match &self.tls {
                None => Box::new(tcp),
                Some((tls, name)) => Box::new(tls.connect(name.clone(), tcp).await?),
            };
            Ok(stream)
        };
        tokio::time::timeout(CONNECT_MAX, connecting).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_the_host_and_keep_the_path_that_the_service_lives_under() {
        let target = LoadTarget::new("http://shop.example:3000/api/").unwrap();
        let mut request = Vec::new();
        target.write("GET", "/queue", "x: y\r\n", b"", &mut request);
        target.write("POST", "/users", "", b"{}", &mut request);
        assert_eq!(
            String::from_utf8(request).unwrap(),
            "GET /api/queue HTTP/1.1\r\nhost: shop.example:3000\r\nx: y\r\n\r\nPOST /api/users HTTP/1.1\r\n\
             host: shop.example:3000\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        );
        let target = LoadTarget::new("https://[::1]/").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.url()), ("::1", 443, "https://[::1]"));
        for wrong in ["", "shop.example", "ftp://shop.example", "unix:/tmp/x"] {
            assert!(LoadTarget::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
