//! Operators' actions on the wire.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::action;

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
    /// The body that was sent, cut after 2,000 characters; only of what changes a coupon.
    #[schema(required = true, example = "{\"add\":100}")]
    input: Option<String>,
    /// Names the request in the server's logs.
    request_id: String,
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

impl From<action::OperatorAction> for Action {
    fn from(action: action::OperatorAction) -> Self {
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
            ended_at,
            status,
            code,
            location,
        }
    }
}
