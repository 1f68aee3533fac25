//! The shape of a problem, for the documentation; [`crate::http::Problem`] writes it.

use utoipa::ToSchema;

use crate::http::problem::FieldError;

/// Something is wrong (RFC 9457). Further members depend on the code: `startsAt`, `userCoupons`,
/// `issuances`, `issuance`.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "documents a body that is written elsewhere")]
pub struct Problem {
    /// The problem's page.
    #[schema(rename = "type", example = "/problems/sold-out")]
    kind: String,
    #[schema(example = "Sold out")]
    title: String,
    #[schema(example = 409)]
    status: u16,
    #[schema(example = "No unit of this coupon is left.")]
    detail: String,
    /// What is wrong, for programs.
    #[schema(example = "sold-out")]
    code: String,
    /// Names this request in the server's logs.
    #[schema(example = "k3v9x2m4q7ab")]
    request_id: String,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// Come back after this.
    retry_after_ms: Option<u64>,
    /// Everything that is wrong with the request.
    errors: Option<Vec<FieldError>>,
}
