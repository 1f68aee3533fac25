//! What follows a request: polling its outcome, or sending it again. Follow-ups have connections of their own, so
//! that they never delay arrivals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::api::IssuanceBody;
use super::connection::{ExchangeError, RawConnection, RawResponse};
use super::plan::{PlannedRequest, RequestKind};
use super::virtual_users::{FollowMode, LastKnown, VirtualUsers, code};

/// The shortest and the longest pause between two polls, whatever the service says.
const ASK_AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(5);
/// The pause after a poll that met a retryable problem.
const AFTER_PROBLEM: Duration = Duration::from_secs(1);
/// How long an answer is held with [`FollowMode::Wait`].
const WAIT_SECONDS: u64 = 10;

/// One thing to do for one user.
#[derive(Debug, Clone, Copy)]
pub(super) struct FollowUp {
    pub due: Instant,
    pub user: u32,
    pub what: FollowUpKind,
}

/// What a follow-up does.
#[derive(Debug, Clone, Copy)]
pub(super) enum FollowUpKind {
    /// Poll the outcome.
    Ask,
    /// Send the request again.
    TryAgain { click: RequestKind, planned: Instant, tries: u8 },
}

impl Ord for FollowUp {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl PartialOrd for FollowUp {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for FollowUp {}

impl PartialEq for FollowUp {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

/// Queues follow-ups by user, so that one user's stay in order. A user has a handful at most, which bounds all
/// queues.
pub(super) struct FollowUpSender {
    lanes: Vec<UnboundedSender<FollowUp>>,
    pending: Arc<AtomicUsize>,
}

/// The receiving ends, one a connection.
pub(super) struct FollowUpQueues {
    inboxes: Vec<UnboundedReceiver<FollowUp>>,
    pending: Arc<AtomicUsize>,
}

/// Makes one queue a connection.
pub(super) fn lanes(connections: usize) -> (FollowUpSender, FollowUpQueues) {
    let (lanes, inboxes) = (0..connections.max(1)).map(|_| unbounded_channel()).unzip();
    let pending = Arc::<AtomicUsize>::default();
    (FollowUpSender { lanes, pending: Arc::clone(&pending) }, FollowUpQueues { inboxes, pending })
}

impl FollowUpSender {
    /// Queues a follow-up; after the end of the run it is dropped.
    pub fn put(&self, task: FollowUp) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let lane = &self.lanes[task.user as usize % self.lanes.len()];
        if lane.send(task).is_err() {
            // The run is over.
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The running workers, one a connection.
pub(super) struct FollowUpWorkers {
    working: JoinSet<()>,
    pending: Arc<AtomicUsize>,
}

impl FollowUpQueues {
    /// Spawns a worker for each queue; they run until `over` is cancelled.
    pub fn start(
        self,
        people: &Arc<VirtualUsers>,
        answer_max: Duration,
        over: &CancellationToken,
    ) -> FollowUpWorkers {
        let mut working = JoinSet::new();
        for inbox in self.inboxes {
            let lane = FollowUpWorker {
                inbox,
                tasks: BinaryHeap::new(),
                connection: RawConnection::new(Arc::clone(&people.target)),
                request: Vec::new(),
                people: Arc::clone(people),
                answer_max,
                pending: Arc::clone(&self.pending),
            };
            let over = over.clone();
            working.spawn(async move {
                // What is under way changes nothing, or is accounted for as unanswered.
                over.run_until_cancelled(lane.run()).await;
            });
        }
        FollowUpWorkers { working, pending: self.pending }
    }
}

impl FollowUpWorkers {
    /// Follow-ups that are queued or under way.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Waits until every worker has ended.
    pub async fn ended(self) {
        self.working.join_all().await;
    }
}

struct FollowUpWorker {
    inbox: UnboundedReceiver<FollowUp>,
    tasks: BinaryHeap<Reverse<FollowUp>>,
    connection: RawConnection,
    request: Vec<u8>,
    people: Arc<VirtualUsers>,
    answer_max: Duration,
    pending: Arc<AtomicUsize>,
}

impl FollowUpWorker {
    async fn run(mut self) {
        loop {
            while let Ok(task) = self.inbox.try_recv() {
                self.tasks.push(Reverse(task));
            }
            let due = self.tasks.peek().map(|Reverse(task)| task.due);
            let arrived = match due {
                Some(due) if due <= Instant::now() => {
                    if let Some(Reverse(task)) = self.tasks.pop() {
                        self.work(task).await;
                    }
                    continue;
                }
                Some(due) => tokio::time::timeout_at(due.into(), self.inbox.recv()).await,
                None => Ok(self.inbox.recv().await),
            };
            match arrived {
                Ok(Some(task)) => self.tasks.push(Reverse(task)),
                Ok(None) => return,
                Err(_) => {}
            }
        }
    }

    async fn work(&mut self, task: FollowUp) {
        self.request.clear();
        let people = &self.people;
        match task.what {
            FollowUpKind::TryAgain { click, planned, tries } => {
                people.write_request(task.user, &mut self.request);
                // Until it is answered, it is not: the run may end before.
                let before =
                    people.change(task.user, |person| std::mem::replace(&mut person.is_unanswered, true));
                let answer = self.connection.exchange(&self.request, self.answer_max).await;
                if answer.is_ok() {
                    people.change(task.user, |person| person.is_unanswered = before);
                }
                people.take(PlannedRequest { user: task.user, click }, planned, tries, answer);
            }
            FollowUpKind::Ask => {
                let Some(id) = people.person(task.user).id else { return };
                let (wait, within) = match people.follow {
                    FollowMode::Wait => {
                        (format!("?wait={WAIT_SECONDS}"), self.answer_max + Duration::from_secs(WAIT_SECONDS))
                    }
                    _ => (String::new(), self.answer_max),
                };
                people.target.write("GET", &format!("/issuances/{id}{wait}"), "", b"", &mut self.request);
                let answer = self.connection.exchange(&self.request, within).await;
                people.live.polls.one();
                if let PollProgress::Again(after) = asked(people, task.user, answer) {
                    self.tasks.push(Reverse(FollowUp { due: Instant::now() + after, ..task }));
                    return;
                }
            }
        }
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a poll came to.
pub(super) enum PollProgress {
    /// The user knows the outcome, or never will.
    Over,
    /// The outcome is not decided: poll again after this time.
    Again(Duration),
}

/// Records the answer to `GET /issuances/{id}`.
pub(super) fn asked(
    people: &VirtualUsers,
    user: u32,
    answer: Result<RawResponse<'_>, ExchangeError>,
) -> PollProgress {
    let Ok(answer) = answer else { return PollProgress::Again(AFTER_PROBLEM) };
    let wrong = |what: &str| {
        let (user, status) = (people.id(user), answer.status);
        people.live.unexpected(|| format!("{user}: asking for the outcome was answered {status} {what}"));
        PollProgress::Over
    };
    match answer.status {
        200 => {}
        404 => {
            people.decided(user, LastKnown::Lost, "lost: 404 after 202");
            let id = people.person(user).id.map(|id| id.to_string()).unwrap_or_default();
            people.live.lost(|| format!("{id} of {}: 404 after 202", people.id(user)));
            return PollProgress::Over;
        }
        408 | 429 | 503 => return PollProgress::Again(answer.retry_after.unwrap_or(AFTER_PROBLEM)),
        _ => return wrong(""),
    }
    let Ok(issuance) = serde_json::from_slice::<IssuanceBody<'_>>(answer.body) else {
        return wrong("without one");
    };
    match (&*issuance.state, issuance.serial, issuance.problem) {
        ("queued", ..) => {
            let after = Duration::from_millis(issuance.poll_after_ms.unwrap_or(0));
            PollProgress::Again(after.clamp(*ASK_AGAIN.start(), *ASK_AGAIN.end()))
        }
        ("issued", Some(serial), _) => {
            people.decided(user, LastKnown::Issued { serial }, "issued");
            PollProgress::Over
        }
        ("rejected", _, Some(problem)) => match code(&problem.code) {
            Some(code) => {
                people.decided(user, LastKnown::Rejected, code.as_str());
                PollProgress::Over
            }
            None => wrong("with a rejection without a reason"),
        },
        _ => wrong("with an unknown state"),
    }
}
