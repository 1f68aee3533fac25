//! Where a worker's entries come from: its own whose delivery it missed (a reply that never arrived), those of
//! workers that died, and new ones. Old and new ones take turns, page by page, so that new ones never wait for
//! pending ones that cannot be decided.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assignment::Assignment;
use crate::Failure;
use crate::queue::{
    Delivered, ENTRIES_FIRST, ReadFrom, ReadOutcome, Reader, claim, entries_to_read, registry, restore,
};
use crate::recovery::is_certified;
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;
use crate::runtime::damage::damaged;

/// How often a worker sweeps through its own pending entries; those in progress are left alone.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often a worker claims entries of dead workers.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// How often a worker compares a part of the in-flight hash with the stream, and about how many issuances it reads
/// for that: Redis works on them for a millisecond.
const RESTORE_EVERY: Duration = Duration::from_secs(1);
const RESTORE_COUNT: usize = 1_000;

pub(super) struct EntrySource {
    partition: Arc<Partition>,
    assignment: Assignment,
    reader: Reader,
    consumer: String,
    batch: usize,
    /// The number of stream entries to read next.
    entries: usize,
    /// The epoch in which this worker has a heartbeat; it must have one before it reads.
    alive_in: Option<EpochKeys>,
    /// Where the sweep under way goes on.
    sweep: Option<String>,
    swept_at: Instant,
    claimed_at: Option<Instant>,
    restored_at: Instant,
    restore_from: Option<String>,
    /// Whether the next page is one of old entries, if there are any.
    old_ones_turn: bool,
}

impl EntrySource {
    /// For one of the workers of a deployment with this many partitions.
    pub(super) fn new(partition: Arc<Partition>, consumer: String, batch: usize, partitions: usize) -> Self {
        let assignment = Assignment::new(Arc::clone(&partition), consumer.clone(), partitions);
        let reader = Reader::new(partition.client().clone(), consumer.clone());
        let now = Instant::now();
        EntrySource {
            partition,
            assignment,
            reader,
            consumer,
            batch,
            entries: ENTRIES_FIRST,
            alive_in: None,
            sweep: None,
            swept_at: now,
            claimed_at: None,
            restored_at: now,
            restore_from: None,
            old_ones_turn: true,
        }
    }

    /// The next entries and the epoch they belong to, or `None` after which the caller should pause.
    pub(super) async fn next(&mut self) -> Result<Option<(EpochKeys, Delivered)>, Failure> {
        let keys = self.partition.keys();
        if self.alive_in.as_ref() != Some(&keys) {
            if !registry::beat(&self.partition, &keys, &self.consumer, "starting").await? {
                return Ok(None);
            }
            self.alive_in = Some(keys.clone());
        }
        let is_reader = self.assignment.is_reader().await;
        let old_ones_turn = std::mem::replace(&mut self.old_ones_turn, true);
        if is_reader {
            of_its_own(self.restore().await)?;
            if old_ones_turn && let Some(claimed) = self.claim(&keys).await? {
                self.old_ones_turn = false;
                return Ok(Some((keys, claimed)));
            }
        }
        if self.sweep.is_none() && self.swept_at.elapsed() >= SWEEP_EVERY {
            self.sweep = Some("0".into());
        }
        let which = match &self.sweep {
            Some(entry) if old_ones_turn => ReadFrom::PendingAfter(entry),
            // Others read it; this worker looks after what it has been given before.
            _ if !is_reader => return Ok(None),
            Some(_) => ReadFrom::NewAtOnce,
            None if !old_ones_turn => ReadFrom::NewAtOnce,
            None => ReadFrom::New,
        };
        let sweeps = matches!(which, ReadFrom::PendingAfter(_));
        match self.reader.read(&keys, which, self.entries).await {
            Ok(ReadOutcome::Entries(delivered)) => {
                self.learn(&delivered);
                if sweeps {
                    // Page by page: the first ones are those in progress.
                    self.sweep = delivered.last().map(str::to_owned);
                    self.swept_at = Instant::now();
                    self.old_ones_turn = false;
                }
                Ok(Some((keys, delivered)))
            }
            Ok(ReadOutcome::NoGroup) => {
                // The call learns of another epoch; or the recovery supervisor learns that the group is gone.
                if !is_certified(&self.partition).await? {
                    self.partition.uncertified.notify_one();
                }
                Ok(None)
            }
            Err(failure) => {
                // Something may have been delivered that never arrived here.
                self.sweep = Some("0".into());
                Err(failure)
            }
        }
    }

    /// Reads as many stream entries next as make a batch, by those that came.
    fn learn(&mut self, delivered: &Delivered) {
        if delivered.stream_entries > 0 {
            self.entries = entries_to_read(self.batch, delivered.stream_entries, delivered.count());
        }
    }

    /// Claims entries of workers that are gone, if it is time to. `None` if there are none.
    async fn claim(&mut self, keys: &EpochKeys) -> Result<Option<Delivered>, Failure> {
        if !is_due(&mut self.claimed_at, CLAIM_EVERY) {
            return Ok(None);
        }
        let claimed = of_its_own(claim(&self.partition, keys, &self.consumer, self.entries).await)?;
        let Some(claimed) = claimed.filter(|claimed| claimed.count() > 0) else { return Ok(None) };
        self.learn(&claimed);
        tracing::warn!(entries = claimed.count(), "took over entries of a worker that is gone");
        // There may be more.
        self.claimed_at = None;
        Ok(Some(claimed))
    }

    /// Compares a part of the in-flight hash with the stream, and appends lost entries anew.
    async fn restore(&mut self) -> Result<(), Failure> {
        if self.restored_at.elapsed() < RESTORE_EVERY {
            return Ok(());
        }
        self.restored_at = Instant::now();
        let (restored, next) = restore(&self.partition, self.restore_from.take(), RESTORE_COUNT).await?;
        self.restore_from = next;
        for id in restored {
            tracing::error!(issuance = %id, partition = %id.partition(), "its stream entry was lost; appended anew");
        }
        Ok(())
    }
}

/// Logs a failure that concerns one damaged value, and returns `None` for it: other entries do not suffer from it.
fn of_its_own<T>(done: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(failure) if failure.is_of_one() => {
            damaged!(failure.chain(); error = failure.chain(), "a part of the queue cannot be looked after");
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

fn is_due(last: &mut Option<Instant>, every: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= every);
    if due {
        *last = Some(Instant::now());
    }
    due
}
