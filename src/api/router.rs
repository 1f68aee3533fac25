//! The routes, by who uses them, and what every request passes through.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Json, Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    App, coupons, docs, documented, exports, issuance_events, issuances, live, operations, outcomes, pages,
    problems, service, steering, user_coupons, users, wait,
};
use crate::access::Caller;
use crate::http::{metrics, request};

const BODY_MAX_BYTES: usize = 64 * 1024;
/// From the head of a request to the head of its answer: the longest wait for an outcome, and what it
/// may take to read the request before and to look up after it.
const REQUEST_MAX: Duration = wait::WAIT_MAX.saturating_add(Duration::from_secs(15));

/// The whole API.
pub fn router(app: Arc<App>) -> Router {
    let (routes, _) = described().split_for_parts();
    let document = Json(docs::openapi());
    // Relative, so that it works under a path prefix too.
    let swagger = SwaggerUi::new("/docs").config(Config::new(["../openapi.json"]));
    let metrics = metrics::route(&app.metrics);
    routes
        .with_state(app)
        .route("/metrics", metrics)
        .route("/openapi.json", get(async move || document.clone()))
        .route("/", get(pages::try_it))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .route("/assets/try.css", get(pages::try_it_style))
        .route("/assets/try.js", get(pages::try_it_script))
        .route("/developers", get(pages::developers))
        .route("/assets/client.js", get(pages::client_script))
        .route("/assets/pages.css", get(pages::style))
        .merge(swagger)
        .layer(Extension(Caller::Open))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_MAX))
        .layer(CatchPanicLayer::custom(request::panicked))
        .layer(middleware::from_fn(request::complete))
}

/// The documented routes.
pub(super) fn described() -> OpenApiRouter<Arc<App>> {
    let mut routes = OpenApiRouter::with_openapi(docs::base())
        // Users.
        .routes(routes!(issuances::request))
        .routes(routes!(issuances::get))
        .routes(routes!(issuance_events::events))
        .routes(routes!(user_coupons::list))
        .routes(routes!(user_coupons::get))
        // The shop's other systems.
        .routes(routes!(exports::user_coupons))
        .routes(routes!(outcomes::outcomes))
        // Anyone.
        .routes(routes!(coupons::list, coupons::create))
        .routes(routes!(coupons::get, steering::edit))
        .routes(routes!(problems::list))
        .routes(routes!(problems::get))
        .routes(routes!(service::alive))
        .routes(routes!(service::ready))
        // Operators.
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::create_random))
        .routes(routes!(users::get))
        .routes(routes!(steering::pause))
        .routes(routes!(steering::resume))
        .routes(routes!(steering::archive))
        .routes(routes!(steering::restock))
        .routes(routes!(steering::pause_all))
        .routes(routes!(steering::resume_all))
        .routes(routes!(live::events))
        .routes(routes!(operations::queue))
        .routes(routes!(operations::workers))
        .routes(routes!(operations::dead_letters))
        .routes(routes!(operations::dead_letter))
        .routes(routes!(operations::redrive))
        .routes(routes!(operations::discard));
    documented::add_common_problems(routes.get_openapi_mut());
    routes
}
