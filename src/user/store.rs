//! Users in MongoDB: the collection `users`, by id.

use std::collections::HashMap;
use std::time::Duration;

use crate::mongo::Database;
use futures::TryStreamExt;
use jiff::Timestamp;
use mongodb::Collection;
use mongodb::bson::{Binary, DateTime, Document, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{FindOptions, ReturnDocument};
use serde::{Deserialize, Serialize};

use super::{Deletion, IdSecret, User, UserId};
use crate::mongo::{ListPage, NewestPlace, Unwritten, from_bson_time, to_bson_time};
use crate::runtime::damage::damaged;
use crate::{Failure, mongo};

/// Deletions that are not done at most; one more must wait.
pub const DELETIONS_MAX: u32 = 10_000;

/// The outcome of marking a user as deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarkDeletedOutcome {
    /// The user is being deleted, from now on or since before.
    As(Deletion),
    Unknown,
    /// 10,000 other users are being deleted.
    TooMany,
}

/// The outcome of registering the first of the users who are registered together under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstInsertOutcome {
    New,
    /// Registered before, under the same key for as many.
    Before,
    /// Registered before, under the same key for another number of users.
    OfOtherCount,
}

/// A user who is registered, as far as requests need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredUser {
    pub id: UserId,
    /// What their keyed issuances are named with; `None` for one who was registered before there was any.
    /// It never changes.
    pub secret: Option<IdSecret>,
}

/// Keeps users.
#[derive(Clone)]
pub struct UserStore {
    database: Database,
    users: Collection<UserRecord>,
    /// Whether those who are registered get an [`IdSecret`].
    gives_secrets: bool,
}

/// The field of a user's [`IdSecret`].
const SECRET: &str = "idSecret";
/// The field of the first of the users who are registered together under a key: how many they are.
const TOGETHER: &str = "together";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserRecord {
    #[serde(rename = "_id")]
    id: String,
    name: String,
    created_at: DateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_secret: Option<Binary>,
}

impl UserStore {
    /// The users of this database.
    pub fn new(database: &Database) -> Self {
        UserStore { database: database.clone(), users: database.collection("users"), gives_secrets: false }
    }

    /// The users of this database; users who are registered get an [`IdSecret`]. Every process must be of a version that
    /// knows of them.
    pub(crate) fn giving_secrets(self, gives_secrets: bool) -> Self {
        UserStore { gives_secrets, ..self }
    }

    /// Registers users. Returns, in order, whether each was new.
    ///
    /// # Errors
    ///
    /// If MongoDB fails: then some of the users may be registered.
    pub async fn insert(&self, users: &[User]) -> Result<Vec<bool>, Failure> {
        let secret = || self.gives_secrets.then(|| IdSecret::generate().to_bson());
        let records: Vec<UserRecord> = users.iter().map(|user| UserRecord::new(user, secret())).collect();
        let (collection, count) = (self.users.clone(), records.len());
        let inserted = mongo::run("register the users", async move {
            let mut new = vec![true; count];
            match collection.insert_many(records).ordered(false).await {
                Ok(_) => Ok(new),
                Err(error) => {
                    let ErrorKind::InsertMany(failed) = &*error.kind else { return Err(error) };
                    let errors = failed.write_errors.as_deref().unwrap_or_default();
                    if failed.write_concern_error.is_some()
                        || errors.iter().any(|error| Unwritten::by(error.code) != Unwritten::Conflict)
                    {
                        return Err(error);
                    }
                    for error in errors {
                        new[error.index] = false;
                    }
                    Ok(new)
                }
            }
        });
        inserted.await
    }

