//! The bare handler: axum, and nothing behind it. It parses the same JSON as `POST /user-coupons`
//! and answers the same; what the service adds to that is what the bench asks for.

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::process;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BareRequest {
    user_id: String,
    coupon_id: String,
}

/// As the service answers what it has accepted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BareResponse {
    state: &'static str,
    id: Uuid,
    coupon_id: String,
    user_id: String,
    ahead: u64,
    estimated_wait_ms: u64,
    poll_after_ms: u64,
    accepted_at: Timestamp,
}

async fn accept(axum::Json(request): axum::Json<BareRequest>) -> Response {
    let id = Uuid::now_v7();
    let headers = [(header::LOCATION, format!("/issuances/{id}")), (header::RETRY_AFTER, "1".to_owned())];
    let accepted = BareResponse {
        state: "queued",
        id,
        coupon_id: request.coupon_id,
        user_id: request.user_id,
        ahead: 0,
        estimated_wait_ms: 100,
        poll_after_ms: 100,
        accepted_at: crate::mongo::now_in_milliseconds(),
    };
    (StatusCode::ACCEPTED, headers, axum::Json(accepted)).into_response()
}

/// Serves on any free loopback port, and logs which, until `shutdown`.
pub async fn serve(shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    tracing::info!(listen = %process::address(&listener)?, "serving the bare handler");
    // As the service does: an answer is one small write.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let router = Router::new().route("/user-coupons", post(accept));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    Ok(())
}
