//! Works on batches, each until every entry of it is settled, belongs to another worker, or is in the
//! [retry lane](super::retry_lane) for a reason of its own.

use std::any::Any;
use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::batch_span::BatchSpan;
use super::breaker::Breaker;
use super::decide::{BatchOutcome, Decider, Unsettled};
use super::in_progress::{Batch, InProgress};
use super::parked_coupons::ParkedCoupons;
use super::retry_lane::{RetryEntry, RetryLane};
use super::{RETRY_FIRST, RETRY_LONGEST, warn};
use crate::Failure;
use crate::queue::{self, Entry};
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;
use crate::runtime::backoff::Backoff;
use crate::runtime::tasks::panic_text;

/// How often a batch is tried again of which no entry's outcome could be determined, although MongoDB and Redis
/// answer; then it goes to the retry lane, and makes room for another batch.
const UNCLEAR_MAX: u32 = 5;

pub(super) struct BatchRunner {
    pub(super) partition: Arc<Partition>,
    pub(super) decider: Decider,
    pub(super) breaker: Breaker,
    pub(super) parked: ParkedCoupons,
    in_progress: Arc<InProgress>,
    pub(super) lane: RetryLane,
}

impl BatchRunner {
    pub(super) fn new(partition: Arc<Partition>, decider: Decider) -> Self {
        BatchRunner {
            partition,
            decider,
            breaker: Breaker::new(),
            parked: ParkedCoupons::default(),
            in_progress: Arc::new(InProgress::new()),
            lane: RetryLane::default(),
        }
    }

    /// Waits until there is room for another batch, and the breaker admits one.
    pub(super) async fn when_free(&self, free: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        self.breaker.admits().await;
        // The semaphore is never closed.
        Arc::clone(free).acquire_owned().await.ok()
    }

    /// Begins to work on entries, but not on those in progress already and those that wait for their coupon.
    pub(super) fn take(&self, keys: EpochKeys, mut entries: Vec<Entry>) -> Batch {
        entries.retain(|entry| !self.parked.has(&entry.coupon));
        InProgress::take(&self.in_progress, keys, entries)
    }

