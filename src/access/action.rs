//! What operators did: who, when, what, on what, and how it ended. MongoDB's `operator_actions`.
//!
//! Written before an action is done, so that none is without its record, and completed after it. One
//! that was never completed ended in a crash: it may have happened. An action that goes on after its request was
//! answered ([`ActionGoesOn`]) says how far it is. Records are kept for ever. The API records what it is asked to do
//! ([`ActionLog`]), and `couponctl` what it does past the API ([`CommandAction`]).

use std::time::Duration;

use crate::mongo::Database;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use mongodb::Collection;
use mongodb::bson::{self, Bson, DateTime, Document, doc};
use mongodb::options::FindOptions;
use serde::{Deserialize, Serialize};

use super::Caller;
use crate::failure::Fault;
use crate::ids::UserId;
use crate::mongo::{ListPage, from_bson_time, to_bson_time};
use crate::runtime::batch::{Batcher, Bounds};
use crate::{Failure, mongo};

const COLLECTION: &str = "operator_actions";
/// The longest reason that an operator gives, in characters.
const REASON_MAX: usize = 200;
/// Where a user is named: users are deleted, and the record stays.
pub(crate) const NAMED: &str = "{user}";
const BOUNDS: Bounds = Bounds { batch: 256, calls: 4, waiting: 8_192, wait: Duration::from_secs(2) };

/// An action without news of its progress for so long goes on no more: its process has ended.
const SILENCE_MAX: SignedDuration = SignedDuration::from_secs(30);

/// The id of an action: later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActionId(uuid::Uuid);

/// Marks the answer to a request whose action goes on after it: the action's own task records how it ends.
#[derive(Debug, Clone, Copy)]
pub struct ActionGoesOn;

/// How far an action is that goes on after its request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActionProgress {
    /// When this was so.
    pub at: Timestamp,
    /// How many it is to be done to.
    pub matched: u64,
    pub done: u64,
    /// Those that it could not be done to.
    pub failed: u64,
}

/// An action as it begins.
#[derive(Debug, Clone)]
pub struct ActionStart {
    pub id: ActionId,
    pub at: Timestamp,
    pub caller: Caller,
    /// Method and route, such as `POST /coupons/{id}/pause`.
    pub action: String,
    /// Path and query, such as `/coupons/summer/pause`. A user whom it names is left out of it:
    /// [`NAMED`] stands there.
    pub target: String,
    /// The user whom it names.
    pub about: Option<UserId>,
    /// The body that was sent, where it is recorded. A user whom it names is left out of it, as in `target`.
    pub input: Option<String>,
    pub request_id: String,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionEnd {
    pub at: Timestamp,
    /// The status of the answer.
    pub status: u16,
    /// The code of the problem that was answered.
    pub code: Option<String>,
    /// What was made. A user whom it names is left out of it, as in [`ActionStart::target`].
    pub location: Option<String>,
}

/// Whom an action names, once it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionSubject {
    /// The user whom it named when it began, if any.
    AsBegun,
    /// The user who was made.
    Made(UserId),
    /// Nothing was done, and there may be no such user as the target names.
    Nobody,
}

/// An action of a `couponctl` command on the servers themselves, while it is being done.
pub(crate) struct CommandAction {
    log: ActionLog,
    id: ActionId,
}

/// An action as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorAction {
    pub id: ActionId,
    pub at: Timestamp,
    /// The name of the key, `open`, or `couponctl` and the user of the operating system who ran it.
    pub who: String,
    pub key_id: Option<String>,
    pub action: String,
    pub target: String,
    /// The body that was sent, where it is recorded.
    pub input: Option<String>,
    pub request_id: String,
    /// Of an action that goes on after its request was answered.
    pub progress: Option<ActionProgress>,
    /// `None`: it is being done, or its process ended in the middle of it.
    pub ended: Option<ActionEnd>,
}

/// Keeps the record. Cheap to clone.
#[derive(Clone)]
pub struct ActionLog {
    actions: Collection<ActionRecord>,
    begin: Batcher<ActionRecord, ()>,
    end: Batcher<(ActionId, ActionEnd, ActionSubject), ()>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ActionRecord {
    #[serde(rename = "_id")]
    id: bson::Uuid,
    at: DateTime,
    who: String,
    key_id: Option<String>,
    action: String,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<String>,
    input: Option<String>,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressRecord>,
    ended_at: Option<DateTime>,
    status: Option<i32>,
    code: Option<String>,
    location: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct ProgressRecord {
    at: DateTime,
    matched: i64,
    done: i64,
    failed: i64,
}

/// Reads why an operator does something: 1 to 200 characters.
///
/// # Errors
/// What a reason must be.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    crate::text::words(text, REASON_MAX)
}

impl ActionProgress {
    /// Whether the action still goes on at `now`, if it has not ended.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) <= SILENCE_MAX
    }
}

impl ActionId {
    /// A new one, greater than those that this process made before.
    pub fn generate() -> Self {
        ActionId(uuid::Uuid::now_v7())
    }

