//! Whether the service is alive, and ready.

use std::sync::Arc;

use axum::extract::State;

use super::App;
use super::wire::problem::Problem as ProblemBody;
use crate::http::health::Readiness;

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", operation_id = "getHealth", tag = "service", responses((status = 200, description = "It is", body = String)))]
pub async fn alive() -> &'static str {
    "ok"
}

/// Whether the service can do its work: Redis, its certificate, and MongoDB.
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadiness", tag = "service",
    responses((status = 200, description = "It can", body = Readiness), 
        (status = 503, description = "`unavailable`, `warming-up`; `redis` and `mongodb` tell which part",
            body = ProblemBody, content_type = "application/problem+json"))
)]
pub async fn ready(State(app): State<Arc<App>>) -> Readiness {
    Readiness::probe(&app.partition, &app.database).await
}
