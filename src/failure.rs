//! Why the system cannot know, or act, right now. None of these is an answer: what was asked for may
//! have happened or not, and it is safe to ask again.

use std::error::Error;
use std::sync::Arc;

use crate::issuance::ledger::Unreadable;
use crate::mongo::Unwritten;

/// See the module's documentation.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The certificate is missing or does not fit: Redis's data is being recovered.
    #[error("the Redis data is not certified; a recovery is under way")]
    Uncertified,
    /// Redis did not carry an operation out, or did not say so.
    #[error("Redis failed to {operation}")]
    Redis {
        operation: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// MongoDB did not carry an operation out, or did not say so.
    #[error("MongoDB failed to {operation}")]
    MongoDb {
        operation: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// MongoDB will never carry it out as it is: a validator says no, say. Asking again does not help.
    #[error("MongoDB refuses to {operation}")]
    Refused {
        operation: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What was read is there, and no program of this version can have written it. Asking again does not help.
    #[error("{what} cannot be read: {why}")]
    Damaged { what: &'static str, why: String },
    /// The one document that was asked for is a decision that this version cannot read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// What a whole batch met.
    #[error(transparent)]
    Batch(Arc<Failure>),
    /// A bound of this process was reached before anything was sent.
    #[error("too much is waiting to {operation}")]
    Overloaded { operation: &'static str },
}

/// Whether Redis ended a script because of an error in it, and not for want of something.
fn is_script_error(detail: &str) -> bool {
    detail.contains("user_script:") && !detail.contains("OOM") && !detail.contains("READONLY")
}

impl Failure {
    /// Names the Redis operation that failed.
    pub fn redis(operation: &'static str) -> impl FnOnce(redis::RedisError) -> Failure {
        move |source| match source.kind() {
            // A script ends with an error of its own only over data that nothing of this program writes.
            _ if source.code() == Some("WRONGTYPE") || source.detail().is_some_and(is_script_error) => {
                Failure::Damaged { what: "data in Redis", why: source.to_string() }
            }
            redis::ErrorKind::UnexpectedReturnType => {
                Failure::Damaged { what: "data in Redis", why: source.to_string() }
            }
            _ => Failure::Redis { operation, source: source.into() },
        }
    }

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

    /// Whether it is the trouble of the one thing that was asked for, which cannot be read or is refused, and
    /// of nothing else.
    pub fn is_of_one(&self) -> bool {
        matches!(self.root(), Failure::Damaged { .. } | Failure::Unreadable(_) | Failure::Refused { .. })
    }

    /// The share that one request has in the failure of its batch.
    pub(crate) fn of_batch(shared: &Arc<Failure>) -> Failure {
        Failure::Batch(Arc::clone(shared))
    }

    /// The failure itself, whether it was met alone or in a batch.
    pub fn root(&self) -> &Failure {
        match self {
            Failure::Batch(shared) => shared.root(),
            alone => alone,
        }
    }

    /// The failure with all of its sources on one line, for logs.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}
