//! The background task, in every API process, that carries deletions out. Idempotent and without input;
//! signalled when one is due, and periodic.
//!
//! Reads: marked users, the ledger, what Redis holds of loaded coupons. Writes: the names in the ledger,
//! in the record of actions and in Redis, and removes the marked user at the end. Wakes no other task. The processes take turns, by a key
//! that expires: were there two at once, they would only do the same twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::mongo::Database;
use futures::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::pseudonymise::{PseudonymiseMode, PseudonymiseOutcome, outdate_loads, pseudonymise};
use crate::access::action;
use crate::ids::PartitionId;
use crate::issuance::Ledger;
use crate::recovery::Deployment;
use crate::redis::keys::EpochKeys;
use crate::redis::turn::in_turn;
use crate::redis::{Partitions, PerPartition};
use crate::runtime::background::{in_background, never_busy};
use crate::user::Deletion;
use crate::{Failure, recovery};

/// Between two rounds without a signal.
const EVERY: Duration = Duration::from_secs(5);
/// Between two rounds, signals or not.
const PAUSE: Duration = Duration::from_millis(200);
/// The length of a turn. A round may take longer; then another process may repeat it.
const TURN: Duration = Duration::from_secs(2);
/// Deletions of one round.
const ROUND_MAX: usize = 1_000;
/// The log warns of a deletion that cannot be carried out for this long after it was due.
const OVERDUE: SignedDuration = SignedDuration::from_mins(10);
/// Rounds between two such warnings.
const WARN_EVERY: u64 = 100;

/// The outcome of a deletion in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EraseOutcome {
    /// Nothing is left of the user, and the user's document is gone.
    Done,
    /// Something of theirs is in flight: it waits. A dead letter must be redriven or discarded.
    InFlight,
    /// Redis counts something for them that the ledger has not issued: `couponctl audit --full` names it.
    Damaged,
    /// Another epoch was opened, or a record came in the meantime: the next round.
    Again,
}

/// Carries deletions out. Cheap to clone.
#[derive(Clone)]
pub struct Eraser {
    partitions: Partitions,
    ledger: Ledger,
    database: Database,
}

impl Eraser {
    /// An eraser for all partitions and their ledger, which is in `database`.
    pub fn new(partitions: Partitions, ledger: Ledger, database: Database) -> Self {
        Eraser { partitions, ledger, database }
    }

