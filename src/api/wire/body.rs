//! Bodies of requests: JSON of bounded size, which must arrive within a bound.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::Value;

use super::media_type;
use super::strict::Strict;
use crate::http::{Code, Problem};

/// How long after the head of a request its body may arrive.
const BODY_READ_MAX: Duration = Duration::from_secs(10);

/// A body of bounded size that declares itself JSON, in bytes.
pub(crate) struct RawJson(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawJson {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if let Some(problem) = media_type::refuse(request.headers()) {
            return Err(problem);
        }
        read_body(request, state).await.map(RawJson)
    }
}

/// Reads a body of bounded size.
///
/// # Errors
/// 413 `too-large`, 408 `timeout`, or 400 `malformed` if it does not arrive whole.
pub(crate) async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let reading = tokio::time::timeout(BODY_READ_MAX, Bytes::from_request(request, state));
    let read = reading.await.map_err(|_| Problem::new(Code::Timeout))?;
    read.map_err(|rejection| match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::TooLarge),
        _ => Problem::new(Code::Malformed).with_detail("The body did not arrive whole."),
    })
}

/// A body of bounded size as JSON, before it is read field by field.
pub(crate) struct Json(pub Value);

impl<S: Send + Sync> FromRequest<S> for Json {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let RawJson(body) = RawJson::from_request(request, state).await?;
        parsed(&body).map(Json)
    }
}

/// A body that may be missing: then the request has neither content nor a media type.
impl<S: Send + Sync> OptionalFromRequest<S> for Json {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        let headers = request.headers();
        let length = headers.get(header::CONTENT_LENGTH).map_or("", |value| value.to_str().unwrap_or("?"));
        let nothing = ["", "0"].contains(&length) && !headers.contains_key(header::TRANSFER_ENCODING);
        if nothing && !headers.contains_key(header::CONTENT_TYPE) {
            return Ok(None);
        }
        <Json as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

/// The JSON of a body.
///
/// # Errors
/// 400 `malformed`.
pub fn parsed(body: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(body)
        .map(|Strict(value)| value)
        .map_err(|error| Problem::new(Code::Malformed).with_detail(format!("The body is not JSON: {error}.")))
}
