//! Reading one coupon of a partition for many. Everybody asks for it while they wait for the opening; so a coupon is read once for
//! all who asked while it was being read the last time. An answer is never older than its request.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;

use super::coupon_snapshot::CouponSnapshot;
use crate::Failure;
use crate::coupon::{CouponStore, stock};
use crate::ids::CouponId;
use crate::recovery::Loader;
use crate::redis::PerPartition;
use crate::runtime::batch::{Batcher, Bounds};

const BOUNDS: Bounds =
    Bounds { batch: stock::BATCH_MAX, calls: 4, waiting: 32_768, wait: Duration::from_secs(2) };
/// Different coupons of one batch that are read from MongoDB at once.
const READS_MAX: usize = 16;

/// Reads coupons. Cheap to clone; answers `None` if no coupon has the id.
pub(crate) type CouponReader = Batcher<CouponId, Option<CouponSnapshot>>;

/// Starts the batcher.
pub(crate) fn start(coupons: CouponStore, loaders: PerPartition<Loader>) -> CouponReader {
    Batcher::start("read the coupon", BOUNDS, move |asked: Vec<CouponId>| {
        let (coupons, loaders) = (coupons.clone(), loaders.clone());
        async move {
            let read = read(&coupons, &loaders, &asked).await;
            let answer = |id| read.get(id).cloned().transpose().map_err(|why| Failure::of_batch(&why));
            Ok(asked.iter().map(answer).collect())
        }
    })
}

/// Reads each coupon that exists once. A coupon that cannot be read does not fail the others.
async fn read(
    coupons: &CouponStore,
    loaders: &PerPartition<Loader>,
    asked: &[CouponId],
) -> HashMap<CouponId, Result<CouponSnapshot, Arc<Failure>>> {
    let ids: HashSet<CouponId> = asked.iter().cloned().collect();
    let records = stream::iter(ids).map(async |id| (coupons.get(&id).await, id)).buffer_unordered(READS_MAX);
    let (mut read, mut found) = (HashMap::new(), Vec::new());
    for (record, id) in records.collect::<Vec<_>>().await {
        match record {
            Ok(coupon) => found.extend(coupon),
            Err(failure) => drop(read.insert(id, Err(Arc::new(failure)))),
        }
    }
    for snapshot in CouponSnapshot::of_any(loaders, found).await {
        read.insert(snapshot.coupon.id.clone(), Ok(snapshot));
    }
    read
}
