//! The connection to MongoDB, and the one way to run an operation on it: [within a bound](OperationLimit).
//!
//! A client's input never becomes an operator of a query: filters are built from parsed types (ids, moments,
//! numbers), and a test holds that no file with a filter names a JSON value.

mod operations;

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{
    Acknowledgment, ClientOptions, DriverInfo, FindOptions, ReadConcern, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use mongodb::{Client, Collection};
use serde::de::DeserializeOwned;

pub use mongodb::Database;

use crate::Failure;
use crate::runtime::damage::damaged;
pub use operations::OperationLimit;

/// The longest that a caller waits for one operation.
pub(crate) const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the driver waits for a primary.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest that a linearizable read waits for a majority to confirm that this primary still leads.
pub(crate) const LINEARIZABLE_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The most pages that are read to fill one page of a list, because documents in them cannot be read.
const PAGES_MAX: usize = 10;
/// Connections that the driver may make: more than there are operations in progress while the shards of hundreds of
/// partitions hang. It makes one only when all that it has are in use.
const POOL_MAX: u32 = 8_192;

/// Connects to the deployment at `uri` and selects the database. The client writes with `w: majority, j: true`
/// and reads from the primary with read concern majority, whatever the URI says.
///
/// # Errors
///
/// A sentence that says what to do, without any part of the URI: there may be a password in it.
pub async fn connect(uri: &str, database: &str) -> Result<Database, String> {
    open(uri, database).await.map_err(|error| match &*error.kind {
        ErrorKind::DnsResolve { .. } => format!("its host cannot be looked up ({error})"),
        // The driver repeats what it could not read: of a password that is not encoded, for example.
        _ => "it is no URI of a MongoDB, such as mongodb://USER:PASSWORD@HOST:27017/?replicaSet=rs0; in user and \
              password, characters such as @ : / % must be percent-encoded"
            .into(),
    })
}

/// Closes the database's connections at once. Without it, tasks of the driver may complain at the end of the program
/// that others are gone.
pub async fn close(database: &Database) {
    database.client().clone().shutdown().immediate(true).await;
}

async fn open(uri: &str, database: &str) -> mongodb::error::Result<Database> {
    let mut options = ClientOptions::parse(uri).await?;
    options.app_name.get_or_insert_with(|| env!("CARGO_PKG_NAME").into());
    // Programs of versions that write no partitions into the ledger do not say it: see `ledger::migration`.
    options.driver_info = Some(DriverInfo::builder().name(env!("CARGO_PKG_NAME")).build());
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
    options.max_pool_size.get_or_insert(POOL_MAX);
    options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
    options.read_concern = Some(ReadConcern::majority());
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    Ok(Client::with_options(options)?.database(database))
}

/// Runs an operation within the process's bound: [`OperationLimit::run`].
///
/// # Errors
///
/// Those of [`OperationLimit::run`].
pub async fn run<T, F>(operation: &'static str, future: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
{
    OperationLimit::of_process().run(operation, future).await
}

/// Runs an operation that may take hours, and waits for its end.
pub(crate) async fn run_to_the_end<T, F>(operation: &'static str, future: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
{
    match tokio::spawn(future).await {
        Ok(result) => result.map_err(Failure::mongodb(operation)),
        Err(source) => Err(Failure::Panicked { operation, source }),
    }
}

/// A limit in the type that MongoDB takes.
pub(crate) fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Reads documents within the process's bound: [`OperationLimit::find`].
pub(crate) async fn find<T, C>(
    operation: &'static str,
    collection: &Collection<C>,
    filter: Document,
    options: FindOptions,
) -> Result<Vec<T>, Failure>
where
    T: DeserializeOwned + Unpin + Send + Sync + 'static,
    C: Send + Sync,
{
    OperationLimit::of_process().find(operation, collection, filter, options).await
}

/// Runs a command that takes no arguments, such as `ping`, and returns the answer.
pub(crate) async fn command(
    database: &Database,
    operation: &'static str,
    name: &'static str,
) -> Result<Document, Failure> {
    let database = database.clone();
    run(operation, async move { database.run_command(doc! {name: 1}).await }).await
}

/// What is wrong with the mongos that leads to `database`, if one does.
///
/// Success by complement rests on write-concern errors: what a bulk insert does not name as failed counts as written by
/// a majority. Some versions of mongos leave these errors out beside others.
///
/// # Errors
///
/// If MongoDB fails.
pub(crate) async fn unfit_mongos(database: &Database) -> Result<Option<String>, Failure> {
    if command(database, "say hello", "hello").await?.get_str("msg").is_err() {
        return Ok(None);
    }
    let told = command(database, "tell its version", "buildInfo").await?;
    let version = told.get_str("version").unwrap_or_default();
    Ok(hides_write_concern_errors(version).then(|| {
        format!(
            "mongos {version} does not report a write-concern error beside another error; version 5.0.30, 6.0.14, 7.0.6, \
             or a later one of these series, or 7.1 or later is needed"
        )
    }))
}

/// Whether a mongos of this version does so. One that cannot be read does.
fn hides_write_concern_errors(version: &str) -> bool {
    let numbers: Option<Vec<u32>> =
        version.split(['.', '-']).take(3).map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some([5, 0, patch]) => *patch < 30,
        Some([6, 0, patch]) => *patch < 14,
        Some([7, 0, patch]) => *patch < 6,
        Some([major, minor, _]) => (*major, *minor) < (7, 1),
        _ => true,
    }
}

/// What MongoDB's error means for the one document that it did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwritten {
    /// A unique index holds one of the document's keys already.
    Conflict,
    /// MongoDB will never write the document as it is.
    Refused,
    /// Unknown: MongoDB may have written it, or may write it at the next attempt.
    Unknown,
}

/// MongoDB's code for a key that a unique index holds already.
const DUPLICATE_KEY: i32 = 11000;

/// The error codes that depend on the document alone, so that the same document meets the same code again. No
/// other code counts as a refusal: MongoDB reports blocked writes (371), a revoked permission (13), a shard that
/// does not answer, and codes of later versions for single documents too.
const REFUSALS: [(i32, &str); 13] = [
    (2, "BadValue: a value that MongoDB does not take"),
    (9, "FailedToParse: a value that MongoDB cannot read"),
    (14, "TypeMismatch: a value of another type than an index or a stage takes"),
    (22, "InvalidBSON: no document at all"),
    (52, "DollarPrefixedFieldName: a field that MongoDB does not store"),
    (53, "InvalidIdField: an _id that MongoDB does not store"),
    (66, "ImmutableField: a field that can never change would"),
    (121, "DocumentValidationFailure: the collection's validator says no"),
    (171, "CannotIndexParallelArrays: an index cannot hold it"),
    (10334, "BSONObjectTooLarge: larger than a document can be"),
    (17280, "KeyTooLong: an index cannot hold it"),
    (17419, "the document would become larger than a document can be"),
    (17420, "the document to insert is larger than a document can be"),
];

impl Unwritten {
    /// The meaning of an error code that MongoDB reports for one document.
    pub(crate) fn by(code: i32) -> Self {
        match code {
            DUPLICATE_KEY => Unwritten::Conflict,
            code if REFUSALS.iter().any(|(refusal, _)| *refusal == code) => Unwritten::Refused,
            _ => Unwritten::Unknown,
        }
    }

    /// The meaning of the error of an operation on one document.
    pub(crate) fn of(error: &mongodb::error::Error) -> Self {
        use mongodb::error::{ErrorKind, WriteFailure};
        match &*error.kind {
            ErrorKind::Write(WriteFailure::WriteError(error)) => Self::by(error.code),
            // An update of one document that is to be returned fails as a whole.
            ErrorKind::Command(error) => Self::by(error.code),
            _ => Unwritten::Unknown,
        }
    }
}

/// Whether a write failed because a unique index holds one of its keys already.
pub(crate) fn is_duplicate_key(error: &mongodb::error::Error) -> bool {
    Unwritten::of(error) == Unwritten::Conflict
}

/// Now, in whole milliseconds: as precise as MongoDB keeps it, so that what is written equals what is
/// read.
pub(crate) fn now_in_milliseconds() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// A moment in whole milliseconds, as MongoDB keeps it.
pub(crate) fn to_bson_time(moment: Timestamp) -> DateTime {
    DateTime::from_millis(moment.as_millisecond())
}

/// The inverse of [`to_bson_time`]; a moment after the last supported year becomes [`Timestamp::MAX`].
pub(crate) fn from_bson_time(moment: DateTime) -> Timestamp {
    Timestamp::from_millisecond(moment.timestamp_millis()).unwrap_or(Timestamp::MAX)
}

/// A page of a list, without the documents that cannot be read.
#[derive(Debug)]
pub struct ListPage<T, P> {
    pub items: Vec<T>,
    /// The position of the last document that was read, whether it is among the items or not: the next page
    /// starts after it. `None` only at the end of the list, although a page may have fewer items than the limit.
    pub next: Option<P>,
}

/// A position in a list that is newest first: `createdAt` and id of a document, or values of the same order where
/// the id is no text.
pub(crate) type NewestPlace = (Timestamp, String);

/// A text that MongoDB sorts after every other one.
const AFTER_STRINGS: &str = "\u{10ffff}";

/// The position of a document in a list that is newest first; `None` if it has no `createdAt`: MongoDB then sorts
/// it before or after all that have one.
pub(crate) fn newest_place(document: &Document) -> Option<NewestPlace> {
    let created_at = from_bson_time(*document.get_datetime("createdAt").ok()?);
    let id = match document.get("_id") {
        Some(Bson::String(id)) => id.as_str(),
        Some(Bson::Null | Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) | Bson::Decimal128(_)) | None => {
            ""
        }
        Some(_) => AFTER_STRINGS,
    };
    Some((created_at, id.to_owned()))
}

