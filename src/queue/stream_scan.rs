//! Reading a whole stream, page by page, without consuming it.

use super::entry::RawEntry;
use super::{ENTRIES_FIRST, entries_to_read};
use crate::Failure;
use crate::redis::{Partition, cmd};

/// Issuances of a page, about: entries hold one each, or hundreds.
const ISSUANCES: usize = 2_000;

/// Reads a stream from its beginning. Entries that are appended meanwhile are read too, unless it ends before them.
pub(crate) struct StreamScan {
    stream: String,
    from: String,
    last: String,
    entries: usize,
}

impl StreamScan {
    /// A scan up to the entry `last`, or `+` for all.
    pub(crate) fn new(stream: String, last: &str) -> Self {
        StreamScan { stream, from: "-".to_owned(), last: last.to_owned(), entries: ENTRIES_FIRST }
    }

    /// The next entries; none at the end.
    ///
    /// # Errors
    ///
    /// If Redis fails, or the key is no stream ([`Failure::Damaged`]).
    pub(crate) async fn next(&mut self, partition: &Partition) -> Result<Vec<RawEntry>, Failure> {
        let mut range = cmd("XRANGE");
        range.arg(&self.stream).arg(&self.from).arg(&self.last).arg("COUNT").arg(self.entries);
        let page: Vec<RawEntry> = partition.query("read the stream", &range).await?;
        if let Some((last, _)) = page.last() {
            self.from = format!("({last}");
            let fields: usize =
                page.iter().map(|(_, fields)| fields.as_ref().map_or(1, Vec::len).max(1)).sum();
            self.entries = entries_to_read(ISSUANCES, page.len(), fields);
        }
        Ok(page)
    }
}
