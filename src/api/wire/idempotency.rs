//! What makes a request safe to repeat: `Idempotency-Key`, and the header that says that an answer is a replay.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use utoipa::IntoParams;

use crate::http::Problem;
use crate::issuance::IdempotencyKey;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Says that an answer, or a problem, is that of an earlier attempt.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// The value of [`REPLAYED`].
pub(crate) const TRUE: HeaderValue = HeaderValue::from_static("true");

// Documents a header; `IdempotencyKeyHeader` reads it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "documents a header that is read by itself")]
pub(crate) struct IdempotencyKeyParam {
    /// Names this attempt: 1 to 255 visible ASCII characters; in quotes (RFC 9651) they are the same key
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 512,
        pattern = r#"^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~]([ -~]{0,253}[!-~])?)$"#
    )]
    key: Option<String>,
}

/// Every `Idempotency-Key` header of a request.
pub(crate) struct IdempotencyKeyHeader(Vec<HeaderValue>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKeyHeader {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(IdempotencyKeyHeader(parts.headers.get_all(IDEMPOTENCY_KEY).iter().cloned().collect()))
    }
}

impl IdempotencyKeyHeader {
    /// The key, if the request has one.
    ///
    /// # Errors
    /// 422 `invalid` if it has several, or one that is no key.
    pub(crate) fn parse(&self) -> Result<Option<IdempotencyKey>, Problem> {
        let parsed = match self.0.as_slice() {
            [] => return Ok(None),
            [value] => value.to_str().map_err(|_| "must be visible ASCII".to_string()).and_then(str::parse),
            _ => Err("is given twice".into()),
        };
        parsed.map(Some).map_err(|why| Problem::invalid_parameter("Idempotency-Key", why))
    }
}

/// The answer, marked as a replay.
pub(crate) fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert(REPLAYED, TRUE);
    response
}
