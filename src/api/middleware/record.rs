//! Records what operators do: before the handler runs, and how it ended. An action that cannot be recorded does not
//! run. One that goes on after the answer ([`ActionGoesOn`]) records its end itself, under the [`ActionId`] that the
//! handler finds in the request.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use serde_json::{Map, Value};
use tracing::Instrument;

use crate::access::action::{ActionEnd, ActionGoesOn, ActionId, ActionStart, ActionSubject, NAMED};
use crate::access::{ActionLog, Caller};
use crate::api::wire::body::read_body;
use crate::http::request::{RequestId, panicked};
use crate::http::{Code, Problem};
use crate::ids::{IssuanceId, UserId};

/// The route of users; the next part of a path is a user's id.
const USERS: &str = "/users";
/// Longer paths with queries are cut.
const TARGET_CHARS_MAX: usize = 300;
/// Longer bodies are cut.
const INPUT_CHARS_MAX: usize = 2_000;
/// Bodies of these routes are recorded: they change offers. Other bodies may name people, and are not recorded.
const INPUT_OF: [&str; 3] = ["/coupons", "/pause", "/resume"];
/// Of the bodies of these routes these members are recorded, without the user whom the filter may name: another member
/// may be a misspelled one that names a person.
const FILTERED: &str = "/dead-letters";
const BODY_MEMBERS: [&str; 3] = ["filter", "all", "reason"];
const FILTER_MEMBERS: [&str; 5] = ["couponId", USER_MEMBER, "reason", "minAge", "maxAge"];
const USER_MEMBER: &str = "userId";

/// The middleware around every route whose audience is recorded.
pub(crate) async fn record(
    State(log): State<ActionLog>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    route: MatchedPath,
    parameters: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    // A safe method changes nothing.
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (mut request, input, filtered) = match take_input(&route, request).await {
        Ok(taken) => taken,
        Err(problem) => return problem.into_response(),
    };
    let id = ActionId::generate();
    request.extensions_mut().insert(id);
    let user = user_in(&route, &parameters);
    let target = match user {
        Some(_) => without_user(&route, &parameters),
        None => request.uri().path_and_query().map(|target| target.as_str()).unwrap_or_default().to_owned(),
    };
    // A text that is no user id is not kept: it may be a person's name all the same.
    let about = user.and_then(|user| user.parse().ok()).or(filtered);
    let begun = ActionStart {
        id,
        at: crate::mongo::now_in_milliseconds(),
        caller,
        action: format!("{} {}", request.method(), route.as_str()),
        target: target.chars().take(TARGET_CHARS_MAX).collect(),
        about,
        input,
        request_id: request_id.to_string(),
    };
    if let Err(failure) = log.begin(begun).await {
        return Problem::from(failure).into_response();
    }
    // A client that breaks off ends neither the action that it began nor its record.
    let doing = async move {
        let done = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = done.unwrap_or_else(|panic| panicked(&*panic));
        if response.extensions().get::<ActionGoesOn>().is_some() {
            return response;
        }
        let (ended, about) = ended(&route, &response);
        if let Err(failure) = log.end(id, ended, about).await {
            tracing::error!(action = %id, error = failure.chain(), "the end of an action could not be recorded");
        }
        response
    };
    let done = tokio::spawn(doing.in_current_span()).await;
    done.unwrap_or_else(|_| Problem::new(Code::Internal).into_response())
}

/// Reads the body, if the route's bodies are recorded, and puts it back. Returns what is recorded of it, and the user
/// whom it names.
async fn take_input(
    route: &MatchedPath,
    request: Request,
) -> Result<(Request, Option<String>, Option<UserId>), Problem> {
    let is_filtered = route.as_str().starts_with(FILTERED);
    if !is_filtered && !INPUT_OF.iter().any(|recorded| route.as_str().starts_with(recorded)) {
        return Ok((request, None, None));
    }
    let (parts, body) = request.into_parts();
    let whole = read_body(Request::from_parts(parts.clone(), body), &()).await?;
    let (input, user) = if is_filtered {
        without_filtered_user(&whole)
    } else {
        (String::from_utf8_lossy(&whole).into_owned(), None)
    };
    let input: String = input.chars().take(INPUT_CHARS_MAX).collect();
    Ok((Request::from_parts(parts, Body::from(whole)), Some(input).filter(|input| !input.is_empty()), user))
}

