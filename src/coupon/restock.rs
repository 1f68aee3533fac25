//! Adding units, once for each key: the record of a coupon remembers its latest restocks, in the same
//! update that adds the units. So a restock whose answer was lost can be sent again.

use std::fmt;

use mongodb::bson::{Bson, Document, doc};
use sha2::{Digest, Sha256};

/// The member of a coupon's record that remembers restocks, the latest last.
pub(super) const FIELD: &str = "restocks";
/// Restocks that are remembered: a key that comes again after this many others of its coupon is a new one.
pub const REMEMBERED: usize = 50;
/// Bytes of the hash of a key that are kept.
const KEY_BYTES: usize = 16;

/// Units to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restock {
    pub units: RestockAmount,
    /// With a key it is done once, however often it is asked for.
    pub key: Option<RestockKey>,
}

/// How many units a restock adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestockAmount {
    /// This many more.
    Add(u32),
    /// This many in all.
    Total(u32),
}

/// What names an attempt: a hash, as keys are of any length.
#[derive(Clone, PartialEq, Eq)]
pub struct RestockKey(String);

impl RestockKey {
    /// The key that the caller chose.
    pub fn of(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        RestockKey(digest.iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Debug for RestockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Restock {
    /// What a record that was restocked so before does not have.
    pub(super) fn is_new(&self) -> Option<(String, Bson)> {
        let key = self.key.as_ref()?;
        Some((format!("{FIELD}.key"), doc! {"$ne": &key.0}.into()))
    }

    /// The update that remembers it.
    pub(super) fn remembering(&self) -> Option<Document> {
        let latest = i64::try_from(REMEMBERED).unwrap_or(i64::MAX);
        let entry = self.entry()?;
        Some(doc! {FIELD: {"$each": [entry], "$slice": -latest}})
    }

    /// Whether `record` remembers this very restock; `None` if it does not know the key.
    pub(super) fn is_remembered(&self, record: &Document) -> Option<bool> {
        let (key, entry) = (self.key.as_ref()?, self.entry()?);
        let remembered = record.get_array(FIELD).ok()?.iter().filter_map(Bson::as_document);
        let mut same_key = remembered.filter(|other| other.get_str("key").is_ok_and(|other| other == key.0));
        same_key.next().map(|other| *other == entry)
    }

    fn entry(&self) -> Option<Document> {
        let key = self.key.as_ref()?;
        Some(match self.units {
            RestockAmount::Add(add) => doc! {"key": &key.0, "add": i64::from(add)},
            RestockAmount::Total(total) => doc! {"key": &key.0, "total": i64::from(total)},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restock_is_known_by_its_key_and_told_from_another_of_the_same_key() {
        let restock = |units, key| Restock { units, key: Some(RestockKey::of(key)) };
        let first = restock(RestockAmount::Add(50), "k");
        let record = doc! {FIELD: [first.entry().unwrap()]};
        assert_eq!(first.is_remembered(&record), Some(true));
        assert_eq!(restock(RestockAmount::Add(51), "k").is_remembered(&record), Some(false));
        assert_eq!(restock(RestockAmount::Total(50), "k").is_remembered(&record), Some(false));
        assert_eq!(restock(RestockAmount::Add(50), "l").is_remembered(&record), None);
        assert_eq!(first.is_remembered(&doc! {}), None);
    }
}
