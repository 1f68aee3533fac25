//! What happens to every request: it gets an id, its problems get their words, it is logged once.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{FromRequest, MatchedPath, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tracing::Instrument;

use super::{Code, Language, Problem, metrics};

/// The header of the id that a request goes by, here and in the logs.
pub const REQUEST_ID: &str = "x-request-id";

/// A client may give the id; this much of it.
const REQUEST_ID_MAX: usize = 64;

/// The id of a request. In the request's extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Gives the request an id, and completes its answer. The outermost layer.
pub async fn complete(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| {
        (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    });
    let id: Arc<str> = given.map_or_else(|| crate::random_id().into(), Into::into);
    let language = Language::of(request.headers());
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));

    let (route, method) = (request.extensions().get::<MatchedPath>().cloned(), request.method().clone());
    let path = request.uri().clone();
    // Every request pays for each field: what else there is to say is said at the end.
    let span = tracing::info_span!("request", request = &*id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let _entered = span.enter();

    let status = response.status();
    let mut code = "";
    if status.is_client_error() || status.is_server_error() {
        code = complete_problem(&mut response, language, &id).as_str();
    }
    metrics::answered(route.as_ref(), &method, response.status(), code, started.elapsed());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        tracing::error!(%method, path = path.path(), status = status.as_u16(), elapsed_ms, "answered with an error of ours");
    } else {
        tracing::debug!(%method, path = path.path(), status = status.as_u16(), elapsed_ms, "answered");
    }
    response
}

/// Puts the problem's words into an answer; also where the framework, not a handler, refused.
fn complete_problem(response: &mut Response, language: Language, request_id: &str) -> Code {
    let problem = match response.extensions_mut().remove::<Arc<Problem>>() {
        Some(problem) => problem,
        None => match response.status() {
            StatusCode::NOT_FOUND => Problem::new(Code::NotFound).into(),
            StatusCode::METHOD_NOT_ALLOWED => Problem::new(Code::MethodNotAllowed).into(),
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::TooLarge).into(),
            StatusCode::REQUEST_TIMEOUT => Problem::new(Code::Timeout).into(),
            // The framework's own word for a path that is no text.
            StatusCode::BAD_REQUEST => Problem::new(Code::NotFound).into(),
            status if status.is_client_error() => Problem::new(Code::Malformed).into(),
            _ => Arc::new(Problem::new(Code::Internal)),
        },
    };
    *response.status_mut() = problem.code.status();
    *response.body_mut() = Body::from(problem.body(language, request_id));
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CONTENT_LANGUAGE, HeaderValue::from_static(language.tag()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    problem.code
}

/// The answer to a handler that panicked. What it said is for the log, beside the request's id.
pub fn panicked(said: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text =
        said.downcast_ref::<&str>().copied().or_else(|| said.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or_default(), "a handler panicked");
    Problem::new(Code::Internal).into_response()
}

/// A JSON body of bounded size, not yet made sense of.
pub struct Json(pub Value);

impl<S: Send + Sync> FromRequest<S> for Json {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence =
            kind.and_then(|kind| kind.split(';').next()).map(|kind| kind.trim().to_ascii_lowercase());
        if !essence.is_some_and(|kind| kind == "application/json" || kind.ends_with("+json")) {
            return Err(Problem::new(Code::UnsupportedMediaType));
        }
        let bytes = bytes::Bytes::from_request(request, state).await.map_err(|rejection| match rejection
            .into_response()
            .status()
        {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::TooLarge),
            _ => Problem::new(Code::Malformed).with_detail("The body did not arrive whole."),
        })?;
        serde_json::from_slice(&bytes).map(Json).map_err(|error| {
            Problem::new(Code::Malformed).with_detail(format!("The body is not JSON: {error}."))
        })
    }
}
