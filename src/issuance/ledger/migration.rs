//! The migration of a ledger that an older version began: from [`Layout::Mixed`] to [`Layout::Partitioned`], while
//! processes of this version serve. In this order, each step of which may be repeated:
//!
//! 1. No process of an older version is connected. Those know no `p`, and would miss nothing, but write records that
//!    the new indexes do not hold.
//! 2. The collection's validator takes no record without `p` any more. It is the fence that all else rests on: a worker
//!    of an older version that wakes up late cannot issue a unit again, because MongoDB refuses its record.
//! 3. Every record gets what it lacks, in batches by `_id`. The lease of partition 0 remembers how far that is.
//! 4. The new indexes are built. MongoDB refuses to build a unique one over records that break it.
//! 5. No record lacks anything; else step 3 begins anew.
//! 6. The lease says so, and processes notice it within seconds.
//! 7. The indexes of the mixed layout go.

use std::time::Duration;

use futures::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{
    CreateCollectionOptions, FindOptions, Hint, ReadConcern, ValidationAction, ValidationLevel,
};
use mongodb::{Collection, Database};

use super::indexes::{IndexSpec, is_present, of_layout};
use super::layout::{BY_PARTITION, LEASES, Layout, LayoutReader, REREAD_EVERY, number};
use super::record::{ISSUED, REJECTED};
use super::{COLLECTION, queries};
use crate::ids::{IssuanceId, PartitionId};
use crate::{Failure, mongo};

/// Records in one batch: some tens of milliseconds of MongoDB's time.
const BATCH: i64 = 2_000;
/// Passes over the records. The second finds what a person or a program wrote past the fence.
const PASSES_MAX: usize = 3;
/// How long the old indexes stay after the layout is known to have changed, so that no process misses them.
const NOTICED_AFTER: Duration = REREAD_EVERY.saturating_mul(3);
/// The longest that a start looks for records without a partition where no index helps.
const SEARCH_MAX: Duration = Duration::from_secs(2);
/// Connections of older programs that are named.
const NAMED_MAX: usize = 5;
/// The field of the lease that says how far step 3 is: `{after: the last _id, records: how many}`.
const PROGRESS: &str = "ledgerMigration";

const OPERATION: &str = "migrate the ledger";
const UNAUTHORIZED: i32 = 13;
const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_NOT_FOUND: i32 = 27;
const NAMESPACE_EXISTS: i32 = 48;

/// What the migration has just done.
#[derive(Debug)]
pub enum MigrationStep {
    /// It could not ask MongoDB who is connected.
    ConnectionsUnknown,
    Fenced,
    /// This many records of about so many are as they must be.
    Filled {
        records: u64,
        of: u64,
    },
    Indexing {
        name: &'static str,
    },
    Switched,
    Dropped {
        name: &'static str,
    },
}

/// What became of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// There was nothing to do.
    Before,
    /// Done; this many records were given what they lacked by this call.
    Now { records: u64 },
}

/// Whether the migration minds connections of older programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OlderPrograms {
    Refuse,
    /// They use other databases of this MongoDB.
    Ignore,
}

/// Migrates the ledger of this database. It may be broken off at any moment, and called again.
///
/// # Errors
///
/// [`Failure::Misconfigured`] if older programs are connected, if MongoDB does not allow this user to set the
/// validator, or if records break a unique index; another failure if MongoDB fails. What was done stays.
pub async fn migrate(
    database: &Database,
    older: OlderPrograms,
    report: impl Fn(MigrationStep),
) -> Result<MigrationOutcome, Failure> {
    let migration = Migration::of(database);
    if migration.is_done().await? {
        return Ok(MigrationOutcome::Before);
    }
    if older == OlderPrograms::Refuse {
        migration.refuse_older_programs(&report).await?;
    }
    migration.fence().await?;
    report(MigrationStep::Fenced);
    let mut records = 0;
    for pass in 1.. {
        records += migration.fill(&report).await?;
        for index in of_layout(Layout::Partitioned) {
            report(MigrationStep::Indexing { name: index.name });
            migration.build(&index).await?;
        }
        if migration.is_complete().await? {
            break;
        }
        if pass == PASSES_MAX {
            return Err(misconfigured("records without a partition are written all the while"));
        }
        migration.begin_anew().await?;
    }
    migration.switch().await?;
    report(MigrationStep::Switched);
    tokio::time::sleep(NOTICED_AFTER).await;
    for index in of_layout(Layout::Mixed) {
        if migration.drop_index(index.name).await? {
            report(MigrationStep::Dropped { name: index.name });
        }
    }
    Ok(MigrationOutcome::Now { records })
}

