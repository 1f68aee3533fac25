//! The try-it page: pick a coupon, request it, watch it become issued.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Scripts and styles of our own only.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

pub async fn try_it() -> Response {
    page("text/html; charset=utf-8", include_str!("pages/try.html"))
}

pub async fn try_it_style() -> Response {
    page("text/css; charset=utf-8", include_str!("pages/try.css"))
}

pub async fn try_it_script() -> Response {
    page("text/javascript; charset=utf-8", include_str!("pages/try.js"))
}

fn page(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
