//! How many units were issued of coupons that Redis does not have. For a coupon that is over, the count is kept with
//! its record, and read with others' in one query. Otherwise the ledger is counted, once for all requests that ask at
//! the same time and few coupons at a time, so that reads do not take MongoDB from requests; lists count nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;

use crate::Failure;
use crate::coupon::{Coupon, CouponStore};
use crate::ids::CouponId;
use crate::issuance::Ledger;
use crate::recovery::KEPT_AFTER_END;
use crate::runtime::batch::{Batcher, Bounds};

/// A request that would wait longer than this for its count is refused with 503.
const BOUNDS: Bounds = Bounds { batch: 64, calls: 2, waiting: 1_024, wait: Duration::from_secs(2) };
/// MongoDB gives up on a part of a count that takes longer.
const COUNT_TIME_MAX: Duration = Duration::from_secs(5);
/// Counts that are remembered, and for how long: more units of a coupon that is not over may be issued.
const REMEMBERED: usize = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// A coupon as its record was when it was counted.
type CouponVersion = (CouponId, i64);

/// Counts issued units, and remembers the counts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct IssuedCounts {
    coupons: CouponStore,
    remembered: Arc<Cache<CouponVersion, (u32, Instant)>>,
    counting: Batcher<Coupon, u32>,
}

impl IssuedCounts {
    /// Starts the batcher.
    pub(crate) fn start(coupons: CouponStore, ledger: Ledger) -> Self {
        let remembered = Arc::new(Cache::<CouponVersion, (u32, Instant)>::new(REMEMBERED));
        let (store, known) = (coupons.clone(), Arc::clone(&remembered));
        let counting = Batcher::start("count the issued units", BOUNDS, move |asked: Vec<Coupon>| {
            let (store, known, ledger) = (store.clone(), Arc::clone(&known), ledger.clone());
            async move {
                let mut answers = Vec::with_capacity(asked.len());
                for coupon in asked {
                    answers.push(count(&store, &ledger, &known, coupon).await);
                }
                Ok(answers)
            }
        });
        IssuedCounts { coupons, remembered, counting }
    }

    /// The counts that are known without counting.
    pub(crate) async fn known(&self, coupons: &[&Coupon]) -> HashMap<CouponId, u32> {
        let mut known = HashMap::new();
        let mut unknown = Vec::new();
        for coupon in coupons {
            match remembered(&self.remembered, coupon) {
                Some(count) => drop(known.insert(coupon.id.clone(), count)),
                None if is_over(coupon, Duration::ZERO) => unknown.push(*coupon),
                None => {}
            }
        }
        if unknown.is_empty() {
            return known;
        }
        match self.coupons.final_counts(&unknown).await {
            Ok(kept) => {
                for coupon in unknown {
                    if let Some(count) = kept.get(&coupon.id) {
                        self.remembered.insert(generation(coupon), (*count, Instant::now()));
                    }
                }
                known.extend(kept);
            }
            Err(failure) => tracing::debug!(error = failure.chain(), "final counts cannot be read now"),
        }
        known
    }

    /// The count of one coupon, counted if need be.
    ///
    /// # Errors
    /// MongoDB does not answer in time.
    pub(crate) async fn of(&self, coupon: &Coupon) -> Result<u32, Failure> {
        match self.known(&[coupon]).await.remove(&coupon.id) {
            Some(known) => Ok(known),
            None => self.counting.ask(coupon.clone()).await,
        }
    }
}

/// Whether the coupon is archived, or ended more than `ago` ago.
fn is_over(coupon: &Coupon, ago: Duration) -> bool {
    let ended_before = Timestamp::now() - ago.try_into().unwrap_or(SignedDuration::MAX);
    coupon.archived || coupon.ends_at <= ended_before
}

fn generation(coupon: &Coupon) -> CouponVersion {
    (coupon.id.clone(), coupon.generation)
}

fn remembered(counts: &Cache<CouponVersion, (u32, Instant)>, coupon: &Coupon) -> Option<u32> {
    let (count, at) = counts.get(&generation(coupon))?;
    (at.elapsed() < REMEMBERED_FOR).then_some(count)
}

async fn count(
    coupons: &CouponStore,
    ledger: &Ledger,
    counts: &Cache<CouponVersion, (u32, Instant)>,
    coupon: Coupon,
) -> Result<u32, Failure> {
    if let Some(known) = remembered(counts, &coupon) {
        return Ok(known);
    }
    let issued = ledger.issued_count_within(&coupon.id, COUNT_TIME_MAX).await?;
    let shown = u32::try_from(issued).unwrap_or(u32::MAX);
    counts.insert(generation(&coupon), (shown, Instant::now()));
    // Redis does not have the coupon, and it cannot be requested any more, even if this process's clock is wrong: the
    // count is final.
    if is_over(&coupon, KEPT_AFTER_END)
        && let Err(failure) = coupons.keep_final_count(&coupon.id, coupon.generation, issued).await
    {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the final count could not be kept");
    }
    Ok(shown)
}