    fn to_bson(self) -> bson::Uuid {
        bson::Uuid::from_bytes(*self.0.as_bytes())
    }
}

impl std::fmt::Display for ActionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ActionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(ActionId)
    }
}

impl ActionLog {
    /// The record of this database.
    pub fn start(database: &Database) -> Self {
        let actions: Collection<ActionRecord> = database.collection(COLLECTION);
        let inserting = actions.clone();
        let begin =
            Batcher::start("record the operator's action", BOUNDS, move |records: Vec<ActionRecord>| {
                let actions = inserting.clone();
                async move {
                    let count = records.len();
                    mongo::run("record the operator's action", async move {
                        actions.insert_many(records).ordered(false).await
                    })
                    .await?;
                    Ok((0..count).map(|_| Ok(())).collect())
                }
            });
        let database = database.clone();
        let end = Batcher::start(
            "record how an action ended",
            BOUNDS,
            move |ended: Vec<(ActionId, ActionEnd, ActionSubject)>| {
                let database = database.clone();
                async move {
                    let count = ended.len();
                    let updates: Vec<Document> =
                        ended.into_iter().map(|(id, ended, about)| update(id, ended, about)).collect();
                    mongo::run("record how an action ended", async move {
                        let command = doc! {
                            "update": COLLECTION,
                            "updates": updates,
                            "ordered": false,
                            "writeConcern": {"w": "majority", "j": true},
                        };
                        let reply = database.run_command(command).await?;
                        // The driver takes a command that was carried out in part for a success.
                        let refused = ["writeErrors", "writeConcernError"].map(|name| reply.get(name));
                        match refused.into_iter().flatten().next() {
                            None => Ok(()),
                            Some(why) => Err(mongodb::error::Error::custom(why.to_string())),
                        }
                    })
                    .await?;
                    Ok((0..count).map(|_| Ok(())).collect())
                }
            },
        );
        ActionLog { actions, begin, end }
    }

    /// Writes down what is about to be done. Only then may it be done.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn begin(&self, begun: ActionStart) -> Result<(), Failure> {
        self.begin.ask(ActionRecord::from(begun)).await
    }

    /// Writes down what a command is about to do to the servers itself. Only then may it do it.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn begin_command(
        database: &Database,
        action: &str,
        target: String,
        input: Option<String>,
    ) -> Result<CommandAction, Failure> {
        let (log, id) = (ActionLog::start(database), ActionId::generate());
        let record = ActionRecord {
            id: id.to_bson(),
            at: to_bson_time(crate::mongo::now_in_milliseconds()),
            who: format!("couponctl ({})", system_user()),
            key_id: None,
            action: action.to_owned(),
            target,
            about: None,
            input,
            request_id: crate::ids::random_id(),
            progress: None,
            ended_at: None,
            status: None,
            code: None,
            location: None,
        };
        log.begin.ask(record).await?;
        Ok(CommandAction { log, id })
    }

    /// Writes down how it ended.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn end(&self, id: ActionId, ended: ActionEnd, about: ActionSubject) -> Result<(), Failure> {
        self.end.ask((id, ended, about)).await
    }

    /// Writes down how far an action is that goes on.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn progress(&self, id: ActionId, progress: ActionProgress) -> Result<(), Failure> {
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let ActionProgress { at, matched, done, failed } = progress;
        let record = doc! {
            "at": to_bson_time(at), "matched": count(matched), "done": count(done), "failed": count(failed),
        };
        let (actions, id) = (self.actions.clone(), id.to_bson());
        let written = mongo::run("record how far an action is", async move {
            actions.update_one(doc! {"_id": id}, doc! {"$set": {"progress": record}}).await
        });
        written.await.map(|_| ())
    }

    /// One action; `None` if there is none with this id.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or [`Failure::Damaged`] if its record cannot be read.
    pub async fn get(&self, id: ActionId) -> Result<Option<OperatorAction>, Failure> {
        const OPERATION: &str = "read an operator's action";
        let one = FindOptions::builder().limit(1).build();
        let found = mongo::find::<Document, _>(OPERATION, &self.actions, doc! {"_id": id.to_bson()}, one);
        let found = found.await?.pop().map(OperatorAction::try_from).transpose();
        found.map_err(|error| Failure::mongodb(OPERATION)(error.into()))
    }

    /// At most `limit` actions, newest first, from after the one that is named.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn list(
        &self,
        after: Option<ActionId>,
        limit: usize,
    ) -> Result<ListPage<OperatorAction, ActionId>, Failure> {
        let place = |action: &Document| match action.get("_id")? {
            Bson::Binary(id) => uuid::Uuid::from_slice(&id.bytes).ok().map(ActionId),
            _ => None,
        };
        let first = ActionId(uuid::Uuid::max());
        mongo::readable_page("an operator's action", limit, after, first, place, |after, limit| {
            let filter = after.map_or_else(Document::new, |id| doc! {"_id": {"$lt": id.to_bson()}});
            let newest = FindOptions::builder().sort(doc! {"_id": -1}).limit(mongo::at_most(limit)).build();
            async move { mongo::find("list the operators' actions", &self.actions, filter, newest).await }
        })
        .await
    }
}

