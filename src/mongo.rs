//! The connection to MongoDB, and the one way to run an operation on it.
//!
//! What a client sends never becomes an operator of a query: those who write filters are given parsed
//! types (ids, moments, numbers), and no file that talks to MongoDB knows a JSON value.

use std::future::Future;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::options::{
    Acknowledgment, ClientOptions, FindOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Collection, Database};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::Failure;

/// The longest that one operation is waited for.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the driver looks for a primary.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Operations under way at once, those that nobody waits for any more among them.
static UNDER_WAY: Semaphore = Semaphore::const_new(1_000);
/// The driver's default of 10 makes concurrent reads queue behind the worker's writes.
const POOL_MAX: u32 = 64;

/// Connects to the deployment at `uri` and picks the database. Everything is written with
/// `w: majority, j: true` and read with majority on the primary, whatever the URI says.
pub async fn connect(uri: &str, database: &str) -> mongodb::error::Result<Database> {
    let mut options = ClientOptions::parse(uri).await?;
    options.app_name.get_or_insert_with(|| env!("CARGO_PKG_NAME").into());
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
    options.max_pool_size.get_or_insert(POOL_MAX);
    options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
    options.read_concern = Some(ReadConcern::majority());
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    Ok(Client::with_options(options)?.database(database))
}

/// Runs an operation to its end, and waits for it up to [`OPERATION_TIMEOUT`].
///
/// A driver's future that is dropped in mid-flight leaves its connection in an unknown state, so it
/// runs in a task of its own: what times out is the waiting.
pub async fn run<T, F>(operation: &'static str, future: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
{
    let Ok(permit) = UNDER_WAY.try_acquire() else { return Err(Failure::Overloaded { operation }) };
    let task = tokio::spawn(async move {
        let result = future.await;
        drop(permit);
        result
    });
    match tokio::time::timeout(OPERATION_TIMEOUT, task).await {
        Ok(Ok(result)) => result.map_err(Failure::mongodb(operation)),
        Ok(Err(join)) => Err(Failure::MongoDb { operation, source: join.into() }),
        Err(elapsed) => Err(Failure::MongoDb { operation, source: elapsed.into() }),
    }
}

/// Whether a write failed because a unique index holds its key already.
pub(crate) fn is_duplicate_key(error: &mongodb::error::Error) -> bool {
    use mongodb::error::{ErrorKind, WriteFailure};
    matches!(&*error.kind, ErrorKind::Write(WriteFailure::WriteError(error)) if error.code == DUPLICATE_KEY)
}

/// MongoDB's code for a key that a unique index holds already.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// A moment as MongoDB keeps it: whole milliseconds.
pub(crate) fn to_bson_time(moment: Timestamp) -> DateTime {
    DateTime::from_millis(moment.as_millisecond())
}

/// The inverse of [`to_bson_time`]; a moment beyond the years that are supported becomes the last.
pub(crate) fn from_bson_time(moment: DateTime) -> Timestamp {
    Timestamp::from_millisecond(moment.timestamp_millis()).unwrap_or(Timestamp::MAX)
}

/// At most `limit` documents that fit `filter`, newest first by `createdAt`, from after the one of this time and id.
pub(crate) async fn newest_first_page<T>(
    operation: &'static str,
    collection: &Collection<T>,
    mut filter: Document,
    after: Option<(Timestamp, &str)>,
    limit: usize,
) -> Result<Vec<T>, Failure>
where
    T: DeserializeOwned + Send + Sync + Unpin + 'static,
{
    filter.extend(after.map(|(time, id)| after_newest_first("createdAt", time, id)).unwrap_or_default());
    let collection = collection.clone();
    let options = FindOptions::builder()
        .sort(doc! {"createdAt": -1, "_id": -1})
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .build();
    run(operation, async move { collection.find(filter).with_options(options).await?.try_collect().await })
        .await
}

/// The filter for a page that follows the document with this time and id, newest first.
pub(crate) fn after_newest_first(field: &str, time: Timestamp, id: impl Into<Bson>) -> Document {
    let time = to_bson_time(time);
    doc! {"$or": [{field: {"$lt": time}}, {field: time, "_id": {"$lt": id.into()}}]}
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn rust_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                rust_files(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn no_file_that_writes_filters_knows_a_json_value() {
        let mut files = Vec::new();
        rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let read = files.iter().map(|path| (path, std::fs::read_to_string(path).expect("a text")));
        let filters: Vec<_> = read.filter(|(_, text)| text.contains("doc! {")).collect();
        assert!(filters.len() > 10, "they are written otherwise now");
        for (path, text) in filters {
            // A test says what it looks for.
            let is_this = path.ends_with("mongo.rs");
            assert!(
                is_this || !text.contains("serde_json::{") && !text.contains("serde_json::Value"),
                "{path:?}"
            );
        }
    }
}