/// A page of the documents that fit `filter`, newest first by `createdAt`, starting after a position. It leaves out
/// documents that cannot be read, and logs each as `what`.
pub(crate) async fn newest_first_page<T>(
    operation: &'static str,
    what: &'static str,
    collection: &Collection<Document>,
    filter: Document,
    after: Option<NewestPlace>,
    limit: usize,
) -> Result<ListPage<T, NewestPlace>, Failure>
where
    T: TryFrom<Document>,
    T::Error: std::fmt::Display,
{
    let first = (Timestamp::MAX, AFTER_STRINGS.to_owned());
    readable_page(what, limit, after, first, newest_place, |after, limit| {
        let mut filter = filter.clone();
        if let Some((time, id)) = after {
            filter.extend(after_newest_first("createdAt", *time, id.as_str()));
        }
        let newest =
            FindOptions::builder().sort(doc! {"createdAt": -1, "_id": -1}).limit(at_most(limit)).build();
        async move { find(operation, collection, filter, newest).await }
    })
    .await
}

/// A page of at most `limit` documents that can be read. `page` reads up to a number of documents after a
/// position, and fewer only at the end of the list. A document without a `place` comes before or after all that
/// have one: `first` is the position before those.
pub(crate) async fn readable_page<T, P, F>(
    what: &'static str,
    limit: usize,
    mut after: Option<P>,
    first: P,
    place: impl Fn(&Document) -> Option<P>,
    mut page: impl FnMut(Option<&P>, usize) -> F,
) -> Result<ListPage<T, P>, Failure>
where
    T: TryFrom<Document>,
    T::Error: std::fmt::Display,
    P: Clone,
    F: Future<Output = Result<Vec<Document>, Failure>>,
{
    let mut items = Vec::new();
    for _ in 0..PAGES_MAX {
        let wanted = limit - items.len();
        let found = page(after.as_ref(), wanted).await?;
        let is_last = found.len() < wanted;
        let last = next_place(found.iter().rev().find_map(&place), after.as_ref(), || first.clone());
        items.extend(readable(what, found));
        after = last.filter(|_| !is_last);
        if after.is_none() || items.len() == limit {
            break;
        }
    }
    Ok(ListPage { items, next: after })
}

