//! How many units were issued of coupons that Redis does not have. For one that is over the answer is kept
//! with its record, and read with others' in one query. Where it is not kept yet, it is counted once for
//! all who ask, by few at a time, so that nobody's looks take MongoDB from the others; lists count nothing.

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

/// A question that would have to wait for longer than this is refused: 503.
const BOUNDS: Bounds = Bounds { batch: 64, calls: 2, waiting: 1_024, wait: Duration::from_secs(2) };
/// MongoDB gives up a part of a count that takes longer.
const COUNT_TIME_MAX: Duration = Duration::from_secs(5);
/// Counts that are remembered, and for how long: of a coupon that is not over more may be issued.
const REMEMBERED: usize = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// A coupon as its record was when it was counted.
type CouponVersion = (CouponId, i64);

/// Counts, and remembers. Cheap to clone.
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
                answers
            }
        });
        IssuedCounts { coupons, remembered, counting }
    }

    /// What is known without counting.
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

    /// Of one coupon, counted if need be.
    pub(crate) async fn of(&self, coupon: &Coupon) -> Result<u32, Failure> {
        match self.known(&[coupon]).await.remove(&coupon.id) {
            Some(known) => Ok(known),
            None => self.counting.ask(coupon.clone()).await,
        }
    }
}

/// Whether it is archived, or ended so long ago.
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
    // Redis does not have it, and nothing of it can be asked for, whatever this process's clock is: it is
    // the last word.
    if is_over(&coupon, KEPT_AFTER_END)
        && let Err(failure) = coupons.keep_final_count(&coupon.id, coupon.generation, issued).await
    {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the final count could not be kept");
    }
    Ok(shown)
}
