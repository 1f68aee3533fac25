//! With what the ids of keyed issuances are made in this deployment: fields of the lease in MongoDB's
//! `recovery`, because they are as old as the ledger.
//!
//! A deployment that began with this version has both from its beginning. One that began with an older one
//! has none, as its processes would give the same key another id; once the last of them has ended,
//! `couponctl upgrade finish` lets users who are registered from then on have secrets of their own.

use crate::mongo::Database;
use mongodb::bson::{Document, doc};
use mongodb::options::ReturnDocument;

use super::lease;
use crate::ids::PartitionId;
use crate::user::IdSecret;
use crate::{Failure, mongo};

/// The deployment's own, for users without a document.
pub(super) const OF_LEDGER: &str = "idSecret";
/// Whether users who are registered get secrets.
pub(super) const OF_USERS: &str = "usersHaveIdSecrets";

/// The secrets that this deployment makes the ids of keyed issuances with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdSecrets {
    pub of_ledger: Option<IdSecret>,
    pub of_users: bool,
}

impl IdSecrets {
    /// Reads the secrets of this deployment, whose ledger has a name.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn read(database: &Database, partition: PartitionId) -> Result<Self, Failure> {
        let leases = database.collection::<Document>("recovery");
        let one = doc! {"_id": lease::id(partition)};
        let lease = mongo::run("read what ids are made with", async move { leases.find_one(one).await });
        let lease = lease.await?.unwrap_or_default();
        let of_ledger = IdSecret::of(&lease, OF_LEDGER)
            .map_err(|why| Failure::Damaged { what: "the recovery lease", why: why.into() })?;
        Ok(IdSecrets { of_ledger, of_users: lease.get_bool(OF_USERS).unwrap_or(false) })
    }

    /// Lets users who are registered from now on have secrets. Returns whether they had before.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the ledger has no name yet.
    pub(crate) async fn give_to_users(database: &Database, partition: PartitionId) -> Result<bool, Failure> {
        let leases = database.collection::<Document>("recovery");
        let (one, change) = (doc! {"_id": lease::id(partition)}, doc! {"$set": {OF_USERS: true}});
        let changed = mongo::run("give users id secrets", async move {
            leases.find_one_and_update(one, change).return_document(ReturnDocument::Before).await
        });
        match changed.await? {
            Some(before) => Ok(before.get_bool(OF_USERS).unwrap_or(false)),
            None => Err(Failure::Damaged { what: "the recovery lease", why: "there is none".into() }),
        }
    }
}
