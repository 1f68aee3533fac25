//! The right to recover a partition: one holder at a time, in MongoDB's `recovery`, by the clock of
//! the MongoDB server. Each taking of it is a new term with a new epoch; the scripts that close and
//! open the certificate compare the term, so a holder that slept through its lease changes nothing.

use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::options::ReturnDocument;
use mongodb::{Collection, Database};

use super::Epoch;
use crate::Failure;
use crate::keys::PartitionId;
use crate::mongo;

/// A holder that does not renew for this long may be replaced.
pub(super) const LASTS: Duration = Duration::from_secs(15);

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
}

impl Lease {
    /// Takes the lease for `holder`, unless somebody else holds it. Its term is later than all before,
    /// and than `known`.
    pub async fn take(
        database: &Database,
        partition: PartitionId,
        holder: &str,
        known: i64,
    ) -> Result<Option<Lease>, Failure> {
        let leases: Collection<Document> = database.collection("recovery");
        let epoch = Epoch::new();
        let nobodys = doc! {"_id": id(partition), "term": 0_i64, "until": DateTime::from_millis(0)};
        let free = doc! {"_id": id(partition), "$expr": {"$or": [
            {"$lte": ["$until", "$$NOW"]},
            {"$eq": ["$holder", holder]},
        ]}};
        let taken = vec![doc! {"$set": {
            "holder": holder,
            "epoch": epoch.to_string(),
            "term": {"$add": [{"$max": ["$term", known]}, 1_i64]},
            "until": until(),
            "ledger": {"$ifNull": ["$ledger", Epoch::new().to_string()]},
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
            let source = format!("the lease {taken} is damaged").into();
            return Err(Failure::MongoDb { operation: "take the recovery lease", source });
        };
        let (holder, ledger) = (holder.to_owned(), ledger.to_owned());
        Ok(Some(Lease { leases, partition, holder, term, epoch, ledger }))
    }

    /// The name of this database's ledger. It gets one if it has none.
    pub(crate) async fn ledger(database: &Database, partition: PartitionId) -> Result<String, Failure> {
        let leases: Collection<Document> = database.collection("recovery");
        let named = vec![doc! {"$set": {
            "term": {"$ifNull": ["$term", 0_i64]},
            "until": {"$ifNull": ["$until", DateTime::from_millis(0)]},
            "ledger": {"$ifNull": ["$ledger", Epoch::new().to_string()]},
        }}];
        let lease = mongo::run("read the recovery lease", async move {
            leases
                .find_one_and_update(doc! {"_id": id(partition)}, named)
                .upsert(true)
                .return_document(ReturnDocument::After)
                .await
        });
        let name = lease.await?.and_then(|lease| lease.get_str("ledger").map(str::to_owned).ok());
        name.ok_or_else(|| Failure::Damaged { what: "the recovery lease", why: "it names no ledger".into() })
    }

    /// Renews the lease. `false` means that somebody else holds it now.
    pub async fn renew(&self) -> Result<bool, Failure> {
        self.update("renew the recovery lease", until()).await
    }

    /// Gives the lease back.
    pub async fn release(self) -> Result<(), Failure> {
        self.update("release the recovery lease", "$$NOW".into()).await.map(drop)
    }

    async fn update(&self, operation: &'static str, until: Bson) -> Result<bool, Failure> {
        let leases = self.leases.clone();
        let mine = doc! {
            "_id": id(self.partition), "holder": &self.holder, "term": self.term,
            // One that ran out is not renewed: somebody may be taking it.
            "$expr": {"$gt": ["$until", "$$NOW"]},
        };
        let update = vec![doc! {"$set": {"until": until}}];
        let updated = mongo::run(operation, async move { leases.update_one(mine, update).await });
        Ok(updated.await?.matched_count == 1)
    }
}

fn id(partition: PartitionId) -> i32 {
    partition.number().into()
}

fn until() -> Bson {
    let milliseconds = i64::try_from(LASTS.as_millis()).unwrap_or(i64::MAX);
    doc! {"$add": ["$$NOW", milliseconds]}.into()
}