/// What is recorded of a body with a filter, and the user whom it names. Nothing of a body that is no JSON object.
fn without_filtered_user(body: &[u8]) -> (String, Option<UserId>) {
    let Ok(mut body) = serde_json::from_slice::<Map<String, Value>>(body) else { return Default::default() };
    body.retain(|member, _| BODY_MEMBERS.contains(&member.as_str()));
    let mut user = None;
    if let Some(filter) = body.get_mut("filter") {
        match filter.as_object_mut() {
            Some(filter) => {
                filter.retain(|member, _| FILTER_MEMBERS.contains(&member.as_str()));
                let named = filter.get_mut(USER_MEMBER).map(|user| std::mem::replace(user, NAMED.into()));
                user = named.and_then(|user| user.as_str()?.parse().ok());
            }
            None => *filter = Value::Null,
        }
    }
    (Value::from(body).to_string(), user)
}

/// The part of a path where a user is named.
fn user_in<'a>(route: &MatchedPath, parameters: &'a RawPathParams) -> Option<&'a str> {
    let is_user = |name: &str| name == "userId" || (name == "id" && route.as_str().starts_with(USERS));
    parameters.iter().find(|(name, _)| is_user(name)).map(|(_, user)| user)
}

/// The path without the user's id. Of its other parameters only the id of an issuance is kept: a client that swaps
/// the two puts the user's id in its place.
fn without_user(route: &MatchedPath, parameters: &RawPathParams) -> String {
    let user = if route.as_str().starts_with(USERS) { "{id}" } else { "{userId}" };
    let path = route.as_str().replacen(user, NAMED, 1);
    let others = parameters.iter().filter(|(name, _)| format!("{{{name}}}") != user);
    let issuances = others.filter_map(|(name, value)| Some((name, value.parse::<IssuanceId>().ok()?)));
    issuances.fold(path, |path, (name, id)| path.replacen(&format!("{{{name}}}"), &id.to_string(), 1))
}

fn ended(route: &MatchedPath, response: &Response) -> (ActionEnd, ActionSubject) {
    let status: StatusCode = response.status();
    let code = response.extensions().get::<Arc<Problem>>().map(|problem| problem.code);
    let location = |headers: &HeaderMap| Some(headers.get(header::LOCATION)?.to_str().ok()?.to_owned());
    let mut location = location(response.headers());
    let mut about = match status {
        // A conflict is about a user who exists.
        StatusCode::CONFLICT => ActionSubject::AsBegun,
        // After any other refusal it is open whether there is such a user.
        refused if refused.is_client_error() => ActionSubject::Nobody,
        _ => ActionSubject::AsBegun,
    };
    if route.as_str() == USERS
        && let Some((path, user)) = location.as_deref().and_then(|made| made.rsplit_once('/'))
    {
        about = user.parse().map_or(about, ActionSubject::Made);
        location = Some(format!("{path}/{NAMED}"));
    }
    let code = code.map(|code| code.as_str().to_owned());
    (ActionEnd { at: crate::mongo::now_in_milliseconds(), status: status.as_u16(), code, location }, about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_filter_neither_the_user_nor_a_misspelled_member_is_recorded() {
        let recorded = |body: &str| without_filtered_user(body.as_bytes());
        let user = |name: &str| Some(name.parse::<UserId>().expect("an id"));
        let (input, about) = recorded(r#"{"filter":{"couponId":"c","userId":"u1"},"reason":"why"}"#);
        assert_eq!(input, r#"{"filter":{"couponId":"c","userId":"{user}"},"reason":"why"}"#);
        assert_eq!(about, user("u1"));
        for (body, input) in [
            (r#"{"filter":{"userID":"u1"},"reason":"why"}"#, r#"{"filter":{},"reason":"why"}"#),
            (r#"{"userId":"u1","all":true,"reason":"why"}"#, r#"{"all":true,"reason":"why"}"#),
            (r#"{"filter":"u1"}"#, r#"{"filter":null}"#),
            (r#"{"filter":{"userId":["u1"]}}"#, r#"{"filter":{"userId":"{user}"}}"#),
            (r#""u1""#, ""),
            ("u1", ""),
        ] {
            assert_eq!(recorded(body), (input.to_owned(), None), "{body}");
        }
    }
}
