//! The shape of a problem, for the documentation ([`crate::http::Problem`] writes it), and of its page.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::ToSchema;

use super::advice::advice;
use crate::http::problem::FieldError;
use crate::http::{Code, Language};

/// Something is wrong (RFC 9457). Which of the members that may be missing are there depends on the code.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "documents a body that is written elsewhere")]
pub(crate) struct Problem {
    /// The problem's page.
    #[schema(rename = "type", example = "/problems/sold-out")]
    kind: String,
    #[schema(example = "Sold out")]
    title: String,
    #[schema(example = 409)]
    status: u16,
    #[schema(example = "No unit of this coupon is left.")]
    detail: String,
    /// What is wrong, for programs: one of `GET /problems`. Later versions may have more.
    #[schema(example = "sold-out")]
    code: String,
    /// Names this request in the server's logs.
    #[schema(example = "k3v9x2m4q7ab")]
    request_id: String,
    /// Whether the same request may be sent again, and succeed later. False where what was asked for may have
    /// been done and would be done once more.
    retryable: bool,
    /// Come back after this.
    #[schema(required = false, value_type = u64, example = 1500)]
    retry_after_ms: Option<u64>,
    /// `invalid`: everything that is wrong with the request.
    #[schema(required = false, value_type = Vec<FieldError>)]
    errors: Option<Vec<FieldError>>,
    /// `not-started`: when the coupon can be requested.
    #[schema(required = false, value_type = String, format = DateTime)]
    starts_at: Option<String>,
    /// `already-issued`: where the user's units of the coupon are.
    #[schema(required = false, value_type = Vec<String>)]
    user_coupons: Option<Vec<String>>,
    /// `already-issued`: where the user's undecided requests for the coupon are.
    #[schema(required = false, value_type = Vec<String>)]
    issuances: Option<Vec<String>>,
    /// Where a request is that was accepted, and then rejected with this problem.
    #[schema(required = false, value_type = String, example = "/issuances/019a0b1c-2d3e-7000-8f00-000000000000")]
    issuance: Option<String>,
    /// `already-used`: when.
    #[schema(required = false, value_type = String, format = DateTime)]
    used_at: Option<String>,
    /// `already-used`, to services and operators: for what.
    #[schema(required = false, value_type = String)]
    reference: Option<String>,
    /// `expired`: since when.
    #[schema(required = false, value_type = String, format = DateTime)]
    valid_until: Option<String>,
    /// `issuance-not-found`, for an id that is older: when Redis's data was last recovered.
    #[schema(required = false, value_type = String, format = DateTime)]
    redis_recovered_at: Option<String>,
    /// `coupon-exists`, `user-exists`: whether what exists is exactly what the request asks for, as after a lost
    /// answer.
    #[schema(required = false, value_type = bool)]
    same_as_requested: Option<bool>,
    /// `rate-limited`: whose limit it is, `user` or `address`.
    #[schema(required = false, value_type = String, example = "user")]
    limit: Option<String>,
}

/// A kind of problem: what is the same for every occurrence.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProblemKind {
    /// The address of this page, as problems name it.
    #[serde(rename = "type")]
    #[schema(example = "/problems/sold-out")]
    kind: String,
    #[schema(example = "sold-out")]
    pub code: &'static str,
    #[schema(example = "Sold out")]
    pub title: &'static str,
    #[schema(example = 409)]
    pub status: u16,
    /// What it means.
    #[schema(value_type = String)]
    pub detail: Cow<'static, str>,
    /// What to do.
    #[schema(value_type = String)]
    pub advice: Cow<'static, str>,
    /// Whether the same request may succeed later, where it is safe to repeat; each problem says whether it is.
    pub retryable: bool,
}

impl ProblemKind {
    /// For clients who reach the service under the path `base`.
    pub fn new(code: Code, language: Language, base: &str) -> Self {
        ProblemKind {
            kind: code.page(base),
            code: code.as_str(),
            title: code.title(language),
            status: code.status().as_u16(),
            detail: code.detail(language, base),
            advice: advice(code, language, base),
            retryable: code.is_retryable(),
        }
    }
}
