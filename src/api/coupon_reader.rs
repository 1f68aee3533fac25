//! Looking at one coupon. Everybody does while they wait for the opening; so a coupon is read once for all
//! who have come while it was being read the last time. What is shown is never older than the question.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;

use super::coupons::{CouponSnapshot, looked_at};
use crate::Failure;
use crate::coupon::{CouponStore, stock};
use crate::ids::CouponId;
use crate::recovery::Loader;
use crate::redis::Partition;
use crate::runtime::batch::{Batcher, Bounds};

const BOUNDS: Bounds =
    Bounds { batch: stock::BATCH_MAX, calls: 4, waiting: 32_768, wait: Duration::from_secs(2) };
/// Different coupons of one batch that are read from MongoDB at once.
const READS_MAX: usize = 16;

/// Reads coupons for those who look. Cheap to clone; `None` where there is no such coupon.
pub(super) type CouponReader = Batcher<CouponId, Option<CouponSnapshot>>;

/// Starts the batcher.
pub(super) fn start(coupons: CouponStore, partition: Arc<Partition>, loader: Loader) -> CouponReader {
    Batcher::start("read the coupon", BOUNDS, move |asked: Vec<CouponId>| {
        let (coupons, partition, loader) = (coupons.clone(), Arc::clone(&partition), loader.clone());
        async move {
            let read = look(&coupons, &partition, &loader, &asked).await;
            let answer = |id| read.get(id).cloned().transpose().map_err(|why| Failure::of_batch(&why));
            asked.iter().map(answer).collect()
        }
    })
}

/// Each coupon that there is, once. One that cannot be read is no other's failure.
async fn look(
    coupons: &CouponStore,
    partition: &Partition,
    loader: &Loader,
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
    let ids: Vec<CouponId> = found.iter().map(|coupon| coupon.id.clone()).collect();
    read.extend(ids.into_iter().zip(looked_at(partition, loader, found).await.into_iter().map(Ok)));
    read
}
