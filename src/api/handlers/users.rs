//! Registered users: created one by one, or many with random ids for trials.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt, stream};

use super::user_coupons::held_page;
use crate::access::Caller;
use crate::api::App;
use crate::api::state::user_directory::UserDirectory;
use crate::api::wire::body::Json as Body;
use crate::api::wire::idempotency::{IdempotencyKeyHeader, IdempotencyKeyParam, replayed};
use crate::api::wire::page::{Page, PageParams, cursor};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::user::{self as wire, CreateUser};
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};
use crate::ids::UserId;
use crate::user::{DELETIONS_MAX, FirstInsertOutcome, MarkDeletedOutcome, User};

const RANDOM_MAX: usize = 100_000;
/// Users in one insert, and inserts under way at once.
const RANDOM_BATCH: usize = 2_000;
const RANDOM_BATCHES: usize = 4;
/// Ids of random users in the answer.
const RANDOM_SHOWN: usize = 10;
/// Held units in the answer about a user.
const HELD_SHOWN: usize = 20;

/// Register a user.
///
/// Safe to repeat with an `id` of yours: `sameAsRequested` then tells whether an earlier attempt registered
/// them. Without one, each request registers another user.
#[utoipa::path(
    post, path = "/users", operation_id = "createUser", tag = "users", request_body = CreateUser,
    responses(
        (status = 201, description = "Registered", body = wire::User, headers(("Location" = String))),
        (status = 409, description = "`user-exists`; `sameAsRequested` tells whether the user is exactly as this request asks, as after a lost answer", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create(State(app): State<App>, Body(body): Body) -> Result<Response, Problem> {
    let is_named = body["id"].is_string() || body["subject"].is_string();
    let user = wire::create(body, crate::mongo::now_in_milliseconds())?;
    // With a generated id a repetition would create another user.
    let inserted = app.users.store.insert(std::slice::from_ref(&user)).await;
    if inserted.map_err(|failure| Problem::from(failure).repeatable(is_named))? != [true] {
        let existing = app.users.store.get(&user.id).await?;
        let is_same = existing.is_some_and(|existing| existing.name == user.name);
        return Err(Problem::new(Code::UserExists).with("sameAsRequested", is_same));
    }
    let location = app.links.user(&user.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(wire::User::from(user))).into_response())
}

/// Register many users with random ids, for trials. Adds, never deletes.
///
/// Safe to repeat with an `Idempotency-Key`: the ids come of it, so the same request registers the same users. With
/// another `count` the key is `key-reused`. Without one, each request registers others.
#[utoipa::path(
    post, path = "/users/random", operation_id = "createRandomUsers", tag = "users",
    params(
        ("count" = u32, Query, minimum = 1, maximum = 100000, example = 1000),
        IdempotencyKeyParam,
    ),
    responses(
        (status = 201, description = "Registered. With `Idempotent-Replayed: true` all of them were before", body = wire::CreatedUsers,
            headers(("Idempotent-Replayed" = bool))),
        (status = 422, description = "`key-reused`: the key was that of another `count`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_random(
    State(directory): State<Arc<UserDirectory>>,
    key: IdempotencyKeyHeader,
    mut query: Query,
) -> Result<Response, Problem> {
    let count = query.take("count", |text| match text.parse::<usize>() {
        Ok(count) if (1..=RANDOM_MAX).contains(&count) => Ok(count),
        _ => Err(format!("must be a whole number from 1 to {RANDOM_MAX}")),
    })?;
    query.finish()?;
    let count = count.ok_or_else(|| Problem::invalid_parameter("count", "is missing"))?;

    let key = key.parse()?;
    let created_at = crate::mongo::now_in_milliseconds();
    let users: Vec<User> = (0..count)
        .map(|number| {
            let id = key.as_ref().map_or_else(UserId::generate, |key| UserId::of_key(key.as_str(), number));
            User { name: id.to_string(), id, created_at }
        })
        .collect();
    let unsure = |failure| Problem::from(failure).repeatable(key.is_some());
    let first = match (&key, users.first()) {
        (Some(_), Some(first)) => directory.store.insert_first(first, count).await.map_err(unsure)?,
        _ => FirstInsertOutcome::New,
    };
    if first == FirstInsertOutcome::OfOtherCount {
        return Err(Problem::new(Code::KeyReused));
    }
    let others = if key.is_some() { &users[1..] } else { &users };
    let batches: Vec<Vec<User>> = others.chunks(RANDOM_BATCH).map(<[User]>::to_vec).collect();
    let registered = stream::iter(batches)
        .map(|batch| {
            let store = directory.store.clone();
            async move { store.insert(&batch).await }
        })
        .buffer_unordered(RANDOM_BATCHES)
        .try_fold(0, async |sum, new| Ok(sum + new.into_iter().filter(|new| *new).count()))
        .await;
    let new: usize = registered.map_err(unsure)?;
    let ids = users.iter().take(RANDOM_SHOWN).map(|user| user.id.to_string()).collect();
    // With a key all of them are registered now, by this request or an earlier one.
    let created = if key.is_some() { count } else { new };
    let answer = (StatusCode::CREATED, Json(wire::CreatedUsers { created, ids })).into_response();
    Ok(if first == FirstInsertOutcome::Before && new == 0 { replayed(answer) } else { answer })
}

/// All users, newest first.
#[utoipa::path(
    get, path = "/users", operation_id = "listUsers", tag = "users",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses((status = 200, description = "A page of them", body = Page<wire::User>))
)]
pub(crate) async fn list(
    State(users): State<Arc<UserDirectory>>,
    mut query: Query,
) -> Result<Json<Page<wire::User>>, Problem> {
    let params: PageParams<String> = PageParams::read(&mut query)?;
    query.finish()?;
    let page = users.store.list(params.after, params.limit).await?;
    let next_cursor = page.next.map(|(time, id)| cursor(time, id));
    Ok(Json(Page { items: page.items.into_iter().map(wire::User::from).collect(), next_cursor }))
}

