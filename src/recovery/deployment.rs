//! What all processes of a deployment have in common because of its history: fields of the lease of partition 0 in
//! MongoDB's `recovery`, which is as old as the ledger.
//!
//! A deployment that began with this version has all of it from its beginning. One that began with an older version
//! lacks what that version does not know: an older API would give the same key another id, and an older worker cannot
//! read a stream entry of many. Once the last older process has ended, `couponctl upgrade finish` says so.

use crate::mongo::{Database, LINEARIZABLE_MAX};
use mongodb::bson::{Document, doc};
use mongodb::options::{ReadConcern, ReturnDocument};

use super::lease;
use crate::ids::PartitionId;
use crate::issuance::reserve::QueueEntries;
use crate::redis::PARTITIONS_MAX;
use crate::user::IdSecret;
use crate::{Failure, mongo};

/// The secret of the ids of keyed issuances, for users without a document.
pub(super) const ID_SECRET: &str = "idSecret";
/// Whether users who are registered get secrets.
pub(super) const USERS_HAVE_ID_SECRETS: &str = "usersHaveIdSecrets";
/// Whether one stream entry may hold many issuances.
pub(super) const ENTRIES_OF_MANY: &str = "entriesOfMany";
/// The partitions that new coupons are spread over. Missing: none, so that all lie in partition 0.
const PARTITIONS: &str = "partitions";

/// What this deployment's processes may do, and the secret that they share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deployment {
    /// For the ids of keyed issuances of users without a document. `None` if the deployment began without one.
    pub id_secret: Option<IdSecret>,
    /// Whether users who are registered get secrets.
    pub users_have_id_secrets: bool,
    /// How the API queues what it accepts.
    pub queue_entries: QueueEntries,
    /// The partitions, from 1 on, that new coupons are spread over; 0 if partition 0 is the only one.
    pub partitions: u16,
}

impl Deployment {
    /// Reads what is kept of this deployment, whose ledger has a name.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn read(database: &Database) -> Result<Self, Failure> {
        let leases = database.collection::<Document>("recovery");
        let one = doc! {"_id": lease::id(PartitionId::ONE)};
        let lease = mongo::run("read what the deployment may do", async move { leases.find_one(one).await });
        let lease = lease.await?.unwrap_or_default();
        let id_secret = IdSecret::of(&lease, ID_SECRET)
            .map_err(|why| Failure::Damaged { what: "the recovery lease", why: why.into() })?;
        let may = |what: &str| lease.get_bool(what).unwrap_or(false);
        let queue_entries = if may(ENTRIES_OF_MANY) { QueueEntries::OfMany } else { QueueEntries::OfOne };
        let partitions = partitions(&lease)?;
        Ok(Deployment {
            id_secret,
            users_have_id_secrets: may(USERS_HAVE_ID_SECRETS),
            queue_entries,
            partitions,
        })
    }

    /// The partitions that new coupons are spread over, by a linearizable read: an id in a later one was never accepted.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or has no majority.
    pub(crate) async fn partitions_linearizable(database: &Database) -> Result<u16, Failure> {
        let leases = database.collection::<Document>("recovery");
        let one = doc! {"_id": lease::id(PartitionId::ONE)};
        let lease = mongo::run("read the number of partitions", async move {
            leases
                .find_one(one)
                .projection(doc! {PARTITIONS: 1})
                .read_concern(ReadConcern::linearizable())
                .max_time(LINEARIZABLE_MAX)
                .await
        });
        partitions(&lease.await?.unwrap_or_default())
    }

    /// Spreads the coupons that are made from now on over at least this many partitions, beside partition 0. Processes
    /// know of more only from their next start on. Returns how many there were.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the ledger has no name yet.
    pub async fn grow(database: &Database, partitions: u16) -> Result<u16, Failure> {
        let leases = database.collection::<Document>("recovery");
        let one = doc! {"_id": lease::id(PartitionId::ONE)};
        let change = doc! {"$max": {PARTITIONS: i32::from(partitions.min(PARTITIONS_MAX))}};
        let changed = mongo::run("grow by partitions", async move {
            leases.find_one_and_update(one, change).return_document(ReturnDocument::Before).await
        });
        self::partitions(&changed.await?.ok_or_else(no_lease)?)
    }

    /// Lets processes that start from now on do all that this version can. Returns whether they could before.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the ledger has no name yet.
    pub async fn finish_upgrade(database: &Database) -> Result<bool, Failure> {
        const ALL: [&str; 2] = [USERS_HAVE_ID_SECRETS, ENTRIES_OF_MANY];
        let leases = database.collection::<Document>("recovery");
        let all: Document = ALL.into_iter().map(|what| (what.to_owned(), true.into())).collect();
        let (one, change) = (doc! {"_id": lease::id(PartitionId::ONE)}, doc! {"$set": all});
        let changed = mongo::run("finish the upgrade", async move {
            leases.find_one_and_update(one, change).return_document(ReturnDocument::Before).await
        });
        match changed.await? {
            Some(before) => Ok(ALL.iter().all(|what| before.get_bool(what).unwrap_or(false))),
            None => Err(no_lease()),
        }
    }
}

fn no_lease() -> Failure {
    Failure::Damaged { what: "the recovery lease", why: "there is none".into() }
}

fn partitions(lease: &Document) -> Result<u16, Failure> {
    let Some(partitions) = lease.get(PARTITIONS) else { return Ok(0) };
    let number = partitions.as_i32().and_then(|number| u16::try_from(number).ok());
    number.filter(|number| *number <= PARTITIONS_MAX).ok_or_else(|| Failure::Damaged {
        what: "the recovery lease",
        why: format!("{PARTITIONS} is {partitions}"),
    })
}
