//! What a worker must know of a coupon: how many units there are, and how many one user may hold. Nothing
//! else of its record matters here, whatever version wrote it.

use std::collections::{HashMap, HashSet};

use quick_cache::sync::Cache;

use crate::Failure;
use crate::coupon::{CouponLimit, CouponStore};
use crate::ids::CouponId;
use crate::queue::Entry;

const CACHED: usize = 10_000;

/// What is known of one coupon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KnownLimit {
    Limit(CouponLimit),
    /// It has no record, for certain.
    Missing,
    /// Its record does not say, for this reason.
    Damaged(String),
}

/// Remembers limits. A limit never changes, and a total only grows: a remembered total may refuse too much, never
/// too little, and the worker reads the coupon again before it refuses.
pub(super) struct CouponLimits {
    store: CouponStore,
    known: Cache<CouponId, CouponLimit>,
}

impl CouponLimits {
    pub(super) fn new(store: CouponStore) -> Self {
        CouponLimits { store, known: Cache::new(CACHED) }
    }

    /// What is known of the coupons of a batch: by memory, or else by one read for all that are unknown, or
    /// have a unit in the batch that they had not when they were read.
    pub(super) async fn learn(&self, entries: &[Entry]) -> Result<HashMap<CouponId, KnownLimit>, Failure> {
        let (mut learnt, mut asked) = (HashMap::new(), HashSet::new());
        for entry in entries {
            let coupon = &entry.coupon;
            match learnt.get(coupon).cloned().or_else(|| self.known.get(coupon)) {
                Some(limit) if entry.unit.is_none_or(|unit| unit.serial() <= limit.total) => {
                    learnt.insert(coupon.clone(), limit);
                }
                _ => drop(asked.insert(coupon.clone())),
            }
        }
        let mut learnt: HashMap<_, _> =
            learnt.into_iter().map(|(coupon, limit)| (coupon, KnownLimit::Limit(limit))).collect();
        if !asked.is_empty() {
            learnt.extend(self.read(asked.into_iter().collect()).await?);
        }
        Ok(learnt)
    }

    async fn read(&self, coupons: Vec<CouponId>) -> Result<Vec<(CouponId, KnownLimit)>, Failure> {
        let mut found = self.store.limits(&coupons).await?;
        let mut read = Vec::with_capacity(coupons.len());
        for coupon in coupons {
            let limit = match found.remove(&coupon) {
                Some(limit) => Some(limit),
                None => self.store.limit_linearizable(&coupon).await?,
            };
            let known = match limit {
                Some(Ok(limit)) => {
                    self.known.insert(coupon.clone(), limit);
                    KnownLimit::Limit(limit)
                }
                Some(Err(why)) => KnownLimit::Damaged(why),
                None => KnownLimit::Missing,
            };
            read.push((coupon, known));
        }
        Ok(read)
    }
}
