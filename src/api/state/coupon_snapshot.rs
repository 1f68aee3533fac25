//! A coupon beside what Redis knew of it at one moment.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;

use crate::Failure;
use crate::api::wire::coupon as wire;
use crate::coupon::{Coupon, CouponStatus, Stock, by_share, stock};
use crate::ids::CouponId;
use crate::recovery::Loader;
use crate::redis::{Partition, Partitions, PerPartition};
use crate::runtime::damage::damaged;

/// A reader waits no longer for coupons that Redis does not have; the loads go on without it.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(2);
/// Nor longer than this for all coupons of one of several partitions.
const READ_MAX: Duration = Duration::from_secs(3);

/// A coupon and its stock, read at the same moment.
#[derive(Clone)]
pub(crate) struct CouponSnapshot {
    pub coupon: Coupon,
    pub stock: StockReading,
    /// The moment, by Redis's clock, or by this process's if Redis did not answer.
    pub now: Timestamp,
}

/// What Redis answered about the stock of a coupon.
#[derive(Clone, Copy)]
pub(crate) enum StockReading {
    Live(Stock),
    /// Redis does not have the coupon.
    NotLoaded,
    /// Redis did not answer, or what it has is damaged.
    Unknown,
}

impl StockReading {
    fn of(stock: Result<Option<Stock>, Failure>) -> Self {
        match stock {
            Ok(stock) => stock.map_or(StockReading::NotLoaded, StockReading::Live),
            Err(damaged) => {
                damaged!(damaged.chain(); error = damaged.chain(), "a coupon is shown without its stock");
                StockReading::Unknown
            }
        }
    }
}

impl StockReading {
    /// The stock of two shares of one coupon. Where one of them does not have the coupon, what it has issued is in the
    /// ledger alone.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (StockReading::Live(one), StockReading::Live(other)) => StockReading::Live(one.and(other)),
            (StockReading::NotLoaded, StockReading::NotLoaded) => StockReading::NotLoaded,
            _ => StockReading::Unknown,
        }
    }
}

impl CouponSnapshot {
    /// Reads the stock of a coupon that was just created or changed, and loads nothing.
    pub async fn of_one(partitions: &Partitions, coupon: Coupon) -> Self {
        let reads = coupon.shares.partitions().iter().map(async |share| match partitions.get(*share) {
            Ok(partition) => stocks(partition, std::slice::from_ref(&coupon.id)).await,
            Err(_) => (Timestamp::now(), vec![StockReading::Unknown]),
        });
        let of_shares = join_all(reads).await.into_iter().filter_map(|(now, mut read)| {
            Some(CouponSnapshot { coupon: coupon.clone(), stock: read.pop()?, now })
        });
        let unknown = || CouponSnapshot::unknown(coupon.clone());
        of_shares.reduce(CouponSnapshot::with_share).unwrap_or_else(unknown)
    }

    fn unknown(coupon: Coupon) -> Self {
        CouponSnapshot { coupon, stock: StockReading::Unknown, now: Timestamp::now() }
    }

    /// The coupon with another share of its stock.
    fn with_share(self, other: Self) -> Self {
        CouponSnapshot { stock: self.stock.and(other.stock), now: self.now.max(other.now), ..self }
    }

    /// Reads the stock of coupons that lie in any partition, in their order. That of a partition that does not answer in
    /// time is unknown.
    pub async fn of_any(loaders: &PerPartition<Loader>, coupons: Vec<Coupon>) -> Vec<Self> {
        let places: HashMap<CouponId, usize> =
            coupons.iter().enumerate().map(|(place, coupon)| (coupon.id.clone(), place)).collect();
        let (groups, elsewhere) = by_share(loaders, coupons);
        let groups = groups.into_iter().map(async |(loader, coupons)| {
            let read = timeout(READ_MAX, Self::of_all(loader, coupons.clone())).await;
            read.unwrap_or_else(|_| coupons.into_iter().map(Self::unknown).collect())
        });
        let read = join_all(groups).await.into_iter().flatten();
        let elsewhere = elsewhere.into_iter().map(|(_, coupon)| Self::unknown(coupon));
        let mut all: BTreeMap<usize, Self> = BTreeMap::new();
        for of_share in read.chain(elsewhere) {
            let Some(place) = places.get(&of_share.coupon.id) else { continue };
            let whole = match all.remove(place) {
                Some(others) => others.with_share(of_share),
                None => of_share,
            };
            all.insert(*place, whole);
        }
        all.into_values().collect()
    }

