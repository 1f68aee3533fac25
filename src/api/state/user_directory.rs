//! Who may request, and who is being deleted.

use std::sync::Arc;
use std::time::Duration;

use crate::Failure;
use crate::ids::UserId;
use crate::user::{IdSecret, KnownUser, PendingDeletions, RegisteredUsers, UserStore};

/// The users that this process knows.
pub(crate) struct UserDirectory {
    pub store: UserStore,
    /// `None` trusts the caller's ids.
    pub registered: Option<RegisteredUsers>,
    /// The secret of every user where the caller's ids are trusted.
    pub id_secret: Option<IdSecret>,
    pub deletions: Arc<PendingDeletions>,
    pub deletion_delay: Duration,
}

impl UserDirectory {
    /// Whether the user may request and be asked about: registered, if that is required, and not deleted.
    ///
    /// # Errors
    /// The user is not remembered, and MongoDB does not answer.
    pub async fn knows(&self, user: &UserId) -> Result<bool, Failure> {
        Ok(self.find(user).await?.is_some())
    }

    /// The user, if they may request and be asked about.
    ///
    /// # Errors
    /// The user is not remembered, and MongoDB does not answer.
    pub async fn find(&self, user: &UserId) -> Result<Option<KnownUser>, Failure> {
        match &self.registered {
            Some(registered) => registered.find(user).await,
            None if user.is_pseudonym() || self.deletions.contains(user)? => Ok(None),
            None => Ok(Some(KnownUser { id_secret: self.id_secret })),
        }
    }
}
