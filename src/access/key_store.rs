//! API keys in MongoDB: the collection `api_keys`, by id. A revoked key stays, so that what it did
//! keeps a name.

use crate::mongo::Database;
use jiff::Timestamp;
use mongodb::Collection;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, DateTime, Document, doc};
use mongodb::options::FindOptions;
use serde::{Deserialize, Serialize};

use super::key::{ApiKey, SecretHash};
use crate::Failure;
use crate::mongo::{self, from_bson_time, to_bson_time};

/// Keys that are not revoked, expired ones among them: every API process keeps all of them in memory.
pub const ACTIVE_MAX: usize = 1_000;
/// Keys in a list, the newest.
pub const LISTED_MAX: usize = 2_000;

/// Keeps API keys.
#[derive(Clone)]
pub struct KeyStore {
    keys: Collection<KeyRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyRecord {
    #[serde(rename = "_id")]
    id: String,
    name: String,
    role: String,
    hash: Binary,
    created_at: DateTime,
    // Records of an older version have neither of these two, and an older version ignores both.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<DateTime>,
    revoked_at: Option<DateTime>,
}

/// The keys that are not revoked, expired ones among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveKeys {
    /// In no order.
    pub keys: Vec<ApiKey>,
    /// How many others have a record that cannot be read. They admit no caller, and are keys all the same: where
    /// there is one, credentials are asked for.
    pub unreadable: usize,
}

impl ActiveKeys {
    /// Whether there is no active key, readable or not.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.unreadable == 0
    }
}

/// The outcome of storing a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyInsert {
    New,
    /// There are 1,000 keys already that are neither revoked nor expired.
    TooMany,
}

/// The outcome of revoking a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokeOutcome {
    Now(ApiKey),
    /// The key was revoked before.
    Before(ApiKey),
    /// The key is revoked, and its record cannot be read.
    Unreadable,
    NotFound,
}

impl KeyStore {
    /// The keys of this database.
    pub fn new(database: &Database) -> Self {
        KeyStore { keys: database.collection("api_keys") }
    }

    /// Keeps a new key. Where there are too many, expired ones make room: they are revoked.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn insert(&self, key: &ApiKey) -> Result<KeyInsert, Failure> {
        let (keys, record) = (self.keys.clone(), KeyRecord::from(key));
        let now = to_bson_time(crate::mongo::now_in_milliseconds());
        mongo::run("keep the API key", async move {
            let active = || doc! {"revokedAt": null};
            if keys.count_documents(active()).await? >= ACTIVE_MAX as u64 {
                let expired = doc! {"revokedAt": null, "expiresAt": {"$lte": now}};
                keys.update_many(expired, doc! {"$set": {"revokedAt": now}}).await?;
                if keys.count_documents(active()).await? >= ACTIVE_MAX as u64 {
                    return Ok(KeyInsert::TooMany);
                }
            }
            keys.insert_one(record).await?;
            Ok(KeyInsert::New)
        })
        .await
    }

    /// The keys that are not revoked, expired ones among them. One whose record cannot be read must not keep the
    /// others from being revoked.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn active(&self) -> Result<ActiveKeys, Failure> {
        let bounded = FindOptions::builder().limit(mongo::at_most(ACTIVE_MAX)).build();
        let active = doc! {"revokedAt": null};
        let found: Vec<Document> = mongo::find("read the API keys", &self.keys, active, bounded).await?;
        let count = found.len();
        let keys: Vec<ApiKey> = mongo::readable("an API key", found);
        Ok(ActiveKeys { unreadable: count - keys.len(), keys })
    }

    /// All keys, revoked ones too, newest first, at most 2,000. One whose record cannot be read is
    /// left out.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn list(&self) -> Result<Vec<ApiKey>, Failure> {
        let keys = self.keys.clone_with_type();
        let page =
            mongo::newest_first_page("list the API keys", "an API key", &keys, doc! {}, None, LISTED_MAX);
        Ok(page.await?.items)
    }

    /// Notes that these keys were used at `moment`. A later use that is noted already stays.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn note_use(&self, ids: &[String], moment: Timestamp) -> Result<(), Failure> {
        let (keys, used) = (self.keys.clone(), doc! {"_id": {"$in": ids}});
        mongo::run("note the use of API keys", async move {
            keys.update_many(used, doc! {"$max": {"lastUsedAt": to_bson_time(moment)}}).await
        })
        .await?;
        Ok(())
    }

    /// Revokes a key.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn revoke(&self, id: &str) -> Result<RevokeOutcome, Failure> {
        let (keys, wanted) = (self.keys.clone_with_type::<Document>(), id.to_owned());
        let now = crate::mongo::now_in_milliseconds();
        let found = mongo::run("revoke the API key", async move {
            let change = doc! {"$set": {"revokedAt": to_bson_time(now)}};
            let active = doc! {"_id": wanted.as_str(), "revokedAt": null};
            if let Some(before) = keys.find_one_and_update(active, change).await? {
                return Ok(Some((true, before)));
            }
            Ok(keys.find_one(doc! {"_id": wanted}).await?.map(|record| (false, record)))
        });
        let Some((is_now, record)) = found.await? else { return Ok(RevokeOutcome::NotFound) };
        Ok(match (is_now, mongo::readable("an API key", vec![record]).pop()) {
            (true, Some(before)) => RevokeOutcome::Now(ApiKey { revoked_at: Some(now), ..before }),
            (false, Some(key)) => RevokeOutcome::Before(key),
            (_, None) => RevokeOutcome::Unreadable,
        })
    }
}

impl From<&ApiKey> for KeyRecord {
    fn from(key: &ApiKey) -> Self {
        KeyRecord {
            id: key.id.clone(),
            name: key.name.clone(),
            role: key.role.as_str().into(),
            hash: Binary { subtype: BinarySubtype::Generic, bytes: key.hash.0.to_vec() },
            created_at: to_bson_time(key.created_at),
            expires_at: key.expires_at.map(to_bson_time),
            last_used_at: key.last_used_at.map(to_bson_time),
            revoked_at: key.revoked_at.map(to_bson_time),
        }
    }
}

impl TryFrom<Document> for ApiKey {
    type Error = String;

    fn try_from(record: Document) -> Result<Self, String> {
        let record: KeyRecord =
            mongodb::bson::deserialize_from_document(record).map_err(|error| error.to_string())?;
        let hash = record.hash.bytes.as_slice().try_into();
        Ok(ApiKey {
            role: record.role.parse()?,
            hash: SecretHash(hash.map_err(|_| "its hash has the wrong length")?),
            id: record.id,
            name: record.name,
            created_at: from_bson_time(record.created_at),
            expires_at: record.expires_at.map(from_bson_time),
            last_used_at: record.last_used_at.map(from_bson_time),
            revoked_at: record.revoked_at.map(from_bson_time),
        })
    }
}
