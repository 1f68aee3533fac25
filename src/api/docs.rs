//! The OpenAPI document. Each handler describes itself; what all have in common is added by
//! [`super::documented`].

use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

use super::wire::export::ExportEnd;
use super::wire::outcome::{OutcomeLine, OutcomesEnd};
use super::wire::problem::Problem;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Coupon System",
        description = "First-come-first-served coupons. Request one with `POST /user-coupons`, and ask what became of it \
                       at the `Location` of the answer: *accepted* is not yet *issued*.\n\n\
                       Every 4xx and 5xx answer is a problem (RFC 9457), in English or Korean by `Accept-Language`."
    ),
    tags(
        (name = "issuances", description = "Request a coupon, and ask what became of the request"),
        (name = "user coupons", description = "What users hold"),
        (name = "coupons", description = "The offers"),
        (name = "exports", description = "For the shop's other systems: everything that is held, and every outcome"),
        (name = "users", description = "Who may request"),
        (name = "steering", description = "Pause, resume, restock, archive, edit"),
        (name = "operations", description = "Workers and dead letters"),
        (name = "service", description = "Health"),
    ),
    components(schemas(Problem, super::live::Figures, ExportEnd, OutcomeLine, OutcomesEnd))
)]
pub(super) struct Docs;

/// The document that is served at `/openapi.json`.
pub fn openapi() -> OpenApi {
    super::router::described().into_openapi()
}

/// What every document starts from.
pub(super) fn base() -> OpenApi {
    Docs::openapi()
}
