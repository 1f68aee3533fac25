//! The headers of every answer that keep browsers from using it for anything else. Pages have more: what they may
//! load, and that no other page may frame them.

use axum::http::{HeaderMap, HeaderValue, header};

/// Adds the headers. An answer belongs to one client, or to this moment: no cache may keep it, unless the handler
/// says otherwise.
pub(super) fn complete(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
