//! Errors: why the system cannot determine something, or act, right now. None of them is an answer: the
//! operation may have happened or not.

use std::error::Error;
use std::sync::Arc;

use crate::ids::{IssuanceId, Unit, UserId};

/// Why an operation failed, and whose fault it is. A caller that does not know the outcome treats it as unknown.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The certificate is missing or does not fit: a process recovers Redis's data.
    #[error("the Redis data is not certified; a recovery is under way")]
    Uncertified,
    /// Redis did not carry out an operation, or did not confirm it.
    #[error("Redis failed to {operation}")]
    Redis {
        operation: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// MongoDB did not carry out an operation, or did not confirm it.
    #[error("MongoDB failed to {operation}")]
    MongoDb {
        operation: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// MongoDB will never carry out the operation as it is, because of a validator, for example. Repeating it does
    /// not help.
    #[error("MongoDB refuses to {operation}")]
    Refused {
        operation: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A stored value exists, and this version cannot have written it. Reading it again does not help.
    #[error("{what} cannot be read: {why}")]
    Damaged { what: &'static str, why: String },
    /// The decision that the caller asked for is a document that this version cannot read.
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
    /// The failure of a call that many requests shared.
    #[error(transparent)]
    Batch(Arc<Failure>),
    /// The operation would have exceeded a bound of this process, which sent nothing.
    #[error("too much is waiting to {operation}")]
    Overloaded { operation: &'static str },
}

impl Failure {
    /// Whether the failure concerns only the one record or document of the operation, which cannot be read or is
    /// refused.
    pub(crate) fn is_of_one(&self) -> bool {
        matches!(self.root(), Failure::Damaged { .. } | Failure::Unreadable(_) | Failure::Refused { .. })
    }

    /// The failure of one request of a batch whose call failed.
    pub(crate) fn of_batch(shared: &Arc<Failure>) -> Failure {
        Failure::Batch(Arc::clone(shared))
    }

    /// The failure itself, without the batch around it.
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

/// A document of the ledger that this version cannot read. Its issuance counts as decided: the process that wrote
/// it was first, and no other can decide it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record {record} of the ledger cannot be read: {why}")]
pub struct Unreadable {
    /// Its `_id`, as text.
    pub record: String,
    /// The issuance, if the `_id` is one.
    pub id: Option<IssuanceId>,
    /// Its user, if it names one.
    pub user: Option<UserId>,
    /// The unit that it occupies, if it names one: as issued, or moved away.
    pub unit: Option<Unit>,
    pub why: String,
}

/// What is wrong with the environment of a process that starts; every sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SetUpError(pub Vec<String>);

/// A command did its work and found something that must not be.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A measured value is beyond its threshold.
    #[error("{0}")]
    Threshold(String),
    /// An invariant of the system is broken.
    #[error("{0}")]
    Invariant(String),
}
