//! The generation of a partition's Redis data.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A UUIDv7, never used again; part of every key's name. See [`crate::redis::keys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(Uuid);

impl Epoch {
    /// A new generation.
    #[expect(clippy::new_without_default, reason = "every call gives another one")]
    pub fn new() -> Self {
        Epoch(Uuid::now_v7())
    }

    /// No generation at all: what is asked with before the open one is known.
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

/// One opening of a certificate. Each has a term of its own, later than those of all before it, so a copy of
/// an older certificate is never taken for it, even if it names the same epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub epoch: Epoch,
    /// Of the recovery lease; 0 while it must be found out.
    pub term: i64,
}

/// What a script says of a certificate that is open on the instance it ran on.
#[derive(Debug, Clone)]
pub(crate) struct OpenCertificate {
    pub opening: Opening,
    /// The ledger that the data belongs to; empty if it names none.
    pub(super) ledger: String,
    /// Which Redis it is: see [`Partition::instance`].
    pub instance: String,
    pub(super) opened_at: u64,
}
