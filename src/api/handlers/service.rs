//! Whether the service is alive, and ready.

use axum::extract::State;

use crate::api::App;
use crate::api::wire::problem::Problem as ProblemBody;
use crate::process::health::Readiness;

/// Whether the process is alive. It asks nothing of Redis or MongoDB.
#[utoipa::path(get, path = "/livez", operation_id = "getLiveness", tag = "service",
    responses((status = 200, description = "It is", body = String)))]
pub(crate) async fn alive() -> &'static str {
    "ok"
}

/// The same as `/livez`.
#[utoipa::path(get, path = "/healthz", operation_id = "getHealth", tag = "service",
    responses((status = 200, description = "It is", body = String)))]
pub(crate) async fn healthy() -> &'static str {
    "ok"
}

/// Whether this process can serve requests. Without MongoDB it accepts those of users it remembers, and is
/// ready; `degraded` names the part. Not ready: Redis or its data's certificate is missing, MongoDB has been
/// away for so long that no user is remembered, or the process was asked to stop. Redis and MongoDB are asked once
/// a second at most, for all who probe.
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadiness", tag = "service",
    responses((status = 200, description = "It can", body = Readiness),
        (status = 503, description = "`unavailable`, `warming-up`; `degraded`, `redis`, `mongodb` and `stopping` tell why",
            body = ProblemBody, content_type = "application/problem+json"))
)]
pub(crate) async fn ready(State(app): State<App>) -> Readiness {
    let needs_mongodb = !app.users.deletions.is_fresh();
    app.lifecycle.probe.readiness(needs_mongodb, &app.lifecycle.asked_to_stop).await
}