    /// Registers the first of `count` users who are registered together under a key, before all others. This
    /// user's record tells a repetition of the key from another request with the same key.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn insert_first(
        &self,
        user: &User,
        count: usize,
    ) -> Result<FirstInsertOutcome, Failure> {
        let secret = self.gives_secrets.then(|| IdSecret::generate().to_bson());
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let filter = doc! {"_id": user.id.as_str()};
        let record = mongodb::bson::serialize_to_document(&UserRecord::new(user, secret));
        let mut record = record.map_err(|why| unreadable(&user.id, &why.to_string()))?;
        record.remove("_id");
        record.insert(TOGETHER, count);
        let users = self.users.clone_with_type::<Document>();
        let before = mongo::run("register the first of the users", async move {
            let register = doc! {"$setOnInsert": record};
            match users.find_one_and_update(filter.clone(), register).upsert(true).await {
                Err(error) if mongo::is_duplicate_key(&error) => users.find_one(filter).await,
                registered => registered,
            }
        });
        Ok(match before.await? {
            None => FirstInsertOutcome::New,
            // Versions before this one did not say how many they are.
            Some(before) if before.get_i64(TOGETHER).is_ok_and(|other| other != count) => {
                FirstInsertOutcome::OfOtherCount
            }
            Some(_) => FirstInsertOutcome::Before,
        })
    }

    /// Reads one user who is not being deleted.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn get(&self, id: &UserId) -> Result<Option<User>, Failure> {
        let (users, filter) = (self.users.clone_with_type::<Document>(), queries::one(id));
        let found = mongo::run("read the user", async move { users.find_one(filter).await });
        found.await?.map(|user| User::try_from(user).map_err(|why| unreadable(id, &why))).transpose()
    }

    /// Which of `ids` are registered, and what is known of each, if their record can be read.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn registered(
        &self,
        ids: &[UserId],
    ) -> Result<HashMap<UserId, Result<RegisteredUser, Failure>>, Failure> {
        let wanted: Vec<&str> = ids.iter().map(UserId::as_str).collect();
        let filter = doc! {"_id": {"$in": wanted}, "deletedAt": null};
        let wanted = FindOptions::builder().projection(doc! {"_id": 1, SECRET: 1}).build();
        let found = mongo::find::<Document, _>("read the users", &self.users, filter, wanted);
        Ok(found.await?.iter().filter_map(known).collect())
    }

    /// A page of at most `limit` users, newest first, from after the one that a cursor names (its creation
    /// time and id). One whose record cannot be read is left out.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn list(
        &self,
        after: Option<NewestPlace>,
        limit: usize,
    ) -> Result<ListPage<User, NewestPlace>, Failure> {
        let (users, filter) = (self.users.clone_with_type(), queries::not_deleted());
        mongo::newest_first_page("list the users", "a user", &users, filter, after, limit).await
    }

    /// A page of at most `limit` users, newest first: from after one, or those that were registered since a
    /// moment. One whose record cannot be read is left out.
    pub(super) async fn newest(
        &self,
        since: Option<Timestamp>,
        after: Option<NewestPlace>,
        limit: usize,
    ) -> Result<ListPage<RegisteredUser, NewestPlace>, Failure> {
        let mut filter = queries::not_deleted();
        match (&after, since) {
            (Some((created_at, id)), _) => {
                filter.extend(mongo::after_newest_first("createdAt", *created_at, id.as_str()));
            }
            (None, Some(since)) => filter.extend(queries::since(since)),
            (None, None) => {}
        }
        let options = FindOptions::builder()
            .sort(doc! {"createdAt": -1, "_id": -1})
            .projection(doc! {"createdAt": 1, SECRET: 1})
            .limit(mongo::at_most(limit))
            .build();
        let found = mongo::find::<Document, _>("read users ahead", &self.users, filter, options).await?;
        let last = found.iter().rev().find_map(mongo::newest_place);
        Ok(ListPage {
            items: found.iter().filter_map(|user| known(user)?.1.ok()).collect(),
            next: last.filter(|_| found.len() == limit),
        })
    }

    /// Marks a user as deleted: from now on they are unknown to all that asks MongoDB, and `delay` later to
    /// everyone. With `unregistered`, also one who was never registered. Repeated, it changes nothing.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn mark_deleted(
        &self,
        user: &UserId,
        delay: Duration,
        unregistered: bool,
    ) -> Result<MarkDeletedOutcome, Failure> {
        let id = user.as_str().to_owned();
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let pseudonym = UserId::pseudonym();
        let update = vec![doc! {"$set": {
            "name": pseudonym.as_str(),
            "createdAt": {"$ifNull": ["$createdAt", "$$NOW"]},
            "pseudonym": pseudonym.as_str(),
            "deletedAt": "$$NOW",
            "dueAt": {"$add": ["$$NOW", delay_ms]},
        }}];
        let users = self.users.clone_with_type::<Document>();
        let marked = mongo::run("mark the user as deleted", async move {
            let pending = users.count_documents(queries::deleted()).await?;
            let marked = doc! {"_id": &id, "deletedAt": {"$exists": true}};
            if let Some(before) = users.find_one(marked.clone()).await? {
                return Ok(Some(Some(before)));
            }
            if pending >= DELETIONS_MAX.into() {
                return Ok(None);
            }
            let changed = users
                .find_one_and_update(doc! {"_id": &id, "deletedAt": null}, update)
                .upsert(unregistered)
                .return_document(ReturnDocument::After)
                .await;
            match changed {
                Ok(Some(changed)) => Ok(Some(Some(changed))),
                // Another request marks at the same time.
                Ok(None) => users.find_one(marked).await.map(Some),
                Err(error) if mongo::is_duplicate_key(&error) => users.find_one(marked).await.map(Some),
                Err(error) => Err(error),
            }
        });
        match marked.await? {
            None => Ok(MarkDeletedOutcome::TooMany),
            Some(None) => Ok(MarkDeletedOutcome::Unknown),
            Some(Some(document)) => deletion(&document).map(MarkDeletedOutcome::As),
        }
    }

    /// The users who are being deleted, the longest first, and MongoDB's time.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn deletions(&self) -> Result<(Vec<Deletion>, Timestamp), Failure> {
        let (users, database) = (self.users.clone_with_type::<Document>(), self.database.clone());
        let options =
            FindOptions::builder().sort(doc! {"deletedAt": 1}).limit(i64::from(DELETIONS_MAX)).build();
        let found = mongo::run("read who is being deleted", async move {
            // Its answer carries the time even where no user is being deleted.
            let clock = database.run_command(doc! {"hello": 1}).await?;
            let cursor = users.find(queries::deleted()).with_options(options).await?;
            Ok((cursor.try_collect::<Vec<_>>().await?, clock))
        });
        let (found, clock) = found.await?;
        let now = clock.get_datetime("localTime").map(|time| from_bson_time(*time));
        let now = now
            .map_err(|_| Failure::Damaged { what: "the clock of MongoDB", why: "it gives no time".into() })?;
        let mut deletions = Vec::with_capacity(found.len());
        for document in &found {
            match deletion(document) {
                Ok(deletion) => deletions.push(deletion),
                // It must not be the others' trouble.
                Err(failure) => {
                    damaged!(failure.chain(); error = failure.chain(), "a user cannot be deleted")
                }
            }
        }
        Ok((deletions, now))
    }

    /// Ends a deletion: the id can be registered anew.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn remove_deleted(&self, deletion: &Deletion) -> Result<(), Failure> {
        let filter = doc! {"_id": deletion.user.as_str(), "pseudonym": deletion.pseudonym.as_str()};
        let users = self.users.clone();
        mongo::run("remove the deleted user", async move { users.delete_one(filter).await }).await.map(drop)
    }
}