/// Creates the collection with its fence, where there is none.
pub(super) async fn create_fenced(database: &Database) -> Result<(), Failure> {
    let database = database.clone();
    mongo::run("create the ledger", async move {
        let created = database.create_collection(COLLECTION).validator(fence());
        match created.validation_level(ValidationLevel::Moderate).await {
            Err(error) if code(&error) != Some(NAMESPACE_EXISTS) => Err(error),
            _ => Ok(()),
        }
    })
    .await
}

/// Whether the collection has its fence. One that there is not yet is made with it.
pub(super) async fn is_fenced(database: &Database) -> Result<bool, Failure> {
    let database = database.clone();
    let options = mongo::run("read what the ledger takes", async move { options(&database).await }).await?;
    Ok(options.is_none_or(|options| fences(&options)))
}

/// Sets the fence, if it is not there. Returns whether it is there now: not, if MongoDB does not let this user.
pub(super) async fn ensure_fenced(database: &Database) -> Result<bool, Failure> {
    let database = database.clone();
    let fenced = async move {
        let before = options(&database).await?.unwrap_or_default();
        if fences(&before) {
            return Ok(true);
        }
        // From then on a majority read sees everything that was written before.
        let mut change = doc! {"collMod": COLLECTION, "writeConcern": {"w": "majority"}};
        change.extend(doc! {"validator": with_fence(&before), "validationAction": "error"});
        if before.validator.unwrap_or_default().is_empty()
            || before.validation_level == Some(ValidationLevel::Off)
        {
            change.insert("validationLevel", "moderate");
        }
        match database.run_command(change).await {
            Ok(_) => {
                tracing::warn!(
                    "set the validator of the ledger, which keeps workers of older versions from writing"
                );
                Ok(true)
            }
            Err(error) if code(&error) == Some(UNAUTHORIZED) => Ok(false),
            Err(error) if code(&error) == Some(NAMESPACE_NOT_FOUND) => {
                let created = database.create_collection(COLLECTION).validator(fence());
                created.validation_level(ValidationLevel::Moderate).await.map(|()| true)
            }
            Err(error) => Err(error),
        }
    };
    mongo::run("fence older programs off", fenced).await
}

/// What an operator does who may set the fence.
pub(super) fn how_to_fence() -> String {
    let change = doc! {"collMod": COLLECTION, "validator": fence(), "validationLevel": "moderate", "validationAction": "error"};
    format!("db.runCommand({change}), with what its validator has forbidden so far beside it, in an \"$and\"")
}

/// The options of the collection; `None` if it does not exist.
async fn options(database: &Database) -> mongodb::error::Result<Option<CreateCollectionOptions>> {
    let found = database.list_collections().filter(doc! {"name": COLLECTION}).await?;
    Ok(found.try_collect::<Vec<_>>().await?.pop().map(|collection| collection.options))
}

/// Whether a collection with these options takes no record without a partition.
fn fences(options: &CreateCollectionOptions) -> bool {
    options.validation_level != Some(ValidationLevel::Off)
        && options.validation_action != Some(ValidationAction::Warn)
        && has_fence(&options.validator.clone().unwrap_or_default())
}

fn has_fence(validator: &Document) -> bool {
    *validator == fence() || both(validator).is_some_and(|both| both.contains(&fence().into()))
}

/// The validator with the fence. What an operator forbids stays forbidden.
fn with_fence(before: &CreateCollectionOptions) -> Document {
    let before = before.validator.clone().unwrap_or_default();
    match before.is_empty() || before == fence() {
        true => fence(),
        false if has_fence(&before) => before,
        false => doc! {"$and": [before, fence()]},
    }
}

/// Whether the ledger has records that name no partition, as far as that can be told in a moment.
pub(super) async fn has_records_without_partition(database: &Database) -> Result<bool, Failure> {
    let records = database.collection::<Document>(COLLECTION);
    let found = mongo::run("look for records without a partition", async move {
        match records.find_one(doc! {"p": Bson::Null}).max_time(SEARCH_MAX).await {
            Err(error) if code(&error).is_some() => Ok(None),
            found => found,
        }
    });
    Ok(found.await?.is_some())
}

/// What every record must be. Programs of older versions cannot write any more.
fn fence() -> Document {
    doc! {"p": {"$type": "int"}}
}

fn misconfigured(why: impl Into<String>) -> Failure {
    Failure::Misconfigured { operation: OPERATION, why: why.into() }
}

/// The code of MongoDB's answer, if it answered.
fn code(error: &mongodb::error::Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(error) => Some(error.code),
        _ => None,
    }
}

struct Migration {
    database: Database,
    records: Collection<Document>,
    leases: Collection<Document>,
}

