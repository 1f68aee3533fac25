//! The simulated users: what each sends, and what each was told.

use std::sync::Arc;

use parking_lot::Mutex;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rand::RngExt;

use super::api::{IssuanceBody, ProblemBody};
use super::connection::{ExchangeError, RawResponse};
use super::follow::{FollowUp, FollowUpKind, FollowUpSender};
use super::live::LiveMetrics;
use super::open_loop::Workload;
use super::plan::{PlannedRequest, RequestKind, RequestPlan};
use super::target::LoadTarget;
use crate::http::Code;
use crate::ids::IssuanceId;

/// The most often that one request is tried again.
const RETRIES_MAX: u8 = 20;
/// The pause where the answer has no `retryAfterMs` and no `Retry-After`.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The pause, in milliseconds, of users who ignore `Retry-After`.
const STORM_MS: std::ops::Range<u64> = 10..100;
/// From this long after the opening on, `not-started` is an unexpected answer.
const OPENED_SURELY: Duration = Duration::from_secs(1);

/// What users do after a 429, a 503 or no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryPolicy {
    /// Give up
    None,
    /// Try again after the time in Retry-After
    Patient,
    /// Try again within a tenth of a second, whatever Retry-After says
    Storm,
}

/// How users learn their outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FollowMode {
    /// Poll again after pollAfterMs
    Poll,
    /// Poll with ?wait=, which holds a connection
    Wait,
    /// Poll once, after the run
    None,
}

/// What a user was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LastKnown {
    #[default]
    Nothing,
    Refused(Code),
    Accepted,
    Issued {
        serial: u32,
    },
    Rejected,
    /// 404 after 202.
    Lost,
}

/// One user.
#[derive(Debug, Clone, Copy, Default)]
pub struct VirtualUser {
    /// Of the accepted request.
    pub id: Option<IssuanceId>,
    /// When the request that was accepted was planned.
    pub(super) planned: Option<Instant>,
    pub last_known: LastKnown,
    /// A request of theirs was never answered: it may have been accepted.
    pub is_unanswered: bool,
    /// An answer said that it is accepted, and was no replay: there can be one. It need not be the
    /// first, as answers overtake each other.
    is_told_first: bool,
}

/// All users of one run, and what they share: the target, the plan, the figures.
pub struct VirtualUsers {
    pub(super) target: Arc<LoadTarget>,
    pub plan: RequestPlan,
    pub(super) start: Instant,
    ids: Vec<String>,
    pub(super) coupon: String,
    persons: Vec<Mutex<VirtualUser>>,
    /// The header lines of every request, its own key among them: sending again is the same attempt.
    headers: String,
    retry: RetryPolicy,
    pub(super) follow: FollowMode,
    later: FollowUpSender,
    pub live: LiveMetrics,
}

/// What the users of a run are made from.
pub(super) struct RunSetup {
    pub target: Arc<LoadTarget>,
    pub plan: RequestPlan,
    pub start: Instant,
    pub users: Vec<String>,
    pub coupon: String,
    /// Of this run alone.
    pub key: String,
    pub retry: RetryPolicy,
    pub follow: FollowMode,
}

impl VirtualUsers {
    pub(super) fn new(cast: RunSetup, later: FollowUpSender) -> Self {
        VirtualUsers {
            target: cast.target,
            plan: cast.plan,
            start: cast.start,
            persons: cast.users.iter().map(|_| Mutex::default()).collect(),
            ids: cast.users,
            coupon: cast.coupon,
            headers: format!("idempotency-key: {}\r\n", cast.key),
            retry: cast.retry,
            follow: cast.follow,
            later,
            live: LiveMetrics::default(),
        }
    }

    /// The number of users.
    pub fn count(&self) -> usize {
        self.persons.len()
    }

    /// The id of a user.
    pub fn id(&self, user: u32) -> &str {
        &self.ids[user as usize]
    }

    /// A copy of what this user knows now.
    pub fn person(&self, user: u32) -> VirtualUser {
        *self.persons[user as usize].lock()
    }

    pub(super) fn change<T>(&self, user: u32, change: impl FnOnce(&mut VirtualUser) -> T) -> T {
        change(&mut self.persons[user as usize].lock())
    }

