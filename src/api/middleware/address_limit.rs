//! Counts every request for the address that it comes from, before anything is answered.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::state::limits::AddressLimit;

/// Passes a request on, unless its address is over the limit.
pub(crate) async fn count_address(
    State(limit): State<AddressLimit>,
    request: Request,
    next: Next,
) -> Response {
    let Some(prefix) = limit.prefix(&request) else { return next.run(request).await };
    match limit.count(prefix, request.headers()).await {
        Ok(fields) => {
            let mut response = next.run(request).await;
            fields.add_to(&mut response);
            response
        }
        Err(problem) => problem.into_response(),
    }
}
