//! What browsers are told with every answer, so that they do nothing with it that it is not meant for.
//! Pages say more of themselves: what they may load, and that they may not be framed.

use axum::http::{HeaderMap, HeaderValue, header};

/// Adds them. Answers are somebody's own, or of this moment: nothing between may keep them, unless
/// the handler says otherwise.
pub(super) fn complete(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
