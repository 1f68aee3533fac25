//! Loading coupons without a request for them: those that a rebuild left out, with what is in flight for them, which may
//! need another unit, and only a loaded coupon gives one; and the newest current ones, which the gauges show and
//! the audit compares.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::load::{LOADS_AT_ONCE, LoadOutcome, Loader};
use super::survivors::coupons_in_flight;
use crate::Failure;
use crate::coupon::CouponStore;
use crate::ids::CouponId;
use crate::redis::keys::EpochKeys;
use crate::redis::turn::background_round;
use crate::redis::{Opening, Partition};
use crate::runtime::background::never_busy;
use crate::runtime::tasks::Rounds;

/// How often the coupons that are due are tried.
const EVERY: Duration = Duration::from_secs(1);
/// How often a process searches for coupons that are not loaded, while the same epoch is open.
const SOUGHT_EVERY: Duration = Duration::from_secs(60);
/// Pauses between two tries to load the same coupon.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(15);
/// Current coupons that are loaded: as many as the gauges show.
pub const CURRENT_MAX: usize = 50;

/// A coupon that is to be loaded.
struct PendingLoad {
    due: Instant,
    pause: Duration,
}

/// The coupons that are to be loaded.
type PendingLoads = Mutex<BTreeMap<CouponId, PendingLoad>>;

/// Loads until `shutdown`. Idempotent and without input; every worker process runs it, and they take turns at
/// searching. A search may take minutes, and holds up no load. Reads: what is in flight, the coupons. Writes: what
/// loading writes.
pub(crate) async fn keep_loading(
    partition: Arc<Partition>,
    coupons: CouponStore,
    loader: Loader,
    shutdown: CancellationToken,
) {
    let wanted = PendingLoads::default();
    tokio::join!(keep_seeking(&partition, &coupons, &wanted, &shutdown), async {
        let mut rounds = Rounds::now_and_every(EVERY, &shutdown);
        while rounds.next().await {
            load_due(&loader, &wanted).await;
        }
    });
}

async fn keep_seeking(
    partition: &Partition,
    coupons: &CouponStore,
    wanted: &PendingLoads,
    shutdown: &CancellationToken,
) {
    let mut sought: Option<(Opening, Instant)> = None;
    let mut rounds = Rounds::now_and_every(EVERY, shutdown);
    while rounds.next().await {
        let opening = partition.opening();
        if sought.is_some_and(|(of, at)| of == opening && at.elapsed() < SOUGHT_EVERY) {
            continue;
        }
        let keys = partition.keys();
        let search = seek(partition, coupons, &keys);
        match background_round(partition, keys.load_turn(), SOUGHT_EVERY, &never_busy(), search).await {
            Ok(found) => {
                sought = Some((opening, Instant::now()));
                // `None`, if it is another process's turn: what this one has found, it still tries to load.
                let Some(found) = found else { continue };
                let mut wanted = wanted.lock();
                wanted.retain(|coupon, _| found.contains(coupon));
                for coupon in found {
                    wanted.entry(coupon).or_insert(PendingLoad { due: Instant::now(), pause: PAUSE_FIRST });
                }
            }
            Err(failure) => tracing::debug!(
                error = failure.chain(),
                "coupons that are not loaded could not be listed; trying again"
            ),
        }
    }
}

/// The coupons that should be loaded and are not.
async fn seek(
    partition: &Partition,
    coupons: &CouponStore,
    keys: &EpochKeys,
) -> Result<HashSet<CouponId>, Failure> {
    let (current, _) = coupons.newest_current(Timestamp::now(), CURRENT_MAX).await?;
    let mut found = coupons_in_flight(partition, keys).await?;
    let here = current.into_iter().filter(|coupon| coupon.shares.of(partition.id()).is_some());
    found.extend(here.map(|coupon| coupon.id));
    for coupon in super::loaded_coupons(partition, keys).await? {
        found.remove(&coupon);
    }
    Ok(found)
}

async fn load_due(loader: &Loader, wanted: &PendingLoads) {
    let now = Instant::now();
    let due: Vec<_> = {
        let wanted = wanted.lock();
        wanted.iter().filter(|(_, one)| one.due <= now).map(|(coupon, _)| coupon.clone()).collect()
    };
    let loads = due.into_iter().map(async |coupon| (loader.load(&coupon).await, coupon));
    let mut loads = stream::iter(loads).buffer_unordered(LOADS_AT_ONCE);
    while let Some((loaded, coupon)) = loads.next().await {
        let mut wanted = wanted.lock();
        match loaded {
            Ok(LoadOutcome::Now | LoadOutcome::Before) => drop(wanted.remove(&coupon)),
            // It may get its record back.
            not_loaded => {
                let Some(one) = wanted.get_mut(&coupon) else { continue };
                tracing::debug!(%coupon, ?not_loaded, pause = ?one.pause, "the coupon cannot be loaded yet");
                one.due = Instant::now() + one.pause;
                one.pause = (one.pause * 2).min(PAUSE_LONGEST);
            }
        }
    }
}
