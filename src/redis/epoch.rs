//! The generation of a partition's Redis data.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A generation: a UUIDv7 that is never used again. The name of every key of its data contains it ([`super::keys`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(Uuid);

impl Epoch {
    /// A new generation.
    #[expect(clippy::new_without_default, reason = "every call gives another one")]
    pub fn new() -> Self {
        Epoch(Uuid::now_v7())
    }

    /// No generation: what a process calls scripts with before it knows the open one.
    pub const UNKNOWN: Epoch = Epoch(Uuid::nil());
}

impl FromStr for Epoch {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Epoch)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One opening of a certificate. Each has a term of its own, greater than those of all before it, so a copy of
/// an older certificate is never mistaken for it, even if it names the same epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub epoch: Epoch,
    /// The term of the recovery lease that it was made under; 0 while unknown.
    pub term: i64,
}

/// A certificate that is open on the Redis instance that answered, as a script describes it.
#[derive(Debug, Clone)]
pub(crate) struct OpenCertificate {
    pub opening: Opening,
    /// The ledger that the data belongs to; empty if it names none.
    pub(super) ledger: String,
    /// The Redis instance, as [`Partition::instance`](super::Partition::instance) names it.
    pub instance: String,
    pub(super) opened_at: u64,
}
