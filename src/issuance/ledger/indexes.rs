//! The indexes that the promise and the speed rest on. A process does not start without them. It makes a
//! unique one only while its collection is empty, because what was written meanwhile may break it; any other
//! one also in a small collection, such as that of a record that a command wrote before the first start.

use futures::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;
use mongodb::{Database, IndexModel};

use super::COLLECTION;
use super::record::{ISSUED, REJECTED};
use crate::Failure;
use crate::mongo;

/// An index that there must be, to the letter.
struct IndexSpec {
    collection: &'static str,
    name: &'static str,
    keys: Document,
    unique: bool,
    only: Option<Document>,
}

fn wanted() -> Vec<IndexSpec> {
    let issued = || Some(doc! {"outcome": ISSUED});
    let rejected = || Some(doc! {"outcome": REJECTED});
    vec![
        IndexSpec {
            collection: COLLECTION,
            name: "unit_issued_once",
            keys: doc! {"couponId": 1, "serial": 1},
            unique: true,
            only: issued(),
        },
        IndexSpec {
            collection: COLLECTION,
            name: "user_within_limit",
            keys: super::queries::by_user(),
            unique: true,
            only: issued(),
        },
        IndexSpec {
            collection: COLLECTION,
            name: "held_newest_first",
            keys: doc! {"userId": 1, "decidedAt": -1, "_id": -1},
            unique: false,
            only: issued(),
        },
        IndexSpec {
            collection: COLLECTION,
            name: "rejected_of_coupon",
            keys: doc! {"couponId": 1, "_id": 1},
            unique: false,
            only: rejected(),
        },
        IndexSpec {
            collection: COLLECTION,
            name: "rejected_of_user",
            keys: doc! {"userId": 1},
            unique: false,
            only: rejected(),
        },
        IndexSpec {
            collection: "users",
            name: "being_deleted",
            keys: doc! {"deletedAt": 1},
            unique: false,
            only: Some(doc! {"deletedAt": {"$exists": true}}),
        },
        IndexSpec {
            collection: "coupons",
            name: "newest_first",
            keys: doc! {"createdAt": -1, "_id": -1},
            unique: false,
            only: None,
        },
        IndexSpec {
            collection: "coupons",
            name: "current",
            keys: doc! {"archived": 1, "endsAt": 1},
            unique: false,
            only: None,
        },
        IndexSpec {
            collection: "coupons",
            name: "changed",
            keys: doc! {"changedAt": 1},
            unique: false,
            only: None,
        },
        IndexSpec {
            collection: "users",
            name: "newest_first",
            keys: doc! {"createdAt": -1, "_id": -1},
            unique: false,
            only: None,
        },
        IndexSpec {
            collection: "operator_actions",
            name: "about_user",
            keys: doc! {"about": 1},
            unique: false,
            only: Some(doc! {"about": {"$exists": true}}),
        },
    ]
}

impl IndexSpec {
    fn model(&self) -> IndexModel {
        let options = IndexOptions::builder()
            .name(self.name.to_owned())
            .unique(self.unique)
            .partial_filter_expression(self.only.clone())
            .build();
        IndexModel::builder().keys(self.keys.clone()).options(options).build()
    }

    fn is(&self, found: &IndexModel) -> bool {
        let options = found.options.clone().unwrap_or_default();
        found.keys == self.keys
            && options.unique.unwrap_or(false) == self.unique
            && options.partial_filter_expression == self.only
            && options.sparse != Some(true)
            && options.collation.is_none()
    }

    fn to_shell(&self) -> String {
        let mut options = doc! {"name": self.name};
        if self.unique {
            options.insert("unique", true);
        }
        if let Some(filter) = &self.only {
            options.insert("partialFilterExpression", filter.clone());
        }
        format!("db.{}.createIndex({}, {})", self.collection, self.keys, options)
    }
}

/// Documents of a collection in which an index is made at once; in a larger one that may take longer than a
/// start may.
const SMALL_MAX: u64 = 10_000;

/// Makes missing indexes where that is quick and safe, and returns a sentence for each other index that is missing,
/// which says what to do.
///
/// # Errors
///
/// If MongoDB fails.
pub async fn ensure(database: &Database) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    for wanted in wanted() {
        if is_present(database, &wanted).await? {
            continue;
        }
        let collection = database.collection::<Document>(wanted.collection);
        let documents = {
            let collection = collection.clone();
            let counted = mongo::run("count the documents of a collection", async move {
                collection.count_documents(doc! {}).limit(SMALL_MAX + 1).await
            });
            counted.await?
        };
        if documents > if wanted.unique { 0 } else { SMALL_MAX } {
            wrong.push(missing(&wanted));
            continue;
        }
        let model = wanted.model();
        mongo::run("make an index", async move { collection.create_index(model).await }).await?;
    }
    Ok(wrong)
}

/// Returns a sentence for each index that is missing, and makes none.
///
/// # Errors
///
/// If MongoDB fails.
pub async fn check(database: &Database) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    for wanted in wanted() {
        if !is_present(database, &wanted).await? {
            wrong.push(missing(&wanted));
        }
    }
    Ok(wrong)
}

fn missing(wanted: &IndexSpec) -> String {
    format!(
        "the collection {:?} lacks its index {:?}, exactly so; make it with mongosh: {}",
        wanted.collection,
        wanted.name,
        wanted.to_shell()
    )
}

async fn is_present(database: &Database, wanted: &IndexSpec) -> Result<bool, Failure> {
    let collection = database.collection::<Document>(wanted.collection);
    let found = mongo::run("list the indexes", async move {
        match collection.list_indexes().await {
            Ok(cursor) => cursor.try_collect::<Vec<_>>().await,
            Err(error) if is_namespace_not_found(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    });
    Ok(found.await?.iter().any(|index| wanted.is(index)))
}

fn is_namespace_not_found(error: &mongodb::error::Error) -> bool {
    const NAMESPACE_NOT_FOUND: i32 = 26;
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(error) if error.code == NAMESPACE_NOT_FOUND)
}
