//! Finds dead letters: the oldest that match a filter. Redis keeps them in no order, so a search reads them all, a page
//! at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;

use super::{DeadLetter, scan};
use crate::Failure;
use crate::coupon::stock;
use crate::ids::{CouponId, IssuanceId, PartitionId, UserId};
use crate::redis::{Partition, Partitions};

/// How long a partition may take to answer at all; one that answers is read to its end, however long that takes.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Dead letters of one page, about: some hundred microseconds of Redis's time.
const PAGE: usize = 1_000;
/// Pages that one search reads at most. What follows them is found once others are redriven or discarded.
const PAGES_MAX: usize = 2_000;

/// Which dead letters are meant: those that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// One whose in-flight value cannot be read is of no known coupon.
    pub coupon: Option<CouponId>,
    pub user: Option<UserId>,
    /// A part of the reason, in upper or lower case.
    pub reason: Option<String>,
    /// Set aside at least so long ago.
    pub min_age: Option<Duration>,
    /// Set aside at most so long ago.
    pub max_age: Option<Duration>,
}

/// Where a dead letter stands among the others: the oldest is the first.
pub type DeadLetterPlace = (Timestamp, IssuanceId);

/// What a search found.
#[derive(Debug)]
pub struct Found<T> {
    /// The oldest after the given place.
    pub oldest: BTreeMap<DeadLetterPlace, T>,
    /// The number of those that match, before the given place and after it. One that came or went meanwhile may be
    /// counted or not.
    pub matched: u64,
    /// Whether more follow.
    pub has_more: bool,
    /// The partitions that do not answer: what was set aside there is not among those.
    pub unavailable: Vec<PartitionId>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Found { oldest: BTreeMap::new(), matched: 0, has_more: false, unavailable: Vec::new() }
    }
}

impl DeadLetterFilter {
    /// Whether everything is meant.
    pub fn is_empty(&self) -> bool {
        *self == DeadLetterFilter::default()
    }

    /// What a letter must have at `now`. Prepared once, for all letters of a search.
    fn criteria(&self, now: Timestamp) -> Criteria<'_> {
        Criteria { filter: self, now, part_of_reason: self.reason.as_ref().map(|part| part.to_lowercase()) }
    }
}

/// A filter at one moment.
struct Criteria<'a> {
    filter: &'a DeadLetterFilter,
    now: Timestamp,
    /// In lower case.
    part_of_reason: Option<String>,
}

impl Criteria<'_> {
    fn fit(&self, letter: &DeadLetter) -> bool {
        let DeadLetterFilter { coupon, user, min_age, max_age, .. } = self.filter;
        let held = letter.in_flight.as_ref();
        let age = Duration::try_from(self.now.duration_since(letter.set_aside_at)).unwrap_or_default();
        coupon.as_ref().is_none_or(|coupon| held.is_some_and(|held| held.coupon == *coupon))
            && user.as_ref().is_none_or(|user| held.is_some_and(|held| held.user == *user))
            && min_age.is_none_or(|least| age >= least)
            && max_age.is_none_or(|most| age <= most)
            && self.part_of_reason.as_ref().is_none_or(|part| letter.why.to_lowercase().contains(part))
    }
}

/// Finds the `limit` oldest dead letters of all partitions that answer, that fit the filter and come after a place. Of
/// each it returns what `keep` makes of it and of the partition that it lies in, which its id does not name if it was
/// routed wrongly.
///
/// # Errors
///
/// If no partition answers: Redis fails, or its data is not certified; [`Failure::Stale`] if another epoch was opened
/// meanwhile.
pub async fn search<T>(
    partitions: &Partitions,
    filter: &DeadLetterFilter,
    after: Option<DeadLetterPlace>,
    limit: usize,
    keep: impl Fn(PartitionId, DeadLetter) -> T,
) -> Result<Found<T>, Failure> {
    let keep = &keep;
    let found = partitions.iter().map(|partition| {
        search_one(partition, filter, after, limit, move |letter| keep(partition.id(), letter))
    });
    let (found, unavailable) = partitions.answered(join_all(found).await)?;
    let mut all = Found { unavailable, ..Found::default() };
    for Found { oldest, matched, has_more, .. } in found {
        all.oldest.extend(oldest);
        all.matched += matched;
        all.has_more |= has_more;
    }
    while all.oldest.len() > limit {
        all.oldest.pop_last();
        all.has_more = true;
    }
    Ok(all)
}

