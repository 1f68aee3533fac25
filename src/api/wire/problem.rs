//! The shape of a problem, for the documentation ([`crate::http::Problem`] writes it), and of its page.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::advice::advice;
use crate::http::problem::FieldError;
use crate::http::{Code, Language};

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

/// A kind of problem: what is the same for every occurrence.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemKind {
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
    pub detail: &'static str,
    /// What to do.
    pub advice: &'static str,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

impl ProblemKind {
    pub fn new(code: Code, language: Language) -> Self {
        ProblemKind {
            kind: format!("/problems/{}", code.as_str()),
            code: code.as_str(),
            title: code.title(language),
            status: code.status().as_u16(),
            detail: code.detail(language),
            advice: advice(code, language),
            retryable: code.is_retryable(),
        }
    }
}
