//! Users in MongoDB: the collection `users`, by id.

use jiff::Timestamp;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::error::ErrorKind;
use mongodb::{Collection, Database};
use serde::{Deserialize, Serialize};

use super::{User, UserId};
use crate::Failure;
use crate::mongo::{self, from_bson_time, to_bson_time};

/// Keeps users.
#[derive(Clone)]
pub struct UserStore {
    users: Collection<Record>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(rename = "_id")]
    id: String,
    name: String,
    created_at: DateTime,
}

impl UserStore {
    /// The users of this database.
    pub fn new(database: &Database) -> Self {
        UserStore { users: database.collection("users") }
    }

    /// Registers users. Returns, in order, whether each was new.
    pub async fn insert(&self, users: &[User]) -> Result<Vec<bool>, Failure> {
        let records: Vec<Record> = users.iter().map(Record::from).collect();
        let (collection, count) = (self.users.clone(), records.len());
        let inserted = mongo::run("register the users", async move {
            let mut new = vec![true; count];
            match collection.insert_many(records).ordered(false).await {
                Ok(_) => Ok(new),
                Err(error) => {
                    let ErrorKind::InsertMany(failed) = &*error.kind else { return Err(error) };
                    let errors = failed.write_errors.as_deref().unwrap_or_default();
                    if failed.write_concern_error.is_some()
                        || errors.iter().any(|error| error.code != mongo::DUPLICATE_KEY)
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

    /// One user.
    pub async fn get(&self, id: &UserId) -> Result<Option<User>, Failure> {
        let (users, id) = (self.users.clone(), id.as_str().to_owned());
        let found = mongo::run("read the user", async move { users.find_one(doc! {"_id": id}).await });
        found.await?.map(User::try_from).transpose()
    }

    /// Which of `ids` are registered.
    pub async fn registered(&self, ids: &[UserId]) -> Result<Vec<UserId>, Failure> {
        let wanted: Vec<&str> = ids.iter().map(UserId::as_str).collect();
        let filter = doc! {"_id": {"$in": wanted}};
        let users = self.users.clone_with_type::<Document>();
        let found = mongo::run("look the users up", async move {
            let cursor = users.find(filter).projection(doc! {"_id": 1}).await?;
            futures::TryStreamExt::try_collect::<Vec<_>>(cursor).await
        });
        let found = found.await?;
        Ok(found.iter().filter_map(|user| user.get_str("_id").ok()?.parse().ok()).collect())
    }

    /// At most `limit` users, newest first, from after the one that a cursor names (its creation
    /// time and id).
    pub async fn list(&self, after: Option<(Timestamp, UserId)>, limit: usize) -> Result<Vec<User>, Failure> {
        let after = after.as_ref().map(|(created_at, id)| (*created_at, id.as_str()));
        let found = mongo::newest_first_page("list the users", &self.users, after, limit);
        found.await?.into_iter().map(User::try_from).collect()
    }
}

impl From<&User> for Record {
    fn from(user: &User) -> Self {
        Record { id: user.id.to_string(), name: user.name.clone(), created_at: to_bson_time(user.created_at) }
    }
}

impl TryFrom<Record> for User {
    type Error = Failure;

    fn try_from(record: Record) -> Result<Self, Failure> {
        Ok(User {
            id: record.id.parse().map_err(|why: String| Failure::MongoDb {
                operation: "read the user",
                source: format!("the record of user {:?} is damaged: {why}", record.id).into(),
            })?,
            name: record.name,
            created_at: from_bson_time(record.created_at),
        })
    }
}
