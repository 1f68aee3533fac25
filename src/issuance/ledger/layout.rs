//! The two layouts of the ledger, and how filters name where records lie.
//!
//! A record carries `p`, the partition of its id, and `unit` while it occupies one. Every unique index begins with
//! `{p, couponId}`, which can be a shard key: mongos sends a filter that names `p` to the shard of that partition, and
//! a shard alone can hold what is unique. `_id` is then unique only within a shard; but an id names its partition, and
//! a coupon's records lie in the coupon's partitions, so two records of one id meet on one shard all the same.
//!
//! A ledger that began with an older version has records without both fields ([`Layout::Mixed`]), until `couponctl
//! ledger migrate` has filled them in ([`super::migration`]). The lease of partition 0, as old as the ledger, says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, Document, doc};
use mongodb::{Collection, Database};
use parking_lot::Mutex;

use crate::ids::{IssuanceId, PartitionId};
use crate::mongo::OperationLimit;
use crate::{Failure, mongo};

/// How often a process asks whether the ledger has been migrated. Asking later costs time and nothing else: the
/// filters of the mixed layout find every record of either layout.
pub(super) const REREAD_EVERY: Duration = Duration::from_secs(2);
/// The collection of leases. The one of partition 0 says which layout the ledger has.
pub(super) const LEASES: &str = "recovery";
/// The field of the lease: whether every record names its partition.
pub(crate) const BY_PARTITION: &str = "ledgerByPartition";

/// Which fields the records of the ledger have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Programs of an older version may have written records without `p` and `unit`, or do still. Their partition is 0.
    Mixed,
    /// Every record has `p`, and `unit` while it occupies one.
    Partitioned,
}

/// How filters name the partitions of a coupon or of issuances, so that mongos can route them and an index serves them.
#[derive(Debug, Clone)]
pub struct Route {
    layout: Layout,
    p: Bson,
}

impl Layout {
    /// The route to the records in some partitions.
    pub fn route(self, partitions: impl IntoIterator<Item = PartitionId>) -> Route {
        let mut numbers: Vec<i32> = partitions.into_iter().map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        // `null` is what a missing field is.
        let is_older = self == Layout::Mixed && numbers.first() == Some(&number(PartitionId::ONE));
        let older = is_older.then_some(Bson::Null);
        let named: Vec<Bson> = older.into_iter().chain(numbers.into_iter().map(Bson::from)).collect();
        let p = match &named[..] {
            [one] => one.clone(),
            _ => doc! {"$in": named}.into(),
        };
        Route { layout: self, p }
    }

    /// The field that names a record's unit: the one that the unique index holds.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Layout::Mixed => "serial",
            Layout::Partitioned => "unit",
        }
    }
}

impl Route {
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// A filter for everything there.
    pub(crate) fn filter(&self) -> Document {
        doc! {"p": self.p.clone()}
    }
}

/// A partition's number, as records carry it.
pub(crate) fn number(partition: PartitionId) -> i32 {
    partition.number().into()
}

/// The bound of an operation on the records that fit a filter: that of the one partition that the filter names, so that no
/// other partition's operations wait for its shard; else that of the process.
pub(crate) fn operations_on(filter: &Document) -> OperationLimit {
    let partition = |number: &Bson| PartitionId::new(u16::try_from(number.as_i32()?).ok()?);
    let named = match filter.get("p") {
        Some(Bson::Document(several)) => several.get_array("$in").ok().and_then(|named| match &named[..] {
            [Bson::Null, number] => partition(number),
            _ => None,
        }),
        Some(number) => partition(number),
        None => None,
    };
    named.map_or_else(OperationLimit::of_process, OperationLimit::of_partition)
}

/// Reads which layout the ledger has. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LayoutReader {
    leases: Collection<Document>,
    known: Arc<Mutex<Option<(Layout, Instant)>>>,
}

impl LayoutReader {
    pub(crate) fn new(database: &Database) -> Self {
        LayoutReader { leases: database.collection(LEASES), known: Arc::default() }
    }

    /// The layout. It is read again while it is mixed; the other one is final.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, and nothing is known yet.
    pub(crate) async fn get(&self) -> Result<Layout, Failure> {
        let known = *self.known.lock();
        match known {
            Some((layout, at)) if layout == Layout::Partitioned || at.elapsed() < REREAD_EVERY => Ok(layout),
            Some((Layout::Mixed, _)) => {
                // Others use what is known meanwhile.
                self.learn(Layout::Mixed);
                Ok(self.read().await.inspect(|layout| self.learn(*layout)).unwrap_or(Layout::Mixed))
            }
            _ => self.read().await.inspect(|layout| self.learn(*layout)),
        }
    }

    fn learn(&self, layout: Layout) {
        *self.known.lock() = Some((layout, Instant::now()));
    }

    async fn read(&self) -> Result<Layout, Failure> {
        let leases = self.leases.clone();
        let lease = mongo::run("read the ledger's layout", async move {
            leases.find_one(doc! {"_id": number(PartitionId::ONE)}).projection(doc! {BY_PARTITION: 1}).await
        });
        Ok(match lease.await? {
            Some(lease) if !lease.get_bool(BY_PARTITION).unwrap_or(false) => Layout::Mixed,
            // No process has served from this database yet.
            Some(_) | None => Layout::Partitioned,
        })
    }
}

/// The routes of some issuances: their ids name the partitions.
pub(crate) fn route_of_ids(layout: Layout, ids: &[IssuanceId]) -> Route {
    layout.route(ids.iter().map(|id| id.partition()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_names_each_partition_once_and_records_without_one_only_while_there_may_be_some() {
        let partitions = |numbers: &[u16]| -> Vec<PartitionId> {
            numbers.iter().map(|number| PartitionId::new(*number).unwrap()).collect()
        };
        for (layout, numbers, p) in [
            (Layout::Partitioned, &[0][..], Bson::from(0)),
            (Layout::Partitioned, &[7, 7], 7.into()),
            (Layout::Partitioned, &[9, 0, 9], doc! {"$in": [0, 9]}.into()),
            (Layout::Partitioned, &[], doc! {"$in": []}.into()),
            (Layout::Mixed, &[0], doc! {"$in": [Bson::Null, Bson::Int32(0)]}.into()),
            (Layout::Mixed, &[7], 7.into()),
            (Layout::Mixed, &[7, 0], doc! {"$in": [Bson::Null, Bson::Int32(0), Bson::Int32(7)]}.into()),
        ] {
            assert_eq!(layout.route(partitions(numbers)).filter(), doc! {"p": p}, "{layout:?} {numbers:?}");
        }
    }
}
