//! The routes, by who may use them, and what every request passes through.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router, middleware};
use tower::ServiceBuilder;
use tower_http::timeout::TimeoutLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::guard::Guard;
use super::{
    App, actions, coupons, docs, issuance_events, issuances, live, operations, pages, record, redemption,
    service, steering, user_coupons, users, wait,
};
use crate::access::Audience;
use crate::http::metrics;
use crate::http::request::CompleteLayer;

const BODY_MAX_BYTES: usize = 64 * 1024;
/// From the head of a request to the head of its answer: the longest wait for an outcome, and what it
/// may take to read the request before and to look up after it.
const REQUEST_MAX: Duration = wait::WAIT_MAX.saturating_add(Duration::from_secs(15));

/// Which routes a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// All there are.
    Whole,
    /// Those that operators do not have on a listener of their own.
    Public,
}

impl Side {
    pub(super) fn has(self, audience: Audience) -> bool {
        self == Side::Whole || !audience.is_operators_side()
    }
}

/// Routes for one audience. There is no other way into the router, so none is without.
pub(super) struct Group {
    pub audience: Audience,
    pub routes: OpenApiRouter<Arc<App>>,
}

/// The API as one listener serves it.
pub fn router(app: Arc<App>, side: Side) -> Router {
    let mut all = Router::new();
    for Group { audience, routes } in documented().into_iter().chain(undocumented(&app, side)) {
        if !side.has(audience) {
            continue;
        }
        let (mut routes, _) = routes.split_for_parts();
        if audience.is_recorded() {
            routes = routes.route_layer(middleware::from_fn_with_state(app.actions.clone(), record::record));
        }
        // The last one is the outermost: first of all it is asked who it is.
        all = all.merge(routes.route_layer(Guard { access: Arc::clone(&app.access), audience }));
    }
    // All in one: each call of `Router::layer` boxes every request once more.
    all.with_state(app).layer(
        ServiceBuilder::new()
            .layer(CompleteLayer)
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_MAX))
            .layer(DefaultBodyLimit::max(BODY_MAX_BYTES)),
    )
}

/// The routes of the OpenAPI document.
pub(super) fn documented() -> Vec<Group> {
    let group = |audience, routes| Group { audience, routes };
    vec![
        group(Audience::Requesters, OpenApiRouter::new().routes(routes!(issuances::request))),
        group(
            Audience::Readers,
            OpenApiRouter::new()
                .routes(routes!(issuances::get))
                .routes(routes!(issuance_events::events))
                .routes(routes!(user_coupons::list))
                .routes(routes!(user_coupons::get))
                .routes(routes!(users::get)),
        ),
        group(
            Audience::Anyone,
            OpenApiRouter::new()
                .routes(routes!(coupons::list))
                .routes(routes!(coupons::get))
                .routes(routes!(service::alive))
                .routes(routes!(service::ready)),
        ),
        group(
            Audience::Watchers,
            OpenApiRouter::new()
                .routes(routes!(users::list))
                .routes(routes!(live::events))
                .routes(routes!(operations::queue))
                .routes(routes!(operations::workers))
                .routes(routes!(operations::dead_letters))
                .routes(routes!(operations::dead_letter))
                .routes(routes!(actions::list)),
        ),
        group(
            Audience::Redeemers,
            OpenApiRouter::new()
                .routes(routes!(redemption::use_it))
                .routes(routes!(redemption::restore))
                .routes(routes!(redemption::revoke)),
        ),
        group(
            Audience::Operators,
            OpenApiRouter::new()
                .routes(routes!(coupons::create))
                .routes(routes!(users::delete))
                .routes(routes!(steering::edit))
                .routes(routes!(users::create))
                .routes(routes!(users::create_random))
                .routes(routes!(steering::pause))
                .routes(routes!(steering::resume))
                .routes(routes!(steering::archive))
                .routes(routes!(steering::restock))
                .routes(routes!(steering::pause_all))
                .routes(routes!(steering::resume_all))
                .routes(routes!(operations::redrive))
                .routes(routes!(operations::discard)),
        ),
    ]
}

/// The documentation itself, the pages, and metrics.
fn undocumented(app: &App, side: Side) -> [Group; 2] {
    let document = Json(docs::openapi(side));
    // Relative, so that it works under a path prefix too.
    let swagger = SwaggerUi::new("/docs").config(Config::new(["../openapi.json"]));
    let pages = Router::new()
        .route("/openapi.json", get(async move || document.clone()))
        .route("/", get(pages::try_it))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .route("/assets/try.css", get(pages::try_it_style))
        .route("/assets/try.js", get(pages::try_it_script))
        .merge(swagger);
    let metrics = Router::new().route("/metrics", metrics::route(&app.metrics));
    [
        Group { audience: Audience::Anyone, routes: pages.into() },
        Group { audience: Audience::Scrapers, routes: metrics.into() },
    ]
}