    pub(super) fn write_request(&self, user: u32, request: &mut Vec<u8>) {
        let body = format!(r#"{{"userId":"{}","couponId":"{}"}}"#, self.id(user), self.coupon);
        self.target.write("POST", "/user-coupons", &self.headers, body.as_bytes(), request);
        self.live.sent.one();
    }

    /// Takes the answer to a request in; `tries` is how often it was tried before.
    pub(super) fn take(
        &self,
        visit: PlannedRequest,
        planned: Instant,
        tries: u8,
        answer: Result<RawResponse<'_>, ExchangeError>,
    ) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                self.live.faults.one();
                self.live.answer(fault.as_str());
                if fault.may_have_happened() {
                    self.change(visit.user, |person| person.is_unanswered = true);
                }
                return self.try_again(visit, planned, tries, None);
            }
        };
        match answer.status {
            200..=202 => self.take_accepted(visit, planned, answer),
            _ => self.take_refusal(visit, planned, tries, answer),
        }
    }

    fn take_accepted(&self, visit: PlannedRequest, planned: Instant, answer: RawResponse<'_>) {
        let user = visit.user;
        let issuance = serde_json::from_slice::<IssuanceBody<'_>>(answer.body).ok();
        let parsed = issuance.and_then(|issuance| Some((issuance.id.parse().ok()?, issuance)));
        let Some((id, issuance)) = parsed else {
            return self.unexpected(visit, answer.status, "without an issuance");
        };
        let now = Instant::now();
        if visit.click == RequestKind::Early && now < self.start + self.plan.opening {
            self.unexpected(visit, answer.status, "before the opening");
        }
        let (known, is_told_twice) = self.change(user, |person| {
            let known = person.id;
            if known.is_none() {
                (person.id, person.planned, person.last_known) =
                    (Some(id), Some(planned), LastKnown::Accepted);
            }
            let is_told_twice = !answer.is_replay && person.is_told_first;
            person.is_told_first |= !answer.is_replay;
            (known, is_told_twice)
        });
        if is_told_twice {
            self.unexpected(visit, answer.status, "twice, and not as a replay");
        }
        match known {
            None => {
                self.live.accepted.one();
                if self.live.first_sold_out.get().is_some_and(|at| planned > self.start + at) {
                    self.live.accepted_after_sold_out.one();
                }
                self.live.answer("accepted");
                self.live.accept.record(now - planned);
                self.live.last_accept.last(now - self.start);
                match (&*issuance.state, issuance.serial) {
                    ("issued", Some(serial)) => self.decided(user, LastKnown::Issued { serial }, "issued"),
                    _ if self.follow == FollowMode::None => {}
                    _ => {
                        let after = match self.follow {
                            FollowMode::Wait => Duration::ZERO,
                            _ => Duration::from_millis(issuance.poll_after_ms.unwrap_or(0)),
                        };
                        self.later.put(FollowUp { due: now + after, user, what: FollowUpKind::Ask });
                    }
                }
            }
            Some(known) if known == id => {
                self.live.replayed.one();
                self.live.answer("replayed");
            }
            Some(known) => self.unexpected(visit, answer.status, &format!("with {id} after {known}")),
        }
    }

    fn take_refusal(&self, visit: PlannedRequest, planned: Instant, tries: u8, answer: RawResponse<'_>) {
        let problem = serde_json::from_slice::<ProblemBody<'_>>(answer.body).ok();
        let code = problem.as_ref().and_then(|problem| code(&problem.code));
        let Some(code) = code.filter(|code| code.status().as_u16() == answer.status) else {
            self.live.answer("outside the contract");
            return self.unexpected(visit, answer.status, "without a code of this status");
        };
        let now = Instant::now();
        self.live.answer(code.as_str());
        let is_expected = match code {
            Code::SoldOut => {
                self.live.first_sold_out.first(now - self.start);
                true
            }
            Code::NotStarted => {
                visit.click == RequestKind::Early || now < self.start + self.plan.opening + OPENED_SURELY
            }
            Code::AlreadyIssued | Code::Discarded => true,
            // An operator may do this in the middle of a run.
            Code::Ended | Code::Paused | Code::Archived => true,
            Code::Overloaded
            | Code::RateLimited
            | Code::Unavailable
            | Code::ShareUnreachable
            | Code::WarmingUp
            | Code::Timeout => {
                let after = problem.and_then(|problem| problem.retry_after_ms).map(Duration::from_millis);
                if self.retry != RetryPolicy::None && tries < RETRIES_MAX {
                    return self.try_again(visit, planned, tries, after.or(answer.retry_after));
                }
                true
            }
            _ => false,
        };
        if !is_expected {
            self.unexpected(visit, answer.status, code.as_str());
        }
        self.live.refused.one();
        self.live.refuse.record(now - planned);
        self.change(visit.user, |person| {
            if person.id.is_none() {
                person.last_known = LastKnown::Refused(code);
            }
        });
    }

    fn try_again(&self, visit: PlannedRequest, planned: Instant, tries: u8, after: Option<Duration>) {
        if tries >= RETRIES_MAX {
            return;
        }
        let after = match self.retry {
            RetryPolicy::None => return,
            RetryPolicy::Patient => after.unwrap_or(RETRY_AFTER),
            RetryPolicy::Storm => Duration::from_millis(rand::rng().random_range(STORM_MS)),
        };
        self.live.retries.one();
        let what = FollowUpKind::TryAgain { click: visit.click, planned, tries: tries + 1 };
        self.later.put(FollowUp { due: Instant::now() + after, user: visit.user, what });
    }

    /// A user knows the outcome.
    pub(super) fn decided(&self, user: u32, last_known: LastKnown, name: &'static str) {
        let planned = self.change(user, |person| {
            person.last_known = last_known;
            person.planned
        });
        let now = Instant::now();
        self.live.outcome_of(name);
        match last_known {
            LastKnown::Issued { .. } => self.live.issued.one(),
            LastKnown::Rejected => self.live.rejected.one(),
            _ => {}
        }
        if let Some(planned) = planned.filter(|_| self.follow != FollowMode::None) {
            self.live.outcome.record(now - planned);
            self.live.last_outcome.last(now - self.start);
        }
    }

    fn unexpected(&self, visit: PlannedRequest, status: u16, what: &str) {
        let user = self.id(visit.user);
        self.live
            .unexpected(|| format!("{user}: a request ({:?}) was answered {status} {what}", visit.click));
    }
}

/// The code with this name.
pub(super) fn code(name: &str) -> Option<Code> {
    Code::ALL.iter().copied().find(|code| code.as_str() == name)
}

impl Workload for VirtualUsers {
    fn write(&self, number: usize, request: &mut Vec<u8>) {
        self.write_request(self.plan.visits[number].user, request);
    }

    fn answered(
        &self,
        number: usize,
        planned: Instant,
        sent: Instant,
        answer: Result<RawResponse<'_>, ExchangeError>,
    ) {
        self.live.send.record(sent.saturating_duration_since(planned));
        self.take(self.plan.visits[number], planned, 0, answer);
    }

    fn dropped(&self, _: usize) {
        self.live.dropped.one();
    }
}
