//! Why the system cannot know, or act, right now. None of these is an answer: what was asked for may
//! have happened or not, and it is safe to ask again.

use std::error::Error;
use std::sync::Arc;

use crate::ids::{IssuanceId, UserId};

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
    /// Something must be set otherwise before it can be done; `why` says what.
    #[error("cannot {operation}: {why}")]
    Misconfigured { operation: &'static str, why: String },
    /// Others changed all the while what it works on. It may be tried again.
    #[error("cannot {operation} now: {why}")]
    Contended { operation: &'static str, why: String },
    /// What this process knows, or has prepared, is too old to act upon. It may be tried again.
    #[error("cannot {operation} now: {why}")]
    Stale { operation: &'static str, why: String },
    /// The task that did it ended by a panic: a fault of this program.
    #[error("a panic ended what was to {operation}")]
    Panicked {
        operation: &'static str,
        #[source]
        source: tokio::task::JoinError,
    },
    /// What a whole batch met.
    #[error(transparent)]
    Batch(Arc<Failure>),
    /// A bound of this process was reached before anything was sent.
    #[error("too much is waiting to {operation}")]
    Overloaded { operation: &'static str },
}

impl Failure {
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

/// A document of the ledger that this version cannot read. It counts as decided: whoever wrote it was
/// first, and nobody can decide its issuance again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record {record} of the ledger cannot be read: {why}")]
pub struct Unreadable {
    /// Its `_id`, as text.
    pub record: String,
    /// The issuance, if the `_id` is one.
    pub id: Option<IssuanceId>,
    /// Whose it is, if it says so.
    pub user: Option<UserId>,
    /// The unit that it holds, if it is issued and names one.
    pub unit: Option<u32>,
    pub why: String,
}

/// The environment is not as it must be; every sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SetUpError(pub Vec<String>);

/// A command did its work, and what it saw is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A figure is beyond what is accepted.
    #[error("{0}")]
    Threshold(String),
    /// What must always hold does not.
    #[error("{0}")]
    Invariant(String),
}