impl Migration {
    fn of(database: &Database) -> Self {
        Migration {
            database: database.clone(),
            records: database.collection(COLLECTION),
            leases: database.collection(LEASES),
        }
    }

    async fn is_done(&self) -> Result<bool, Failure> {
        if LayoutReader::new(&self.database).get().await? == Layout::Mixed {
            return Ok(false);
        }
        for index in of_layout(Layout::Mixed) {
            if is_present(&self.database, &index).await? {
                return Ok(false);
            }
        }
        let mut has_all = true;
        for index in of_layout(Layout::Partitioned) {
            has_all = has_all && is_present(&self.database, &index).await?;
        }
        // A database that no process has served from has none of them, and no records.
        if has_all { self.is_complete().await } else { Ok(self.estimated_count().await? == 0) }
    }

    async fn estimated_count(&self) -> Result<u64, Failure> {
        let records = self.records.clone();
        mongo::run("count the records", async move { records.estimated_document_count().await }).await
    }

    /// Every program of this project names itself to MongoDB, and those of this version say more than older ones.
    async fn refuse_older_programs(&self, report: &impl Fn(MigrationStep)) -> Result<(), Failure> {
        let is_mongos = mongo::command(&self.database, "say hello", "hello").await?.get_str("msg").is_ok();
        let admin = self.database.client().database("admin");
        let connections = mongo::run("list the connections", async move {
            for all_users in [true, false] {
                let mut of = doc! {"allUsers": all_users, "idleConnections": true};
                if is_mongos {
                    of.insert("localOps", true);
                }
                let older = doc! {
                    "appName": env!("CARGO_PKG_NAME"),
                    "clientMetadata.driver.name": {"$not": {"$regex": env!("CARGO_PKG_NAME")}},
                };
                let pipeline = [
                    doc! {"$currentOp": of},
                    doc! {"$match": older},
                    doc! {"$group": {"_id": {"$ifNull": ["$client", "$client_s"]}}},
                ];
                match admin.aggregate(pipeline).read_concern(ReadConcern::local()).await {
                    Ok(found) => return found.try_collect::<Vec<_>>().await.map(Some),
                    // This user may see no other's.
                    Err(error) if code(&error) == Some(UNAUTHORIZED) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(None)
        });
        let Some(connections) = connections.await? else {
            report(MigrationStep::ConnectionsUnknown);
            return Ok(());
        };
        if connections.is_empty() {
            return Ok(());
        }
        let named = connections.iter().take(NAMED_MAX).filter_map(|one| one.get_str("_id").ok());
        Err(misconfigured(format!(
            "{} connections belong to programs of an older version ({}): end those first",
            connections.len(),
            named.collect::<Vec<_>>().join(", ")
        )))
    }

    async fn fence(&self) -> Result<(), Failure> {
        match ensure_fenced(&self.database).await? {
            true => Ok(()),
            false => Err(misconfigured(
                "the user of --mongodb-uri may not change the collection user_coupons (collMod); name one for this \
                 command that has the role dbAdmin",
            )),
        }
    }

    /// Gives every record what it lacks, from where the last call was broken off. Returns how many lacked something.
    async fn fill(&self, report: &impl Fn(MigrationStep)) -> Result<u64, Failure> {
        let (mut after, mut done) = self.progress().await?;
        let of = self.estimated_count().await?;
        let mut changed = 0;
        loop {
            let ids = self.ids_from(after.as_ref()).await?;
            let is_last = ids.len() < BATCH as usize;
            // The first is the last of the batch before.
            done += (ids.len() as u64).saturating_sub(u64::from(after.is_some()));
            for (partition, ids) in by_partition(&ids) {
                changed += self.fill_batch(partition, ids).await?;
            }
            after = ids.into_iter().next_back().or(after);
            report(MigrationStep::Filled { records: done, of: of.max(done) });
            if is_last {
                return Ok(changed);
            }
            self.set_progress(doc! {"$set": {PROGRESS: {"after": &after, "records": done as i64}}}).await?;
        }
    }

    /// The ids of a batch, from this one on. A bound of the index, and no filter: that would leave out ids of other types.
    async fn ids_from(&self, id: Option<&Bson>) -> Result<Vec<Bson>, Failure> {
        let mut options = FindOptions::builder().limit(BATCH).projection(queries::by_id()).build();
        options.hint = Some(Hint::Keys(queries::by_id()));
        options.min = id.map(|id| doc! {"_id": id});
        let found: Vec<Document> =
            mongo::find("read ids of records", &self.records, doc! {}, options).await?;
        Ok(found.into_iter().filter_map(|mut record| record.remove("_id")).collect())
    }

    async fn fill_batch(&self, partition: PartitionId, ids: Vec<Bson>) -> Result<u64, Failure> {
        let lacking = doc! {"_id": {"$in": ids}, "$or": [{"p": Bson::Null}, without_unit()]};
        let occupies = doc! {"$and": [
            {"$eq": ["$outcome", ISSUED]}, {"$isNumber": "$serial"}, {"$gt": ["$serial", 0]},
        ]};
        let change = vec![doc! {"$set": {
            "p": number(partition), "unit": {"$cond": [occupies, "$serial", "$unit"]},
        }}];
        let records = self.records.clone();
        let updated = mongo::run("fill records in", async move {
            records.update_many(lacking, change).hint(Hint::Keys(queries::by_id())).await
        });
        Ok(updated.await?.modified_count)
    }

    async fn progress(&self) -> Result<(Option<Bson>, u64), Failure> {
        let leases = self.leases.clone();
        let lease =
            mongo::run("read how far the migration is", async move { leases.find_one(lease()).await });
        let progress =
            lease.await?.and_then(|lease| lease.get_document(PROGRESS).ok().cloned()).unwrap_or_default();
        let records = progress.get_i64("records").map_or(0, i64::unsigned_abs);
        Ok((progress.get("after").cloned(), records))
    }

    async fn begin_anew(&self) -> Result<(), Failure> {
        self.set_progress(doc! {"$unset": {PROGRESS: ""}}).await
    }

    async fn switch(&self) -> Result<(), Failure> {
        self.set_progress(doc! {"$set": {BY_PARTITION: true}, "$unset": {PROGRESS: ""}}).await
    }

    async fn set_progress(&self, change: Document) -> Result<(), Failure> {
        let leases = self.leases.clone();
        mongo::run("note how far the migration is", async move { leases.update_one(lease(), change).await })
            .await
            .map(|_| ())
    }

    async fn build(&self, index: &IndexSpec) -> Result<(), Failure> {
        if is_present(&self.database, index).await? {
            return Ok(());
        }
        let (records, model) = (self.records.clone(), index.model());
        let built = mongo::run_to_the_end("build an index", async move {
            match records.create_index(model).await {
                Err(error) if mongo::is_duplicate_key(&error) => Ok(Some(error.to_string())),
                built => built.map(|_| None),
            }
        });
        match built.await? {
            None => Ok(()),
            Some(why) => Err(misconfigured(format!("records break the index {:?}: {why}", index.name))),
        }
    }

    /// Whether no record lacks anything, according to the new indexes.
    async fn is_complete(&self) -> Result<bool, Failure> {
        let without_partition = [ISSUED, REJECTED].map(|outcome| (queries::without_partition(outcome), None));
        let in_order = doc! {"p": 1, "couponId": 1};
        for (filter, hint) in
            without_partition.into_iter().chain([(without_unit(), Some(Hint::Keys(in_order)))])
        {
            let mut options = FindOptions::builder().limit(1).projection(queries::by_id()).build();
            options.hint = hint;
            let found: Vec<Document> =
                mongo::find("look for records that lack something", &self.records, filter, options).await?;
            if !found.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether there was such an index.
    async fn drop_index(&self, name: &'static str) -> Result<bool, Failure> {
        let records = self.records.clone();
        mongo::run("drop an index", async move {
            match records.drop_index(name).await {
                Err(error) if code(&error) == Some(INDEX_NOT_FOUND) => Ok(false),
                dropped => dropped.map(|()| true),
            }
        })
        .await
    }
}

/// Issued records that name a unit in the mixed layout alone.
fn without_unit() -> Document {
    doc! {"outcome": ISSUED, "unit": Bson::Null, "serial": {"$gt": 0_i64}}
}

fn lease() -> Document {
    doc! {"_id": number(PartitionId::ONE)}
}

/// The filters that a validator requires together.
fn both(validator: &Document) -> Option<&Vec<Bson>> {
    validator.get_array("$and").ok()
}

/// Ids by the partition that they name; what is no id of an issuance is of partition 0.
fn by_partition(ids: &[Bson]) -> Vec<(PartitionId, Vec<Bson>)> {
    let partition = |id: &Bson| match id {
        Bson::Binary(id) => IssuanceId::from_bytes(&id.bytes).map_or(PartitionId::ONE, |id| id.partition()),
        _ => PartitionId::ONE,
    };
    let mut groups: Vec<(PartitionId, Vec<Bson>)> = Vec::new();
    for id in ids {
        let of = partition(id);
        match groups.iter_mut().find(|(partition, _)| *partition == of) {
            Some((_, group)) => group.push(id.clone()),
            None => groups.push((of, vec![id.clone()])),
        }
    }
    groups
}