/// Delete a user, for an operator. From now on they are unknown; within `--user-deletion-delay` (five
/// minutes, and what is in flight) their records carry a pseudonym, and no process remembers them. What was
/// issued stays issued. Safe to repeat. The same id can be registered anew after that, by a new person.
#[utoipa::path(
    delete, path = "/users/{id}", operation_id = "deleteUser", tag = "users",
    params(("id" = String, Path, example = "u1")),
    responses(
        (status = 202, description = "They are being deleted", body = wire::UserDeletion),
        (status = 404, description = "`user-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: UserId = id.parse().map_err(|_| Problem::new(Code::UserNotFound))?;
    // If the caller's ids are trusted, users have records without having been registered.
    let unregistered = app.users.registered.is_none() && app.issuing.ledger.has_records_of(&id).await?;
    if id.is_pseudonym() {
        return Err(Problem::new(Code::UserNotFound));
    }
    match app.users.store.mark_deleted(&id, app.users.deletion_delay, unregistered).await? {
        MarkDeletedOutcome::As(deletion) => {
            Ok((StatusCode::ACCEPTED, Json(wire::UserDeletion::from(deletion))).into_response())
        }
        MarkDeletedOutcome::Unknown => Err(Problem::new(Code::UserNotFound)),
        MarkDeletedOutcome::TooMany => Err(Problem::new(Code::Overloaded)
            .with_detail(format!("{DELETIONS_MAX} users are being deleted; more must wait."))
            .retry_after_ms(jittered_ms(60_000))),
    }
}

/// One user, with the newest of what they hold.
#[utoipa::path(
    get, path = "/users/{id}", operation_id = "getUser", tag = "users",
    params(("id" = String, Path, example = "u1")),
    responses(
        (status = 200, description = "The user", body = wire::UserWithCoupons),
        (status = 404, description = "`user-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<wire::UserWithCoupons>, Problem> {
    let id: UserId = id.parse().map_err(|_| Problem::new(Code::UserNotFound))?;
    // Checked first, so that no answer tells whether another user exists.
    if !caller.may_speak_for(&id) {
        return Err(Problem::new(Code::UserNotFound));
    }
    let (user, coupons) =
        tokio::try_join!(async { app.users.store.get(&id).await.map_err(Problem::from) }, async {
            Ok(held_page(&app.holdings, &id, None, HELD_SHOWN, None).await?.items)
        },)?;
    let user = user.ok_or_else(|| Problem::new(Code::UserNotFound))?;
    Ok(Json(wire::UserWithCoupons { user: user.into(), coupons }))
}
