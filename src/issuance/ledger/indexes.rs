//! The indexes that the promise and the speed rest on, and the validator that keeps older programs out. A process does not start without them. It makes a
//! unique one only while its collection is empty, because what was written meanwhile may break it; any other
//! one also in a small collection, such as that of a record that a command wrote before the first start.

use futures::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::IndexOptions;
use mongodb::{Database, IndexModel};

use super::layout::Layout;
use super::record::{ISSUED, REJECTED};
use super::{COLLECTION, migration};
use crate::Failure;
use crate::mongo;

/// An index that there must be, to the letter.
pub(super) struct IndexSpec {
    collection: &'static str,
    pub(super) name: &'static str,
    keys: Document,
    unique: bool,
    only: Option<Document>,
}

/// The name of the unique index that holds each unit of a partition once.
const UNIT_OCCUPIED_ONCE: &str = "unit_occupied_once";

/// The fields by which all of one user's units of a coupon are next to each other.
pub(super) fn user_keys(layout: Layout) -> Document {
    in_partition(layout, super::queries::by_user())
}

fn in_partition(layout: Layout, keys: Document) -> Document {
    let mut all = match layout {
        Layout::Mixed => doc! {},
        Layout::Partitioned => doc! {"p": 1},
    };
    all.extend(keys);
    all
}

/// The ledger's indexes that depend on its layout.
pub(super) fn of_layout(layout: Layout) -> Vec<IndexSpec> {
    let issued = || doc! {"outcome": ISSUED};
    let index = |name, keys, unique, only| IndexSpec {
        collection: COLLECTION,
        name,
        keys: in_partition(layout, keys),
        unique,
        only: Some(only),
    };
    let (rejected, of_rejected) = (doc! {"couponId": 1, "_id": 1}, doc! {"outcome": REJECTED});
    match layout {
        Layout::Mixed => vec![
            index("unit_issued_once", doc! {"couponId": 1, "serial": 1}, true, issued()),
            index("user_within_limit", super::queries::by_user(), true, issued()),
            index("rejected_of_coupon", rejected, false, of_rejected),
        ],
        Layout::Partitioned => vec![
            index(
                UNIT_OCCUPIED_ONCE,
                doc! {"couponId": 1, "unit": 1},
                true,
                doc! {"unit": {"$exists": true}},
            ),
            index("user_within_limit_by_partition", super::queries::by_user(), true, issued()),
            index("rejected_of_coupon_by_partition", rejected, false, of_rejected),
            // Empty, unless a record is damaged.
            index(
                "issued_without_unit",
                doc! {"couponId": 1},
                false,
                doc! {"outcome": ISSUED, "unit": Bson::Null},
            ),
        ],
    }
}

fn wanted(layout: Layout) -> Vec<IndexSpec> {
    let issued = || Some(doc! {"outcome": ISSUED});
    let rejected = || Some(doc! {"outcome": REJECTED});
    let mut wanted = of_layout(layout);
    wanted.extend([
        // Without the partition: a user's records may lie in any.
        IndexSpec {
            collection: COLLECTION,
            name: "held_newest_first",
            keys: doc! {"userId": 1, "decidedAt": -1, "_id": -1},
            unique: false,
            only: issued(),
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
    ]);
    wanted
}

impl IndexSpec {
    pub(super) fn model(&self) -> IndexModel {
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

/// Makes missing indexes of a ledger in this layout where that is quick and safe, and returns a sentence for each other
/// index that is missing, which says what to do.
///
/// # Errors
///
/// If MongoDB fails.
pub async fn ensure(database: &Database, layout: Layout) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    if layout == Layout::Partitioned {
        migration::create_fenced(database).await?;
    }
    for wanted in wanted(layout) {
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
            if wanted.name == UNIT_OCCUPIED_ONCE && migration::has_records_without_partition(database).await?
            {
                return Ok(vec![UNKNOWN_TO_BE_MIXED.into()]);
            }
            wrong.push(missing(&wanted));
            continue;
        }
        let model = wanted.model();
        mongo::run("make an index", async move { collection.create_index(model).await }).await?;
    }
    // Only then: by its indexes it is certain that no older program decides in this ledger.
    if layout == Layout::Partitioned && wrong.is_empty() && !migration::ensure_fenced(database).await? {
        wrong.push(unfenced());
    }
    Ok(wrong)
}

/// The lease that said so was deleted.
const UNKNOWN_TO_BE_MIXED: &str = "the collection \"user_coupons\" has records that an older version wrote; end all \
                                   processes, and fill in what they lack with `couponctl ledger migrate`";

/// Returns a sentence for each index that a ledger in this layout lacks, and makes none.
///
/// # Errors
///
/// If MongoDB fails.
pub async fn check(database: &Database, layout: Layout) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    if layout == Layout::Partitioned && !migration::is_fenced(database).await? {
        wrong.push(unfenced());
    }
    for wanted in wanted(layout) {
        if !is_present(database, &wanted).await? {
            wrong.push(missing(&wanted));
        }
    }
    Ok(wrong)
}

fn unfenced() -> String {
    format!(
        "the collection {COLLECTION:?} would take records of older versions, whose units no index holds; set its \
         validator with mongosh, as a user with the role dbAdmin: {}",
        migration::how_to_fence()
    )
}

fn missing(wanted: &IndexSpec) -> String {
    format!(
        "the collection {:?} lacks its index {:?}, exactly so; make it with mongosh: {}",
        wanted.collection,
        wanted.name,
        wanted.to_shell()
    )
}

pub(super) async fn is_present(database: &Database, wanted: &IndexSpec) -> Result<bool, Failure> {
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

pub(super) fn is_namespace_not_found(error: &mongodb::error::Error) -> bool {
    const NAMESPACE_NOT_FOUND: i32 = 26;
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(error) if error.code == NAMESPACE_NOT_FOUND)
}