/// The position at which a list continues after a page that is not its last, given the last position in the
/// page. `None` if no document with a position follows.
pub(crate) fn next_place<P>(last: Option<P>, after: Option<&P>, first: impl FnOnce() -> P) -> Option<P> {
    match after {
        None => Some(last.unwrap_or_else(first)),
        Some(_) => last,
    }
}

/// Parses documents. It leaves out one that cannot be read, and logs it as `what`, so that the others can be used.
pub(crate) fn readable<T>(what: &'static str, documents: Vec<Document>) -> Vec<T>
where
    T: TryFrom<Document>,
    T::Error: std::fmt::Display,
{
    let mut read = Vec::with_capacity(documents.len());
    for document in documents {
        let id = document.get("_id").cloned().unwrap_or(Bson::Null);
        match T::try_from(document) {
            Ok(one) => read.push(one),
            Err(error) => {
                damaged!(format!("{what} {id}"); %id, %error, "{what} is left out: its record cannot be read")
            }
        }
    }
    read
}

/// A filter for the documents that follow the one with this time and id, newest first.
pub(crate) fn after_newest_first(field: &str, time: Timestamp, id: impl Into<Bson>) -> Document {
    let time = to_bson_time(time);
    doc! {"$or": [{field: {"$lt": time}}, {field: time, "_id": {"$lt": id.into()}}]}
}

impl Failure {
    /// Names the MongoDB operation that failed.
    pub fn mongodb(operation: &'static str) -> impl FnOnce(mongodb::error::Error) -> Failure {
        move |source| match &*source.kind {
            mongodb::error::ErrorKind::BsonDeserialization(_) | mongodb::error::ErrorKind::Bson(_) => {
                Failure::Damaged { what: "a record in MongoDB", why: source.to_string() }
            }
            _ if Unwritten::of(&source) == Unwritten::Refused => {
                Failure::Refused { operation, source: source.into() }
            }
            _ => Failure::MongoDb { operation, source: source.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Unwritten, hides_write_concern_errors};

    #[test]
    fn a_mongos_that_hides_write_concern_errors_is_known_by_its_version() {
        for fit in ["5.0.30", "6.0.14", "7.0.6", "7.1.0", "7.3.4", "8.0.0", "8.2.1-rc0"] {
            assert!(!hides_write_concern_errors(fit), "{fit}");
        }
        for unfit in ["4.4.29", "5.0.29", "5.3.2", "6.0.13", "6.3.1", "7.0.5", "", "unknown"] {
            assert!(hides_write_concern_errors(unfit), "{unfit}");
        }
    }

    #[test]
    fn only_codes_that_are_about_the_document_refuse_it() {
        assert_eq!(Unwritten::by(11000), Unwritten::Conflict);
        for code in [2, 14, 121, 10334, 17419, 17420] {
            assert_eq!(Unwritten::by(code), Unwritten::Refused, "{code}");
        }
        // Internal errors, permissions, interruptions, stepdowns, a full disk, blocked writes, and what
        // nobody knows.
        for code in [1, 0, -1, 13, 50, 64, 91, 112, 189, 262, 10107, 11600, 14031, 371, 999_999] {
            assert_eq!(Unwritten::by(code), Unwritten::Unknown, "{code}");
        }
    }
}
