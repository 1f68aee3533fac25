//! Records what operators do: before it is done, and how it ended. What cannot be recorded is not done.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, FromRequest, MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;

use crate::access::action::{ActionId, Begun, Ended};
use crate::access::{ActionLog, Caller};
use crate::http::request::{RequestId, panicked};
use crate::http::{Code, Problem};

/// A longer path and query is cut.
const TARGET_CHARS_MAX: usize = 300;
/// A longer body is cut.
const INPUT_CHARS_MAX: usize = 2_000;
/// Bodies of these routes are recorded: what they change is an offer. Others may name people, and are not.
const INPUT_OF: &str = "/coupons";

/// Around every route whose audience is recorded.
pub async fn record(
    State(log): State<ActionLog>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    route: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    // It changes nothing.
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (request, input) = match take_input(&route, request).await {
        Ok(taken) => taken,
        Err(problem) => return problem.into_response(),
    };
    let id = ActionId::generate();
    let target = request.uri().path_and_query().map(|target| target.as_str()).unwrap_or_default();
    let begun = Begun {
        id,
        at: crate::now_in_milliseconds(),
        caller,
        action: format!("{} {}", request.method(), route.as_str()),
        target: target.chars().take(TARGET_CHARS_MAX).collect(),
        input,
        request_id: request_id.to_string(),
    };
    if let Err(failure) = log.begin(begun).await {
        return Problem::from(failure).into_response();
    }
    // A client that breaks off does not break off what it began, nor its record.
    let doing = async move {
        let done = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = done.unwrap_or_else(|said| panicked(&*said));
        if let Err(failure) = log.end(id, ended(&response)).await {
            tracing::error!(action = %id, error = failure.chain(), "how an action ended could not be recorded");
        }
        response
    };
    let done = tokio::spawn(doing.in_current_span()).await;
    done.unwrap_or_else(|_| Problem::new(Code::Internal).into_response())
}

/// Reads the body, if it is to be recorded, and puts it back.
async fn take_input(route: &MatchedPath, request: Request) -> Result<(Request, Option<String>), Problem> {
    if !route.as_str().starts_with(INPUT_OF) {
        return Ok((request, None));
    }
    let (parts, body) = request.into_parts();
    let whole = Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await;
    let whole = whole.map_err(|rejection| match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::TooLarge),
        _ => Problem::new(Code::Malformed).with_detail("The body did not arrive whole."),
    })?;
    let input: String = String::from_utf8_lossy(&whole).chars().take(INPUT_CHARS_MAX).collect();
    Ok((Request::from_parts(parts, Body::from(whole)), Some(input).filter(|input| !input.is_empty())))
}

fn ended(response: &Response) -> Ended {
    let status: StatusCode = response.status();
    let code = response.extensions().get::<Arc<Problem>>().map(|problem| problem.code.as_str().to_owned());
    let location = |headers: &HeaderMap| Some(headers.get(header::LOCATION)?.to_str().ok()?.to_owned());
    Ended {
        at: crate::now_in_milliseconds(),
        status: status.as_u16(),
        code,
        location: location(response.headers()),
    }
}
