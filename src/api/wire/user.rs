//! Users on the wire.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::fields::{self, Fields};
use super::user_coupon::UserCoupon;
use crate::http::Problem;
use crate::ids::UserId;
use crate::user;

const NAME_MAX: usize = 100;
/// `/users/random` is another route: a user with this id could be neither read nor deleted.
const NO_ID: &str = "random";

/// A registered user.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct User {
    #[schema(example = "u1")]
    id: String,
    #[schema(example = "홍길동")]
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// A user, and the newest of what they hold.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserWithCoupons {
    #[serde(flatten)]
    pub user: User,
    /// The newest 20; all of them are at `/user-coupons/{userId}`.
    pub coupons: Vec<UserCoupon>,
}

/// What `POST /users/random` made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreatedUsers {
    #[schema(example = 1000)]
    pub created: usize,
    /// The first ten.
    pub ids: Vec<String>,
}

impl From<user::User> for User {
    fn from(user: user::User) -> Self {
        User { id: user.id.to_string(), name: user.name, created_at: user.created_at }
    }
}

/// A user who is being deleted.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserDeletion {
    #[schema(value_type = String, format = DateTime)]
    deleted_at: Timestamp,
    /// From then on, and as soon as nothing of theirs is in flight, their records carry a pseudonym.
    #[schema(value_type = String, format = DateTime)]
    anonymised_from: Timestamp,
}

impl From<user::Deletion> for UserDeletion {
    fn from(deletion: user::Deletion) -> Self {
        UserDeletion { deleted_at: deletion.asked_at, anonymised_from: deletion.due }
    }
}

// Documents a body; `create` reads it.
/// A new user.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"id": "hong", "name": "홍길동"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct CreateUser {
    /// Generated if missing, and if there is no `subject`.
    #[schema(
        pattern = "^([A-Za-z0-9_:@-]|[A-Za-z0-9_:@-][A-Za-z0-9._:@-]|[.][A-Za-z0-9_:@-]|[A-Za-z0-9._:@-]{3,64})$"
    )]
    id: Option<String>,
    /// Instead of `id`: the `sub` of the user's tokens, in any form. The answer tells the id: the
    /// subject itself where it is one, else `sub-sha256:` and its SHA-256 in base64url, without padding.
    #[schema(min_length = 1, example = "auth0|5f7c8ec7")]
    subject: Option<String>,
    /// The id if missing. 1 to 100 characters as people see them, and at most 1,000 bytes; kept in Unicode's NFC. Control
    /// characters, bidi controls and invisible characters are refused; a joiner or a variation selector is
    /// taken where it belongs, in an emoji or a script that needs it.
    #[schema(
        min_length = 1,
        max_length = 1000,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"
    )]
    name: Option<String>,
}

/// Reads a new user from a body; `now` is when the user is created.
///
/// # Errors
/// 422 `invalid` with every error.
pub fn create(body: Value, now: Timestamp) -> Result<user::User, Problem> {
    let mut fields = Fields::of(body)?;
    let given = fields.optional("id", fields::parsed::<UserId>);
    let named = fields.optional("subject", |value| UserId::of_subject(&fields::string(value)?));
    if given.is_some() && named.is_some() {
        fields.wrong("subject", "must not be there beside id: it tells the id");
    }
    let id = given.or(named).unwrap_or_else(UserId::generate);
    let name = fields.optional("name", fields::words(NAME_MAX)).unwrap_or_else(|| id.to_string());
    if id.is_pseudonym() {
        fields.wrong("id", "must not begin as the pseudonyms of deleted users do");
    }
    if id.as_str() == NO_ID {
        fields.wrong("id", "must not be the name of a route");
    }
    fields.finish(Some(user::User { id, name, created_at: now }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_user_is_not_named_as_a_route_or_a_pseudonym() {
        for (id, is_fine) in [("random", false), ("deleted:x", false), ("Random", true), ("random1", true)] {
            assert_eq!(create(json!({"id": id}), Timestamp::now()).is_ok(), is_fine, "{id}");
        }
    }

    #[test]
    fn a_user_may_be_named_by_the_subject_of_their_tokens() {
        let id = |body: Value| create(body, Timestamp::now()).map(|user| user.id.to_string());
        assert_eq!(id(json!({"subject": "hong"})), Ok("hong".into()));
        let mapped = UserId::of_subject("auth0|hong").unwrap().to_string();
        assert_eq!(id(json!({"subject": "auth0|hong"})), Ok(mapped.clone()));
        assert_eq!(id(json!({"id": mapped})), Ok(mapped));
        for wrong in [json!({"subject": ""}), json!({"subject": 7}), json!({"subject": "a", "id": "a"})] {
            assert!(id(wrong).is_err());
        }
    }
}
