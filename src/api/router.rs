//! The routes, by who may use them, and the layers that every request passes through.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::handlers::{
    actions, admin, coupons, exports, issuance_events, issuances, live_figures, operations, outcomes,
    problems, redemption, service, user_coupons, users,
};
use super::middleware::guard::{Guard, TrustedOrigins};
use super::middleware::user_limit::CountCaller;
use super::middleware::{address_limit, record};
use super::pages::{console, swagger};
use super::{App, openapi, pages};
use crate::access::Audience;
use crate::http::parameters::Parameters;
use crate::http::request::RefuseLayer;
use crate::process::metrics_route;

/// The largest body of a request.
const BODY_MAX_BYTES: usize = 64 * 1024;

/// Which routes a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerScope {
    /// All routes.
    Whole,
    /// The routes that are not on the operators' own listener.
    Public,
}

impl ListenerScope {
    /// Whether the listener has the routes of this audience.
    pub(crate) fn has(self, audience: Audience) -> bool {
        self == ListenerScope::Whole || !audience.is_operators_side()
    }
}

/// Routes for one audience. Every route is in such a group, so none lacks an audience.
pub(crate) struct RouteGroup {
    pub audience: Audience,
    pub routes: OpenApiRouter<App>,
}

/// The API as one listener serves it.
pub(crate) fn router(app: App, scope: ListenerScope) -> Router {
    let mut all = Router::new();
    let pages =
        Arc::new(TrustedOrigins { own: app.links.authority().cloned(), origins: app.access.origins.clone() });
    let document = openapi::document(scope);
    let parameters = Arc::new(Parameters::of(&document));
    for RouteGroup { audience, routes } in documented().into_iter().chain(undocumented(&app, document)) {
        if !scope.has(audience) {
            continue;
        }
        let (mut routes, _) = routes.split_for_parts();
        if audience.is_recorded() {
            routes = routes
                .route_layer(middleware::from_fn_with_state(app.access.actions.clone(), record::record));
        }
        // A request passes the guard first. One call for both layers: each boxes every request once more.
        let (access, pages) = (Arc::clone(&app.access.access), Arc::clone(&pages));
        let guard = Guard { access, audience, pages };
        routes = if audience == Audience::Readers {
            routes.route_layer((guard, CountCaller(app.limits.user.clone())))
        } else {
            routes.route_layer(guard)
        };
        all = all.merge(routes);
    }
    let complete = app.complete();
    let refuse =
        RefuseLayer { parameters, origins: app.access.origins.clone(), hosts: Arc::new(app.hosts()) };
    let body = DefaultBodyLimit::max(BODY_MAX_BYTES);
    let limit = app.limits.address.clone();
    let all = all.with_state(app);
    // All layers in one call: each call of `Router::layer` boxes every request once more.
    match limit {
        None => all.layer((complete, refuse, body)),
        // Outside `refuse`, because every answer counts; left out if there is no limit, because it costs.
        Some(limit) => {
            let limit = middleware::from_fn_with_state(limit, address_limit::count_address);
            all.layer((complete, limit, refuse, body))
        }
    }
}

/// The routes of the OpenAPI document.
pub(crate) fn documented() -> Vec<RouteGroup> {
    let group = |audience, routes| RouteGroup { audience, routes };
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
                .routes(routes!(problems::list))
                .routes(routes!(problems::get))
                .routes(routes!(service::alive))
                .routes(routes!(service::healthy))
                .routes(routes!(service::ready)),
        ),
        group(
            Audience::Keys,
            OpenApiRouter::new().routes(routes!(exports::user_coupons)).routes(routes!(outcomes::outcomes)),
        ),
        group(
            Audience::Watchers,
            OpenApiRouter::new()
                .routes(routes!(users::list))
                .routes(routes!(live_figures::events))
                .routes(routes!(operations::caller))
                .routes(routes!(operations::queue))
                .routes(routes!(operations::accounts))
                .routes(routes!(operations::workers))
                .routes(routes!(operations::dead_letters))
                .routes(routes!(operations::dead_letter))
                .routes(routes!(actions::list))
                .routes(routes!(actions::get)),
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
                .routes(routes!(admin::edit))
                .routes(routes!(users::create))
                .routes(routes!(users::create_random))
                .routes(routes!(admin::pause))
                .routes(routes!(admin::resume))
                .routes(routes!(admin::archive))
                .routes(routes!(admin::restock))
                .routes(routes!(admin::pause_all))
                .routes(routes!(admin::resume_all))
                .routes(routes!(operations::redrive_all))
                .routes(routes!(operations::discard_all))
                .routes(routes!(operations::redrive))
                .routes(routes!(operations::discard)),
        ),
    ]
}

/// The routes that the OpenAPI document leaves out: the document itself, the pages, and metrics.
fn undocumented(app: &App, document: OpenApi) -> [RouteGroup; 3] {
    let swagger = swagger::router(document, app.links.prefix());
    let pages = Router::new()
        .route("/", get(pages::try_it))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .route("/assets/try.css", get(pages::try_it_style))
        .route("/assets/try.js", get(pages::try_it_script))
        .route("/developers", get(pages::developers))
        .route("/assets/client.js", get(pages::client_script))
        .route("/assets/pages.css", get(pages::style))
        .merge(swagger);
    let console = Router::new()
        .route("/console", get(console::page))
        .route("/assets/console/{file}", get(console::file));
    let metrics = Router::new().route("/metrics", metrics_route::route(&app.lifecycle.gauges));
    [
        RouteGroup { audience: Audience::Anyone, routes: pages.into() },
        RouteGroup { audience: Audience::OperatorPages, routes: console.into() },
        RouteGroup { audience: Audience::Scrapers, routes: metrics.into() },
    ]
}
