//! The right to recover a partition: one holder at a time, in MongoDB's `recovery`, by the clock of
//! the MongoDB server. Each taking of it is a new term with a new epoch; the scripts that close and
//! open the certificate compare the term, so a holder that slept through its lease changes nothing.
//!
//! The same document remembers which Redis was opened last: see [`Fence`](super::Fence).

use std::time::Duration;

use crate::mongo::Database;
use mongodb::Collection;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::options::ReturnDocument;

use super::deployment;
use super::fence::opened;
use crate::ids::PartitionId;
use crate::issuance::ledger::BY_PARTITION;
use crate::redis::Epoch;
use crate::user::IdSecret;
use crate::{Failure, mongo};

/// A holder that does not renew for this long may be replaced.
pub(super) const LEASE_LENGTH: Duration = Duration::from_secs(15);

/// A lease that is held.
#[derive(Debug, Clone)]
pub struct Lease {
    leases: Collection<Document>,
    partition: PartitionId,
    holder: String,
    /// Counts the takings of this partition's lease.
    pub term: i64,
    /// The epoch to build under this lease.
    pub epoch: Epoch,
    /// Names this ledger among all; it never changes.
    pub ledger: String,
    /// The term of the latest opening; 0 if none is remembered.
    pub(super) latest_term: i64,
    /// How long before the lease was taken the Redis of the latest opening was last seen to serve.
    pub(super) silent: Duration,
    /// When that was, as the document has it.
    served_at: Option<Bson>,
}

impl Lease {
    /// Takes the lease for `holder`, unless another process holds it. Its term is later than all before,
    /// and than `known`. A lease that ends later than any lease can was taken before a clock was put back, and
    /// is free.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the lease's document is damaged.
    pub async fn take(
        database: &Database,
        partition: PartitionId,
        holder: &str,
        known: i64,
    ) -> Result<Option<Lease>, Failure> {
        let leases: Collection<Document> = database.collection("recovery");
        let ledger = Self::ledger(database).await?;
        let epoch = Epoch::new();
        let nobodys = doc! {"_id": id(partition), "term": 0_i64, "until": DateTime::from_millis(0)};
        let free = doc! {"_id": id(partition), "$expr": {"$or": [
            {"$lte": ["$until", "$$NOW"]},
            {"$gt": ["$until", until()]},
            {"$eq": ["$holder", holder]},
        ]}};
        let taken = vec![doc! {"$set": {
            "holder": holder,
            "epoch": epoch.to_string(),
            "term": {"$add": [{"$max": [whole("$term"), known, whole("$opened.term")]}, 1_i64]},
            "until": until(),
            "ledger": {"$ifNull": ["$ledger", ledger]},
        }}];
        let collection = leases.clone();
        let taken = mongo::run("take the recovery lease", async move {
            match collection.insert_one(nobodys).await {
                Err(error) if !mongo::is_duplicate_key(&error) => return Err(error),
                _ => {}
            }
            collection.find_one_and_update(free, taken).return_document(ReturnDocument::After).await
        });
        let Some(taken) = taken.await? else { return Ok(None) };
        let (Ok(term), Ok(ledger)) = (taken.get_i64("term"), taken.get_str("ledger")) else {
            // It has a secret in it, and is not shown.
            let why = "it has no term, or names no ledger".into();
            return Err(Failure::Damaged { what: "the recovery lease", why });
        };
        let (holder, ledger) = (holder.to_owned(), ledger.to_owned());
        let latest_term = taken.get_document("opened").and_then(|opened| opened.get_i64("term")).unwrap_or(0);
        let served_at = taken.get("servedAt").cloned();
        let ms = |time: Option<&DateTime>| time.map_or(0, |time| time.timestamp_millis());
        let silent_ms = ms(taken.get_datetime("until").ok()) - ms(taken.get_datetime("servedAt").ok());
        let silent =
            Duration::from_millis(u64::try_from(silent_ms).unwrap_or(0)).saturating_sub(LEASE_LENGTH);
        Ok(Some(Lease { leases, partition, holder, term, epoch, ledger, latest_term, silent, served_at }))
    }

