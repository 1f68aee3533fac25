//! The stream of accepted issuances: what an entry looks like, reading it, and who has what in hand.
//!
//! An entry is appended by `reserve.lua`, delivered to one worker through the consumer group, and
//! deleted by `settle.lua`. It is never trimmed by length: it is a work queue. What a dead worker had
//! in hand is claimed by a live one ([`claim`]); what fails for a reason of its own is set aside
//! ([`dead`]); what was lost from the stream is appended anew from the in-flight hash ([`restore`]), and what
//! is damaged there is replaced by what the stream has ([`repair`]).
//! How much there is of all that: [`figures`].

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

/// The consumer that owns dead letters. It never reads, and nobody claims from it.
pub const DEAD_LETTER_CONSUMER: &str = "dead-letter";

/// Entries that were given to this process, and what of them it cannot read.
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

    /// The last entry's id, in the order of the stream.
    pub fn last(&self) -> Option<&str> {
        let ids = self
            .entries
            .iter()
            .map(|entry| &entry.entry)
            .chain(self.undecodable.iter().map(|wrong| &wrong.entry));
        ids.max_by_key(|id| order(id)).map(String::as_str)
    }

    /// How many there are of both.
    pub fn count(&self) -> usize {
        self.entries.len() + self.undecodable.len()
    }
}

/// An entry's place in the stream.
fn order(entry: &str) -> Option<(u64, u64)> {
    let (ms, sequence) = entry.split_once('-')?;
    Some((ms.parse().ok()?, sequence.parse().ok()?))
}
