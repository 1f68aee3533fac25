//! Registered users: only they may take stock (unless the operator trusts the caller's ids).
//!
//! A user who is deleted is marked first ([`UserStore::mark_deleted`]); what becomes of their records is
//! the matter of [`crate::privacy`]. Until that is done the id is taken, and no user has it.

mod pending_deletions;
mod prefetch;
mod registered_users;
mod secret;
mod store;

pub use pending_deletions::PendingDeletions;
pub use registered_users::{KnownUser, RegisteredUsers};
pub use secret::IdSecret;
pub(crate) use store::{DELETIONS_MAX, FirstInsertOutcome};
pub use store::{MarkDeletedOutcome, RegisteredUser, UserStore, queries};

use jiff::Timestamp;

use crate::ids::UserId;

/// A registered user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    /// 1 to 100 characters, as people count them.
    pub name: String,
    pub created_at: Timestamp,
}

/// A user who is being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    pub user: UserId,
    /// What their records will say instead.
    pub pseudonym: UserId,
    /// When it was asked for, by MongoDB's clock.
    pub asked_at: Timestamp,
    /// From then on no process accepts anything of this user, by MongoDB's clock.
    pub due: Timestamp,
}
