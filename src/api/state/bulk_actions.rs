//! Redriving or discarding all dead letters that match, as one action. It goes on in this process after its request was
//! answered, and the record of operators' actions says how far it is. One runs at a time. Each dead letter is redriven
//! or discarded by itself, so a process that ends in the middle leaves done what is done, and the same action again
//! does the rest.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Failure;
use crate::access::ActionLog;
use crate::access::action::{ActionEnd, ActionId, ActionProgress, ActionSubject};
use crate::http::Problem;
use crate::ids::{IssuanceId, PartitionId};
use crate::issuance::Ledger;
use crate::mongo::now_in_milliseconds;
use crate::queue::dead::{self, BATCH_MAX, DeadLetterFilter, Redriven};
use crate::redis::turn::alone;
use crate::redis::{Partition, Partitions};
use crate::runtime::backoff::Backoff;

/// Dead letters that one action takes at most, the oldest: their ids are held in memory.
const LETTERS_MAX: usize = 1_000_000;
/// How long the turn of a process that was killed keeps others out.
const TURN: Duration = Duration::from_secs(30);
/// An action rests this many times as long as each batch took, so that it takes a fifth of the time, and issuing goes
/// on; and never longer than the maximum.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(2);
/// How often it is recorded how far an action is.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How long an action tries again while nothing of a batch can be done, and how often while some of it cannot.
const PATIENCE: Duration = Duration::from_secs(60);
const ATTEMPTS_MAX: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is done to the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BulkVerb {
    Redrive,
    Discard,
}

/// Starts the actions, and waits for them when the process ends. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BulkActions {
    pub partitions: Partitions,
    pub ledger: Ledger,
    pub actions: ActionLog,
    /// Ends every action after its batch.
    pub stopping: CancellationToken,
    pub running: TaskTracker,
}

impl BulkActions {
    /// Starts the action that is recorded under `id`, and from then on records its progress and its end. Returns
    /// whether it was started: it is not while another one is running.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails; nothing was done then.
    pub async fn start(
        &self,
        id: ActionId,
        verb: BulkVerb,
        filter: DeadLetterFilter,
    ) -> Result<bool, Failure> {
        let (started, is_started) = oneshot::channel();
        let action = BulkAction { of: self.clone(), id, verb };
        let task = self.running.spawn(async move {
            let partitions = action.of.partitions.clone();
            let done = alone(&partitions, |keys| keys.dead_letter_turn(), TURN, async {
                let (letters, progress, unavailable) = action.begin(&filter).await?;
                // A caller who went away has begun the action all the same.
                let _ = started.send(());
                Ok(action.run(letters, progress).await.and_then(|()| all_were_asked(&unavailable)))
            });
            // Only then does it say that it has ended: the next one can begin.
            match done.await? {
                Some(ended) => action.end(ended).await,
                None => return Ok(false),
            }
            Ok(true)
        });
        if is_started.await.is_ok() {
            return Ok(true);
        }
        match task.await {
            Ok(is_started) => is_started,
            Err(source) => Err(Failure::Panicked { operation: "start an action on dead letters", source }),
        }
    }

    /// Waits until every action has ended.
    pub async fn finish(self, drained: CancellationToken) {
        drained.cancelled().await;
        self.running.close();
        self.running.wait().await;
    }
}

/// A dead letter, and the partition that it lies in.
type PlacedLetter = (PartitionId, IssuanceId);

/// An action while it is being done.
struct BulkAction {
    of: BulkActions,
    id: ActionId,
    verb: BulkVerb,
}

impl BulkAction {
    /// Finds the dead letters that match, the oldest first, and records how many there are. Returns the partitions too
    /// that did not answer.
    async fn begin(
        &self,
        filter: &DeadLetterFilter,
    ) -> Result<(Vec<PlacedLetter>, ActionProgress, Vec<PartitionId>), Failure> {
        let partition = |partition, _| partition;
        let found = dead::search(&self.of.partitions, filter, None, LETTERS_MAX, partition).await?;
        let letters: Vec<_> = found.oldest.into_iter().map(|((_, id), partition)| (partition, id)).collect();
        let matched = letters.len() as u64;
        let progress = ActionProgress { at: now_in_milliseconds(), matched, done: 0, failed: 0 };
        self.of.actions.progress(self.id, progress).await?;
        Ok((letters, progress, found.unavailable))
    }

    /// Does it to all of them, partition by partition, and records how far it is. Returns how it ended. Those of a
    /// partition that fails stay as they are, and the others have their turn.
    async fn run(&self, letters: Vec<PlacedLetter>, mut progress: ActionProgress) -> Result<(), Failure> {
        let mut ended = Ok(());
        // The search found them in partitions that this process knows.
        let (groups, _) = self.of.partitions.group(letters, |(partition, _)| *partition);
        for (partition, letters) in groups {
            let letters: Vec<IssuanceId> = letters.into_iter().map(|(_, id)| id).collect();
            if let Err(failure) = self.do_all(partition, &letters, &mut progress).await {
                let (partition, error) = (partition.id(), failure.chain());
                tracing::warn!(action = %self.id, %partition, error, "the dead letters of a partition stay");
                ended = Err(failure);
            }
            if self.of.stopping.is_cancelled() {
                break;
            }
        }
        self.record(&mut progress).await;
        let ActionProgress { matched, done, failed, .. } = progress;
        tracing::info!(action = %self.id, verb = ?self.verb, matched, done, failed, "an action on dead letters ended");
        if done + failed == matched { Ok(()) } else { ended }
    }

