//! API keys in MongoDB: the collection `api_keys`, by id. A revoked key stays, so that what it did
//! keeps a name.

use futures::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, DateTime, Document, doc};
use mongodb::{Collection, Database};
use serde::{Deserialize, Serialize};

use super::key::{Key, SecretHash};
use crate::Failure;
use crate::mongo::{self, from_bson_time, to_bson_time};

/// Keys that are not revoked: every API process keeps all of them in memory.
pub const ACTIVE_MAX: usize = 1_000;
/// Keys in a list, the newest.
pub const LISTED_MAX: usize = 2_000;

/// Keeps API keys.
#[derive(Clone)]
pub struct KeyStore {
    keys: Collection<Record>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(rename = "_id")]
    id: String,
    name: String,
    role: String,
    hash: Binary,
    created_at: DateTime,
    revoked_at: Option<DateTime>,
}

/// What became of a key that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    New,
    /// There are [`ACTIVE_MAX`] already.
    TooMany,
}

/// What became of a key that was to be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    Now(Key),
    /// It was revoked before, and stays so.
    Before(Key),
    NotFound,
}

impl KeyStore {
    /// The keys of this database.
    pub fn new(database: &Database) -> Self {
        KeyStore { keys: database.collection("api_keys") }
    }

    /// Keeps a new key.
    pub async fn insert(&self, key: &Key) -> Result<Kept, Failure> {
        let (keys, record) = (self.keys.clone(), Record::from(key));
        mongo::run("keep the API key", async move {
            if keys.count_documents(doc! {"revokedAt": null}).await? >= ACTIVE_MAX as u64 {
                return Ok(Kept::TooMany);
            }
            keys.insert_one(record).await?;
            Ok(Kept::New)
        })
        .await
    }

    /// The keys that are not revoked, in no order. A record that cannot be read is left out: it must not
    /// keep the others from being revoked.
    pub async fn active(&self) -> Result<Vec<Key>, Failure> {
        let keys = self.keys.clone_with_type::<Document>();
        let found = mongo::run("read the API keys", async move {
            let limit = i64::try_from(ACTIVE_MAX).unwrap_or(i64::MAX);
            let found = keys.find(doc! {"revokedAt": null}).limit(limit);
            found.await?.try_collect::<Vec<_>>().await
        });
        let keys = found.await?.into_iter().filter_map(|document| {
            let record: Result<Record, _> = mongodb::bson::deserialize_from_document(document);
            let key = record.map_err(|error| error.to_string());
            let key = key.and_then(|record| Key::try_from(record).map_err(|failure| failure.chain()));
            key.inspect_err(|error| tracing::error!(error, "an API key is refused: its record is damaged"))
                .ok()
        });
        Ok(keys.collect())
    }

    /// All keys, revoked ones too, newest first: at most [`LISTED_MAX`].
    pub async fn list(&self) -> Result<Vec<Key>, Failure> {
        let found = mongo::newest_first_page("list the API keys", &self.keys, doc! {}, None, LISTED_MAX);
        found.await?.into_iter().map(Key::try_from).collect()
    }

    /// Revokes a key.
    pub async fn revoke(&self, id: &str) -> Result<Revoked, Failure> {
        let (keys, wanted, now) = (self.keys.clone(), id.to_owned(), crate::now_in_milliseconds());
        let found = mongo::run("revoke the API key", async move {
            let change = doc! {"$set": {"revokedAt": to_bson_time(now)}};
            let active = doc! {"_id": wanted.as_str(), "revokedAt": null};
            if let Some(before) = keys.find_one_and_update(active, change).await? {
                return Ok(Some((true, before)));
            }
            Ok(keys.find_one(doc! {"_id": wanted}).await?.map(|record| (false, record)))
        });
        Ok(match found.await? {
            Some((true, before)) => Revoked::Now(Key { revoked_at: Some(now), ..before.try_into()? }),
            Some((false, record)) => Revoked::Before(record.try_into()?),
            None => Revoked::NotFound,
        })
    }
}

impl From<&Key> for Record {
    fn from(key: &Key) -> Self {
        Record {
            id: key.id.clone(),
            name: key.name.clone(),
            role: key.role.as_str().into(),
            hash: Binary { subtype: BinarySubtype::Generic, bytes: key.hash.0.to_vec() },
            created_at: to_bson_time(key.created_at),
            revoked_at: key.revoked_at.map(to_bson_time),
        }
    }
}

impl TryFrom<Record> for Key {
    type Error = Failure;

    fn try_from(record: Record) -> Result<Self, Failure> {
        let damaged = |why: String| Failure::Damaged {
            what: "an API key",
            why: format!("the record of key {:?}: {why}", record.id),
        };
        let hash = record.hash.bytes.as_slice().try_into();
        Ok(Key {
            role: record.role.parse().map_err(damaged)?,
            hash: SecretHash(hash.map_err(|_| damaged("its hash has the wrong length".into()))?),
            id: record.id,
            name: record.name,
            created_at: from_bson_time(record.created_at),
            revoked_at: record.revoked_at.map(|moment| -> Timestamp { from_bson_time(moment) }),
        })
    }
}
