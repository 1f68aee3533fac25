//! The name of a user, as the shop knows it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::coupon::check_id;

/// What the ids of deleted users begin with.
const PSEUDONYM: &str = "deleted:";

/// The id of a user: `[A-Za-z0-9._:@-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for a user who was deleted. Nobody can register with such an id.
    pub fn is_pseudonym(&self) -> bool {
        self.0.starts_with(PSEUDONYM)
    }

    /// A name for a user who is deleted, that nobody can connect with them.
    pub fn pseudonym() -> Self {
        UserId(format!("{PSEUDONYM}{}", crate::random_id()).into())
    }

    /// A new id, for a user who was given none.
    pub fn generate() -> Self {
        UserId(format!("u-{}", crate::random_id()).into())
    }
}

impl FromStr for UserId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check_id(text, "._:@-")?;
        Ok(UserId(text.into()))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for UserId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