    /// Works on a batch until it is settled but for entries in the retry lane, or until `shutdown` comes during a
    /// pause: then other workers claim the rest.
    pub(super) async fn work(&self, mut batch: Batch, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut unclear_rounds = 0;
        loop {
            match self.process(&batch.keys, batch.entries()).await {
                Ok(BatchOutcome::AnotherEpoch) => return self.breaker.success(),
                Ok(BatchOutcome::Here(left)) => {
                    let unclear = left.iter().filter(|(_, why)| matches!(why, Unsettled::Unclear(_))).count();
                    let all_are_unclear = unclear == batch.entries().len();
                    if !all_are_unclear {
                        self.breaker.success();
                        self.release_coupons(&batch, &left);
                    }
                    if !all_are_unclear || unclear_rounds == UNCLEAR_MAX {
                        let stuck = self.each_alone(&mut batch, left).await;
                        return self.sort_out(stuck).await;
                    }
                    // All alike, so no entry's own failure.
                    if let Some((_, Unsettled::Unclear(failure))) = left.first() {
                        warn(unclear, failure);
                    }
                    self.breaker.trouble();
                    unclear_rounds += 1;
                }
                Err(failure) => {
                    warn(batch.entries().len(), &failure);
                    self.breaker.trouble();
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
            backoff.wait(shutdown).await;
        }
    }

    /// Takes what is left out of a batch, each as a batch of its own. A stream entry of many is taken apart first, so
    /// that no issuance's own trouble keeps those beside it.
    async fn each_alone(
        &self,
        batch: &mut Batch,
        left: Vec<(Entry, Unsettled)>,
    ) -> Vec<(RetryEntry, Unsettled)> {
        let (many, ones): (Vec<_>, Vec<_>) = left.into_iter().partition(|(entry, _)| entry.of > 1);
        let mut alone: Vec<_> =
            ones.into_iter().filter_map(|(entry, why)| Some((batch.take_out(&entry)?, why))).collect();
        let entries: Vec<_> = many.iter().map(|(entry, _)| entry).collect();
        match queue::taken_apart(&self.partition, &batch.keys, &entries).await {
            Ok(ones) => alone.extend(many.into_iter().zip(ones).filter_map(|((_, why), one)| {
                let one = InProgress::take(&self.in_progress, batch.keys.clone(), vec![one?]);
                (!one.is_empty()).then_some((one, why))
            })),
            // They stay as they are, and the sweep brings them back.
            Err(failure) => warn(many.len(), &failure),
        }
        alone.into_iter().map(|(batch, why)| (RetryEntry::new(batch), why)).collect()
    }

    /// Decides and settles entries. An entry that makes the decider panic is found among the others, and refused.
    pub(super) async fn process<'a>(
        &'a self,
        keys: &'a EpochKeys,
        entries: &'a [Entry],
    ) -> Result<BatchOutcome, Failure> {
        let process = contained(entries, |part| self.decider.process(keys, part).boxed());
        let Some(span) = BatchSpan::start(&self.partition, entries).await else { return process.await };
        let result = process.instrument(span.log_span()).await;
        span.end(&self.partition, &result).await;
        result
    }

    /// Lets those coupons wait no longer of which no entry is left for the coupon's reason.
    fn release_coupons(&self, batch: &Batch, left: &[(Entry, Unsettled)]) {
        let damaged = left.iter().filter(|(_, why)| matches!(why, Unsettled::CouponDamaged(_)));
        let damaged: HashSet<_> = damaged.map(|(entry, _)| &entry.coupon).collect();
        let coupons = batch.entries().iter().map(|entry| &entry.coupon);
        self.parked.release(coupons.filter(|coupon| !damaged.contains(coupon)));
    }
}

/// Processes entries, and where that panics, their halves, so that an entry that causes it is refused alone and the
/// others are processed. Processing may be repeated.
async fn contained<'a>(
    entries: &'a [Entry],
    process: impl Fn(&'a [Entry]) -> BoxFuture<'a, Result<BatchOutcome, Failure>>,
) -> Result<BatchOutcome, Failure> {
    let (mut left, mut parts) = (Vec::new(), vec![entries]);
    while let Some(part) = parts.pop() {
        match AssertUnwindSafe(process(part)).catch_unwind().await {
            Ok(Ok(BatchOutcome::Here(of_part))) => left.extend(of_part),
            Ok(ended) => return ended,
            Err(panic) => match part {
                [entry] => left.push((entry.clone(), Unsettled::Refused(panic_why(&*panic)))),
                entries => {
                    let (first, second) = entries.split_at(entries.len() / 2);
                    parts.extend([second, first]);
                }
            },
        }
    }
    Ok(BatchOutcome::Here(left))
}

/// The reason that an operator reads of an entry that makes the program panic.
fn panic_why(panic: &(dyn Any + Send)) -> String {
    let text = panic_text(panic);
    format!("the worker panicked over it: {text}. Redrive it with a version that does not, or discard it")
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use jiff::Timestamp;

    use super::*;
    use crate::ids::{IssuanceId, PartitionId};

    fn entry(number: usize) -> Entry {
        Entry {
            entry: format!("{number}-0"),
            of: 1,
            id: IssuanceId::generate(PartitionId::ONE),
            coupon: "c".parse().unwrap(),
            user: format!("u{number}").parse().unwrap(),
            unit: None,
            nth: 1,
            accepted_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn an_entry_that_makes_the_decider_panic_is_left_alone_and_the_others_are_processed() {
        for bad in [vec![0], vec![37], vec![0, 1, 99], (0..100).collect()] {
            let entries: Vec<_> = (0..100).map(entry).collect();
            let done = Mutex::new(Vec::new());
            let processed = contained(&entries, |part| {
                let (bad, done) = (&bad, &done);
                let process = async move {
                    tokio::task::yield_now().await;
                    assert!(!part.iter().any(|entry| bad.contains(&number(entry))), "over {}", part.len());
                    done.lock().extend(part.iter().map(number));
                    Ok(BatchOutcome::Here(Vec::new()))
                };
                process.boxed()
            });
            let Ok(BatchOutcome::Here(left)) = processed.await else { panic!("it is contained") };
            assert_eq!(left.iter().map(|(entry, _)| number(entry)).collect::<Vec<_>>(), bad);
            for (_, why) in left {
                assert!(matches!(&why, Unsettled::Refused(why) if why.contains("over 1")), "{why:?}");
            }
            let others: Vec<_> = (0..100).filter(|number| !bad.contains(number)).collect();
            assert_eq!(*done.lock(), others);
        }
    }

    fn number(entry: &Entry) -> usize {
        entry.user.as_str()[1..].parse().unwrap()
    }
}