    /// Does it to those of one partition.
    async fn do_all(
        &self,
        partition: &Partition,
        letters: &[IssuanceId],
        progress: &mut ActionProgress,
    ) -> Result<(), Failure> {
        let mut recorded = Instant::now();
        for batch in letters.chunks(BATCH_MAX) {
            let began = Instant::now();
            self.do_batch(partition, batch, progress).await?;
            if recorded.elapsed() >= RECORD_EVERY {
                self.record(progress).await;
                recorded = Instant::now();
            }
            let rest = (began.elapsed() * REST).min(REST_MAX);
            if self.of.stopping.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                return Err(Failure::Stale {
                    operation: "go on with an action on dead letters",
                    why: "this process is being stopped".into(),
                });
            }
        }
        Ok(())
    }

    /// Does it to a batch. What cannot be done to one of them alone is counted as failed.
    async fn do_batch(
        &self,
        partition: &Partition,
        batch: &[IssuanceId],
        progress: &mut ActionProgress,
    ) -> Result<(), Failure> {
        let mut left = batch.to_vec();
        let (began, mut backoff) = (Instant::now(), Backoff::new(FIRST_PAUSE, LONGEST_PAUSE));
        for attempt in 1.. {
            let (mut unclear, mut why) = (Vec::new(), None);
            match self.call(partition, &left).await {
                Ok(answers) => {
                    for (id, answer) in left.iter().zip(answers) {
                        match answer {
                            Ok(()) => progress.done += 1,
                            Err(failure) if failure.is_of_one() => self.failed(*id, &failure, progress),
                            Err(failure) => {
                                unclear.push(*id);
                                why = Some(failure);
                            }
                        }
                    }
                }
                Err(failure) => {
                    unclear = left;
                    why = Some(failure);
                }
            }
            let Some(why) = why else { return Ok(()) };
            if unclear.len() < batch.len() && attempt >= ATTEMPTS_MAX {
                unclear.iter().for_each(|id| self.failed(*id, &why, progress));
                return Ok(());
            }
            if self.of.stopping.is_cancelled() || began.elapsed() > PATIENCE {
                return Err(why);
            }
            left = unclear;
            backoff.wait(&self.of.stopping).await;
        }
        Ok(())
    }

    /// Does it to these, and answers for each.
    async fn call(
        &self,
        partition: &Partition,
        ids: &[IssuanceId],
    ) -> Result<Vec<Result<(), Failure>>, Failure> {
        Ok(match self.verb {
            BulkVerb::Discard => {
                let answers = dead::discard_all(partition, &self.of.ledger, ids).await?;
                answers.into_iter().map(|answer| answer.map(drop)).collect()
            }
            BulkVerb::Redrive => {
                let answers = dead::redrive_all(partition, ids).await?.into_iter().zip(ids);
                let answer = |(answer, id): (Redriven, &IssuanceId)| match answer {
                    Redriven::Now | Redriven::NoDeadLetter => Ok(()),
                    Redriven::Unreadable => Err(dead::unreadable(*id)),
                };
                answers.map(answer).collect()
            }
        })
    }

    fn failed(&self, id: IssuanceId, why: &Failure, progress: &mut ActionProgress) {
        progress.failed += 1;
        tracing::warn!(action = %self.id, issuance = %id, error = why.chain(), "a dead letter stays one");
    }

    async fn record(&self, progress: &mut ActionProgress) {
        progress.at = now_in_milliseconds();
        if let Err(failure) = self.of.actions.progress(self.id, *progress).await {
            tracing::warn!(action = %self.id, error = failure.chain(), "how far it is could not be recorded");
        }
    }

    async fn end(&self, ended: Result<(), Failure>) {
        let at = now_in_milliseconds();
        let ended = match ended {
            Ok(()) => ActionEnd { at, status: 200, code: None, location: None },
            Err(failure) => {
                let code = Problem::from(failure).code;
                let (status, code) = (code.status().as_u16(), Some(code.as_str().to_owned()));
                ActionEnd { at, status, code, location: None }
            }
        };
        if let Err(failure) = self.of.actions.end(self.id, ended, ActionSubject::AsBegun).await {
            tracing::error!(action = %self.id, error = failure.chain(), "the end of an action could not be recorded");
        }
    }
}

/// A failure if some partitions did not answer when the action began: what was set aside there stays.
fn all_were_asked(unavailable: &[PartitionId]) -> Result<(), Failure> {
    if unavailable.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = unavailable.iter().map(ToString::to_string).collect();
    let why = format!("partitions {} do not answer", named.join(", "));
    Err(Failure::Stale { operation: "reach the dead letters of every partition", why })
}