/// Those of one partition.
async fn search_one<T>(
    partition: &Partition,
    filter: &DeadLetterFilter,
    after: Option<DeadLetterPlace>,
    limit: usize,
    keep: impl Fn(DeadLetter) -> T,
) -> Result<Found<T>, Failure> {
    // Reads the open epoch, and the time by which letters were set aside.
    let answered = timeout(SILENCE_MAX, stock::read(partition, &[])).await;
    let (now, _) = answered.unwrap_or(Err(Failure::Overloaded { operation: "search dead letters" }))?;
    let epoch = partition.keys().epoch();
    let criteria = filter.criteria(now);
    let (mut oldest, mut matched, mut has_more) = (BTreeMap::new(), 0, false);
    let mut cursor = 0;
    for page in 1.. {
        let (letters, next) = scan(partition, cursor, PAGE).await?;
        for letter in letters.into_iter().filter(|letter| criteria.fit(letter)) {
            matched += 1;
            let place = (letter.set_aside_at, letter.id);
            if after.is_none_or(|after| place > after) {
                oldest.insert(place, keep(letter));
            }
            if oldest.len() > limit {
                oldest.pop_last();
                has_more = true;
            }
        }
        if next == 0 {
            break;
        }
        if page == PAGES_MAX {
            tracing::warn!(matched, "a search for dead letters ended early: there are too many");
            break;
        }
        cursor = next;
    }
    if partition.keys().epoch() != epoch {
        let why = "Redis's data was recovered meanwhile".into();
        return Err(Failure::Stale { operation: "search dead letters", why });
    }
    Ok(Found { oldest, matched, has_more, unavailable: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;

    #[test]
    fn a_filter_takes_what_fits_all_of_it() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let letter = DeadLetter {
            id: IssuanceId::generate(PartitionId::ONE),
            set_aside_at: Timestamp::from_second(1_700_000_000 - 60).unwrap(),
            attempts: 3,
            why: "Document failed validation (121)".into(),
            in_flight: Some("1-0 17 412 1700000000001 1 summer u1".parse().unwrap()),
        };
        let minutes = |count: u64| Some(Duration::from_secs(60 * count));
        let coupon = |id: &str| Some(id.parse().unwrap());
        let user = |id: &str| Some(id.parse().unwrap());
        let reason = |text: &str| Some(text.to_owned());
        let all = DeadLetterFilter::default;
        for fitting in [
            all(),
            DeadLetterFilter { coupon: coupon("summer"), user: user("u1"), ..all() },
            DeadLetterFilter { reason: reason("failed VALIDATION"), ..all() },
            DeadLetterFilter { min_age: minutes(1), max_age: minutes(1), ..all() },
        ] {
            assert!(fitting.criteria(now).fit(&letter), "{fitting:?}");
        }
        for other in [
            DeadLetterFilter { coupon: coupon("winter"), ..all() },
            DeadLetterFilter { coupon: coupon("summer"), user: user("u2"), ..all() },
            DeadLetterFilter { reason: reason("timeout"), ..all() },
            DeadLetterFilter { min_age: minutes(2), ..all() },
            DeadLetterFilter { max_age: minutes(0), ..all() },
        ] {
            assert!(!other.criteria(now).fit(&letter), "{other:?}");
        }
        let unreadable = DeadLetter { in_flight: None, ..letter };
        assert!(all().criteria(now).fit(&unreadable));
        assert!(!DeadLetterFilter { coupon: coupon("summer"), ..all() }.criteria(now).fit(&unreadable));
    }
}
