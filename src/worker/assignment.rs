//! Which workers read a partition, where there are several: as many as there are workers for each, chosen by rendezvous
//! hashing among those that live, so that a worker that comes or goes moves few partitions. Only a hint: two workers that
//! see different registries both read, or none does for a moment, and neither loses or repeats anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::beat::IDLE;
use crate::Failure;
use crate::coupon::stock;
use crate::ids::PartitionId;
use crate::queue::registry::{self, STALE_AFTER};
use crate::redis::Partition;

/// How often a worker reads which workers live.
const EVERY: Duration = Duration::from_secs(2);

/// Whether this worker reads a partition.
pub(super) struct Assignment {
    partition: Arc<Partition>,
    consumer: String,
    /// The number of partitions.
    partitions: usize,
    read_at: Option<Instant>,
    is_reader: bool,
}

impl Assignment {
    pub(super) fn new(partition: Arc<Partition>, consumer: String, partitions: usize) -> Self {
        Assignment { partition, consumer, partitions, read_at: None, is_reader: true }
    }

    /// Whether this worker reads the partition now. All read the only one. While Redis does not tell which workers
    /// live, the last answer holds.
    pub(super) async fn is_reader(&mut self) -> bool {
        if self.partitions > 1 && self.read_at.is_none_or(|at| at.elapsed() >= EVERY) {
            self.read_at = Some(Instant::now());
            match self.alive().await {
                Ok(alive) => {
                    self.is_reader = is_chosen(self.partition.id(), self.partitions, &self.consumer, &alive);
                }
                Err(failure) => {
                    tracing::debug!(error = failure.chain(), "which workers live could not be read");
                }
            }
        }
        self.is_reader
    }

    /// The workers that live and read.
    async fn alive(&self) -> Result<Vec<String>, Failure> {
        // Redis's time, by which heartbeats are judged.
        let (now, _) = stock::read(&self.partition, &[]).await?;
        let beats = registry::beats(&self.partition).await?.into_iter();
        let alive = beats.filter(|beat| now.duration_since(beat.at).unsigned_abs() <= STALE_AFTER);
        // One that cannot decide, or is about to stop, leaves its partitions to others.
        let reading = alive.filter(|beat| !beat.says.ends_with(IDLE));
        Ok(reading.map(|beat| beat.consumer).collect())
    }
}

/// Whether a worker is one of those that read a partition, out of these that live.
fn is_chosen(partition: PartitionId, partitions: usize, consumer: &str, alive: &[String]) -> bool {
    let rank = |consumer: &str| {
        Sha256::new().chain_update(partition.number().to_be_bytes()).chain_update(consumer).finalize()
    };
    let (readers, own) = (alive.len().div_ceil(partitions), rank(consumer));
    alive.iter().filter(|other| *other != consumer && rank(other) < own).count() < readers.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `workers` read each of `partitions`.
    fn readers(workers: &[String], partitions: u16) -> Vec<Vec<&String>> {
        let of = |partition| {
            let id = PartitionId::new(partition).unwrap();
            workers.iter().filter(move |worker| is_chosen(id, partitions.into(), worker, workers)).collect()
        };
        (0..partitions).map(of).collect()
    }

    fn workers(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("w-{number}")).collect()
    }

    #[test]
    fn each_partition_has_as_many_readers_as_there_are_workers_for_it() {
        for (count, partitions, each) in [(1, 8, 1), (3, 8, 1), (8, 8, 1), (9, 8, 2), (40, 8, 5)] {
            let workers = workers(count);
            for readers in readers(&workers, partitions) {
                assert_eq!(readers.len(), each, "{count} workers, {partitions} partitions");
            }
        }
    }

    #[test]
    fn a_worker_that_goes_leaves_its_partitions_to_others_and_no_other_moves() {
        let workers = workers(4);
        let (before, after) = (readers(&workers, 64), readers(&workers[1..], 64));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        let own = before.iter().filter(|readers| readers.contains(&&workers[0])).count();
        assert_eq!(moved, own);
        assert!((8..24).contains(&own), "{own} of 64 partitions");
    }
}
