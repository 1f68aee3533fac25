//! Operators' actions on the wire.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::body::Json;
use super::fields::{self, Fields};
use crate::access::action;
use crate::http::Problem;

// Documents a body; `check_reason` reads it.
/// Why an operator does something, for the record of operators' actions.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "The payment provider is away"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct ActionReason {
    /// 1 to 200 characters.
    #[schema(min_length = 1, max_length = 2000)]
    reason: Option<String>,
}

/// The reason of an action. It is only checked: it is recorded with the whole body.
pub(crate) fn reason(value: Value) -> Result<String, String> {
    action::reason(&fields::string(value)?)
}

/// Checks a body that has nothing but a reason, and may be missing or null.
///
/// # Errors
/// 422 `invalid` with every error.
pub(crate) fn check_reason(body: Option<Json>) -> Result<(), Problem> {
    let Some(Json(body)) = body.filter(|Json(body)| !body.is_null()) else { return Ok(()) };
    let mut fields = Fields::of(body)?;
    fields.optional("reason", reason);
    fields.finish(Some(()))
}

/// Something that an operator, or another owner of a key, did or tried.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OperatorAction)]
pub(crate) struct Action {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The name of the key, `open` if the service asks for no credentials, or `couponctl` and the user of the
    /// operating system who ran it, where it did something past the API.
    #[schema(example = "hong")]
    who: String,
    #[schema(required = true, example = "k3v9x2m4q7ab")]
    key_id: Option<String>,
    /// Method and route, or the command.
    #[schema(example = "POST /coupons/{id}/pause")]
    action: String,
    /// Path and query.
    #[schema(example = "/coupons/summer/pause")]
    target: String,
    /// The body that was sent, cut after 2,000 characters; only of what changes a coupon, the service or dead letters.
    #[schema(required = true, example = "{\"add\":100}")]
    input: Option<String>,
    /// Names the request in the server's logs.
    request_id: String,
    /// How far it is; null for an action that ends with its answer.
    #[schema(required = true)]
    progress: Option<Progress>,
    /// Null while it is being done; if it stays so, the process ended in the middle, and it may have
    /// happened.
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// The status of the answer.
    #[schema(required = true, example = 200)]
    status: Option<u16>,
    /// The code of the problem that was answered.
    #[schema(required = true, example = "coupon-not-found")]
    code: Option<String>,
    /// What was made.
    #[schema(required = true, example = "/coupons/summer")]
    location: Option<String>,
}

/// How far an action is that goes on after its request was answered with 202.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ActionProgress)]
pub(crate) struct Progress {
    /// Whether a process works on it. If not, and `endedAt` is null, that process has ended: what is done stays
    /// done, and the same request again does the rest.
    running: bool,
    /// How many it is to be done to.
    #[schema(example = 10_000)]
    matched: u64,
    /// Those that it was done to, by this action or meanwhile by another.
    #[schema(example = 4_200)]
    done: u64,
    /// Those that it could not be done to, which stay as they were. The log of the API names them.
    #[schema(example = 0)]
    failed: u64,
}

impl From<action::OperatorAction> for Action {
    fn from(action: action::OperatorAction) -> Self {
        let progress = action.progress.map(|progress| Progress {
            running: action.ended.is_none() && progress.is_fresh(Timestamp::now()),
            matched: progress.matched,
            done: progress.done,
            failed: progress.failed,
        });
        let ended_at = action.ended.as_ref().map(|ended| ended.at);
        let status = action.ended.as_ref().map(|ended| ended.status);
        let (code, location) = action.ended.map_or((None, None), |ended| (ended.code, ended.location));
        Action {
            id: action.id.to_string(),
            at: action.at,
            who: action.who,
            key_id: action.key_id,
            action: action.action,
            target: action.target,
            input: action.input,
            request_id: action.request_id,
            progress,
            ended_at,
            status,
            code,
            location,
        }
    }
}
