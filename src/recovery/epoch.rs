//! The generation of a partition's Redis data.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A UUIDv7, never used again; part of every key's name. See [`crate::keys`].
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