    /// Reads the stock of coupons of one partition. A coupon that can be requested and that Redis does not have is loaded
    /// first; one that is not loaded in time has an unknown stock.
    pub async fn of_all(loader: &Loader, coupons: Vec<Coupon>) -> Vec<Self> {
        let partition = loader.partition();
        let ids: Vec<CouponId> = coupons.iter().map(|coupon| coupon.id.clone()).collect();
        let (now, mut readings) = stocks(partition, &ids).await;
        let is_due = |coupon: &Coupon| !coupon.archived && coupon.ends_at > now;
        let unloaded: Vec<usize> = (0..ids.len())
            .filter(|at| matches!(readings[*at], StockReading::NotLoaded) && is_due(&coupons[*at]))
            .collect();
        if !unloaded.is_empty() {
            let wanted: Vec<CouponId> = unloaded.iter().map(|at| ids[*at].clone()).collect();
            let loads = join_all(wanted.iter().map(|id| loader.load(id)));
            let _ = timeout(LOAD_WAIT_MAX, loads).await;
            let (_, after_load) = stocks(partition, &wanted).await;
            for (at, reading) in unloaded.into_iter().zip(after_load) {
                readings[at] = match reading {
                    StockReading::NotLoaded => StockReading::Unknown,
                    reading => reading,
                };
            }
        }
        let read = coupons.into_iter().zip(readings);
        read.map(|(coupon, stock)| CouponSnapshot { coupon, stock, now }).collect()
    }

    /// Whether Redis does not have the coupon: what was issued of it is then in the ledger alone.
    pub fn is_not_loaded(&self) -> bool {
        matches!(self.stock, StockReading::NotLoaded)
    }

    /// Whether the coupon may have this status, as far as that can be told without the ledger.
    pub fn may_have(&self, wanted: CouponStatus) -> bool {
        let remaining = match self.stock {
            StockReading::Live(stock) => Some(stock.remaining),
            StockReading::NotLoaded | StockReading::Unknown => None,
        };
        let status = CouponStatus::of(&self.coupon, remaining, self.now);
        let may_be_sold_out = status == CouponStatus::Open && self.is_not_loaded();
        status == wanted || may_be_sold_out && wanted == CouponStatus::SoldOut
    }

    /// The coupon on the wire. Of a coupon that Redis does not have nothing is in flight, so its stock follows from
    /// the units that were `issued`; without that number, and where Redis did not answer, the stock is null.
    pub fn into_wire(self, issued: Option<u32>) -> wire::Coupon {
        let CouponSnapshot { coupon, stock, now } = self;
        let stock = match stock {
            StockReading::Live(stock) => Some(stock),
            StockReading::NotLoaded => issued.map(|issued| {
                let issued = issued.min(coupon.total);
                Stock { total: coupon.total, remaining: coupon.total - issued, reserved: 0, issued }
            }),
            StockReading::Unknown => None,
        };
        wire::Coupon::new(coupon, stock, now)
    }
}

/// What Redis knows of each coupon, and its time.
async fn stocks(partition: &Partition, ids: &[CouponId]) -> (Timestamp, Vec<StockReading>) {
    match stock::read(partition, ids).await {
        Ok((now, stocks)) => (now, stocks.into_iter().map(StockReading::of).collect()),
        Err(failure) => {
            tracing::debug!(error = failure.chain(), "the stock is unknown");
            (Timestamp::now(), vec![StockReading::Unknown; ids.len()])
        }
    }
}
