//! What operators did.

use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;

use crate::access::ActionLog;
use crate::access::action::ActionId;
use crate::api::wire::action::Action;
use crate::api::wire::page::{Page, PageParams, cursor};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::http::{Code, Problem};

/// What operators did, newest first: who, when, what, and how it ended. Kept for ever.
#[utoipa::path(
    get, path = "/operator-actions", operation_id = "listOperatorActions", tag = "operations",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses((status = 200, description = "A page of them", body = Page<Action>))
)]
pub(crate) async fn list(
    State(actions): State<ActionLog>,
    mut query: Query,
) -> Result<Json<Page<Action>>, Problem> {
    let params: PageParams<ActionId> = PageParams::read(&mut query)?;
    query.finish()?;
    let page = actions.list(params.after.map(|(_, id)| id), params.limit).await?;
    // An action's id alone tells its place; the cursors of other lists need the time.
    let next_cursor = page.next.map(|id| cursor(Timestamp::UNIX_EPOCH, id));
    Ok(Json(Page { items: page.items.into_iter().map(Action::from).collect(), next_cursor }))
}

/// One of the actions that operators did; of one that goes on after its answer, how far it is.
#[utoipa::path(
    get, path = "/operator-actions/{id}", operation_id = "getOperatorAction", tag = "operations",
    params(("id" = String, Path, description = "The action")),
    responses(
        (status = 200, description = "The action", body = Action),
        (status = 404, description = "`action-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get(
    State(actions): State<ActionLog>,
    Path(id): Path<String>,
) -> Result<Json<Action>, Problem> {
    let not_found = || Problem::new(Code::ActionNotFound);
    let id = id.parse::<ActionId>().map_err(|_| not_found())?;
    Ok(Json(actions.get(id).await?.ok_or_else(not_found)?.into()))
}