impl CommandAction {
    /// Does what was begun, and writes down how it ended: in the statuses that the API answers with. If
    /// the end cannot be written, a warning says so, and nothing is undone.
    pub(crate) async fn carry_out<T, E>(
        self,
        action: impl Future<Output = Result<T, E>>,
        status: impl FnOnce(&Result<T, E>) -> StatusCode,
    ) -> Result<T, E> {
        let done = action.await;
        let status = status(&done).as_u16();
        let ended = ActionEnd { at: crate::mongo::now_in_milliseconds(), status, code: None, location: None };
        if let Err(failure) = self.log.end(self.id, ended, ActionSubject::AsBegun).await {
            let why = failure.chain();
            eprintln!("warning: that it was done is not in the record of actions ({why}); that it began is");
        }
        done
    }
}

/// The status of a command that was done, or not to its end.
pub(crate) fn command_status(done: &anyhow::Result<()>) -> StatusCode {
    match done {
        Ok(()) => StatusCode::OK,
        // It was done, and says that something is wrong.
        Err(error) if error.is::<Fault>() => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The user of the operating system who runs this process: the name that `/etc/passwd` has, or the number.
fn system_user() -> String {
    let id = rustix::process::getuid().as_raw().to_string();
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = known.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = users.find(|user| user.get(2) == Some(&id.as_str()));
    found.and_then(|user| user.first().map(|name| (*name).to_owned())).unwrap_or(id)
}

/// Names a deleted user by a pseudonym wherever actions on them are recorded.
///
/// # Errors
///
/// If MongoDB fails.
pub async fn rename(database: &Database, user: &UserId, pseudonym: &UserId) -> Result<(), Failure> {
    let actions = database.collection::<Document>(COLLECTION);
    let (filter, change) = (queries::about(user), doc! {"$set": {"about": pseudonym.as_str()}});
    let renamed = mongo::run("rename a deleted user in the record of actions", async move {
        actions.update_many(filter, change).await
    });
    renamed.await.map(|_| ())
}

/// The filters that actions are asked and changed with. Each must be served by an index.
pub mod queries {
    use super::*;

    /// The actions that name a user.
    pub fn about(user: &UserId) -> Document {
        doc! {"about": user.as_str()}
    }
}

fn update(id: ActionId, ended: ActionEnd, about: ActionSubject) -> Document {
    let mut set = doc! {
        "endedAt": to_bson_time(ended.at),
        "status": i32::from(ended.status),
        "code": ended.code,
        "location": ended.location,
    };
    let mut unset = doc! {};
    match about {
        ActionSubject::AsBegun => {}
        ActionSubject::Made(user) => {
            set.insert("about", user.as_str());
        }
        // Who is no user, perhaps no more, is not remembered for having been asked for: nothing would ever
        // rename them.
        ActionSubject::Nobody => {
            unset.insert("about", "");
        }
    }
    let mut change = doc! {"$set": set};
    if !unset.is_empty() {
        change.insert("$unset", unset);
    }
    doc! {"q": {"_id": id.to_bson()}, "u": change}
}

impl From<ActionStart> for ActionRecord {
    fn from(begun: ActionStart) -> Self {
        let (key_id, who) = match begun.caller {
            Caller::Key { id, name, .. } => (Some(id), name),
            other => (None, other.to_string()),
        };
        ActionRecord {
            id: begun.id.to_bson(),
            at: to_bson_time(begun.at),
            who,
            key_id,
            action: begun.action,
            target: begun.target,
            about: begun.about.map(|user| user.to_string()),
            input: begun.input,
            request_id: begun.request_id,
            progress: None,
            ended_at: None,
            status: None,
            code: None,
            location: None,
        }
    }
}

impl From<ProgressRecord> for ActionProgress {
    fn from(record: ProgressRecord) -> Self {
        let count = |count| u64::try_from(count).unwrap_or_default();
        ActionProgress {
            at: from_bson_time(record.at),
            matched: count(record.matched),
            done: count(record.done),
            failed: count(record.failed),
        }
    }
}

impl TryFrom<Document> for OperatorAction {
    type Error = bson::error::Error;

    fn try_from(record: Document) -> Result<Self, Self::Error> {
        let record: ActionRecord = bson::deserialize_from_document(record)?;
        let named = |text: String| match &record.about {
            Some(user) => text.replacen(NAMED, user, 1),
            None => text,
        };
        let ended = record.ended_at.map(|at| ActionEnd {
            at: from_bson_time(at),
            status: record.status.and_then(|status| u16::try_from(status).ok()).unwrap_or(0),
            code: record.code,
            location: record.location.map(&named),
        });
        Ok(OperatorAction {
            id: ActionId(uuid::Uuid::from_bytes(record.id.bytes())),
            at: from_bson_time(record.at),
            who: record.who,
            key_id: record.key_id,
            action: record.action,
            target: named(record.target),
            input: record.input.map(named),
            request_id: record.request_id,
            progress: record.progress.map(ActionProgress::from),
            ended,
        })
    }
}