    /// The name of this database's ledger, which the lease of partition 0 has. It gets one if it has none, and with it all that this version can do
    /// ([`Deployment`](super::Deployment)): a ledger that has a name may already be used by processes that cannot.
    pub(crate) async fn ledger(database: &Database) -> Result<String, Failure> {
        let leases: Collection<Document> = database.collection("recovery");
        let is_new = doc! {"$eq": [{"$type": "$ledger"}, "missing"]};
        let if_new = |field: &str, value: Bson| doc! {"$cond": [&is_new, value, format!("${field}")]};
        let named = vec![doc! {"$set": {
            "term": {"$ifNull": ["$term", 0_i64]},
            "until": {"$ifNull": ["$until", DateTime::from_millis(0)]},
            "ledger": {"$ifNull": ["$ledger", Epoch::new().to_string()]},
            deployment::ID_SECRET: if_new(deployment::ID_SECRET, IdSecret::generate().to_bson().into()),
            deployment::USERS_HAVE_ID_SECRETS: if_new(deployment::USERS_HAVE_ID_SECRETS, true.into()),
            deployment::ENTRIES_OF_MANY: if_new(deployment::ENTRIES_OF_MANY, true.into()),
            BY_PARTITION: if_new(BY_PARTITION, true.into()),
        }}];
        let lease = mongo::run("read the recovery lease", async move {
            leases
                .find_one_and_update(doc! {"_id": id(PartitionId::ONE)}, named)
                .upsert(true)
                .return_document(ReturnDocument::After)
                .await
        });
        let name = lease.await?.and_then(|lease| lease.get_str("ledger").map(str::to_owned).ok());
        name.ok_or_else(|| Failure::Damaged { what: "the recovery lease", why: "it names no ledger".into() })
    }

    /// Renews the lease. `false` means that another process holds it now.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn renew(&self) -> Result<bool, Failure> {
        self.update("renew the recovery lease", doc! {}, doc! {"until": until()}).await
    }

    /// Remembers that this epoch is about to be opened on this instance, under this lease, and renews it.
    /// From here on processes that use another Redis are fenced off. `false` means that another process holds the lease
    /// now, or, with `if_silent`, that the Redis that was opened last was seen to serve again since the lease was
    /// taken, and that this one must not be opened.
    pub(super) async fn remember(
        &self,
        epoch: Epoch,
        instance: &str,
        if_silent: bool,
    ) -> Result<bool, Failure> {
        let mut set = opened(self.term, epoch, instance);
        set.insert("until", until());
        let silent = if if_silent {
            doc! {"servedAt": &self.served_at}
        } else {
            doc! {}
        };
        self.update("remember which Redis is opened", silent, set).await
    }

    /// Gives the lease back.
    ///
    /// # Errors
    ///
    /// If MongoDB cannot be reached: then the lease runs out by itself.
    pub async fn release(self) -> Result<(), Failure> {
        self.update("release the recovery lease", doc! {}, doc! {"until": "$$NOW"}).await.map(drop)
    }

    async fn update(&self, operation: &'static str, only: Document, set: Document) -> Result<bool, Failure> {
        let leases = self.leases.clone();
        let mut mine = doc! {
            "_id": id(self.partition), "holder": &self.holder, "term": self.term,
            // One that ran out is not renewed: another process may be taking it.
            "$expr": {"$gt": ["$until", "$$NOW"]},
        };
        mine.extend(only);
        let update = vec![doc! {"$set": set}];
        let updated = mongo::run(operation, async move { leases.update_one(mine, update).await });
        Ok(updated.await?.matched_count == 1)
    }
}

/// The `_id` of a partition's lease.
pub(super) fn id(partition: PartitionId) -> i32 {
    partition.number().into()
}

/// A term of the document; 0 where there is none that can be read.
fn whole(field: &str) -> Bson {
    doc! {"$cond": [{"$isNumber": field}, {"$toLong": field}, 0_i64]}.into()
}

fn until() -> Bson {
    let milliseconds = i64::try_from(LEASE_LENGTH.as_millis()).unwrap_or(i64::MAX);
    doc! {"$add": ["$$NOW", milliseconds]}.into()
}