    /// Carries out what is due, until `shutdown`.
    pub(crate) async fn run(self, due: Arc<Notify>, shutdown: CancellationToken) {
        let (mut rounds, mut outgrown) = (0_u64, 0_u64);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
                () = due.notified() => {}
            }
            rounds += 1;
            let ended = tokio::select! {
                // A round that is broken off is taken up again, by this or another process.
                () = shutdown.cancelled() => return,
                ended = self.round(rounds.is_multiple_of(WARN_EVERY)) => ended,
            };
            match ended {
                // Until it is restarted; another process may carry them out.
                Err(failure @ Failure::Stale { .. }) => {
                    if outgrown % WARN_EVERY == 0 {
                        tracing::warn!(
                            error = failure.chain(),
                            "this process deletes no user: the deployment has grown since it started"
                        );
                    }
                    outgrown += 1;
                }
                Err(failure) => {
                    tracing::debug!(
                        error = failure.chain(),
                        "deletions could not be carried out; trying again"
                    );
                }
                Ok(()) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn round(&self, warns: bool) -> Result<(), Failure> {
        let (deletions, now) = self.ledger.users().deletions().await?;
        let mut due: Vec<_> = deletions.iter().filter(|deletion| deletion.due <= now).collect();
        if due.len() > ROUND_MAX {
            // Those that must wait, for a dead letter say, must not keep the others from their turn.
            let first = rand::random_range(..due.len());
            due.rotate_left(first);
            due.truncate(ROUND_MAX);
        }
        if due.is_empty() {
            return Ok(());
        }
        self.knows_every_partition().await?;
        let carried_out = self.carry_out(due, now);
        let partition = self.partitions.first();
        let overdue = in_turn(partition, partition.keys().erase_turn(), TURN, carried_out).await?;
        if let Some(overdue @ 1..) = overdue
            && warns
        {
            tracing::warn!(
                overdue,
                "users cannot be deleted: something of theirs is a dead letter, or damaged (couponctl \
                 dead-letter list, couponctl audit --full)"
            );
        }
        Ok(())
    }

    /// Carries these deletions out as far as they go. Returns how many are long overdue.
    async fn carry_out(&self, due: Vec<&Deletion>, now: Timestamp) -> Result<u64, Failure> {
        let keys = self.partitions.each(|partition| partition.keys());
        // As long as there is much in flight, this reads much. A deletion does not wait for callers, though: it has a term.
        let waiting = in_background(never_busy(), self.in_flight(&keys, &due)).await?;
        let mut overdue = 0;
        for deletion in due {
            match self.erase_unless(Some(&waiting), &keys, deletion, now).await {
                Ok(EraseOutcome::Done) => {
                    tracing::info!(pseudonym = %deletion.pseudonym, "anonymised the records of a deleted user");
                }
                // What is damaged must not keep the others waiting.
                Err(failure) if !failure.is_of_one() => return Err(failure),
                Ok(_) | Err(_) => overdue += u64::from(now.duration_since(deletion.due) > OVERDUE),
            }
        }
        Ok(overdue)
    }

    /// Carries one deletion out that is due, as far as it goes. `now` is MongoDB's time before the mark was read:
    /// what was accepted later may be a new user's.
    ///
    /// # Errors
    ///
    /// If MongoDB or Redis fails; the deletion can be repeated.
    pub async fn erase(&self, deletion: &Deletion, now: Timestamp) -> Result<EraseOutcome, Failure> {
        self.knows_every_partition().await?;
        let keys = self.partitions.each(|partition| partition.keys());
        self.erase_unless(None, &keys, deletion, now).await
    }

    /// Fails in a process that has not heard yet that the deployment has grown: what a user has in a partition that it
    /// does not know would stay.
    async fn knows_every_partition(&self) -> Result<(), Failure> {
        let last = PartitionId::new(Deployment::read(&self.database).await?.partitions);
        self.partitions.get(last.unwrap_or(PartitionId::ONE)).map(drop)
    }

    /// Which of these users have something in flight, whether its coupon is loaded or not.
    async fn in_flight(
        &self,
        keys: &PerPartition<EpochKeys>,
        due: &[&Deletion],
    ) -> Result<HashSet<String>, Failure> {
        let users = due.iter().map(|deletion| deletion.user.as_str()).collect();
        let found = self.partitions.iter().zip(keys);
        let found = found.map(|(partition, keys)| recovery::users_in_flight(partition, keys, &users));
        Ok(try_join_all(found).await?.into_iter().flatten().collect())
    }

    /// Carries one deletion out. `waiting`: the users who have something in flight; if `None`, they are read.
    async fn erase_unless(
        &self,
        waiting: Option<&HashSet<String>>,
        keys: &PerPartition<EpochKeys>,
        deletion: &Deletion,
        now: Timestamp,
    ) -> Result<EraseOutcome, Failure> {
        let mut copied = self.pseudonymise(keys, deletion, now, PseudonymiseMode::Copy).await?;
        if copied == PseudonymiseOutcome::Left {
            // What was settled since the ledger was read looks as if it were not issued. It must be copied
            // before its record is renamed; by now the ledger has it.
            copied = self.pseudonymise(keys, deletion, now, PseudonymiseMode::Copy).await?;
        }
        // Of a coupon that is not loaded Redis counts nothing for any user, and nothing new comes into flight.
        let waits = match waiting {
            Some(waiting) => waiting.contains(deletion.user.as_str()),
            None => !self.in_flight(keys, &[deletion]).await?.is_empty(),
        };
        if waits {
            return Ok(EraseOutcome::InFlight);
        }
        match copied {
            PseudonymiseOutcome::InFlight => return Ok(EraseOutcome::InFlight),
            PseudonymiseOutcome::AnotherEpoch => return Ok(EraseOutcome::Again),
            PseudonymiseOutcome::All | PseudonymiseOutcome::Left => {}
        }
        self.ledger.rename(deletion, now).await?;
        let outdated = self.partitions.iter().zip(keys);
        let outdated = outdated.map(|(partition, keys)| outdate_loads(partition, keys));
        if !try_join_all(outdated).await?.into_iter().all(|is_outdated| is_outdated) {
            return Ok(EraseOutcome::Again);
        }
        match self.pseudonymise(keys, deletion, now, PseudonymiseMode::Move).await? {
            PseudonymiseOutcome::InFlight => return Ok(EraseOutcome::InFlight),
            PseudonymiseOutcome::AnotherEpoch => return Ok(EraseOutcome::Again),
            PseudonymiseOutcome::Left => return Ok(EraseOutcome::Damaged),
            PseudonymiseOutcome::All => {}
        }
        if self.ledger.has_records_of(&deletion.user).await? {
            return Ok(EraseOutcome::Again);
        }
        action::rename(&self.database, &deletion.user, &deletion.pseudonym).await?;
        self.ledger.users().remove_deleted(deletion).await?;
        Ok(EraseOutcome::Done)
    }

    /// Brings the user's issuances under the pseudonym in all partitions. Returns the outcome that says least.
    async fn pseudonymise(
        &self,
        keys: &PerPartition<EpochKeys>,
        deletion: &Deletion,
        now: Timestamp,
        mode: PseudonymiseMode,
    ) -> Result<PseudonymiseOutcome, Failure> {
        let issued = &self.ledger.issued_by_coupon(deletion, now).await?;
        let moved = self.partitions.iter().zip(keys).map(async |(partition, keys)| {
            let loaded = recovery::loaded_coupons(partition, keys).await?;
            pseudonymise(partition, keys, deletion, &loaded, issued, mode).await
        });
        let moved = try_join_all(moved).await?.into_iter().max();
        Ok(moved.unwrap_or(PseudonymiseOutcome::All))
    }
}
