//! Registered users: only they may take stock (unless the operator trusts the caller's ids).

mod id;
mod registered;
mod store;

pub use id::UserId;
pub use registered::RegisteredUsers;
pub use store::UserStore;

use jiff::Timestamp;

/// A registered user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    /// 1 to 100 characters.
    pub name: String,
    pub created_at: Timestamp,
}
