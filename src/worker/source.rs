//! Where a worker's entries come from, in turn: its own that it lost sight of (a reply that never
//! arrived), those of workers that died, and new ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::queue::registry;
use crate::queue::{Delivered, Read, Reader, Which, claim, restore};
use crate::recovery::is_certified;

/// How often the own pending entries are gone through; those in hand are left alone.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often entries of dead workers are looked for.
const CLAIM_EVERY: Duration = Duration::from_secs(1);
/// How often a part of what is in flight is compared with the stream, and how much of it.
const RESTORE_EVERY: Duration = Duration::from_secs(1);
const RESTORE_COUNT: usize = 500;

pub(super) struct Source {
    partition: Arc<Partition>,
    reader: Reader,
    consumer: String,
    batch: usize,
    /// The epoch in which this worker has said that it lives; it must have before it reads.
    alive_in: Option<EpochKeys>,
    /// Where the sweep under way goes on.
    sweep: Option<String>,
    swept_at: Instant,
    claimed_at: Option<Instant>,
    restored_at: Instant,
    restore_from: Option<String>,
}

impl Source {
    pub(super) fn new(partition: Arc<Partition>, consumer: String, batch: usize) -> Self {
        let reader = Reader::new(partition.client().clone(), consumer.clone());
        let now = Instant::now();
        Source {
            partition,
            reader,
            consumer,
            batch,
            alive_in: None,
            sweep: None,
            swept_at: now,
            claimed_at: None,
            restored_at: now,
            restore_from: None,
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
        self.restore().await?;
        if is_due(&mut self.claimed_at, CLAIM_EVERY) {
            let claimed = claim(&self.partition, &keys, &self.consumer, self.batch).await?;
            if claimed.count() > 0 {
                tracing::warn!(entries = claimed.count(), "took over entries of a worker that is gone");
                // There may be more.
                self.claimed_at = None;
                return Ok(Some((keys, claimed)));
            }
        }
        if self.sweep.is_none() && self.swept_at.elapsed() >= SWEEP_EVERY {
            self.sweep = Some("0".into());
        }
        let which = match &self.sweep {
            Some(entry) => Which::PendingAfter(entry),
            None => Which::New,
        };
        match self.reader.read(&keys, which, self.batch).await {
            Ok(Read::Entries(delivered)) => {
                if self.sweep.take().is_some() {
                    // Page by page: the first ones are those in hand.
                    self.sweep = delivered.last().map(str::to_owned);
                    self.swept_at = Instant::now();
                }
                Ok(Some((keys, delivered)))
            }
            Ok(Read::NoGroup) => {
                // Learns of another epoch; or the keeper learns that the group is gone.
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

    /// Compares a part of what is in flight with the stream.
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

fn is_due(last: &mut Option<Instant>, every: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= every);
    if due {
        *last = Some(Instant::now());
    }
    due
}