impl UserRecord {
    fn new(user: &User, id_secret: Option<Binary>) -> Self {
        let created_at = to_bson_time(user.created_at);
        UserRecord { id: user.id.to_string(), name: user.name.clone(), created_at, id_secret }
    }
}

impl TryFrom<Document> for User {
    type Error = String;

    fn try_from(record: Document) -> Result<Self, String> {
        let record: UserRecord =
            mongodb::bson::deserialize_from_document(record).map_err(|error| error.to_string())?;
        let created_at = from_bson_time(record.created_at);
        Ok(User { id: record.id.parse()?, name: record.name, created_at })
    }
}

/// What requests need to know of a user, out of their document: the id, and the rest if it can be read.
fn known(user: &Document) -> Option<(UserId, Result<RegisteredUser, Failure>)> {
    let id: UserId = user.get_str("_id").ok()?.parse().ok()?;
    let known = match IdSecret::of(user, SECRET) {
        Ok(secret) => Ok(RegisteredUser { id: id.clone(), secret }),
        // Without it the same key would get another id than before.
        Err(why) => Err(unreadable(&id, why)),
    };
    Some((id, known))
}

fn deletion(document: &Document) -> Result<Deletion, Failure> {
    let text = |name: &str| document.get_str(name).ok().and_then(|text| text.parse().ok());
    let time = |name: &str| document.get_datetime(name).ok().map(|time| from_bson_time(*time));
    match (text("_id"), text("pseudonym"), time("deletedAt"), time("dueAt")) {
        (Some(user), Some(pseudonym), Some(asked_at), Some(due)) => {
            Ok(Deletion { user, pseudonym, asked_at, due })
        }
        _ => {
            let id = document.get("_id").map(ToString::to_string).unwrap_or_default();
            Err(unreadable(&id, "it is neither a user nor one who is being deleted"))
        }
    }
}

fn unreadable(id: &dyn std::fmt::Display, why: &str) -> Failure {
    Failure::Damaged { what: "the record of a user", why: format!("{id}: {why}") }
}

/// The filters that users are asked with. Each must be served by an index.
pub mod queries {
    use super::*;

    // `null` is what a missing field is equal to.

    /// One user who is not being deleted.
    pub fn one(id: &UserId) -> Document {
        doc! {"_id": id.as_str(), "deletedAt": null}
    }

    /// Those who are not being deleted.
    pub fn not_deleted() -> Document {
        doc! {"deletedAt": null}
    }

    /// Those who were registered since a moment.
    pub fn since(moment: Timestamp) -> Document {
        doc! {"createdAt": {"$gte": to_bson_time(moment)}}
    }

    /// Those who are being deleted.
    pub fn deleted() -> Document {
        doc! {"deletedAt": {"$exists": true}}
    }
}
