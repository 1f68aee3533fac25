//! The stream of accepted issuances: its entries, reading them, and which worker has which.
//!
//! `reserve.lua` appends an entry, the consumer group delivers it to one worker, and `settle.lua` deletes it. The
//! stream is never trimmed by length: it is a work queue. A live worker claims the entries of a dead one
//! ([`claim`]), and sets an entry aside that fails for a reason of its own ([`dead`]). An entry that was lost from
//! the stream is appended anew from the in-flight hash ([`restore`]), and a damaged value of that hash is replaced
//! from its entry ([`repair`]). An entry of many of which some issuance has trouble of its own is taken apart
//! ([`split`]). [`figures`] counts all of these.

mod claim;
pub mod dead;
pub mod entry;
mod figures;
mod reader;
pub mod registry;
mod repair;
mod split;
mod stream_scan;

pub use claim::{claim, restore};
pub use entry::{Entry, UnreadableEntry};
pub(crate) use figures::figures_of_all;
pub use figures::{Backlog, figures};
pub use reader::{ReadFrom, ReadOutcome, Reader};
pub use repair::repair;
pub use split::split;
pub(crate) use split::taken_apart;
pub(crate) use stream_scan::StreamScan;

/// The consumer that owns dead letters. It never reads, and no worker claims from it.
pub const DEAD_LETTER_CONSUMER: &str = "dead-letter";

/// Entries that were delivered to this process, and those among them that it cannot read.
#[derive(Debug, Default)]
pub struct Delivered {
    pub entries: Vec<Entry>,
    pub undecodable: Vec<UnreadableEntry>,
    /// How many stream entries hold them.
    pub stream_entries: usize,
}

impl Delivered {
    fn add(&mut self, entry: &str, fields: &entry::RawFields) {
        for decoded in entry::decode(entry, fields) {
            match decoded {
                Ok(entry) => self.entries.push(entry),
                Err(wrong) => self.undecodable.push(wrong),
            }
        }
        self.stream_entries += 1;
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

/// Parts of at most `most` items each, in which those of one stream entry stay together: what `entry` says of
/// consecutive items. A part of one entry may be longer.
pub(crate) fn by_whole_entries<T>(items: &[T], most: usize, entry: impl Fn(&T) -> &str) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let (mut begin, mut end) = (0, 0);
    for group in items.chunk_by(|one, next| entry(one) == entry(next)) {
        if end > begin && end + group.len() - begin > most {
            parts.push(&items[begin..end]);
            begin = end;
        }
        end += group.len();
    }
    if end > begin {
        parts.push(&items[begin..end]);
    }
    parts
}

/// Stream entries of a first read, while it is unknown how many issuances each holds.
pub(crate) const ENTRIES_FIRST: usize = 8;

/// The number of stream entries to read next, so that they hold about `issuances` if each holds as many as the last
/// ones read did: `entries` that held `held`. They may hold far more, so the number grows by degrees.
pub(crate) fn entries_to_read(issuances: usize, entries: usize, held: usize) -> usize {
    (issuances * entries / held.max(1)).clamp(1, ENTRIES_FIRST.max(entries * 4))
}

/// An entry's place in the stream.
fn order(entry: &str) -> Option<(u64, u64)> {
    let (ms, sequence) = entry.split_once('-')?;
    Some((ms.parse().ok()?, sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::by_whole_entries;

    #[test]
    fn what_one_stream_entry_holds_stays_together() {
        let parts = |entries: &str, most: usize| -> Vec<String> {
            let items: Vec<String> = entries.chars().map(String::from).collect();
            by_whole_entries(&items, most, |item| item).into_iter().map(<[String]>::concat).collect()
        };
        assert_eq!(parts("", 3), Vec::<String>::new());
        assert_eq!(parts("abcdefg", 3), ["abc", "def", "g"]);
        assert_eq!(parts("aabbcc", 3), ["aa", "bb", "cc"]);
        assert_eq!(parts("aabbcc", 4), ["aabb", "cc"]);
        assert_eq!(parts("abbbbbc", 3), ["a", "bbbbb", "c"]);
    }
}
