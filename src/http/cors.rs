//! Which sites' scripts may read answers (CORS). Only scripts of the configured origins may; a browser keeps the
//! answer from any other script, whatever the server did for the request. No credentials that a browser adds by
//! itself are ever allowed: a script sends its own in `Authorization`.
//!
//! Not tower-http's layer: it answers every `OPTIONS` itself and with 200, also of origins that may not read, and does
//! not complete what a `LoadShedder` answers before the router.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, accept-language, x-request-id, last-event-id, \
     traceparent, tracestate",
);
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static(
    "location, retry-after, idempotent-replayed, ratelimit, ratelimit-policy, x-request-id, content-language, \
     content-disposition, next-after, www-authenticate",
);
/// How long a browser may remember a preflight, in seconds: no browser does for longer.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");
const ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// An origin as browsers write it: `https://shop.example`, with a port if it is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin(HeaderValue);

impl std::str::FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be an origin such as https://shop.example or http://localhost:8080".to_string();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (scheme, authority) = (uri.scheme_str().ok_or_else(wrong)?, uri.authority().ok_or_else(wrong)?);
        let usual = if scheme == "https" { 443 } else { 80 };
        // Compared byte by byte with what a browser sends, which has none of what is refused here.
        let is_one = ["http", "https"].contains(&scheme)
            && text == format!("{scheme}://{authority}")
            && !authority.as_str().contains(['@', '*'])
            && authority.port_u16() != Some(usual)
            && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        if is_one { HeaderValue::from_str(text).map(Origin).map_err(|_| wrong()) } else { Err(wrong()) }
    }
}

/// The origins whose scripts may read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Origins(Arc<HashSet<HeaderValue>>);

impl Origins {
    /// `None` if there are none: then answers have no CORS headers.
    pub fn new(origins: &[Origin]) -> Option<Self> {
        let origins: HashSet<_> = origins.iter().map(|origin| origin.0.clone()).collect();
        (!origins.is_empty()).then(|| Origins(Arc::new(origins)))
    }

    /// Whether scripts of this origin may read.
    pub fn allow(&self, origin: &HeaderValue) -> bool {
        self.0.contains(origin)
    }
}

/// What CORS needs to know of a request.
#[derive(Debug)]
pub(super) struct CorsRequest {
    /// The origin of the request, if its scripts may read.
    allowed: Option<HeaderValue>,
}

impl CorsRequest {
    /// Takes it from a request.
    pub fn of<B>(origins: &Origins, request: &Request<B>) -> Self {
        let origin = request.headers().get(header::ORIGIN).filter(|origin| origins.allow(origin));
        CorsRequest { allowed: origin.cloned() }
    }

    /// Adds to an answer who may read it. Problems have it too: a script must read their codes.
    pub fn complete(&self, headers: &mut HeaderMap) {
        // Also without an origin: a cache must not give the answer for one origin to another.
        headers.append(header::VARY, ORIGIN);
        if let Some(origin) = &self.allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        }
    }
}

/// The answer to a preflight, which no handler sees; `None` if the request is none.
pub(super) fn preflight<B>(origins: &Origins, request: &Request<B>) -> Option<Response> {
    let headers = request.headers();
    let is_preflight =
        *request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let is_allowed = || headers.get(header::ORIGIN).is_some_and(|origin| origins.allow(origin));
    (is_preflight && is_allowed()).then(preflight_answer)
}

fn preflight_answer() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, REMEMBERED),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_do() {
        for right in
            ["https://shop.example", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:3000"]
        {
            assert!(right.parse::<Origin>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            "*",
            "null",
            "shop.example",
            "https://",
            "https://shop.example/",
            "https://shop.example/x",
            "https://Shop.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "ftp://shop.example",
            "https://a@shop.example",
            "https://*.shop.example",
            "https://shop.example?x",
            " https://shop.example",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }
}
