//! The try-it page: pick a coupon, request it, watch it become issued.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Scripts and styles of our own only.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

pub async fn try_it() -> Response {
    page("text/html; charset=utf-8", CONTENT_POLICY, include_str!("pages/try.html"))
}

pub async fn try_it_style() -> Response {
    page("text/css; charset=utf-8", CONTENT_POLICY, include_str!("pages/try.css"))
}

pub async fn try_it_script() -> Response {
    page("text/javascript; charset=utf-8", CONTENT_POLICY, include_str!("pages/try.js"))
}

/// A page, or a part of one, with what it may do.
pub(super) fn page(
    content_type: impl TryInto<HeaderValue>,
    content_policy: &'static str,
    text: impl IntoResponse,
) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    let content_type =
        content_type.try_into().unwrap_or(HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(content_policy));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
