//! The stream of accepted issuances: its entries, reading them, and which worker has which.
//!
//! `reserve.lua` appends an entry, the consumer group delivers it to one worker, and `settle.lua` deletes it. The
//! stream is never trimmed by length: it is a work queue. A live worker claims the entries of a dead one
//! ([`claim`]), and sets an entry aside that fails for a reason of its own ([`dead`]). An entry that was lost from
//! the stream is appended anew from the in-flight hash ([`restore`]), and a damaged value of that hash is replaced
//! from its entry ([`repair`]). [`figures`] counts all of these.

mod claim;
pub mod dead;
pub mod entry;
mod figures;
mod reader;
pub mod registry;
mod repair;

pub use claim::{claim, restore};
pub use entry::{Entry, UnreadableEntry};
pub use figures::{Backlog, figures};
pub use reader::{ReadFrom, ReadOutcome, Reader};
pub use repair::repair;

/// The consumer that owns dead letters. It never reads, and no worker claims from it.
pub const DEAD_LETTER_CONSUMER: &str = "dead-letter";

/// Entries that were delivered to this process, and those among them that it cannot read.
#[derive(Debug, Default)]
pub struct Delivered {
    pub entries: Vec<Entry>,
    pub undecodable: Vec<UnreadableEntry>,
}

impl Delivered {
    fn add(&mut self, decoded: Result<Entry, UnreadableEntry>) {
        match decoded {
            Ok(entry) => self.entries.push(entry),
            Err(wrong) => self.undecodable.push(wrong),
        }
    }

    /// The id of the last entry, in the order of the stream.
    pub fn last(&self) -> Option<&str> {
        let ids = self
            .entries
            .iter()
            .map(|entry| &entry.entry)
            .chain(self.undecodable.iter().map(|wrong| &wrong.entry));
        ids.max_by_key(|id| order(id)).map(String::as_str)
    }

    /// The number of entries, readable or not.
    pub fn count(&self) -> usize {
        self.entries.len() + self.undecodable.len()
    }
}

/// An entry's place in the stream.
fn order(entry: &str) -> Option<(u64, u64)> {
    let (ms, sequence) = entry.split_once('-')?;
    Some((ms.parse().ok()?, sequence.parse().ok()?))
}
